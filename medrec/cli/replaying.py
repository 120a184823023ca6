"""The command that makes a case again."""

from pathlib import Path
from typing import Annotated

import typer

from medrec.cli.common import HomeOption


def replay(
    case: Annotated[str, typer.Argument(help="The case's key, or its beginning.", metavar="CASE")],
    input: Annotated[
        Path,
        typer.Option("--input", envvar="MEDREC_INPUT", help="Folder that holds its DICOM files, under any names."),
    ],
    home: HomeOption = None,
) -> None:
    """Make a case again from its inputs and compare stage by stage; names the first stage that differs."""
    from medrec.cli.common import open_store
    from medrec.errors import DataError
    from medrec.replay import replay

    place, store = open_store(home)
    with store:
        try:
            place.check_input(input)
            done = replay(case, input, place, store)
        except DataError as error:
            typer.echo(str(error))
            raise typer.Exit(1) from None
    for stage in done.stages:
        typer.echo(str(stage))
    if not done.agrees:
        typer.echo(f"case {done.case}: the replay differs; the first stage that does is {done.first_difference}")
        raise typer.Exit(1)
    how = "bit for bit" if done.exact else "within the stated tolerances (another environment than the recorded one)"
    typer.echo(f"case {done.case}: the replay agrees, {how}")
