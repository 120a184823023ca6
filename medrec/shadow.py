"""A challenger that runs beside the champion for some nights, and what it would have said otherwise.

Owns the order (by `medrec models shadow`, or `shadow:` in medrec.yaml), the watch over the process that runs it, and
the paired report. Its answers go nowhere: no report, no object for a PACS, no MLflow run of a case, no label.
Invariants: only what passed its gate runs; the night is over and delivered before it begins; a challenger that fails,
hangs or is killed costs a line on record and nothing else; a study is compared once.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medrec import delivery
from medrec.beside import Wanted
from medrec.config import Configuration
from medrec.dicom.renaming import Renamed
from medrec.errors import ConfigError, DataError, MedrecError
from medrec.home import Home
from medrec.outputs import shadows
from medrec.outputs.shadows import Pair
from medrec.pictures import PictureCard
from medrec.registry import Registry, Version
from medrec.report import Status
from medrec.store import CaseRow, ShadowRow, Store
from medrec.tracking import Tracker

ORDERED, FAILED, COMPARED = "shadow ordered", "shadow failed", "shadow compared"
PART = "shadow"  # what its metrics in MLflow begin with
SILENT_S = 900.0  # one study on a slow CPU takes minutes; longer without a line is a hang
LOOK_S = 0.5
CHILD = (sys.executable, "-P", "-m", "medrec.beside")
BY_SETTINGS = "medrec.yaml"


@dataclass(frozen=True, slots=True)
class Order:
    """A version that runs beside the champion; `left` nights of `nights` are to come, `number` is its record's."""

    version: Version
    nights: int
    left: int
    number: int


def order(registry: Registry, store: Store, reference: str, nights: int, by: str, at: str) -> Version:
    """Let a version run for so many nights; 0 ends it. Raises ConfigError and DataError."""
    if not by.strip():
        raise ConfigError(["--by: say who decides"])
    version = registry.find(reference)
    what = f"{version.name} {version.version}, card {version.card[:12]}…,"
    if version.champion:
        raise DataError(f"{what} is in force: nothing runs beside itself")
    if version.why_disabled is not None:
        raise DataError(f"{what} is disabled: {version.why_disabled}")
    if all(r.kind != "model eligible" for _, r in store.about(f"card {version.card}")):
        raise DataError(f"{what} did not pass its gate: only what might be promoted runs beside the champion")
    if isinstance(registry.load(version.name, version.card).card, PictureCard):
        raise DataError(f"{what} reads single images: only models of volumes run beside the champion so far")
    store.append(ORDERED, at, {"card": version.card, "model": version.name, "nights": nights, "by": by})
    return version


def orders(registry: Registry, store: Store) -> tuple[Order, ...]:
    """The orders that still count, by version: the last one of each, with nights left."""
    last: dict[str, tuple[int, int]] = {}
    seen: dict[str, set[str]] = {}
    for number, record in store.of_kinds(ORDERED, FAILED, COMPARED):
        card = str(record.facts["card"])
        if record.kind == ORDERED:
            last[card], seen[card] = (number, int(str(record.facts["nights"]))), set()
        else:
            seen.setdefault(card, set()).add(str(record.facts["batch"]))
    versions = {v.card: v for v in registry.versions()}
    found = []
    for card, (number, nights) in last.items():
        version = versions.get(card)
        left = nights - len(seen[card])
        if version is not None and left > 0 and not version.champion and version.why_disabled is None:
            found.append(Order(version, nights, left, number))
    return tuple(found)


def of_settings(registry: Registry, store: Store, configuration: Configuration, at: str) -> None:
    """Order what medrec.yaml asks for, once. Raises DataError for a version that may not run."""
    wanted = configuration.settings.shadow
    if wanted is None:
        return
    version = registry.find(wanted.model)
    asked = [r for _, r in store.about(f"card {version.card}") if r.kind == ORDERED]
    if all(r.facts["nights"] != wanted.nights or r.facts["by"] != BY_SETTINGS for r in asked) and not version.champion:
        order(registry, store, version.card, wanted.nights, BY_SETTINGS, at)


def after_night(
    home: Home, configuration: Configuration, folder: Path, batch: str, over: Callable[[], bool]
) -> tuple[str, ...]:
    """Run what is ordered on what a night analysed; returns what went wrong, in words. Raises nothing."""
    try:
        with Store.open(home.store_url) as store:
            registry = Registry(home, store, configuration.cards)
            of_settings(registry, store, configuration, _now())
            told = [_night(o, home, store, configuration, folder, batch, over) for o in orders(registry, store)]
            if told:
                show(home, store, configuration)
            return tuple(text for text in told if text)
    except MedrecError as error:
        return (f"shadow: {error}",)
    except Exception as error:  # nothing of it may harm a night that is done
        return (f"shadow: internal error ({type(error).__name__})",)


