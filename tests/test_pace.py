"""Several studies share a night: the stages overlap, the window closes, a stop leaves the rest for the next night."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from tiny import ready_home, tiny_configuration, tiny_studies

import flows
from medrec import pipeline
from medrec.accounts import Summary
from medrec.config import Configuration
from medrec.night import Night, Request
from medrec.pace import AT_ONCE, Pace, Window, several, slowest
from medrec.store import Store


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    return tiny_configuration(tmp_path_factory.mktemp("tiny") / "own")


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    tiny_studies(folder, 4)
    return folder


def night(request: Request) -> Summary:
    with Night(request) as night:
        night.index()
        flows.without_prefect(night, lambda what, done, total: None)
        return night.close()


def statuses(summary: Summary) -> list[str]:
    return [c.status for c in summary.cases]


def test_a_stage_takes_one_study_at_a_time_while_the_stages_overlap() -> None:
    pace, inside, most = Pace(), dict.fromkeys(("prepare", "predict"), 0), dict.fromkeys(("prepare", "predict"), 0)
    together: list[int] = []

    def work() -> None:
        visit = pace.visit()
        for stage in inside:
            with visit.turn(stage):
                inside[stage] += 1
                most[stage] = max(most[stage], inside[stage])
                together.append(sum(inside.values()))
                time.sleep(0.02)
                inside[stage] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == {"prepare": 1, "predict": 1}
    assert max(together) == 2
    assert 0.08 <= pace.seconds["prepare"] < 0.5
    assert pace.seconds["deliver"] == 0


def test_no_more_work_is_begun_than_may_be_under_way_and_none_is_asked_for_before_there_is_room() -> None:
    asked, running, most = [], [0], [0]
    lock = threading.Lock()

    def items() -> Iterator[int]:
        for number in range(9):
            asked.append(number)
            assert len(asked) - done <= AT_ONCE
            yield number

    def work(number: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.01)
        with lock:
            running[0] -= 1
        return number

    done = 0
    with ThreadPoolExecutor(8) as threads:
        for item, begun in several(items(), lambda n: threads.submit(work, n)):
            assert begun.result() == item
            done += 1
    assert (done, most[0]) == (9, AT_ONCE)


def test_the_slowest_stage_is_named_with_every_share() -> None:
    told = slowest({"prepare": 1.0, "predict": 6.0, "finish": 2.0, "deliver": 1.0})
    assert told == "slowest stage: predict (prepare 10%, predict 60%, finish 20%, deliver 10% of 10 s)"
    assert slowest({"prepare": 0.0}) == ""


@pytest.mark.parametrize(
    ("clock", "now", "until"),
    [
        ("06:00", "2026-03-01T23:00:00+01:00", "2026-03-02T05:00:00+00:00"),
        ("23:30", "2026-03-01T23:00:00+01:00", "2026-03-01T22:30:00+00:00"),
        ("06:00", "2026-03-28T23:00:00+01:00", "2026-03-29T04:00:00+00:00"),  # clocks go forward in between
        ("06:00", "2026-10-24T23:00:00+02:00", "2026-10-25T05:00:00+00:00"),  # and back
        ("06:00", "2026-03-02T06:00:00+01:00", "2026-03-03T05:00:00+00:00"),
    ],
)
def test_a_window_closes_when_the_clock_on_the_wall_says_so(clock: str, now: str, until: str) -> None:
    window = Window.closing_at(clock, datetime.fromisoformat(now), ZoneInfo("Europe/Berlin"))
    assert window.until == datetime.fromisoformat(until)


def test_what_is_no_time_of_day_closes_no_window() -> None:
    with pytest.raises(ValueError, match="25:00"):
        Window.closing_at("25:00", datetime.now(UTC))


def test_a_closed_window_takes_no_study_says_what_is_left_and_the_next_night_takes_all(
    tiny: Configuration, four: Path, tmp_path: Path
) -> None:
    home = ready_home(tmp_path / "home")
    closed = night(Request(four, home, tiny, window=Window(datetime.now(UTC) - timedelta(seconds=1))))
    assert statuses(closed) == ["waiting"] * 4
    assert closed.files == {"seen": 64, "analysed": 0, "unused": 0, "refused": 0, "waiting": 64}
    assert any("4 of 4 studies wait for the next night: the night's window closed" in w for w in closed.warnings)
    assert closed.exit_code == 0
    opened = night(Request(four, home, tiny, window=Window(datetime.now(UTC) + timedelta(hours=1))))
    assert statuses(opened) == ["analysed"] * 4
    assert opened.files["analysed"] == 64
    assert opened.stages["predict"] > 0
    assert "slowest stage: " in opened.slowest


def test_a_stop_finishes_the_studies_in_hand_and_leaves_the_others(
    tiny: Configuration, four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = ready_home(tmp_path / "home")
    with Night(Request(four, home, tiny)) as stopped:
        predict = pipeline.predict

        def and_stop(*arguments: object) -> object:
            stopped.stop("medrec was told to stop")
            return predict(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(pipeline, "predict", and_stop)
        stopped.index()
        flows.without_prefect(stopped, lambda what, done, total: None)
        summary = stopped.close()
        with Store.open(home.store_url) as store:
            assert store.claims("") == {}
    assert statuses(summary) == ["analysed"] * AT_ONCE + ["waiting"]
    assert summary.files["waiting"] == 16
    assert statuses(night(Request(four, home, tiny))) == ["already done"] * AT_ONCE + ["analysed"]


def test_a_stop_while_files_are_read_touches_nothing(tiny: Configuration, four: Path, tmp_path: Path) -> None:
    with Night(Request(four, ready_home(tmp_path / "home"), tiny)) as stopped:
        stopped.scan(lambda done, total: stopped.stop("medrec was told to stop"))
        assert not stopped.has_work
        summary = stopped.close()
    assert summary.cases == ()
    assert summary.files["waiting"] == summary.files["seen"] == 2
    assert "while files were read" in summary.warnings[0]


def test_a_case_that_another_worker_holds_waits_and_one_that_it_finished_is_done(
    tiny: Configuration, four: Path, tmp_path: Path
) -> None:
    home = ready_home(tmp_path / "home")
    with Night(Request(four, home, tiny)) as ours, Store.open(home.store_url) as store:
        ours.index()
        held = ours.planned[0]
        assert store.claim(held.case, "another", "2026-01-01T00:00:00.000Z", "9999-01-01T00:00:00.000Z")
        flows.without_prefect(ours, lambda what, done, total: None)
        summary = ours.close()
    assert (summary.cases[0].status, summary.cases[0].reason) == ("waiting", "another worker is at it")
    assert statuses(summary)[1:] == ["analysed"] * 3


def test_what_a_killed_night_held_is_free_for_the_next_night_of_its_home(
    tiny: Configuration, four: Path, tmp_path: Path
) -> None:
    home = ready_home(tmp_path / "home")
    with Night(Request(four, home, tiny)) as first:
        first.index()
        case = first.planned[0].case
    with Store.open(home.store_url) as store:
        store.claim(case, home.worker, "2026-01-01T00:00:00.000Z", "9999-01-01T00:00:00.000Z")
    assert statuses(night(Request(four, home, tiny))) == ["analysed"] * 4


def test_a_claim_that_ran_out_is_noticed_before_anything_is_written(
    tiny: Configuration, four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that slept, or whose clock was set: another worker may be at the case by now."""
    home = ready_home(tmp_path / "home")
    with Night(Request(four, home, tiny)) as ours:
        ours.index()
        monkeypatch.setattr(ours._leases, "holds", lambda case: False)
        flows.without_prefect(ours, lambda what, done, total: None)
        summary = ours.close()
    assert {c.status for c in summary.cases} == {"failed"}
    assert {c.reason for c in summary.cases} == {
        "the claim on the case ran out: this machine was held up, or its clock was set"
    }
    assert statuses(night(Request(four, home, tiny))) == ["analysed"] * 4
