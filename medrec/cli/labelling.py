"""The data scientist's commands about labels: studies made known, what people said of them, and what is in force."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medrec.cli.common import ConfigOption, HomeOption, counted, open_store, progress_bar, say, stdout_kept, table

if TYPE_CHECKING:
    from medrec.config import Configuration
    from medrec.home import Home
    from medrec.labels import Origin
    from medrec.labels.adding import Added, Answer
    from medrec.pictures import Card
    from medrec.store import Label, LabelRequest, Store

SHOWN = 20  # refusals of one reason on a terminal; --json has all
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]


def ingest(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of DICOM files; any names, any nesting.")],
    card: Annotated[
        list[str] | None,
        typer.Option("--card", help="A YAML card of your own, not trained yet. Default: every configured card."),
    ] = None,
    home: HomeOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Make studies known, without analysing them, so that they can be labelled."""
    from medrec import config as configuration
    from medrec.home import Home
    from medrec.labels.ingest import ingest

    place = Home(home or Home.default())
    cards = _cards(card, configuration.load(config))
    place.check_input(folder)
    place.create()
    with stdout_kept(json) as print_json, _labelling(place) as store:
        with progress_bar() as progress:
            done = ingest(folder, place, store, cards, _now(), progress)
        place.remember_input(folder)
        if json:
            from dataclasses import asdict
            from json import dumps

            print_json(dumps(asdict(done), indent=1))
            return
    say(counted(done.files))
    for reason, count in sorted(done.reasons.items()):
        say(f"{count} refused: {reason}")
    by_card = ", ".join(f"{count} for {name}" for name, count in sorted(done.cards.items()))
    say(f"{done.studies} studies; {done.images} images known ({by_card or 'none'}), {done.new} of them new")
    if not done.images:
        say(f"no card takes any of them: {', '.join(c.name for c in cards)}; name another one with --card")


