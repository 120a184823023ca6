"""What all commands share: options, the console, and how they speak to people and to programs."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from medrec.home import Home
    from medrec.store import Store

out = Console(stderr=True)

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", help="Folder that holds everything; default MEDREC_HOME, or your data folder.", show_default=False
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", envvar="MEDREC_CONFIG", help="Folder whose medrec.yaml and models/*.yaml override ours."),
]


def open_store(home: Path | None) -> "tuple[Home, Store]":
    """A home that is there, and its store. Raises ConfigError when there is none: opening would make an empty one."""
    from medrec.errors import ConfigError
    from medrec.home import Home
    from medrec.store import Store

    place = Home(home or Home.default())
    if not place.holds_store():
        raise ConfigError([f"--home: there is no store at {place.root}: nothing to work on, or it was taken away"])
    return place, Store.open(place.store_url)


def counted(files: dict[str, int]) -> str:
    """How many files there are, and where they went."""
    rest = ", ".join(f"{count} {name}" for name, count in files.items() if name != "seen")
    return f"{files['seen']} files: {rest}"


def table(title: str, header: tuple[str, ...], rows: list[list[str]]) -> None:
    """Print a table; cells hold no markup, and are folded, never cut: a key that lacks its end finds nothing."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    out.print(table)


@contextmanager
def progress_bar() -> "Iterator[Callable[[str, int, int], None]]":
    """A bar for each thing that is done, with how long it will still take."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield progress


def say(text: str) -> None:
    """Print as it stands: a path may hold what rich would take for markup."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def complain(text: str, details: tuple[str, ...] = ()) -> None:
    """Say what went wrong, and each of the mistakes."""
    from rich.markup import escape

    out.print(f"[bold red]medrec:[/] {escape(text)}", soft_wrap=True)
    for detail in details:
        out.print(f"  - {escape(detail)}", soft_wrap=True)


@contextmanager
def stdout_kept(wanted: bool) -> Iterator[Callable[[str], None]]:
    """With --json, stdout is ours alone: libraries and child processes that write to it reach stderr."""
    if not wanted:
        yield typer.echo
        return
    try:
        kept = os.dup(1)
    except OSError:
        from medrec.errors import ConfigError

        raise ConfigError(["--json: standard output is closed; there is nowhere to write to"]) from None
    sys.stdout.flush()
    os.dup2(2, 1)

    def emit(text: str) -> None:
        with os.fdopen(os.dup(kept), "w", encoding="utf-8") as stream:
            stream.write(text + "\n")

    try:
        yield emit
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
