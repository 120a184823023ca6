"""The commands that speak to a PACS: receive, pull, deliver, recall, and what is negotiated."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medrec.cli.common import ConfigOption, HomeOption, open_store, out, say, table

if TYPE_CHECKING:
    from medrec.config import Settings
    from medrec.home import Home


def receive(
    home: HomeOption = None,
    config: ConfigOption = None,
    once: Annotated[bool, typer.Option("--once", help="End when the first studies are complete.")] = False,
) -> None:
    """Listen for studies that a scanner or PACS sends (C-STORE), until stopped; a night reads what is complete."""
    import signal
    import threading

    from medrec.errors import ConfigError
    from medrec.sources.intake import spool_of
    from medrec.sources.receiver import receive

    place, settings = _settings(home, config)
    if settings.intake is None or settings.intake.receive is None:
        raise ConfigError(["medrec.yaml: intake.receive is not there: who may send, and where it goes"])
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        say(text)

    def stopped(seconds: float) -> bool:
        return stop.wait(seconds) or (once and len(told) > 1)

    handed = receive(settings.intake.receive, spool_of(place, settings.intake), tell, stopped)
    say(f"stopped; {handed} studies were handed over")


def pull(
    home: HomeOption = None,
    config: ConfigOption = None,
    first: Annotated[str | None, typer.Option("--from", help="First day of the studies, YYYY-MM-DD.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last day; default today.")] = None,
    modality: Annotated[str | None, typer.Option(help="Instead of the configured one.")] = None,
    description: Annotated[str | None, typer.Option(help="Of a series; may hold * and ?.")] = None,
) -> None:
    """Bring studies from a PACS into the intake folder; goes on where it was stopped."""
    from datetime import date

    from medrec.errors import ConfigError
    from medrec.sources import intake

    place, settings = _settings(home, config)
    if settings.intake is None or settings.intake.pull is None:
        raise ConfigError(["medrec.yaml: intake.pull is not there: which PACS is asked, and where it goes"])
    today = date.today()
    usual = intake.question(settings.intake.pull, today)
    wanted = replace(
        usual,
        first_date=_day(first, "--from") if first else usual.first_date,
        last_date=_day(last, "--to") if last else usual.last_date,
        modality=modality or usual.modality,
        description=usual.description if description is None else description,
    )
    done = intake.fill(place, settings.intake, settings.peers, wanted, today, lambda number, total: None)
    for problem in done.problems:
        say(problem)
    say(f"{done.complete} of {done.studies} studies complete; {done.received} images here, {done.expected} expected")
    raise typer.Exit(0 if done.complete == done.studies else 1)


def deliver(
    home: HomeOption = None,
    config: ConfigOption = None,
    retry: Annotated[bool, typer.Option("--retry", help="Also what was given up.")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Only say where each delivery stands.")] = False,
) -> None:
    """Bring results to the configured destinations, as far as their release rules allow."""
    from medrec import dispatch
    from medrec.store import State, Store

    place, settings = _settings(home, config)
    place.create()
    with Store.open(place.store_url) as store:
        if list_only:
            rows = store.deliveries()
        else:
            with place.lock():
                done = dispatch.deliver(store, place, settings.peers, settings.destinations, _now, retry=retry)
            rows = done.rows
            for problem in done.problems:
                say(problem)
    cells = [[r.case[:12], r.destination, r.kind, r.state, r.why or r.warnings, str(r.attempts)] for r in rows]
    table("Deliveries", ("case", "to", "what", "state", "why", "tries"), cells)
    raise typer.Exit(1 if any(r.state in (State.FAILED, State.HELD) for r in rows) else 0)


def recall(
    model: Annotated[str, typer.Argument(help="Name of a card.")],
    since: Annotated[str, typer.Option("--since", help="First day, YYYY-MM-DD.")],
    reject: Annotated[
        Literal["quality", "safety"] | None, typer.Option(help="Take every one of them back, for this reason.")
    ] = None,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """List every report of a model since a day; with --reject take each back, also where it was sent."""
    from datetime import date

    from medrec import dispatch
    from medrec.errors import ConfigError
    from medrec.store import Store

    place, settings = _settings(home, config)
    if not place.holds_store():
        raise ConfigError([f"--home: there is no store at {place.root}: nothing to recall"])
    since = f"{date.fromisoformat(_day(since, '--since')):%Y-%m-%d}"
    with Store.open(place.store_url) as store, place.lock():
        known = sorted({row.model for row in store.cases() if row.model})
        if model not in known:  # a misspelt name must not read as "nothing to take back"
            raise ConfigError([f"MODEL: no report here was made by {model}; there are reports by {', '.join(known)}"])
        found = dispatch.recall(store, place, model, since, reject, _now)
        if reject is not None:
            done = dispatch.deliver(store, place, settings.peers, settings.destinations, _now)
            found = dispatch.recall(store, place, model, since, None, _now)
            for problem in done.problems:
                say(problem)
    for a in found:
        where = f"sent to {', '.join(a.sent)}" if a.sent else "not sent"
        typer.echo(f"{a.case}  study {a.study[:8]}  {a.version}  {a.finished_at}  {a.verdict}  {where}  {a.standing}")
    out.print(f"{len(found)} reports; {sum(bool(a.sent) for a in found)} of them were sent")


def match(
    case: Annotated[str, typer.Argument(help="The later case's key.")],
    lesion: Annotated[int, typer.Argument(help="Number of the lesion in its report.", min=1)],
    reason: Annotated[str, typer.Option("--reason", help="Why; goes into the ledger.")],
    same_as: Annotated[
        tuple[str, int] | None, typer.Option("--same-as", metavar="CASE LESION", help="The earlier one.")
    ] = None,
    lift: Annotated[bool, typer.Option("--lift", help="Take the match of this lesion back.")] = False,
    by: Annotated[str | None, typer.Option("--by", help="Who says so; default who is logged in.")] = None,
    home: HomeOption = None,
) -> None:
    """Say that a lesion is known from an earlier case: what is planned or accepted later carries its tracking UID."""
    from medrec import dispatch, privacy
    from medrec.errors import ConfigError
    from medrec.store import Lesion

    if (same_as is None) != lift or not reason.strip():
        raise ConfigError(["match: wanted either --same-as CASE LESION or --lift, and a --reason in words"])
    place, store = open_store(home)
    one, who = Lesion(case, lesion), (by or "").strip() or privacy.operator()
    with store, place.lock():
        if same_as is None:
            store.lift_match(one, who, reason, _now())
            say(f"{one} stands for itself again")
            return
        dispatch.match(store, place, one, Lesion(*same_as), who, reason, _now())
        say(f"{one} is tracked as {store.origin(one)}, in whatever of it is planned or accepted from now on")


def conformance() -> None:
    """Print the DICOM conformance statement: what is negotiated, from the code that negotiates it."""
    from medrec.network.conformance import statement

    typer.echo(statement(), nl=False)


def _settings(home: Path | None, config: Path | None) -> "tuple[Home, Settings]":
    from medrec import config as configuration
    from medrec.home import Home

    return Home(home or Home.default()), configuration.load(config).settings


def _day(text: str, option: str) -> str:
    """YYYY-MM-DD as YYYYMMDD. Raises ConfigError."""
    from datetime import date

    from medrec.errors import ConfigError

    try:
        return f"{date.fromisoformat(text):%Y%m%d}"
    except ValueError:
        raise ConfigError([f"{option}: wanted a day such as 2026-01-31, got {text!r}"]) from None


def _now() -> str:
    from datetime import UTC, datetime

    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
