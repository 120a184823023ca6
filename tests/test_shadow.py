"""A challenger beside the champion: what differs is known by construction, and nothing of it leaves or does harm."""

import json
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import a_night, copy_home
from tiny import ready_home, tiny_configuration, tiny_studies
from typer.testing import CliRunner

import flows
from medrec import privacy, shadow, verification
from medrec.beside import Wanted
from medrec.cli import app
from medrec.config import CardFiles, Configuration
from medrec.errors import DataError
from medrec.home import Home, sha256_of
from medrec.models import networks, preprocessing, weights
from medrec.night import Night, Request
from medrec.outputs.shadows import Pair, sentences
from medrec.prediction import ModelCard
from medrec.registry import Registry
from medrec.statistics import share
from medrec.store import Store
from medrec.tracking import Tracker

AT = "2026-09-01T00:00:00Z"


def never() -> bool:
    return False


def challenger(home: Home, own: Configuration, *, bias: float | None, version: str = "1.0.1") -> str:
    """A version whose networks are the champion's, or mark everything (bias > 0) or nothing (bias < 0); eligible."""
    champion = own.cards[0]
    assert isinstance(champion.card, ModelCard)
    part = champion.card.segmentation
    network = networks.build(part.kind, part.settings, preprocessing.channels(champion.card))
    weights.fill(network, weights.read(champion.weights[part.weights], part.sha256), part.weights)
    if bias is not None:
        *_, last = (p for name, p in network.named_parameters() if name.endswith("bias"))
        with torch.no_grad():
            last.fill_(bias)
    file = home.root / "models" / f"{version}.safetensors"
    sha = weights.write(network.state_dict(), file)
    card = champion.card.model_copy(
        update={"version": version, "segmentation": part.model_copy(update={"sha256": sha})}
    )
    files = dict(champion.weights) | {part.weights: file}
    with Store.open(home.store_url) as store:
        measured = home.root / "models" / "evaluation.json"
        measured.write_text('{"lines": [], "measured": {}}')
        Registry(home, store, own.cards).put(card, files, (measured,))
        told = {"model": card.name, "version": version, "licence": card.licence}
        store.append(
            "model imported",
            AT,
            {"card": card.digest, "weights": card.weights_digest, "bundle": "0" * 64, "by": "b", **told},
        )
        store.append("model evaluated", AT, {"card": card.digest, "evaluation": sha256_of(measured)})
        store.append("model eligible", AT, {"card": card.digest, "evaluation": sha256_of(measured)})
    return card.digest


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Configuration, str]:
    """A home after a night with three studies, its configuration, and the night's name."""
    root = tmp_path_factory.mktemp("shadow")
    tiny_studies(root / "in", 3)
    own = tiny_configuration(root / "own")
    return root, own, a_night(root / "in", ready_home(root / "home").root, own).batch


@pytest.fixture
def home(finished: tuple[Path, Configuration, str], tmp_path: Path) -> Home:
    return copy_home(finished[0] / "home", tmp_path / "home")


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    with Store.open(home.store_url) as store:
        yield store


def ordered(home: Home, store: Store, own: Configuration, card: str, nights: int = 2) -> None:
    shadow.order(Registry(home, store, own.cards), store, card, nights, "dr. b", AT)


def test_the_champion_beside_itself_differs_in_nothing_and_leaves_nothing_but_the_comparison(
    finished: tuple[Path, Configuration, str], home: Home, store: Store
) -> None:
    root, own, batch = finished
    card = challenger(home, own, bias=None)
    ordered(home, store, own, card)
    before = {p for folder in (home.reports, home.outbox, home.batches) for p in folder.rglob("*")}
    cases, runs = store.cases(), len(Tracker(home, "medrec").runs())
    assert shadow.after_night(home, own, root / "in", batch, never) == ()
    pairs = shadow.pairs(store, card)
    assert len(pairs) == 3
    assert all(p.dice == 1 and p.champion_ml == p.challenger_ml and not p.changed for p in pairs)
    assert {p for folder in (home.reports, home.outbox, home.batches) for p in folder.rglob("*")} == before
    assert store.cases() == cases
    assert store.pending("mlflow") == ()
    assert len(Tracker(home, "medrec").runs()) == runs + 1  # the monitoring run
    champion = Registry(home, store, own.cards).champion("tiny")
    assert champion is not None
    assert champion.card == own.cards[0].card.digest
    (order,) = shadow.orders(Registry(home, store, own.cards), store)
    assert (order.left, order.nights) == (1, 2)

    shadow.after_night(home, own, root / "in", batch, never)
    assert len(store.shadows()) == 3  # a study is compared once
    config = str(root / "own")
    shown = CliRunner().invoke(app, ["models", "show", card[:12], "--home", str(home.root), "--config", config])
    assert shown.exit_code == 0, shown.output


