"""Nights that are killed at any moment, and a world that fails: every study ends up done once, recorded once, shown
once, and nothing is left lying about.
"""

import errno
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pydicom
import pytest
from forks import Forks, left_in_session
from mlflow.tracking import MlflowClient
from test_isolation import hang_in_c
from tiny import ready_home, tiny_folder, tiny_studies

import flows
from medrec import config, disk, leases, night, pipeline
from medrec.accounts import Summary
from medrec.config import Configuration
from medrec.dicom import decoding
from medrec.errors import WorldError
from medrec.home import Home
from medrec.night import Night, Request
from medrec.report import Status
from medrec.store import Store
from medrec.verification import verify, verify_mlflow

KILLS_IN_A_ROUND = 10


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "own")


@pytest.fixture(scope="module")
def tiny(own: Path) -> Configuration:
    return config.load(own)


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as forks:
        yield forks


def a_night(folder: Path, home: Path, tiny: Configuration) -> Summary:
    with Night(Request(folder, Home(home), tiny)) as night:
        night.index()
        flows.without_prefect(night, lambda *_: None)
        return night.close()


def check(home: Path, studies: int) -> None:
    """Everything that must hold after a night that came to its end."""
    place = Home(home)
    with Store.open(place.store_url) as store:
        cases = store.cases()
        assert Counter(c.status for c in cases) == {Status.ANALYSED: studies}
        assert len({c.study for c in cases}) == studies
        records = list(store.ledger())
        assert Counter(r.facts["case"] for r in records if r.kind == "case analysed") == {c.case: 1 for c in cases}
        delivered = Counter((r.facts["case"], *r.facts["what"]) for r in records if r.kind == "delivery")
        assert set(delivered.values()) == {1}
        assert {(c.case, c.mlflow_run_id) for c in cases} <= delivered.keys()
        assert store.pending("mlflow") == ()
        assert store.claims("") == {}
        assert [str(p) for p in (*verify(place, store), *verify_mlflow(place, store, "medrec"))] == []
    client = MlflowClient(f"sqlite:///{place.mlflow_database}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1000)
    assert {r.info.status for r in runs} <= {"FINISHED", "KILLED"}
    assert Counter(r.data.tags["medrec.case"] for r in runs if "medrec.case" in r.data.tags) == {
        c.case: 1 for c in cases
    }
    assert len(list(place.reports.iterdir())) == studies
    unfinished = [p for p in home.rglob("*") if "draft" in p.name or p.name.startswith((".mlflow-", ".key."))]
    assert unfinished == []


def kill_again_and_again(forks: Forks, folder: Path, own: Path, rounds: int, seed: int) -> None:
    """In each round: kills at random moments of a night that always finds something new, and then a whole night."""
    random_ = random.Random(seed)
    home, inbox = folder / "home", folder / "in"
    studies, whole_s = 0, 2.5
    for _ in range(rounds):
        for _ in range(KILLS_IN_A_ROUND):
            studies += 1
            tiny_studies(inbox, 1, studies)
            pid = forks.night(inbox, home, own)
            time.sleep(random_.uniform(0, whole_s))
            os.kill(pid, signal.SIGKILL)
            forks.ended(pid)
            assert left_in_session(pid) == []
        begun = time.monotonic()
        assert forks.ended(forks.night(inbox, home, own)) == 0
        whole_s = min(whole_s, time.monotonic() - begun)
        assert left_in_session(pid) == []
        check(home, studies)


@pytest.mark.slow
def test_thirty_kills_at_random_moments_and_three_whole_nights(forks: Forks, own: Path, tmp_path: Path) -> None:
    kill_again_and_again(forks, tmp_path, own, rounds=3, seed=int(os.environ.get("SEED", "1")))


@pytest.mark.skipif(not os.environ.get("MEDREC_CHAOS"), reason="a hundred kills take minutes: MEDREC_CHAOS=1")
def test_a_hundred_kills_at_random_moments(forks: Forks, own: Path, tmp_path: Path) -> None:
    kill_again_and_again(forks, tmp_path, own, rounds=10, seed=int(os.environ.get("SEED", "2")))


def test_sigterm_finishes_the_studies_in_hand_and_ends_in_order(forks: Forks, own: Path, tmp_path: Path) -> None:
    home = ready_home(tmp_path / "home").root
    tiny_studies(tmp_path / "in", 8)
    pid = forks.night(tmp_path / "in", home, own)
    while not list(home.glob("reports/*/report.json")):
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    assert forks.ended(pid) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    counted = Counter(c["status"] for c in summary["cases"])
    assert counted.keys() == {"analysed", "waiting"}
    assert any("medrec was told to stop" in w for w in summary["warnings"])
    check(home, counted["analysed"])


# The world fails


def test_a_full_disk_fails_what_it_meets_by_name_and_the_next_night_does_it(
    tiny: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_home(tmp_path / "home")
    tiny_studies(tmp_path / "in", 3)
    flush, full = disk.flush, [True]

    def flushed(path: Path) -> None:
        if full[0] and path.name == "report.html":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(path)

    monkeypatch.setattr(disk, "flush", flushed)
    summary = a_night(tmp_path / "in", tmp_path / "home", tiny)
    assert {c.status for c in summary.cases} == {"failed"}
    assert all("No space left on device" in c.reason for c in summary.cases)
    assert summary.exit_code == 1
    full[0] = False
    a_night(tmp_path / "in", tmp_path / "home", tiny)
    check(tmp_path / "home", 3)


def test_a_store_that_goes_away_in_the_middle_fails_what_it_meets_and_loses_nothing(
    tiny: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_home(tmp_path / "home")
    tiny_studies(tmp_path / "in", 3)
    finish, gone = Store.finish, [True]

    def away(self: Store, row: object, *rest: object) -> object:
        if gone[0]:
            raise WorldError("the store (medrec.db) is locked by another process for more than 30 s")
        return finish(self, row, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "finish", away)
    summary = a_night(tmp_path / "in", tmp_path / "home", tiny)
    assert {c.status for c in summary.cases} == {"failed"}
    assert "could not be recorded" in summary.warnings[0]
    gone[0] = False
    a_night(tmp_path / "in", tmp_path / "home", tiny)
    check(tmp_path / "home", 3)


def test_a_poisoned_study_between_others_costs_only_itself(
    tiny: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_home(tmp_path / "home")
    tiny_studies(tmp_path / "in", 5)
    predict, poison, seen = pipeline.predict, [True], []

    def poisoned(*arguments: object) -> object:
        seen.append(1)
        if poison[0] and len(seen) == 3:
            raise MemoryError("PHI^NAME in the text of an error")
        return predict(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "predict", poisoned)
    summary = a_night(tmp_path / "in", tmp_path / "home", tiny)
    assert Counter(c.status for c in summary.cases) == {"analysed": 4, "failed": 1}
    assert "PHI" not in summary.to_json()
    poison[0] = False
    a_night(tmp_path / "in", tmp_path / "home", tiny)
    check(tmp_path / "home", 5)


def test_a_decoder_that_hangs_costs_its_own_study_and_the_night_goes_on(
    tiny: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_home(tmp_path / "home")
    slices = {p: pydicom.dcmread(p) for p in tiny_studies(tmp_path / "in", 3)[1].iterdir()}
    middle = sorted(slices, key=lambda p: slices[p].ImagePositionPatient[2])[len(slices) // 2]
    slices[middle].compress(pydicom.uid.RLELossless)  # the others are plain, and read here
    slices[middle].save_as(middle)
    monkeypatch.setattr(decoding.work, "decode", hang_in_c)
    monkeypatch.setattr(decoding, "DECODE_SECONDS", 0.5)
    summary = a_night(tmp_path / "in", tmp_path / "home", tiny)
    assert Counter(c.status for c in summary.cases) == {"analysed": 2, "refused": 1}
    assert any("longer than" in str(refused["reason"]) for refused in summary.refusals)
    assert summary.files["seen"] == summary.files["analysed"] + summary.files["unused"] + summary.files["refused"]


@pytest.mark.parametrize("jump", [timedelta(days=-400), timedelta(days=400)], ids=["back", "forward"])
def test_a_clock_that_jumps_loses_no_study(
    tiny: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: timedelta
) -> None:
    """Somebody sets the clock while the second study is in work: its claim seems to have run out, or never to."""
    ready_home(tmp_path / "home")
    tiny_studies(tmp_path / "in", 3)
    predict, moved, seen = pipeline.predict, [timedelta()], []

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + moved[0]

    for room in (night, leases, pipeline):
        monkeypatch.setattr(room, "datetime", Clock)

    def and_jump(*arguments: object) -> object:
        seen.append(1)
        moved[0] = jump if len(seen) == 2 else moved[0]
        return predict(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "predict", and_jump)
    a_night(tmp_path / "in", tmp_path / "home", tiny)
    a_night(tmp_path / "in", tmp_path / "home", tiny)
    check(tmp_path / "home", 3)
