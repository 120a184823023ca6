"""The operator's commands around nights: how things stand, nights by themselves, reports made again."""

import os
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medrec.cli.common import ConfigOption, HomeOption, open_store, say, stdout_kept, table

if TYPE_CHECKING:
    from medrec.backfill import Behind
    from medrec.standing import Standing


def status(
    home: HomeOption = None,
    config: ConfigOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")] = False,
) -> None:
    """Say how things stand; the exit code is 1 when a night is overdue."""
    from medrec import config as configuration
    from medrec import standing

    settings = configuration.load(config).settings
    place, store = open_store(home)
    with store:
        found = standing.standing(place, store, settings, datetime.now(UTC))
    if json:
        typer.echo(found.to_json())
    else:
        _show(found)
    raise typer.Exit(found.exit_code)


def serve(
    home: HomeOption = None,
    config: ConfigOption = None,
    port: Annotated[int, typer.Option(help="Of Prefect's pages, on 127.0.0.1.", min=1, max=65535)] = 4200,
) -> None:
    """Begin nights by the schedule in medrec.yaml, until stopped."""
    from medrec import config as configuration
    from medrec.home import Home

    (flow,) = entry_points(group="medrec.flows", name="serve")
    flow.load()(Home(home or Home.default()), configuration.load(config), config, port, say)


def restore_reports(home: HomeOption = None, config: ConfigOption = None) -> None:
    """Bring reports, masks, cards and weights that the home lost back from the depot."""
    from medrec import config as configuration
    from medrec.depot import Depot, restore
    from medrec.errors import ConfigError

    url = configuration.load(config).settings.depot
    if url is None:
        raise ConfigError(["medrec.yaml: depot is not there: where from?"])
    place, store = open_store(home)
    with store:
        back, lost = restore(place, store, Depot(url))
    say(f"{back} files brought back")
    for path in lost:
        say(f"not there either: {path}")
    raise typer.Exit(1 if lost else 0)


def pools() -> None:
    """Make the work pools and queues of a Prefect server (PREFECT_API_URL) that several workers share."""
    from medrec.errors import ConfigError

    if not os.environ.get("PREFECT_API_URL"):
        raise ConfigError(["PREFECT_API_URL is not set: which Prefect server?"])
    (flow,) = entry_points(group="medrec.flows", name="pools")
    flow.load()()
    say("pools cpu and gpu, each with the queues urgent, nightly and backfill, in this order")


def backfill(
    since: Annotated[str, typer.Option("--since", help="Reports finished since this day, YYYY-MM-DD.")],
    input: Annotated[Path | None, typer.Option("--input", help="The archive; default as for a night.")] = None,
    home: HomeOption = None,
    config: ConfigOption = None,
    model: Annotated[str | None, typer.Option(help="Of this model only.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many studies; default from medrec.yaml.", min=1)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")] = False,
) -> None:
    """Make reports of earlier versions of a model again with the one that is configured; the old ones stay."""
    from medrec import backfill as backfilling
    from medrec.cli.nights import request_of, run_and_tell

    with stdout_kept(json) as print_json:
        request = request_of(input, home, config, False)
        _, store = open_store(home)
        with store:
            found = backfilling.asked(store, request.configuration, since, model, limit)
        if dry_run:
            _list(found)
            raise typer.Exit(0)
        if not found:
            say("nothing is behind")
            raise typer.Exit(0)
        request = backfilling.again(request, found, datetime.now(UTC))
        code = run_and_tell(request, print_json if json else None)
    raise typer.Exit(code)


def _list(found: "tuple[Behind, ...]") -> None:
    rows = [[b.row.case, b.row.study[:8], b.row.model or "", b.row.version or "", b.now] for b in found]
    table(f"{len(found)} studies would be made again", ("case", "study", "model", "made by", "now"), rows)


def _show(found: "Standing") -> None:
    for text in found.overdue:
        say(f"OVERDUE: {text}")
    for text in found.warnings:
        say(f"look: {text}")
    say("a night is running now" if found.running else f"next night: {found.next_night or 'not scheduled'}")
    rows = [[n.started_at, n.finished_at or "", str(n.studies), n.outcome] for n in found.nights]
    table("Last nights", ("began", "ended", "studies", "outcome"), rows)
    counts = {"waiting for the next night": found.waiting, "failed": len(found.failed), "to MLflow": found.to_mlflow}
    say("; ".join(f"{what}: {count}" for what, count in counts.items()))
    if found.deliveries:
        say("deliveries: " + ", ".join(f"{count} {state}" for state, count in sorted(found.deliveries.items())))
    if found.reviews:
        say("reviews: " + ", ".join(f"{count} {state}" for state, count in found.reviews.items()))
    if found.overdue_reviews:
        say("overdue: " + ", ".join(case[:12] for case in found.overdue_reviews[:20]))
    if found.workers:
        say("at work: " + ", ".join(f"{worker} ({count})" for worker, count in sorted(found.workers.items())))
    say(f"last new study: {found.newest_study or 'none yet'}")
    say(f"ledger: {found.ledger_records} records, head {found.ledger_head[:16]}…")
    say(f"disk: {found.disk_free_bytes / 2**30:.1f} of {found.disk_bytes / 2**30:.1f} GiB free")