def test_a_challenger_that_marks_nothing_differs_by_all_that_the_champion_marked(
    finished: tuple[Path, Configuration, str], home: Home, store: Store
) -> None:
    root, own, batch = finished
    card = challenger(home, own, bias=-1e4)
    ordered(home, store, own, card)
    assert shadow.after_night(home, own, root / "in", batch, never) == ()
    reports = [json.loads((home.reports / c.case / "report.json").read_text()) for c in store.cases(batch)]
    marked = sorted(sum(f["volume_mm3"] for f in r["findings"]) / 1000 for r in reports)
    pairs = shadow.pairs(store, card)
    assert sorted(p.champion_ml for p in pairs) == pytest.approx(marked, rel=1e-4)
    assert {(p.challenger_ml, p.dice) for p in pairs} == {(0.0, 0.0)}
    (run,) = (r for r in Tracker(home, "medrec").runs() if r.name == "monitoring")
    page = Path(run.place.removeprefix("file://"), f"shadow-{card[:12]}.html").read_text()
    assert "3 studies of 3 patients were seen by both" in page
    assert not any(c.patient in page or c.study in page or c.case in page for c in store.cases())
    assert list(verification.verify(home, store)) == []
    assert list(verification.verify_mlflow(home, store, "medrec")) == []

    gone = store.shadows()[0]
    privacy.erase(gone.patient, home, store, own)
    assert gone.patient not in {row.patient for row in store.shadows()}
    assert list(verification.verify(home, store)) == []
    shadow.show(home, store, own)
    assert "2 studies of 2 patients" in Path(run.place.removeprefix("file://"), f"shadow-{card[:12]}.html").read_text()
    with sqlite3.connect(home.root / "medrec.db") as connection:
        connection.execute("UPDATE shadows SET facts = replace(facts, '0.0', '1.0')")
    assert {p.what for p in verification.verify(home, store)} == {"what a challenger said was changed in the store"}


def test_only_what_passed_its_gate_and_is_not_in_force_runs_beside_the_champion(
    finished: tuple[Path, Configuration, str], home: Home, store: Store
) -> None:
    _, own, _ = finished
    with pytest.raises(DataError, match="nothing runs beside itself"):
        ordered(home, store, own, "tiny")
    card = challenger(home, own, bias=None)
    registry = Registry(home, store, own.cards)
    ordered(home, store, own, card)
    assert len(shadow.orders(registry, store)) == 1
    ordered(home, store, own, card, 0)
    assert shadow.orders(registry, store) == ()
    ordered(home, store, own, card)
    registry.disable(card, "b", "why", AT)
    assert shadow.orders(registry, store) == ()
    with pytest.raises(DataError, match="is disabled"):
        ordered(home, store, own, card)


DIES = "import os, signal, sys; sys.stdin.read(); os.kill(os.getpid(), signal.SIGKILL)"
HANGS = "import sys, time; sys.stdin.read(); print('{\"read\": 0}', flush=True); time.sleep(600)"
BABBLES = "import sys; sys.stdin.read(); print('no json'); print('[1]'); sys.exit(3)"


@pytest.mark.parametrize(("code", "why"), [(DIES, "it was killed"), (HANGS, "it hung"), (BABBLES, "it ended with 3")])
def test_a_challenger_that_dies_hangs_or_babbles_is_ended_and_costs_a_line_on_record(
    finished: tuple[Path, Configuration, str],
    home: Home,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    why: str,
) -> None:
    root, own, batch = finished
    card = challenger(home, own, bias=None)
    ordered(home, store, own, card, 1)
    monkeypatch.setattr(shadow, "SILENT_S", 1.0)
    monkeypatch.setattr(shadow.lines, "__defaults__", ((sys.executable, "-c", code),))
    head = store.position()[0]
    (told,) = shadow.after_night(home, own, root / "in", batch, never)
    assert told == f"shadow: tiny 1.0.1 was not compared on 3 of 3 studies: {why}"
    assert [r.kind for r in store.ledger(head)] == ["shadow failed"]
    assert shadow.orders(Registry(home, store, own.cards), store) == ()  # it had its night
    assert list(verification.verify(home, store)) == []


