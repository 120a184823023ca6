"""One retraining: labels -> sides -> networks -> the locked patients -> the gate -> a version that may be promoted.

Owns `Retraining` and `Outcome`. Knows nothing of Prefect: a flow calls the steps in their order. Invariants: what was
declared is on record before anything is trained; nobody who is locked is ever learnt from; a use of the locked patients
is on record before its answer is known, and the same card on the same data is never asked twice; a killed retraining
goes on where it was; nothing is promoted here unless the configuration says so in so many words.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from medrec import delivery, drafts, environment, labels, likeness, privacy, splits
from medrec.config import CardFiles, Configuration, unaccepted_licence
from medrec.declared import Gate, looser
from medrec.dicom import Pseudonyms
from medrec.errors import ConfigError, DataError, WorldError
from medrec.gate import Scores, budget
from medrec.home import Home
from medrec.labels import Origin
from medrec.learning import ablation, material, page, tasks
from medrec.learning.material import Item
from medrec.pictures import Card
from medrec.registry import Kept, Registry
from medrec.splits import Candidate, Side
from medrec.store import Store
from medrec.store.locks import DECLARED, USED
from medrec.tracking import Tracker

KEY_DIGITS = 24
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asked for: `card` is a YAML file or the name of a configured model.

    `inputs` are the folders with the labelled images, those that the home remembers where there are none. With
    `if_new_labels` nothing happens before so many labels came since the last training of this model.
    """

    card: str
    home: Home
    configuration: Configuration
    by: str
    inputs: tuple[Path, ...] = ()
    if_new_labels: int | None = None


@dataclass(slots=True)
class Outcome:
    """What came of it: `lines` for people, in the order in which things were found."""

    model: str
    version: str = ""
    card: str = ""
    status: str = ""
    eligible: bool = False
    lines: list[str] = field(default_factory=list)
    mlflow_run_id: str | None = None

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), indent=1, allow_nan=False)