def add(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file, or a folder of them; see README, Labels.")],
    by: Annotated[str, typer.Option("--by", help="Who made these labels; goes into the ledger.")],
    origin: Annotated[
        str, typer.Option("--origin", help="blind (no model's answer was seen), edited-AI, or accepted-AI.")
    ],
    card: Annotated[
        list[str] | None, typer.Option("--card", help="For which model; needed where several take the image.")
    ] = None,
    segment: Annotated[
        list[str] | None,
        typer.Option("--segment", help="Number or name of what counts where a mask holds several, or all."),
    ] = None,
    nothing_there: Annotated[
        bool, typer.Option("--nothing-there", help="An empty mask says that nothing is there.")
    ] = False,
    names: Annotated[
        Path | None, typer.Option("--table", help="CSV whose rows say of what each file is, by a column of UIDs.")
    ] = None,
    home: HomeOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Take labels: DICOM SEG, RTSTRUCT, NIfTI, PNG, CSV of classes, folders of nnU-Net and MSD."""
    from medrec import config as configuration
    from medrec.errors import ConfigError
    from medrec.labels.adding import Wish, add

    place, store = open_store(home)
    problems: list[str] = []
    try:
        cards = _cards(card, configuration.load(config))
    except ConfigError as error:
        problems += error.problems
    if (kind := _origin(origin)) is None:
        problems.append(f"--origin: {origin!r} is none of blind, edited-AI and accepted-AI")
    if problems or kind is None:
        store.close()
        raise ConfigError(problems)
    store.close()
    wish = Wish(by, kind, _now(), cards, tuple(segment or ()), nothing_there, names)
    with stdout_kept(json) as print_json, _labelling(place) as store:
        with progress_bar() as progress:
            done = add(path, place, store, wish, progress)
        if json:
            print_json(_as_json(done))
        else:
            _tell(done)
    raise typer.Exit(1 if done.refused else 0)


def show(
    card: Annotated[str | None, typer.Option("--card", help="Of one model only.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that were superseded, or given since.")] = False,
    wanted: Annotated[bool, typer.Option("--wanted", help="Labels that are asked for: by reviews, by chance.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """The labels in force: of what, by whom, how they were made; or those that are asked for."""
    _, store = open_store(home)
    if wanted:
        with store:
            _show_wanted([w for w in store.wanted(answered=every) if card in (None, w.card)], json)
        return
    with store:
        found = store.labels(card, superseded=every)
    if json:
        from json import dumps

        typer.echo(dumps([_facts(label) for label in found], indent=1))
        return
    rows = [
        [x.label[:8], x.card, x.image[:8], _says(x), x.origin.value, _plain(x.by), x.at[:10], _state(x)] for x in found
    ]
    table("Labels", ("label", "card", "image", "says", "origin", "by", "at", "superseded by"), rows)
    kinds = {(x.card, x.what, x.origin.value): 0 for x in found if x.superseded_by is None}
    for x in found:
        if x.superseded_by is None:
            kinds[x.card, x.what, x.origin.value] += 1
    for (name, what, kind), count in sorted(kinds.items()):
        say(f"{name}: {count} in force, {what}, {kind}")


def suggest(
    count: Annotated[int, typer.Argument(metavar="N", help="How many.", min=1)],
    card: Annotated[
        str | None, typer.Option("--card", help="For which model; needed where several have cases.")
    ] = None,
    blind: Annotated[
        bool, typer.Option("--blind", help="Also locked patients: for who labels without sight of a model's answer.")
    ] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """What to label next: where networks disagree, and what is unlike all that is labelled; one of a patient."""
    from medrec.labels.suggesting import suggest

    _, store = open_store(home)
    with store:
        found = suggest(store, card or _only_model(store), count, blind=blind)
    if json:
        from dataclasses import asdict
        from json import dumps

        typer.echo(dumps(asdict(found), indent=1))
        return
    rows = [
        [s.chosen.candidate.case, s.study[:8], "locked: blind labels only" if s.locked else "", "; ".join(s.chosen.why)]
        for s in found.suggested
    ]
    table(f"To label next for {found.card}", ("case", "study", "", "because"), rows)
    say(
        f"of {found.candidates} cases without a label; {found.labelled} are labelled; whose they are: medrec whois CASE"
    )
    if found.left_out:
        say(f"{found.left_out} cases are from before numbers were kept of each, and left out")


def _only_model(store: "Store") -> str:
    from medrec.errors import ConfigError

    models = sorted({row.model for row in store.cases() if row.model is not None})
    if len(models) == 1:
        return models[0]
    raise ConfigError([f"--card: name one of {', '.join(models)}" if models else "--card: no model has a case here"])


def _show_wanted(wanted: "list[LabelRequest]", json: bool) -> None:
    if json:
        from dataclasses import asdict
        from json import dumps

        typer.echo(dumps([asdict(one) for one in wanted], indent=1))
        return
    rows = [[w.case[:12], w.study[:8], w.card, w.wants, w.why, _plain(w.by), w.at[:10]] for w in wanted]
    table("Wanted labels", ("case", "study", "card", "origin", "why", "by", "at"), rows)


def _cards(wanted: list[str] | None, configured: "Configuration") -> "tuple[Card, ...]":
    from medrec import drafts
    from medrec.errors import ConfigError

    if not wanted:
        return tuple(model.card for model in configured.cards)
    found: list[Card] = []
    problems: list[str] = []
    for one in wanted:
        try:
            found.append(drafts.read(one, configured))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError([f"--card: {problem}" for problem in problems])
    return tuple(found)


def _origin(text: str) -> "Origin | None":
    from medrec.labels import Origin

    return next((o for o in Origin if o.value.casefold() == text.casefold()), None)


@contextmanager
def _labelling(place: "Home") -> "Iterator[Store]":
    """The store, while nobody is taken away or renamed."""
    from medrec.store import Store

    with place.lock("labelling"), Store.open(place.store_url) as store:
        if store.latest("key rotated") is not None:
            from medrec import privacy  # and MLflow, which takes a second

            privacy.settle(place, store)
        yield store


def _tell(done: "Added") -> None:
    """For the terminal of who added them: nothing else learns what the files are called."""
    for answer in done.added:
        if answer.note:
            say(f"{_plain(answer.name)}: {answer.note}")
    shown: dict[str, int] = {}
    for answer in done.refused:
        shown[answer.refused] = shown.get(answer.refused, 0) + 1
        if shown[answer.refused] <= SHOWN:
            say(f"refused: {_plain(answer.name)}: {answer.refused}")
    for why, count in shown.items():
        if count > SHOWN:
            say(f"and {count - SHOWN} more: {why}")
    say(
        f"{len(done.added)} labels added, {done.already} in force already, {len(done.refused)} refused"
        + (f", {done.unused} files are none" if done.unused else "")
    )


def _as_json(done: "Added") -> str:
    from json import dumps

    def facts(answer: "Answer") -> dict[str, Any]:
        assert answer.label is not None
        return _facts(answer.label) | ({"note": answer.note} if answer.note else {})

    told = {
        "added": [facts(a) for a in done.added],
        "already": done.already,
        "refused": [{"sha256": a.sha256, "reason": a.refused} for a in done.refused],
        "unused": done.unused,
    }
    return dumps(told, indent=1)


def _facts(label: "Label") -> dict[str, Any]:
    names = ("label", "card", "patient", "study", "image", "what", "mask_sha256", "by", "at", "source_sha256")
    facts = {name: getattr(label, name) for name in names}
    return facts | {
        "classes": dict(label.classes),
        "origin": label.origin.value,
        "superseded_by": label.superseded_by,
    }


def _says(label: "Label") -> str:
    return ", ".join(map(_plain, label.classes.values())) or label.what


def _state(label: "Label") -> str:
    return "" if label.superseded_by is None else label.superseded_by[:8]


def _plain(text: str) -> str:
    """What a file or person is called may hold control characters that would steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
