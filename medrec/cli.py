"""What people type. Only typer and rich are imported here; a command imports what it needs when it runs.

Exit codes: 0 all accounted for, 1 something failed for a reason of ours, 2 a mistake in the command or configuration.
"""

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from medrec.night import Request, Summary

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Nightly DICOM batches to auditable tumour-detection reports. Research use; not a medical device.",
)
audit = typer.Typer(no_args_is_help=True, help="Check that nothing was changed since it was written.")
app.add_typer(audit, name="audit")
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


def main() -> None:
    """Entry point: turns our errors into words and exit codes."""
    os.umask(0o077)
    from medrec.errors import AlreadyRunningError, ConfigError, DataError, MedrecError

    try:
        app()
    except ConfigError as error:
        _complain("This cannot start; please mend:", error.problems)
        sys.exit(2)
    except (DataError, AlreadyRunningError) as error:
        _complain(str(error))
        sys.exit(2)
    except MedrecError as error:
        _complain(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        _complain("stopped; what was finished stays, the next night goes on from there")
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        from medrec import __version__

        typer.echo(f"medrec {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
) -> None:
    pass


@app.command()
def nightly(
    input: Annotated[Path, typer.Option("--input", help="Folder of DICOM files; any names, any nesting.")],
    home: HomeOption = None,
    config: ConfigOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")] = False,
    reanalyse: Annotated[
        bool, typer.Option("--reanalyse", help="Also studies that an earlier version of a model has analysed.")
    ] = False,
) -> None:
    """Analyse every new study below a folder and leave one report for each."""
    with _stdout_kept(json) as print_json:
        request = _request(input, home, config, reanalyse)
        summary = _run_nightly(request)
        if json:
            print_json(summary.to_json())
        else:
            _show(summary, request)
    raise typer.Exit(summary.exit_code)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where the phantom studies and the home go.")] = Path(
        "medrec-demo"
    ),
) -> None:
    """Make phantom studies with known lesions, run a real night on them, and compare."""
    from medrec import demonstration

    studies, home = folder.absolute() / "studies", folder.absolute() / "home"
    known = demonstration.make(studies)
    _say(f"1  made {len(known)} phantom studies in {studies}")
    request = _request(studies, home, None, False)
    _say(f"2  running the nightly flow, home {home}")
    summary = _run_nightly(request)
    rows = demonstration.compare(known, summary, home)
    _table("Known against measured", demonstration.HEADER, [list(row.cells()) for row in rows])
    _say(f"Reports: {request.home.reports}")
    _say(f"Open the reports in MLflow with\n\n    medrec ui --home {shlex.quote(str(home))}\n")
    raise typer.Exit(0 if all(row.right for row in rows) and summary.exit_code == 0 else 1)


@app.command()
def ui(
    home: HomeOption = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 5000,
) -> None:
    """Open the reports: start MLflow's server on 127.0.0.1."""
    from medrec.home import Home
    from medrec.server import serve

    serve(Home(home or Home.default()), port, _say)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Folder of DICOM files, or one file.", metavar="DIR|FILE")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the NIfTI files.")],
    gzip: Annotated[bool, typer.Option("--gzip", help="Write .nii.gz: smaller, slower.")] = False,
) -> None:
    """Write each volume as NIfTI, with rescaled values, and say what could not be written and why."""
    from medrec.conversion import convert

    done = convert(source, output, gzip=gzip)
    for name in done.written:
        typer.echo(name)
    for problem in done.problems:
        out.print(problem, markup=False, highlight=False, soft_wrap=True)
    out.print(f"{_counted(done.files)}; {len(done.written)} volumes written")


