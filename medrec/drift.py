"""Whether what a scanner sends, and what is said of it, changed: without truth, and with few false alarms.

Owns `Rules`, `Seen`, `Alarm` and `watch`. One stream is one number (the noise of FLAIR, say) of the studies of one
model, site and scanner, in the order in which they were finished. A value becomes a conformal p-value by its rank among
the stream's earlier ones (Vovk, Gammerman & Shafer 2005, ch. 7); while nothing changes, these are independent and
uniform, whatever the numbers are distributed like. Bets on their normal scores are e-values, and each stream adds them
up as the Shiryaev-Roberts e-detector of Shin, Ramdas & Rinaldo (2023): R <- (1 + R) * bet, an alarm when R reaches a
limit, then anew from nothing.

Invariant, for any number of streams and any dependence between them: R grows by at most 1 a value in expectation, and
an alarm takes at least the limit away; so of N values at most N / limit are false alarms in expectation. With the limit
at the values of a year, that is one a year for everything together. It holds while a stream's studies are exchangeable:
not when days or patients repeat themselves in patterns. Pure: reads no clock, draws no chance but from the case's key.
"""

import hashlib
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SHIFTS = (0.5, 1.0, 2.0)  # of the normal score, both ways: small ones need many studies, large ones few
SPREADS = (0.5, 2.0)  # of the normal score: values closer together, or farther apart
TAIL, STAKE = 1.5, 0.3  # scores beyond it, on either side, and the share that is put on them
NORMAL = NormalDist()
LAST_P = 1e-9  # beyond it a bet would be beyond all bounds; moves a score by nothing that matters
YEAR = timedelta(days=365)
POINTS = 400  # of a stream's picture

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rules:
    """`reference` values of a stream are learnt before it is bet upon; the limit is for `studies_a_year` or more."""

    reference: int = 40
    false_alarms_a_year: float = 1.0
    studies_a_year: int = 10_000


class Group(NamedTuple):
    """Whose studies belong together: a model, a site and a scanner, in words that the store keeps."""

    model: str
    site: str
    scanner: str


