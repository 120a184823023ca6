"""The command by which medrec looks at itself."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from medrec.cli.common import ConfigOption, HomeOption, open_store, say


def monitor(
    home: HomeOption = None,
    config: ConfigOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")] = False,
) -> None:
    """Look whether what comes in or goes out changed, and whether all that is checked holds; exit code 1 if not."""
    from medrec import config as configuration
    from medrec import watching

    loaded = configuration.load(config)
    place, store = open_store(home)
    with store:
        found = watching.look(place, store, loaded, datetime.now(UTC))
    if json:
        typer.echo(found.to_json())
        raise typer.Exit(found.exit_code)
    for words in found.alarms:
        say(f"changed: {words}")
    for name, problems in found.checks.items():
        for problem in problems:
            say(f"look: {name}: {problem}")
    watched = f"{found.streams} numbers are watched, {found.learnt} of them learnt"
    say(f"{found.studies} studies; {watched}; the highest evidence is {found.highest:.1%} of an alarm")
    if found.told:
        say(f"look: {found.told}")
    raise typer.Exit(found.exit_code)
