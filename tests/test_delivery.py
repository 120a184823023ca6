"""The outbox: one worker per entry, one run per case, whoever is killed or away."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import RunNight
from mlflow.tracking import MlflowClient
from test_night import small_study
from test_store import AT, LATER, a_case, ready

from medrec import delivery
from medrec.home import Home
from medrec.store import Store
from medrec.tracking import Tracker
from medrec.verification import verify_mlflow

pytest_plugins = ["postgres"]
SOON, AFTER = "2026-03-01T02:10:00Z", "2026-03-01T02:20:00Z"


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "sqlite":
        return ready(Store.open(f"sqlite:///{tmp_path / 'store.db'}"))
    place: Callable[[], str] = request.getfixturevalue("postgresql")
    return ready(Store.open(place()))


def test_a_leased_entry_is_nobody_elses_until_the_lease_ends(store: Store) -> None:
    store.finish(a_case("one", study="study"), {}, AT)
    mine = store.lease("mlflow", "me", AT, SOON)
    assert mine is not None
    assert mine.fresh
    assert store.lease("mlflow", "you", AT, SOON) is None
    theirs = store.lease("mlflow", "you", SOON, AFTER)  # I was killed
    assert theirs is not None
    assert (theirs.id, theirs.fresh) == (mine.id, False)
    store.delivered(theirs.id, LATER)
    assert store.lease("mlflow", "me", LATER, LATER) is None


def test_what_was_postponed_or_put_back_is_no_longer_fresh(store: Store) -> None:
    store.finish(a_case("one"), {}, AT)
    first = store.lease("mlflow", "me", AT, SOON)
    assert first is not None
    store.postponed(first.id, "away", AT)
    again = store.lease("mlflow", "me", AT, SOON)
    assert again is not None
    assert (again.attempts, again.fresh) == (1, False)
    store.delivered(again.id, AT)
    store.requeue("mlflow", AT)
    back = store.lease("mlflow", "me", AT, SOON)
    assert back is not None
    assert not back.fresh


def test_two_workers_never_hold_the_same_entry(store: Store) -> None:
    for number in range(20):
        store.finish(a_case(f"case{number}"), {}, AT)
    taken: list[int] = []

    def work(name: str) -> None:
        while entry := store.lease("mlflow", name, AT, SOON):
            taken.append(entry.id)

    workers = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(taken) == len(set(taken)) == 20


def test_a_run_that_was_made_before_a_kill_is_adopted_and_doubles_are_removed(
    run_night: RunNight, tmp_path: Path
) -> None:
    small_study(tmp_path / "in")
    case = run_night(tmp_path / "in").cases[0]
    home = Home(tmp_path / "home")
    client = MlflowClient(f"sqlite:///{home.mlflow_database}")
    run = client.get_run(str(case.mlflow_run_id))
    double = client.create_run(run.info.experiment_id, tags={k: v for k, v in run.data.tags.items() if "medrec" in k})
    with Store.open(home.store_url) as store:
        store.requeue("mlflow", AT)
        tracker = Tracker(home, "medrec")
        assert delivery.deliver_cases(store, tracker)
        row = store.case(case.case)
        assert row is not None
        assert row.mlflow_run_id == case.mlflow_run_id
    assert client.get_run(double.info.run_id).info.lifecycle_stage == "deleted"


def test_what_a_killed_night_held_is_delivered_by_the_very_next(run_night: RunNight, tmp_path: Path) -> None:
    small_study(tmp_path / "in")
    (case,) = run_night(tmp_path / "in").cases
    home = Home(tmp_path / "home")
    client = MlflowClient(f"sqlite:///{home.mlflow_database}")
    client.delete_run(str(case.mlflow_run_id))
    with Store.open(home.store_url) as store:
        store.requeue("mlflow", AT)
        assert store.lease("mlflow", home.worker, AT, "2999-01-01T00:00:00Z") is not None  # and it was killed
    run_night(tmp_path / "in")
    with Store.open(home.store_url) as store:
        assert store.pending("mlflow") == ()
        row = store.case(case.case)
    assert row is not None
    assert row.mlflow_run_id != case.mlflow_run_id
    assert client.get_run(str(row.mlflow_run_id)).info.status == "FINISHED"


class Killed(BaseException):
    """What no code of ours catches."""


@pytest.mark.parametrize("step", ["delivery", "set_mlflow_run", "batch delivered", "set_batch_run"])
def test_a_kill_between_any_two_steps_of_a_delivery_leaves_every_run_with_one_record(
    run_night: RunNight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    append = Store.append

    def killed(self: Store, *facts: object) -> object:
        if step.startswith("set") or facts[0] == step:
            raise Killed
        return append(self, *facts)  # type: ignore[arg-type]

    small_study(tmp_path / "in")
    with monkeypatch.context() as patched:
        patched.setattr(Store, step if step.startswith("set") else "append", killed)
        with pytest.raises(Killed):
            run_night(tmp_path / "in")
    run_night(tmp_path / "in")
    home = Home(tmp_path / "home")
    with Store.open(home.store_url) as store:
        kinds = [r.kind for r in store.ledger()]
        assert (kinds.count("delivery"), list(verify_mlflow(home, store, "medrec"))) == (1, [])


def test_letting_go_takes_nothing_from_another_worker(store: Store) -> None:
    store.finish(a_case("one"), {}, AT)
    assert store.lease("mlflow", "you", AT, SOON) is not None
    store.free_leases("mlflow", "me")
    assert store.lease("mlflow", "me", AT, SOON) is None
    store.free_leases("mlflow", "you")
    entry = store.lease("mlflow", "me", AT, SOON)
    assert entry is not None
    assert not entry.fresh


def test_a_running_night_of_another_home_is_left_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.create()
    tracker = Tracker(home, "medrec")
    tracker.start_batch("20260301T020000Z-aaaa", 0)
    (home.root / "worker").write_text("another")
    other = Tracker(home, "medrec")
    other.start_batch("20260301T030000Z-bbbb", 0)
    client = MlflowClient(f"sqlite:///{home.mlflow_database}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert sorted(r.info.status for r in runs) == ["RUNNING", "RUNNING"]


def test_a_night_that_mlflow_missed_is_shown_by_the_next(
    run_night: RunNight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medrec.errors import WorldError

    def away(*_: object, **__: object) -> None:
        raise WorldError("MLflow cannot be reached")

    small_study(tmp_path / "in", series_description="KNEE")
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "finish_batch", away)
        missed = run_night(tmp_path / "in").batch
    run_night(tmp_path / "in")
    client = MlflowClient(f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}")
    ids = [e.experiment_id for e in client.search_experiments()]
    (run,) = [
        r for r in client.search_runs(ids, f"tags.`medrec.batch` = '{missed}'") if "medrec.case" not in r.data.tags
    ]
    assert run.info.status == "FINISHED"
    assert run.info.run_name.endswith("1 refused")


def test_mlflow_that_cannot_take_a_report_is_asked_again_at_the_nights_end_only(
    run_night: RunNight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medrec.errors import WorldError
    from medrec.phantom import uid

    asked: list[str] = []

    def locked(_: Tracker, row: object, *__: object, **___: object) -> None:
        asked.append(getattr(row, "case", ""))
        raise WorldError("MLflow cannot be reached or written (OperationalError)")

    for number in range(3):
        name = f"study{number}"
        small_study(tmp_path / "in" / name, study_uid=uid("locked", name), series_description="KNEE")
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "deliver", locked)
        summary = run_night(tmp_path / "in")
    assert [c.status for c in summary.cases] == ["refused"] * 3
    assert len(asked) == 2
    assert any("later night" in w for w in summary.warnings)
    assert all(c.mlflow_run_id for c in run_night(tmp_path / "in").cases)
