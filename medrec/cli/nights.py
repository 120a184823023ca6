"""The operator's commands: a night, and the demo that shows one."""

import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medrec.cli.common import ConfigOption, HomeOption, out, progress_bar, say, stdout_kept, table

if TYPE_CHECKING:
    from medrec.accounts import Summary
    from medrec.night import Request


UntilOption = Annotated[
    str | None,
    typer.Option("--until", metavar="HH:MM", help="Begin no study after this time of day; the others wait."),
]


def nightly(
    input: Annotated[
        Path | None,
        typer.Option(
            "--input", help="Folder of DICOM files; any names, any nesting. Default: the intake of medrec.yaml."
        ),
    ] = None,
    home: HomeOption = None,
    config: ConfigOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")] = False,
    reanalyse: Annotated[
        bool, typer.Option("--reanalyse", help="Also studies that an earlier version of a model has analysed.")
    ] = False,
    until: UntilOption = None,
) -> None:
    """Analyse every new study below a folder and leave one report for each."""
    with stdout_kept(json) as print_json:
        request = request_of(input, home, config, reanalyse, until)
        code = run_and_tell(request, print_json if json else None)
    raise typer.Exit(code)


def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where the phantom studies and the home go.")] = Path(
        "medrec-demo"
    ),
) -> None:
    """Make phantom studies with known lesions, run a real night on them, and compare."""
    from medrec import demonstration

    studies, home = folder.absolute() / "studies", folder.absolute() / "home"
    known = demonstration.make(studies)
    say(f"1  made {len(known)} phantom studies in {studies}")
    request = request_of(studies, home, None, False)
    say(f"2  running the nightly flow, home {home}")
    summary = run_nightly(request)
    rows = demonstration.compare(known, summary, home)
    table("Known against measured", demonstration.HEADER, [list(row.cells()) for row in rows])
    say(f"Reports: {request.home.reports}")
    say(f"Open the reports in MLflow with\n\n    medrec ui --home {shlex.quote(str(home))}\n")
    raise typer.Exit(0 if all(row.right for row in rows) and summary.exit_code == 0 else 1)


def request_of(
    input: Path | None, home: Path | None, config: Path | None, reanalyse: bool, until: str | None = None
) -> "Request":
    """Everything that can be wrong with command and configuration, all of it at once."""
    from medrec import config as configuration
    from medrec.errors import ConfigError
    from medrec.home import Home
    from medrec.night import Request
    from medrec.pace import Window

    problems: list[str] = []
    place = Home(home or Home.default())
    loaded = window = None
    try:
        window = Window.closing_at(until, datetime.now(UTC)) if until is not None else None
    except ValueError:
        problems.append(f"--until: {until} is no time of day; wanted one like 06:00")
    try:
        loaded = configuration.load(config)
    except ConfigError as error:
        problems += error.problems
    if input is None and loaded is not None and loaded.settings.schedule is not None:
        input = loaded.settings.schedule.input
    intake = loaded.settings.intake if loaded is not None and input is None else None
    if input is None and loaded is not None and intake is None:
        problems.append("--input: name a folder, or an intake or a schedule with an input in medrec.yaml")
    for check in (place.check, lambda: place.check_input(input) if input is not None else None):
        try:
            check()
        except ConfigError as error:
            problems += error.problems
    if problems or loaded is None:
        raise ConfigError(problems)
    if intake is not None:
        from medrec.sources.intake import spool_of

        spool = spool_of(place, intake)
        spool.create()
        input = spool.studies
    assert input is not None
    return Request(input, place, loaded, reanalyse, intake is not None and intake.pull is not None, window)


def run_nightly(request: "Request") -> "Summary":
    """Run a night with progress bars."""
    from importlib.metadata import entry_points

    # Flows are found by name, so that no room of medrec imports Prefect.
    (flow,) = entry_points(group="medrec.flows", name="nightly")
    run = flow.load()
    with progress_bar() as progress:
        summary: Summary = run(request, progress)
    return summary


def run_and_tell(request: "Request", print_json: Callable[[str], None] | None) -> int:
    """Run a night, say what it did, in JSON where that is wanted, and return its exit code."""
    summary = run_nightly(request)
    if print_json is not None:
        print_json(summary.to_json())
    else:
        show(summary, request)
    return summary.exit_code


def show(summary: "Summary", request: "Request") -> None:
    """Say what a night did."""
    rows = [
        [c.study[:8], c.status, c.verdict or c.reason, f"{c.seconds:.1f}" if c.seconds else "", c.case]
        for c in summary.cases
    ]
    table(f"Night {summary.batch}", ("study", "status", "verdict or reason", "s", "case"), rows)
    say(f"{len(summary.cases)} studies: {summary.outcome}")
    reasons: dict[str, int] = {}
    for refusal in summary.refusals:
        name = (refusal["reason"] or "").split(":")[0]
        reasons[name] = reasons.get(name, 0) + 1
    files = summary.files
    out.print(
        f"{files['seen']} files: {files['analysed']} analysed, {files['unused']} unused (no model asks for them), "
        f"{files['refused']} refused"
        + (f", {files['waiting']} waiting" if "waiting" in files else "")
        + (f" ({', '.join(f'{n} {r}' for r, n in sorted(reasons.items()))})" if reasons else "")
    )
    if summary.deliveries:
        say("deliveries: " + ", ".join(f"{count} {state}" for state, count in summary.deliveries.items()))
    if summary.reviews:
        say("reviews: " + ", ".join(f"{count} {state}" for state, count in summary.reviews.items()))
    if summary.slowest:
        say(summary.slowest)
    for warning in summary.warnings:
        say(warning)
    say(f"reports: {request.home.reports}/<case>/report.html")
    say(f"in MLflow: medrec ui --home {shlex.quote(str(request.home.root))}")
