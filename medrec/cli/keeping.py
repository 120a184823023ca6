"""The commands that put a home away and take it back."""

from pathlib import Path
from typing import Annotated

import typer

from medrec.cli.common import HomeOption


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new tar file; it holds the key, keep it as safe.")],
    home: HomeOption = None,
) -> None:
    """Put a home away in one file, databases and key included."""
    from medrec import keeping
    from medrec.cli.common import open_store

    place, store = open_store(home)
    store.close()
    typer.echo(f"{file}: everything up to head {keeping.backup(place, file)}")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A backup of medrec.")], home: HomeOption = None
) -> None:
    """Make a home of a backup, and verify it."""
    from medrec import keeping
    from medrec.home import Home

    place = Home(home or Home.default())
    typer.echo(f"{place.root}: restored and verified, head {keeping.restore(file, place)}")


def upgrade(home: HomeOption = None) -> None:
    """Bring the home of an earlier release up to this one; a copy of it as it was stays beside it."""
    from medrec import keeping
    from medrec.errors import ConfigError
    from medrec.home import Home

    place = Home(home or Home.default())
    if not place.holds_store():
        raise ConfigError([f"--home: there is no store at {place.root}"])
    for line in keeping.upgrade(place):
        typer.echo(line)
