"""The reviewer's commands: MLflow's pages over a home, and answers to reports."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from medrec.cli.common import ConfigOption, HomeOption, open_store, say, table

if TYPE_CHECKING:
    from medrec.answers import Synced
    from medrec.home import Home
    from medrec.reviewing import Taken
    from medrec.store import Store

KeyOption = Annotated[
    Path | None, typer.Option("--key", envvar="MEDREC_KEY", help="Your private key; without it the answer is a claim.")
]
PATIENCE_S = 30.0


class Answering(TyperGroup):
    """`medrec review CASE …` beside `medrec review sync`: what is no command is a case."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # typer has a click of its own, or the other one
        """Read a case's key as the command that answers to it."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["case", *args]
        return super().resolve_command(ctx, args)


def ui(
    home: HomeOption = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 5000,
) -> None:
    """Open the reports: start MLflow's server on 127.0.0.1."""
    from medrec.home import Home
    from medrec.server import serve

    serve(Home(home or Home.default()), port, say)


def answer(
    case: Annotated[str, typer.Argument(metavar="CASE", help="The case's key.")],
    decision: Annotated[Literal["accept", "reject", "edit"], typer.Argument(help="What you decided.")],
    by: Annotated[str, typer.Option("--by", help="Your name, as people: in medrec.yaml has it.")],
    comment: Annotated[str, typer.Option("--comment", help="For the store; no names of patients.")] = "",
    mask: Annotated[
        Path | None, typer.Option("--mask", help="With edit: what should be marked, as NIfTI, SEG or PNG.")
    ] = None,
    segment: Annotated[list[str] | None, typer.Option("--segment", help="Which of several in it count.")] = None,
    key: KeyOption = None,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Answer to a report: medrec review CASE accept|reject|edit --by NAME --key FILE."""
    from medrec import config as configuration
    from medrec import registry, reviewing
    from medrec.answers import utc_now
    from medrec.signing import Signer
    from medrec.store import Decision

    signer = Signer.load(by, key) if key is not None else None
    loaded = configuration.load(config)
    place, store = open_store(home)
    said = reviewing.Answer(case, Decision(decision), by, utc_now(), comment, mask, tuple(segment or ()))
    with store, ExitStack() as held:
        if mask is not None:
            held.enter_context(place.lock("labelling", PATIENCE_S))
            loaded, _ = registry.in_force(loaded, place, store)
        taken = reviewing.review(said, place, store, loaded, signer)
        _tell(taken, place, store)


def sync(home: HomeOption = None, config: ConfigOption = None) -> None:
    """Read answers back from MLflow's tags, and do what was signed; every night does it too."""
    from medrec import answers
    from medrec import config as configuration

    settings = configuration.load(config).settings
    place, store = open_store(home)
    with store, place.lock():
        _told(answers.sync_by_itself(place, store, settings))


def show(
    conflicts: Annotated[bool, typer.Option("--conflicts", help="Only where somebody should look.")] = False,
    overdue: Annotated[bool, typer.Option("--overdue", help="Only those on which nobody decided in time.")] = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Where the reports in force stand with their reviewers."""
    from datetime import UTC, datetime

    from medrec import config as configuration
    from medrec import reviewing

    _, store = open_store(home)
    with store:
        states = store.review_states()
        late = reviewing.overdue(store, configuration.load(config).settings, datetime.now(UTC)) if overdue else ()
        cases = (
            tuple(one.case for one in late)
            if overdue
            else tuple(dict.fromkeys((*(row.case for row in store.in_force()), *states)))
        )
        found = store.review_states(cases)
    rows = [
        [s.case, s.word, "signed" if s.signed else "claimed" if s.by or s.at else "", s.by, s.at[:10], s.conflict]
        for s in found.values()
        if s.conflict or not conflicts
    ]
    table("Reviews", ("case", "answer", "", "by", "at", "conflict"), rows)


def make_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the private key goes; default NAME.key, here.")
    ] = None,
) -> None:
    """Make a person's key, and say what goes into medrec.yaml. The private half is that person's alone."""
    import json
    import re

    from medrec import signing
    from medrec.errors import ConfigError
    from medrec.people import name_problem

    if why := name_problem(name):
        raise ConfigError([f"NAME: {why}"])
    path = output or Path(re.sub(r"[^\w.-]+", "_", name) + ".key")
    signing.make_key(path)
    line = signing.public_text(signing.load_private(path, "NAME", signing.REVIEW_KEY))
    say(f"private key: {path}; keep it to yourself. Into medrec.yaml, with the roles that are meant:")
    typer.echo(f"people:\n  - {{name: {json.dumps(name, ensure_ascii=False)}, key: {line}, roles: [reviewer]}}")


def enrol(
    by: Annotated[str, typer.Option("--by", help="An operator of medrec.yaml.")],
    key: Annotated[Path, typer.Option("--key", envvar="MEDREC_KEY", help="The operator's private key.")],
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Put the people of medrec.yaml on record; once there is an operator, nothing else changes them."""
    from medrec import config as configuration
    from medrec import reviewing
    from medrec.answers import utc_now
    from medrec.signing import Signer

    signer, settings = Signer.load(by, key), configuration.load(config).settings
    _, store = open_store(home)
    with store:
        changed = reviewing.enrol(store, settings, signer, utc_now())
    say(f"{len(settings.people)} people are on record" + (", signed" if changed else " already"))


def _tell(taken: "Taken | None", place: "Home", store: "Store") -> None:
    from medrec import dispatch
    from medrec.answers import utc_now
    from medrec.errors import AlreadyRunningError
    from medrec.store import Decision

    if taken is None:
        say("that was claimed already")
        return
    row = taken.row
    state = store.review_states((row.case,))[row.case]
    say(f"case {row.case}: {state.shown}")
    if taken.label is not None:
        say("your mask is a label, edited-AI")
    if taken.wanted is not None:
        say("a label is wanted for it: medrec labels list --wanted")
    sent = sorted({d.destination for d in store.deliveries(case=row.case) if d.kind == "results" and d.attempts})
    if row.signed and row.decision is Decision.EDIT and sent:
        say(f"it was sent to {', '.join(sent)}, and stays there; reject takes it back")
    if row.signed and row.decision is Decision.REJECT:
        try:
            with place.lock():
                dispatch.take_back(store, place, row.case, "quality", utc_now)
            say("taken back for good: medrec deliver, or the next night, tells whom it was sent to")
        except AlreadyRunningError:
            say("taken back for good; the night that runs now, or the next, tells whom it was sent to")


def _told(done: "Synced") -> None:
    for problem in done.problems:
        say(problem)
    say(f"{done.claimed} new answers from MLflow, {done.drawn} cases set aside for blind labels")
    if done.counts:
        say("reviews: " + ", ".join(f"{count} {state}" for state, count in done.counts.items()))
    for case in done.conflicts:
        say(f"in conflict: {case}")