class Stream(NamedTuple):
    """One number of one group."""

    group: Group
    feature: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of one case; `number` is that of its record, `at` when it was finished (ISO-8601 UTC)."""

    number: int
    case: str
    at: str
    group: Group
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Alarm:
    """A stream changed: raised by the case of record `number`; the change began about `since`.

    `before` and `after` are the means of the values before and since then, of so many studies each.
    """

    stream: Stream
    number: int
    case: str
    at: str
    since: str
    before: float
    after: float
    studies_before: int
    studies_after: int
    evidence: float
    limit: float


@dataclass(frozen=True, slots=True)
class Line:
    """How a stream stands: `evidence` of `limit`, None while it is learnt; `points` are its last (number, value)."""

    stream: Stream
    studies: int
    evidence: float | None
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """Everything that is watched; `limit` is the last one, `values_a_year` what it is for."""

    lines: tuple[Line, ...]
    alarms: tuple[Alarm, ...]
    limit: float
    values_a_year: float


def watch(seen: Iterable[Seen], rules: Rules, since: Mapping[Stream, int] | None = None) -> Panel:
    """Every stream, and where it changed; of a stream in `since` only what comes after that record counts.

    `seen` are in the order of their numbers. Whoever keeps the alarms hands their numbers in as `since`, so that each
    is raised once and what came after it is the new normal.
    """
    begun = since or {}
    streams: dict[Stream, _State] = {}
    alarms: list[Alarm] = []
    limits = _Limits(rules)
    for one in seen:
        limit = limits.before(one)
        chance = _chance(one.case)
        for feature, value in one.values.items():
            stream = Stream(one.group, feature)
            state = streams.setdefault(stream, _State())
            if one.number <= begun.get(stream, 0):
                state.points.append((one.number, value))
                continue
            if state.add(value, one, chance, rules.reference) >= limit:
                alarms.append(state.alarm(stream, one, limit))
                state.begin_anew()
    lines = (s.line(stream, rules.reference) for stream, s in sorted(streams.items()))
    return Panel(tuple(lines), tuple(alarms), limits.limit, limits.values_a_year)


def log_bets(score: float) -> Values:
    """(bets,) logarithm of what each bet pays on a normal score: an e-value, of mean 1 while nothing changed."""
    return (_LINEAR + _SQUARE * score) * score + _CONSTANT[(score > TAIL) - (score < -TAIL)]


def _constants(tails: tuple[float, float]) -> Values:
    return np.concatenate([-(_SIGNED**2) / 2, -np.log(SPREADS), tails])


# A shift by d pays exp(d z - d^2 / 2), a spread by s exp(z^2 (1 - 1 / s^2) / 2) / s: ratios of normal densities. A bet
# on one end of the scores pays _IN there and _OUT elsewhere: it finds a rare thing that becomes less rare.
_SIGNED = np.array([sign * shift for shift in SHIFTS for sign in (1, -1)])
_LINEAR = np.concatenate([_SIGNED, np.zeros(len(SPREADS) + 2)])
_SQUARE = np.concatenate([np.zeros(len(_SIGNED)), (1 - 1 / np.square(SPREADS)) / 2, np.zeros(2)])
_END = NORMAL.cdf(-TAIL)
_IN, _OUT = float(np.log(STAKE / _END)), float(np.log((1 - STAKE) / (1 - _END)))
_CONSTANT = tuple(
    _constants(tails) for tails in ((_OUT, _OUT), (_IN, _OUT), (_OUT, _IN))
)  # by -1, 0, 1: the last is -1
_BETS = len(_LINEAR)


@dataclass(slots=True)
class _State:
    """One stream: its values in order of size and of time, and R of each bet.

    `gain` is what each bet won since it last stood at nothing, when `begun` values were there: where a change began.
    """

    ranked: list[float] = field(default_factory=list)
    history: list[tuple[str, float]] = field(default_factory=list)
    evidence: Values = field(default_factory=lambda: np.zeros(_BETS))
    gain: Values = field(default_factory=lambda: np.zeros(_BETS))
    begun: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BETS, np.int64))
    points: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=POINTS))

    def add(self, value: float, one: Seen, chance: float, reference: int) -> float:
        """Take up a value; returns the evidence for a change: 0 while the stream is learnt."""
        count = len(self.ranked)
        if count >= reference:
            below, upto = bisect_left(self.ranked, value), bisect_right(self.ranked, value)
            p = (count - upto + chance * (upto - below + 1)) / (count + 1)
            won = log_bets(-NORMAL.inv_cdf(min(max(p, LAST_P), 1 - LAST_P)))
            self.begun[self.gain <= 0] = count
            self.gain = np.maximum(self.gain + won, 0)
            self.evidence = (1 + self.evidence) * np.exp(won)
        insort(self.ranked, value)
        self.history.append((one.at, value))
        self.points.append((one.number, value))
        return float(self.evidence.sum()) / _BETS

    def begin_anew(self) -> None:
        self.ranked, self.history = [], []
        self.evidence, self.gain, self.begun = np.zeros(_BETS), np.zeros(_BETS), np.zeros(_BETS, np.int64)

    def alarm(self, stream: Stream, one: Seen, limit: float) -> Alarm:
        start = int(self.begun[self.gain.argmax()])
        before, after = ([v for _, v in part] for part in (self.history[:start], self.history[start:]))
        means = float(np.mean(before)), float(np.mean(after))
        counts = len(before), len(after)
        since = self.history[start][0]
        return Alarm(stream, one.number, one.case, one.at, since, *means, *counts, float(self.evidence.mean()), limit)

    def line(self, stream: Stream, reference: int) -> Line:
        count = len(self.ranked)
        evidence = float(self.evidence.mean()) if count > reference else None
        return Line(stream, count, evidence, tuple(self.points))


@dataclass(slots=True)
class _Limits:
    """The limit before each study: from how many came in the year before it, and never from what they showed."""

    rules: Rules
    days: deque[datetime] = field(default_factory=deque)
    most_values: int = 1
    limit: float = 0.0
    values_a_year: float = 0.0

    def before(self, one: Seen) -> float:
        now = datetime.fromisoformat(one.at)
        while self.days and now - self.days[0] > YEAR:
            self.days.popleft()
        self.days.append(now)
        self.most_values = max(self.most_values, len(one.values))
        self.values_a_year = float(max(self.rules.studies_a_year, len(self.days)) * self.most_values)
        self.limit = self.values_a_year / self.rules.false_alarms_a_year
        return self.limit


def _chance(case: str) -> float:
    """A number in (0, 1) that breaks ties: from the case's key, so that the same history tells the same.

    One for all values of a study: they may depend on each other.
    """
    return (int.from_bytes(hashlib.sha256(case.encode()).digest()[:6]) + 0.5) / 2**48