class Retraining:
    """A retraining in progress; a context manager. Nights go on beside it, another retraining does not."""

    def __init__(self, request: Request, tell: Callable[[str], None] = lambda text: None) -> None:
        self._request = request
        self._tell = tell
        self._home = request.home
        self.draft = drafts.read(request.card, request.configuration)
        self.outcome = Outcome(self.draft.name)
        self._items: list[Item] = []
        self._sides: dict[str, Side] = {}
        self._work = self._home.training

    def __enter__(self) -> "Retraining":
        self._home.create()
        if not self._request.by.strip():
            raise ConfigError(["--by: say who asks for this training"])
        self._lock = self._home.lock("training")
        self._lock.__enter__()
        try:
            self._store = Store.open(self._home.store_url)
            privacy.settle(self._home, self._store)
            privacy.check_key(self._home, self._store)
            self._registry = Registry(self._home, self._store, self._request.configuration.cards)
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.close()
        self._lock.__exit__(None, None, None)

    def is_due(self) -> bool:
        """Whether enough labels came since the model was last trained here; always, when nobody asked."""
        wanted = self._request.if_new_labels
        if wanted is None:
            return True
        trained = [n for n, r in self._store.of_kinds("model trained") if r.facts.get("model") == self.draft.name]
        since = trained[-1] if trained else 0
        new = sum(
            n > since and r.facts.get("card") == self.draft.name and r.facts.get("origin") != Origin.ACCEPTED_AI
            for n, r in self._store.of_kinds("label")
        )
        if new < wanted:
            self.outcome.status = "waiting"
            self._say(f"{new} new labels since the last training, {wanted} are waited for")
        return new >= wanted

    def gather(self, progress: Progress = lambda what, done, total: None) -> None:
        """Read every labelled image: whose it is, what it looks like. Raises DataError when there is nothing."""
        self._declare()
        self._wanted = material.Wanted.of(self._store, self.draft)
        total = len({*self._wanted.masks, *self._wanted.classes})
        problems: list[str] = []
        for item, _ in material.read(self.draft, self._sources(), problems):
            self._items.append(item)
            progress("images", len(self._items), max(total, len(self._items)))
        accepted = sum(x.origin is Origin.ACCEPTED_AI for x in labels.current(self._store, self.draft.name))
        if accepted:
            self._say(f"{accepted} labels are a model's answers that somebody accepted: never learnt from")
        for problem in dict.fromkeys(problems):
            self._say(problem)
        if not self._items:
            raise DataError(
                f"there is nothing to learn {self.draft.name} from: {total} labels, none of whose images is below the "
                "input folders; add labels (medrec labels add), or name the folder (--input)"
            )

    def divide(self) -> None:
        """Find who is the same person, give everybody a side, and keep it."""
        same = self._shared()
        patients = sorted({i.patient for i in self._items})
        known = self._store.sides()
        every = {*patients, *known, *(p for pair in same for p in pair)}
        group_of = splits.groups(sorted(every), same)
        members: dict[str, list[str]] = {}
        for patient, group in sorted(group_of.items()):
            members.setdefault(group, []).append(patient[:8])
        for together in (m for m in members.values() if len(m) > 1):
            self._say(f"patients {' and '.join(together)} share an image: they stand on one side")
        for group in splits.conflicts(group_of, known):
            both = ", ".join(members[group])
            self._say(f"{both} are one person on both sides: neither learnt from nor tested on any more")
        draw = Pseudonyms.load(self._home.key)
        seen = self._seen_by_champion()
        strata = material.strata(self._items)
        candidates = [
            Candidate(
                p,
                strata[p],
                all(i.blind for i in self._items if i.patient == p),
                any(set(i.digests) & seen for i in self._items if i.patient == p),
            )
            for p in patients
        ]
        share = self.draft.split.test
        self._sides = splits.assign(candidates, group_of, known, share, lambda g: draw.of("side", g))
        self._store.divide(self.draft.name, self._sides, self._request.by, self._now())
        self._sides = {**self._sides, **{p: s for p, s in self._store.sides().items() if p in self._sides}}
        counts = {s: sum(v is s for v in self._sides.values()) for s in Side}
        learnt, locked, apart = counts[Side.TRAINING], counts[Side.TEST], counts[Side.APART]
        self._say(f"{learnt} patients to learn from, {locked} locked, {apart} apart")
        if not learnt:
            raise DataError("there is nobody to learn from: every labelled patient is locked")

    def train(self, progress: Progress = lambda what, done, total: None) -> None:
        """Fit the card's networks; goes on where a killed training of the same card on the same data stopped."""
        learnt = [i for i in self._items if self._sides[i.patient] is Side.TRAINING]
        locked = {d for i in self._items if self._sides[i.patient] is not Side.TRAINING for d in i.digests}
        if taken := sum(bool(set(i.digests) & locked) for i in learnt):
            raise DataError(f"{taken} images to learn from are also a locked patient's: this training does not start")
        draw = Pseudonyms.load(self._home.key)
        strata = material.strata(learnt)
        own = [(p, strata[p]) for p in sorted(strata)]
        watching = splits.watching(own, self.draft.split.validation, lambda p: draw.of("watching", p))
        self._learnt, self._watching = frozenset(i.image for i in learnt), watching
        data, recipe = self._data_digest(learnt), drafts.recipe(self.draft)
        key = hashlib.sha256(f"{recipe} {data} {sorted(watching)}".encode()).hexdigest()[:KEY_DIGITS]
        self._work = self._home.training / key
        earlier = self._trained_before(data, recipe)
        self._kept = self._fit(learnt, progress) if earlier is None else earlier
        self.card = self._kept.card
        self.outcome.version, self.outcome.card = self.card.version, self.card.digest
        what = f"{self.card.name} {self.card.version}"
        if earlier is not None:
            self._say(f"{what} was trained by this card on these data before")
            return
        facts = {
            "card": self.card.digest,
            "weights": self.card.weights_digest,
            "model": self.card.name,
            "version": self.card.version,
            "licence": self.card.licence,
            "data": data,
            "recipe": recipe,
            "environment": environment.digest(),
            "by": self._request.by,
        }
        self._store.append("model trained", self._now(), facts)
        self._say(f"{what} is trained: {self.card.digest[:12]}…")

    def _fit(self, learnt: list[Item], progress: Progress) -> Kept:
        """Train the draft's networks, and keep card and weights."""
        card = self._next_version()
        if self.draft.gate is not None:
            asked, _, why = self._asked(self.draft.gate, card, self._champion())
            if not asked:
                self._say(f"what is trained now cannot be promoted: {'; '.join(why)}")
        self._work.mkdir(exist_ok=True, mode=0o700)

        def heard(name: str, step: int, steps: int, left_s: float) -> None:
            progress(name.removesuffix(".safetensors"), step, steps)

        task = tasks.Task(card, self._sources(), self._request.configuration.settings.device)
        finished = task.train(self._learnt, self._watching, self._work, heard)
        trained_on = tuple(sorted({d for i in learnt for d in i.digests}))
        card = finished.model_copy(update={"trained_on": trained_on, "measured": ()})
        return self._registry.put(card, {n.weights: self._work / n.weights for n in card.networks.values()})

    def adopt(self, reference: str) -> None:
        """Take a version that is there already instead of training one: a bundle that came in, for the gate."""
        version = self._registry.find(reference)
        self._kept = self._registry.load(version.name, version.card)
        self.card = self._kept.card
        if self._kept.folder is None:
            raise DataError(
                f"{version.name} {version.version} is packaged with medrec, and in force until another passed"
            )
        self._learnt, self._watching = frozenset[str](), frozenset[str]()
        self.outcome.version, self.outcome.card = self.card.version, self.card.digest

    def evaluate(self, progress: Progress = lambda what, done, total: None) -> None:
        """Ask the gate, once: the same card is never measured on the locked patients again."""
        gate = self.card.gate
        assert self._kept.folder is not None
        done = self._kept.folder / "evaluation.json"
        if "model evaluated" in self._kinds():
            self.outcome.eligible, self.outcome.status = "model eligible" in self._kinds(), "already done"
            self._say("this version was measured on the locked patients before; nothing was spent")
            self.outcome.lines += json.loads(done.read_text())["lines"] if done.is_file() else []
            return
        if gate is None:
            self.outcome.status = "trained"
            self._say("the card declares no gate: nothing was measured on locked patients, and it cannot be promoted")
            return
        old = self._champion()
        asked, used, why = self._asked(gate, self.card, old)
        for line in why:
            self._say(line)
        if not asked:
            self.outcome.status = "not evaluated"
            self._say("nothing was spent; the present model stays")
            return
        used = self._use(gate, asked, used)
        images = frozenset(i.image for i in self._items if i.patient in asked and i.blind)
        device = self._request.configuration.settings.device
        task = tasks.Task(self.card, self._sources(), device)
        answers = task.answers(self._kept.weights, images, progress)
        theirs: Scores | None = None
        if old is not None:
            theirs = tasks.Task(old.card, self._sources(), device).scores(old.weights, images)
        self._record(tasks.evaluate(task, self._kept.weights, gate, theirs, used, images, answers), done)

    def _champion(self) -> Kept | None:
        found = self._registry.champion(self.draft.name)
        return None if found is None else self._registry.load(found.name, found.card)

    def _asked(self, gate: Gate, card: Card, old: Kept | None) -> tuple[tuple[str, ...], int, list[str]]:
        """The locked patients who decide (nobody when too few do), how often they were used before, who does not."""
        seen = set(card.trained_on) | set(() if old is None else old.card.trained_on)
        test = [i for i in self._items if self._sides[i.patient] is Side.TEST and i.blind]
        known = {i.patient for i in test if set(i.digests) & seen}
        why = [f"{len(known)} locked patients are known to one of the models: they do not count"] if known else []
        used, gone = budget(self._store.uses(card.name, besides=card.digest), gate)
        names = self._store.keyed({i.patient for i in test} - known)
        asked = tuple(sorted(p for p, name in names.items() if name not in gone))
        if spent := len(names) - len(asked):
            planned = f"{gate.uses} uses, alpha {gate.alpha:g}, were planned"
            why.append(f"{spent} locked patients are used up ({planned}): they do not count any more")
        if len(asked) >= gate.minimum_patients:
            return asked, used, why
        return (), used, [*why, f"{len(asked)} locked patients count, the card asks for {gate.minimum_patients}"]

    def describe(self) -> None:
        """Write the version's page, with short trainings of its own, once."""
        folder = self._kept.folder
        if folder is None or (folder / "page.html").is_file():
            return
        path = folder / "evaluation.json"
        evaluation = json.loads(path.read_text()) if path.is_file() else None
        side = Side.TEST if evaluation is not None else Side.TRAINING  # who is locked is looked at only once measured
        images = frozenset(i.image for i in self._items if self._sides[i.patient] is side)
        task = tasks.Task(self.card, self._sources(), self._request.configuration.settings.device)
        trials = ablation.trials(task, self._learnt, self._watching)
        page.write(task, self._kept.weights, images, trials, evaluation, folder)
        self._say("its page: card.md and page.html beside its weights, and in MLflow")

    def close(self) -> Outcome:
        """Copy the training to MLflow, and say what may be done next."""
        if self.outcome.card:
            if self.outcome.eligible and "model promoted" not in self._kinds():
                self._offer()
            self._track()
        if self._work != self._home.training:
            shutil.rmtree(self._work, ignore_errors=True)
        return self.outcome

    def _offer(self) -> None:
        self._say(f"medrec models promote {self.outcome.card[:12]} --by NAME --reason WHY puts it in force")
        settings = self._request.configuration.settings
        if why := unaccepted_licence(self.card.name, self.card.licence, settings):
            self._say(why)
        elif settings.promote == "automatic":
            reason = "automatic promotion, by the configuration"
            try:
                self._registry.promote(self.outcome.card, self._request.by, reason, self._now())
            except DataError as error:  # a promoter is on record, who would have to sign
                self._say(str(error))
                return
            self._say("promoted, as the configuration says")

    def _kinds(self) -> set[str]:
        return {r.kind for _, r in self._store.about(f"card {self.card.digest}")}

    def _use(self, gate: Gate, patients: tuple[str, ...], used: int) -> int:
        """Spend one use of the locked patients; one that a kill left without an answer is not spent twice.

        Returns how many there were before it.
        """
        for _, record in self._store.of_kinds(USED):
            if record.facts["card"] == self.card.digest:
                return int(str(record.facts["use"])) - 1
        by, at = self._request.by, self._now()
        self._store.use(self.card.name, self.card.digest, patients, used + 1, gate.alpha_per_use, by, at)
        return used

    def _trained_before(self, data: str, recipe: str) -> Kept | None:
        for _, record in reversed(self._store.of_kinds("model trained")):
            facts = record.facts
            if (facts.get("model"), facts.get("data"), facts.get("recipe")) == (self.draft.name, data, recipe):
                return self._registry.load(self.draft.name, str(facts["card"]))
        return None

    def _declare(self) -> None:
        """Put the gate on record before anything is trained. Raises ConfigError for one that asks for less now."""
        gate, model = self.draft.gate, self.draft.name
        if gate is None:
            return
        earlier = [r for _, r in self._store.of_kinds(DECLARED) if r.facts["model"] == model]
        content = gate.model_dump_json()
        if earlier and str(earlier[-1].facts["gate"]) == content:
            return
        if earlier:
            before = Gate.model_validate_json(str(earlier[-1].facts["gate"]))
            if less := looser(before, gate):
                words = [f"gate: {what}; what was declared may be tightened only" for what in less]
                raise ConfigError(words)
        facts = {"model": model, "gate": content, "by": self._request.by}
        self._store.append(DECLARED, self._now(), facts)

    def _shared(self) -> tuple[tuple[str, str], ...]:
        digests: dict[str, list[str]] = {}
        prints: dict[str, list[likeness.Prints]] = {}
        for item in self._items:
            digests.setdefault(item.patient, []).extend(item.digests)
            prints.setdefault(item.patient, []).append(item.prints)
        for known in self._store.known():  # also those that are labelled for other models only
            digests.setdefault(known.patient, []).extend((known.pixels_sha256, known.study, known.series))
        for label in self._store.labels(superseded=True):  # also under a name that an image had before
            digests.setdefault(label.patient, []).extend((label.pixels_sha256, label.study))
        return tuple({*likeness.same_digest(digests), *likeness.shared(prints)})

    def _seen_by_champion(self) -> set[str]:
        champion = self._champion()
        return set() if champion is None else set(champion.card.trained_on)

    def _next_version(self) -> Card:
        """The card with a version above those that there are, and nothing of earlier weights."""
        there = [v.version for v in self._registry.versions() if v.name == self.draft.name and v.version]
        highest = max((tuple(int(n) for n in v.split(".")) for v in there), default=(0, 0, 0))
        own = tuple(int(n) for n in self.draft.version.split("."))
        if own <= highest:
            own = (*highest[:2], highest[2] + 1)
        return self.draft.model_copy(update={"version": ".".join(map(str, own)), "trained_on": (), "measured": ()})

    def _data_digest(self, items: list[Item]) -> str:
        rows = sorted([*i.digests, i.content, self._sides[i.patient].value] for i in items)
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def _record(self, evaluation: "tasks.Evaluation", done: Path) -> None:
        done.write_text(json.dumps(evaluation.facts(), indent=1, allow_nan=False))
        digest = hashlib.sha256(done.read_bytes()).hexdigest()
        facts = {"card": self.card.digest, "evaluation": digest, "model": self.card.name}
        self._store.append("model evaluated", self._now(), facts)
        if evaluation.eligible:
            self._store.append("model eligible", self._now(), facts)
        self.outcome.eligible = evaluation.eligible
        self.outcome.status = "eligible" if evaluation.eligible else "not eligible"
        for line in evaluation.lines:
            self._say(line)

    def _track(self) -> None:
        folder = self._kept.folder
        assert folder is not None
        for path in sorted(self._work.glob("*.curves.json")):
            shutil.copyfile(path, folder / path.name)
        try:
            tracker = Tracker(self._home, self._request.configuration.settings.experiment)
            delivery.begin(self._store, tracker)
            shown = CardFiles(self.card, self._kept.weights)
            self.outcome.mlflow_run_id = delivery.deliver_training(self._store, tracker, shown, self._home)
        except WorldError as error:
            self._say(f"{error}; the next night shows this training there")

    def _sources(self) -> material.Sources:
        folders = self._request.inputs or self._home.inputs()
        if not folders:
            raise ConfigError(["--input: name the folder that holds the labelled images"])
        return material.Sources(folders, self._home, self._wanted)

    def _say(self, line: str) -> None:
        self.outcome.lines.append(line)
        self._tell(line)

    @staticmethod
    def _now() -> str:
        return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def evaluate_version(
    reference: str, request: Request, tell: Callable[[str], None], progress: Progress = lambda what, done, total: None
) -> Outcome:
    """Ask the gate about a version that is there: one that came in as a bundle. `request.card` is its card's file."""
    with Retraining(request, tell) as retraining:
        retraining.gather(progress)
        retraining.divide()
        retraining.adopt(reference)
        retraining.evaluate(progress)
        retraining.describe()
        return retraining.close()