def _night(
    one: Order,
    home: Home,
    store: Store,
    configuration: Configuration,
    folder: Path,
    batch: str,
    over: Callable[[], bool],
) -> str:
    """One version over one night's studies; returns what went wrong, "" when nothing did."""
    rows = {row.study: row for row in store.cases(batch) if _counts(row, one.version)}
    if not rows:
        return ""
    device = os.environ.get("MEDREC_DEVICE") or configuration.settings.device
    wanted = Wanted(
        *(str(folder), str(home.root), device, configuration.settings.threads),
        *(one.version.name, one.version.card, {study: row.case for study, row in rows.items()}),
    )
    original = Renamed.load(home.root, home.key).original
    champion = Registry(home, store, configuration.cards).champion(one.version.name)
    beside = champion.card if champion is not None else ""
    done, whys = 0, set[str]()
    for line in lines(wanted, over):
        row = rows.get(str(line.get("study")))
        if row is None or "facts" not in line:
            whys |= {str(line["why"])} if "why" in line else set()
            continue
        said = ShadowRow(row.study, row.patient, one.version.card, beside, batch, _now(), line["facts"])
        store.add_shadow(said, original)
        done += 1
    if done == len(rows):
        return ""
    why = ", ".join(sorted(whys)) or "the challenger does not take them"
    facts: dict[str, object] = {"card": one.version.card, "batch": batch, "studies": len(rows) - done, "why": why}
    store.append(FAILED, _now(), facts)
    name = f"{one.version.name} {one.version.version}"
    return f"shadow: {name} was not compared on {len(rows) - done} of {len(rows)} studies: {why}"


def _counts(row: CaseRow, version: Version) -> bool:
    return row.model == version.name and row.status is Status.ANALYSED and row.superseded_by is None


def lines(wanted: Wanted, over: Callable[[], bool], command: tuple[str, ...] = CHILD) -> Iterator[Mapping[str, Any]]:
    """What the child says, line by line, and at last why it said no more; it is ended with whoever reads."""
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert child.stdin is not None
    said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(child, said), daemon=True).start()
    try:
        try:
            child.stdin.write(wanted.to_json())
            child.stdin.close()
        except OSError:
            pass  # it died at once: its end says so
        yield from _until_silent(child, said, over)
    finally:
        child.kill()
        child.wait()


def _until_silent(
    child: "subprocess.Popen[str]", said: "queue.SimpleQueue[str | None]", over: Callable[[], bool]
) -> Iterator[Mapping[str, Any]]:
    last = time.monotonic()
    while True:
        try:
            line = said.get(timeout=LOOK_S)
        except queue.Empty:
            if over():
                yield {"why": "the night's window closed"}
                return
            if time.monotonic() - last > SILENT_S:
                yield {"why": "it hung"}
                return
            continue
        if line is None:
            if code := child.wait():
                yield {"why": "it was killed" if code < 0 else f"it ended with {code}"}
            return
        last = time.monotonic()
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if isinstance(told, dict):
            yield told


def _listen(child: "subprocess.Popen[str]", said: "queue.SimpleQueue[str | None]") -> None:
    assert child.stdout is not None
    for line in child.stdout:
        said.put(line)
    said.put(None)


def pairs(store: Store, card: str) -> tuple[Pair, ...]:
    """What a version and the champion said of each study that is still here."""
    found = []
    for row in store.shadows(card):
        (champion_ml, challenger_ml), (champion, challenger) = row.facts["volume_ml"], row.facts["verdict"]
        found.append(Pair(row.patient, champion_ml, challenger_ml, row.facts["dice"], champion, challenger))
    return tuple(found)


def show(home: Home, store: Store, configuration: Configuration) -> None:
    """Bring every paired report to the monitoring run as it is now. Raises WorldError."""
    registry = Registry(home, store, configuration.cards)
    pages, points = dict[str, str](), dict[str, list[tuple[int, float]]]()
    for version in registry.versions():
        found = pairs(store, version.card)
        compared_once = any(r.kind == COMPARED for _, r in store.about(f"card {version.card}"))
        if compared_once:
            name = f"{version.name} {version.version}"
            pages[f"shadow-{version.card[:12]}.html"] = shadows.page(name, found)
            points[f"{PART}.{version.card[:12]}.studies"] = [(0, float(len(found)))]
    if pages:
        delivery.deliver_monitoring(store, Tracker(home, configuration.settings.experiment), PART, points, pages)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