def test_the_end_of_the_window_ends_the_challenger() -> None:
    over = threading.Event()
    threading.Timer(0.5, over.set).start()
    begun = time.monotonic()
    said = list(shadow.lines(Wanted("", "", "cpu", 1, "", "", {}), over.is_set, (sys.executable, "-c", HANGS)))
    assert said[-1] == {"why": "the night's window closed"}
    assert time.monotonic() - begun < 10


def test_weights_that_were_changed_run_nowhere_and_the_night_is_done_as_before(
    finished: tuple[Path, Configuration, str], home: Home, store: Store
) -> None:
    root, own, batch = finished
    card = challenger(home, own, bias=None)
    ordered(home, store, own, card)
    (home.version("tiny", card) / own.cards[0].card.segmentation.weights).write_bytes(b"other")
    (told,) = shadow.after_night(home, own, root / "in", batch, never)
    assert told.startswith("shadow: tiny 1.0.1 was not compared on 3 of 3 studies: it ended with")
    assert store.shadows() == ()


def test_medrec_yaml_orders_a_shadow_once(
    finished: tuple[Path, Configuration, str], home: Home, store: Store, tmp_path: Path
) -> None:
    _, own, _ = finished
    card = challenger(home, own, bias=None)
    wanted = tiny_configuration(tmp_path / "c", shadow={"model": card[:12], "nights": 3})
    wanted = Configuration(wanted.settings, tuple(CardFiles(m.card, m.weights) for m in own.cards))
    registry = Registry(home, store, own.cards)
    for _ in range(2):
        shadow.of_settings(registry, store, wanted, AT)
    assert [o.left for o in shadow.orders(registry, store)] == [3]
    assert len(store.of_kinds("shadow ordered")) == 1


def test_sentences_of_pairs_with_known_differences() -> None:
    pairs = [Pair(f"p{n}", 10.0, 12.0, 0.9, "finding", "finding" if n else "nothing marked") for n in range(10)]
    said = sentences(pairs)
    assert said[0] == "10 studies of 10 patients were seen by both"
    assert said[1] == "another verdict in 1 studies; share of patients 0.100 [0.003, 0.445]"
    assert said[2].startswith("volume, challenger less champion: 2.000 [")
    assert sentences(pairs[:1])[-1] == "too few for an interval"
    # Clopper and Pearson, as in Newcombe 1998, Statistics in Medicine 17, table I, method 5: 81 of 263.
    assert (round(share(81, 263).low, 4), round(share(81, 263).high, 4)) == (0.2527, 0.3676)
    assert np.isclose(share(0, 20).low, 0)


def test_a_whole_night_by_its_flow_ends_with_the_challenger_beside_it(
    finished: tuple[Path, Configuration, str], home: Home, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, own, _ = finished
    monkeypatch.setattr(flows, "embedded", lambda home: None)
    monkeypatch.setattr(flows, "_lead", lambda night, server, progress: flows.without_prefect(night, progress))
    monkeypatch.setattr(Night, "prove", lambda self: None)
    ordered(home, store, own, card := challenger(home, own, bias=None))
    tiny_studies(tmp_path / "in", 2, first=7)
    summary = flows.run_nightly(Request(tmp_path / "in", home, own), lambda *_: None)
    assert (summary.exit_code, summary.warnings) == (0, ())
    assert {row.batch for row in store.shadows(card)} == {summary.batch}
    assert len(store.shadows()) == 2
    ordered(home, store, own, card, 0)
    monkeypatch.setattr(shadow, "orders", lambda *_: 1 / 0)
    summary = flows.run_nightly(Request(tmp_path / "in", home, own), lambda *_: None)
    assert summary.warnings == ("shadow: internal error (ZeroDivisionError)",)
    assert summary.exit_code == 0