@app.command()
def inspect(
    source: Annotated[Path, typer.Argument(help="Folder of DICOM files, or one file.", metavar="DIR|FILE")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")] = False,
) -> None:
    """Say what a folder holds: every file, every series, usable or the reason why not."""
    from dataclasses import asdict

    from medrec.conversion import inspect

    with _stdout_kept(json) as print_json:
        inventory = inspect(source)
        if json:
            from json import dumps

            print_json(dumps(asdict(inventory), indent=1, allow_nan=False))
            return
        rows = [
            [
                f"{f.study}.{f.series}",
                f.modality,
                f.kind,
                str(f.files),
                " x ".join(map(str, f.size)),
                " x ".join(f"{s:g}" for s in f.spacing_mm) if f.spacing_mm else "",
                f.orientation or "",
                f.transfer_syntax,
                "; ".join(filter(None, (f.reason, f.detail, f.part))),
            ]
            for f in inventory.found
        ]
        header = ("study.series", "modality", "kind", "files", "pixels", "mm", "axes", "transfer syntax", "reason")
        _table("Series", header, rows)
        for reason, count in inventory.refused.items():
            out.print(f"{count} refused: {reason}", highlight=False)
        out.print(_counted(inventory.files))


@app.command()
def doctor() -> None:
    """Decode a tiny sample of each transfer syntax and say which decoders work here."""
    from medrec.dicom.selftest import check

    rows = list(check())
    _table("Transfer syntaxes", ("name", "decoder"), [[name, problem or "works"] for name, problem in rows])
    raise typer.Exit(1 if any(problem for _, problem in rows) else 0)


@audit.command("verify")
def verify(home: HomeOption = None) -> None:
    """Hash the ledger's chain and every file that it names again; name what does not match."""
    import hashlib
    from functools import cache

    from medrec.errors import ConfigError
    from medrec.home import Home
    from medrec.store import Store

    place = Home(home or Home.default())
    if not place.holds_store():
        raise ConfigError([f"--home: there is no store at {place.root}: nothing to verify, or it was taken away"])

    @cache  # all cases of one model name the same weights
    def digest(relative: str) -> str | None:
        path = place.root / relative
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with Store.open(place.store_url) as store:
        problems = [str(p) for p in store.verify(digest)]
        known = {c.case for c in store.cases()}
        records = sum(1 for _ in store.ledger())
        head = store.head()
    for folder in sorted(place.reports.glob("[!.]*")):
        if folder.name not in known:
            problems.append(f"report of case {folder.name}: the ledger knows nothing of it")
    for problem in problems:
        typer.echo(problem)
    if problems:
        typer.echo(f"{len(problems)} problem(s) in {records} records: this home is not as it was written")
        raise typer.Exit(1)
    typer.echo(f"{records} records, every file as it was written; head {head}")


def _request(input: Path, home: Path | None, config: Path | None, reanalyse: bool) -> "Request":
    """Everything that can be wrong with command and configuration, all of it at once."""
    from medrec import config as configuration
    from medrec.errors import ConfigError
    from medrec.home import Home
    from medrec.night import Request

    problems: list[str] = []
    place = Home(home or Home.default())
    loaded = None
    try:
        loaded = configuration.load(config)
    except ConfigError as error:
        problems += error.problems
    for check in (place.check, lambda: place.check_input(input)):
        try:
            check()
        except ConfigError as error:
            problems += error.problems
    if problems or loaded is None:
        raise ConfigError(problems)
    return Request(input, place, loaded, reanalyse)


def _run_nightly(request: "Request") -> "Summary":
    from importlib.metadata import entry_points

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # Flows are found by name, so that no room of medrec imports Prefect.
    (flow,) = entry_points(group="medrec.flows", name="nightly")
    run = flow.load()
    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out) as bar:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        summary: Summary = run(request, progress)
    return summary


def _show(summary: "Summary", request: "Request") -> None:
    rows = [
        [c.study[:8], c.status, c.verdict or c.reason, f"{c.seconds:.1f}" if c.seconds else "", c.case]
        for c in summary.cases
    ]
    _table(f"Night {summary.batch}", ("study", "status", "verdict or reason", "s", "case"), rows)
    _say(f"{len(summary.cases)} studies: {summary.outcome}")
    reasons: dict[str, int] = {}
    for refusal in summary.refusals:
        name = (refusal["reason"] or "").split(":")[0]
        reasons[name] = reasons.get(name, 0) + 1
    files = summary.files
    out.print(
        f"{files['seen']} files: {files['analysed']} analysed, {files['unused']} unused (no model asks for them), "
        f"{files['refused']} refused"
        + (f" ({', '.join(f'{n} {r}' for r, n in sorted(reasons.items()))})" if reasons else "")
    )
    for warning in summary.warnings:
        _say(warning)
    _say(f"reports: {request.home.reports}/<case>/report.html")
    _say(f"in MLflow: medrec ui --home {shlex.quote(str(request.home.root))}")


def _counted(files: dict[str, int]) -> str:
    rest = ", ".join(f"{count} {name}" for name, count in files.items() if name != "seen")
    return f"{files['seen']} files: {rest}"


def _table(title: str, header: tuple[str, ...], rows: list[list[str]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(*header, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    out.print(table)


def _say(text: str) -> None:
    """Print as it stands: a path may hold what rich would take for markup."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def _complain(text: str, details: tuple[str, ...] = ()) -> None:
    from rich.markup import escape

    out.print(f"[bold red]medrec:[/] {escape(text)}", soft_wrap=True)
    for detail in details:
        out.print(f"  - {escape(detail)}", soft_wrap=True)


@contextmanager
def _stdout_kept(wanted: bool) -> Iterator[Callable[[str], None]]:
    """With --json, stdout is ours alone: libraries and child processes that write to it reach stderr."""
    if not wanted:
        yield typer.echo
        return
    sys.stdout.flush()
    kept = os.dup(1)
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
