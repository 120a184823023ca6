"""The store's promises, on SQLite and a real PostgreSQL: one chain, whoever writes, fails or dies."""

import hmac
import json
import multiprocessing
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from reviewers import accept, answer, reported, signer

from medrec import store as room
from medrec.audit import GENESIS
from medrec.database import VERSION_TABLE
from medrec.errors import ConfigError, DataError, WorldError
from medrec.report import Status, Verdict
from medrec.store import CaseRow, Lesion, State, Store, ledger, session, tables

pytest_plugins = ["postgres"]

AT = "2026-03-01T02:00:00Z"
LATER = "2026-03-02T02:00:00Z"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    return str(request.getfixturevalue("postgresql_url"))


@pytest.fixture
def postgresql_url(postgresql: Callable[[], str]) -> str:
    return postgresql()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url, wait_s=10) as store:
        ready(store)
        yield store


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


def ready(store: Store) -> Store:
    store.start_batch("night", AT)
    store.remember_study("study", "patient", AT)
    return store


def a_case(key: str, **changes: object) -> CaseRow:
    row = CaseRow(
        case=key,
        study="study",
        patient="patient",
        batch="night",
        model="brain_mr",
        version="1",
        inputs_sha256="inputs",
        status=Status.ANALYSED,
        reason="",
        verdict=Verdict.FINDING,
        report=f"reports/{key}/report.html",
        supersedes=None,
        superseded_by=None,
        finished_at=AT,
        seconds_ms=1500,
        mlflow_run_id=None,
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def a_failure(key: str, **changes: object) -> CaseRow:
    return a_case(key, **{"status": Status.FAILED, "verdict": None, "reason": "out of memory", **changes})


def wrote(key: str) -> dict[str, object]:
    return {"files": {f"reports/{key}/report.json": f"digest of {key}"}}


def problems(store: Store) -> list[str]:
    return [str(p) for p in store.verify()]


def kinds(store: Store) -> list[tuple[str, object]]:
    return [(record.kind, record.facts["case"]) for record in store.ledger()]


# Batches, studies, cases


def test_an_empty_store_has_no_case_and_its_head_is_genesis(store: Store) -> None:
    assert (store.head(), list(store.ledger()), store.cases(), store.case("key")) == (GENESIS, [], (), None)


def test_a_batch_is_noted_from_start_to_end(store: Store) -> None:
    store.start_batch("night", LATER)
    assert store.batches() == (room.BatchRow("night", AT, None, None),)
    store.finish_batch("night", LATER, '{"seen":3}')
    assert store.batches() == (room.BatchRow("night", AT, LATER, '{"seen":3}'),)


def test_a_batch_that_never_started_cannot_be_finished(store: Store) -> None:
    with pytest.raises(DataError, match="never started"):
        store.finish_batch("other", AT, "{}")


def test_a_study_keeps_when_it_was_first_seen(store: Store, url: str) -> None:
    store.remember_study("study", "patient", LATER)
    with sa.create_engine(url).connect() as connection:
        assert connection.execute(sa.text("SELECT first_seen FROM studies")).scalars().all() == [AT]


def test_a_finished_case_is_read_back_as_it_was_written(store: Store) -> None:
    row = a_case("key")
    store.finish(row, wrote("key"), LATER)
    assert store.case("key") == row
    assert store.cases() == store.cases("night") == (row,)
    assert store.cases("other night") == ()


def test_the_record_of_a_case_holds_its_row_and_the_callers_facts(store: Store) -> None:
    record = store.finish(a_case("key"), wrote("key"), LATER)
    salt = store.salt("patient")
    assert (record.kind, record.at, record.previous) == ("case analysed", LATER, GENESIS)
    assert record.facts == {
        "case": "key",
        "study": hmac.new(salt.encode(), b"study", "sha256").hexdigest(),
        "batch": "night",
        "model": "brain_mr",
        "version": "1",
        "inputs_sha256": hmac.new(salt.encode(), b"inputs", "sha256").hexdigest(),
        "status": "analysed",
        "reason": "",
        "verdict": "finding",
        "report": "reports/key/report.html",
        "supersedes": None,
        "finished_at": AT,
        "seconds_ms": 1500,
        "files": {"reports/key/report.json": "digest of key"},
    }
    assert list(store.ledger()) == [record]
    assert store.head() == record.digest


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (a_case("key", model=None, version=None, verdict=None, status=Status.REFUSED), "case refused"),
        (a_failure("key"), "case failed"),
    ],
)
def test_refused_and_failed_cases_have_records_of_their_own(store: Store, row: CaseRow, kind: str) -> None:
    assert store.finish(row, {}, AT).kind == kind
    assert store.case("key") == row
    assert problems(store) == []


@pytest.mark.parametrize(
    ("row", "facts", "error"),
    [
        (a_case("key"), {"verdict": "nothing marked"}, ValueError),
        (a_case("key"), {"files": {"/home/x": "0"}}, ValueError),
        (a_case("key"), {"volume_ml": 1.5}, TypeError),
        (a_case("key", status=Status.ALREADY_DONE), {}, ValueError),
        (a_case("key", study="unknown"), {}, DataError),
        (a_case("key", batch="unknown"), {}, DataError),
    ],
)
def test_a_case_that_cannot_be_recorded_leaves_nothing_behind(
    store: Store, row: CaseRow, facts: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        store.finish(row, facts, AT)
    assert (store.cases(), list(store.ledger()), store.pending("mlflow")) == ((), [], ())


@pytest.mark.parametrize("status", [Status.ANALYSED, Status.REFUSED])
def test_a_finished_case_stays_as_it_is(store: Store, status: Status) -> None:
    store.finish(a_case("key", status=status), {}, AT)
    with pytest.raises(DataError, match="key is finished already"):
        store.finish(a_case("key", verdict=Verdict.NOTHING_MARKED), {}, LATER)
    assert len(list(store.ledger())) == 1


def test_a_failed_case_is_replaced_when_it_is_tried_again(store: Store) -> None:
    store.finish(a_failure("key"), {"files": {"reports/key/report.json": "old"}}, AT)
    store.finish(a_case("key", finished_at=LATER), wrote("key"), LATER)
    assert store.cases() == (a_case("key", finished_at=LATER),)
    assert kinds(store) == [("case failed", "key"), ("case analysed", "key")]
    assert list(store.verify({"reports/key/report.json": "digest of key"}.get)) == []


# Superseding


def test_a_later_case_supersedes_the_earlier_ones_of_its_study_and_model_and_they_stay(store: Store) -> None:
    store.remember_study("other", "patient", AT)
    store.finish(a_case("other study", study="other"), {}, AT)
    store.finish(a_case("other model", model="breast_us"), {}, AT)
    for key in ("one", "two", "three"):
        store.finish(a_case(key, inputs_sha256=f"inputs of {key}"), {}, AT)
    links = {row.case: (row.supersedes, row.superseded_by) for row in store.cases()}
    assert links == {
        "other study": (None, None),
        "other model": (None, None),
        "one": (None, "two"),
        "two": ("one", "three"),
        "three": ("two", None),
    }
    assert kinds(store)[3:] == [
        ("case analysed", "two"),
        ("case superseded", "one"),
        ("case analysed", "three"),
        ("case superseded", "two"),
    ]
    assert problems(store) == []


def test_a_failed_try_supersedes_nothing_and_is_superseded_by_the_next_success(store: Store) -> None:
    store.finish(a_case("good"), {}, AT)
    store.finish(a_failure("bad", inputs_sha256="more"), {}, AT)
    current = store.current("study", "brain_mr")
    assert current is not None
    assert (current.case, current.superseded_by) == ("good", None)
    store.finish(a_case("better", inputs_sha256="more"), {}, LATER)
    assert [(row.case, row.superseded_by) for row in store.cases()] == [
        ("good", "better"),
        ("bad", "better"),
        ("better", None),
    ]
    better = store.case("better")
    assert better is not None
    assert better.supersedes == "bad"
    assert problems(store) == []


def test_a_superseded_failure_that_fails_again_stays_superseded_and_that_succeeds_comes_into_force(
    store: Store,
) -> None:
    store.finish(a_failure("first"), {}, AT)
    store.finish(a_case("second"), {}, AT)
    store.finish(a_failure("first", reason="disk full"), {}, AT)
    assert problems(store) == []
    current = store.current("study", "brain_mr")
    assert current is not None
    assert current.case == "second"
    store.finish(a_case("first"), {}, AT)
    assert problems(store) == []
    current = store.current("study", "brain_mr")
    assert current is not None
    assert (current.case, current.supersedes, current.superseded_by) == ("first", "second", None)


def test_the_analysed_case_of_any_version_on_these_inputs_is_found_while_it_is_in_force(store: Store) -> None:
    store.finish(a_case("one"), {}, AT)
    found = store.analysed("study", "brain_mr", "inputs")
    assert found is not None
    assert found.case == "one"
    assert store.analysed("study", "brain_mr", "other inputs") is None
    assert store.analysed("study", "other model", "inputs") is None
    # A copy of the study that arrived incomplete takes no report out of force; a newer result does.
    store.finish(a_case("two", status=Status.REFUSED, verdict=None), {}, AT)
    still = store.analysed("study", "brain_mr", "inputs")
    assert still is not None
    assert still.superseded_by is None
    store.finish(a_case("three", inputs_sha256="other inputs"), {}, AT)
    assert store.analysed("study", "brain_mr", "inputs") is None


def test_a_failed_case_is_current_only_when_there_is_no_other(store: Store) -> None:
    assert store.current("study", "brain_mr") is None
    store.finish(a_failure("bad"), {}, AT)
    current = store.current("study", "brain_mr")
    assert current is not None
    assert current.case == "bad"


def test_cases_without_a_model_supersede_each_other(store: Store) -> None:
    nobody = a_case("one", model=None, version=None, verdict=None, status=Status.REFUSED)
    store.finish(nobody, {}, AT)
    store.finish(replace(nobody, case="two"), {}, AT)
    current = store.current("study", None)
    assert current is not None
    assert (current.case, current.supersedes) == ("two", "one")


# The ledger


def test_records_of_other_kinds_continue_the_chain(store: Store) -> None:
    first = store.append("configuration changed", AT, {"configuration": "0"})
    second = store.finish(a_case("key"), {}, AT)
    assert second.previous == first.digest
    assert list(store.ledger(since=1)) == [second]
    assert problems(store) == []


def test_a_long_ledger_is_read_in_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [store.append("configuration changed", AT, {"configuration": str(i)}) for i in range(7)]
    monkeypatch.setattr(ledger, "PAGE", 3)
    assert list(store.ledger()) == records
    assert list(store.ledger(since=3)) == records[3:]


def refused(store: Store, url: str, statement: str) -> None:
    store.append("configuration changed", AT, {"configuration": "0"})
    with (
        pytest.raises(sa.exc.IntegrityError, match="the ledger only grows"),
        sa.create_engine(url).begin() as connection,
    ):
        connection.exec_driver_sql(statement)
    assert problems(store) == []


CHANGES = [
    "UPDATE ledger SET body = 'x' WHERE seq = 1",
    "UPDATE ledger SET seq = 2 WHERE seq = 1",
    "DELETE FROM ledger",
    "DELETE FROM ledger WHERE seq = 1",
]


@pytest.mark.parametrize("statement", CHANGES)
def test_the_database_itself_refuses_to_change_or_remove_a_record(store: Store, url: str, statement: str) -> None:
    refused(store, url, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT OR REPLACE INTO ledger VALUES (1, 'p', 'd', 'x')",
        "REPLACE INTO ledger SELECT 9, previous, 'd', 'x' FROM ledger",
    ],
)
def test_sqlite_refuses_to_replace_a_record(sqlite_url: str, statement: str) -> None:
    with Store.open(sqlite_url) as store:
        refused(store, sqlite_url, statement)


def test_postgresql_refuses_to_empty_the_ledger(postgresql_url: str) -> None:
    with Store.open(postgresql_url) as store:
        refused(store, postgresql_url, "TRUNCATE ledger CASCADE")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("UPDATE cases SET verdict = 'nothing marked'", "case key: verdict is 'nothing marked' in the store"),
        ("UPDATE cases SET status = 'bogus'", "case key: status is 'bogus' in the store"),
        ("UPDATE cases SET report = 'other'", "case key: report is 'other' in the store"),
        ("UPDATE cases SET reason = 'other'", "case key: reason is 'other' in the store"),
        ("UPDATE cases SET superseded_by = 'key'", "case key: superseded_by is 'key' in the store, nothing"),
        ("DELETE FROM cases", "case key: record 1 tells of it, but the store does not have it"),
    ],
)
def test_a_case_changed_behind_our_back_is_named(store: Store, url: str, change: str, named: str) -> None:
    store.finish(a_case("key"), {}, AT)
    with sa.create_engine(url).begin() as connection:
        connection.execute(sa.text("DELETE FROM outbox"))
        connection.execute(sa.text(change))
    (found,) = problems(store)
    assert found.startswith(named)


def test_a_record_changed_by_someone_who_drops_the_triggers_is_named(sqlite_url: str) -> None:
    with ready(Store.open(sqlite_url)) as store:
        for key in ("one", "two"):
            store.finish(a_case(key, model=key), {}, AT)
        with sa.create_engine(sqlite_url).begin() as connection:
            connection.exec_driver_sql("DROP TRIGGER ledger_no_update")
            connection.exec_driver_sql("UPDATE ledger SET body = replace(body, '1500', '1501') WHERE seq = 1")
        first, second = problems(store)
        assert first.startswith("record 1: its bytes do not match its digest")
        assert second == "case one: seconds_ms is 1500 in the store, 1501 in the ledger (record 1)"


# The outbox


def test_each_finished_case_waits_for_mlflow_oldest_first_until_it_is_delivered(store: Store) -> None:
    for key in ("b", "a"):
        store.finish(a_case(key, model=key), {}, AT)
    first, second = store.pending("mlflow")
    assert (first.case, first.attempts, first.why, second.case) == ("b", 0, None, "a")
    store.postponed(first.id, "away\0", LATER)
    store.postponed(first.id, "still away", LATER)
    assert [(row.case, row.attempts, row.why) for row in store.pending("mlflow")] == [
        ("b", 2, "still away"),
        ("a", 0, None),
    ]
    store.delivered(first.id, LATER)
    assert store.pending("mlflow") == (second,)
    assert store.pending("pacs") == ()


def test_the_mlflow_run_of_a_case_is_noted_beside_the_ledger(store: Store) -> None:
    store.finish(a_case("key"), {}, AT)
    store.set_mlflow_run("key", "run")
    assert store.case("key") == a_case("key", mlflow_run_id="run")
    assert problems(store) == []


# Many at once


def _finish_some(url: str, who: str, number: int) -> None:
    with Store.open(url) as store:
        for i in range(number):
            store.finish(a_case(f"{who}{i}", model=f"{who}{i}"), wrote(f"{who}{i}"), AT)


def test_two_threads_leave_one_unbroken_chain(store: Store) -> None:
    def work(who: str) -> None:
        for i in range(15):
            store.finish(a_case(f"{who}{i}"), {}, AT)

    threads = [threading.Thread(target=work, args=(who,)) for who in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.cases()) == 30
    assert problems(store) == []
    # All are of one study and model: each but the last is superseded exactly once, whoever wrote it.
    assert [row.superseded_by is None for row in store.cases()] == [False] * 29 + [True]
    assert len(list(store.ledger())) == 30 + 29


def test_two_processes_leave_one_unbroken_chain(store: Store, url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_finish_some, args=(url, who, 15)) for who in ("a", "b")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(list(store.ledger())) == len(store.cases()) == len(store.pending("mlflow")) == 30
    assert problems(store) == []


def test_of_two_writers_that_read_the_same_head_the_second_tries_again_on_the_new_one(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not on SQLite, whose writers read the head with the lock in hand.
    read, heads = session.head_of, []

    def overtaken(connection: sa.Connection) -> tuple[int, str]:
        head = read(connection)
        heads.append(head)
        if len(heads) == 1:
            with Store.open(postgresql_url) as other:
                other.finish(a_case("faster"), {}, AT)
        return head

    with ready(Store.open(postgresql_url)) as store:
        monkeypatch.setattr(session, "head_of", overtaken)
        store.finish(a_case("slower"), {}, AT)
        assert [(row.case, row.superseded_by) for row in store.cases()] == [
            ("faster", "slower"),
            ("slower", None),
        ]
        assert problems(store) == []


def test_many_first_opens_at_once_make_one_store(url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_finish_some, args=(url, "", 0)) for _ in range(2)]
    threads = [threading.Thread(target=_finish_some, args=(url, "", 0)) for _ in range(2)]
    for one in (*workers, *threads):
        one.start()
    for one in (*workers, *threads):
        one.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    with ready(Store.open(url)) as store:
        store.finish(a_case("key"), {}, AT)
        assert problems(store) == []


KILLED = """
import sys, time
import sqlalchemy as sa
sys.path.insert(0, {tests!r})
from test_store import AT, Store, a_case
store = Store.open({url!r})
store.finish(a_case("whole", model="whole"), {{}}, AT)

@sa.event.listens_for(store._engine, "after_cursor_execute")
def stop(connection, cursor, statement, *rest):
    if statement.startswith("INSERT INTO outbox"):
        print("in the middle", flush=True)
        time.sleep(60)

store.finish(a_case("half", model="half"), {{}}, AT)
"""


def test_a_process_killed_in_mid_transaction_leaves_whole_cases_only(store: Store, url: str) -> None:
    code = KILLED.format(tests=str(Path(__file__).parent), url=url)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the middle\n"
        process.kill()
    assert [row.case for row in store.cases()] == ["whole"]
    store.finish(a_case("half", model="half"), {}, AT)
    assert kinds(store) == [("case analysed", "whole"), ("case analysed", "half")]
    assert problems(store) == []


def test_a_process_killed_while_it_creates_the_store_leaves_one_that_opens(url: str) -> None:
    code = f"""
import sys, time
import sqlalchemy as sa
from medrec import store

@sa.event.listens_for(sa.Engine, "after_cursor_execute")
def stop(connection, cursor, statement, *rest):
    if "CREATE TABLE cases" in statement:
        print("in the middle", flush=True)
        time.sleep(60)

store.Store.open({url!r})
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the middle\n"
        process.kill()
    with ready(Store.open(url)) as store:
        store.finish(a_case("key"), {}, AT)
        assert problems(store) == []


# The schema


def test_the_migrations_make_the_tables_that_the_store_speaks_of(store: Store) -> None:
    def ours(_: object, name: str | None, kind: str, *__: object) -> bool:
        return not (kind == "table" and name == VERSION_TABLE)

    with store._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": ours, "compare_type": True})
        assert compare_metadata(context, tables.META) == []


def test_a_store_is_found_again_as_it_was_left(url: str) -> None:
    with ready(Store.open(url)) as store:
        record = store.finish(a_case("key"), {}, AT)
    with Store.open(url) as store:
        assert store.head() == record.digest
        assert store.case("key") == a_case("key")


def test_a_store_of_a_newer_medrec_is_refused_and_left_alone(store: Store, url: str) -> None:
    with sa.create_engine(url).begin() as connection:
        connection.execute(sa.text("UPDATE medrec_schema SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="written by a newer medrec; update medrec"):
        Store.open(url)
    with sa.create_engine(url).connect() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM medrec_schema")).scalar() == "9999"


@pytest.mark.parametrize("url", ["", "store.db", "mysql://root@localhost/medrec", "postgresql+psycopg2://x/y"])
def test_a_url_that_is_no_place_for_a_store_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"postgresql\+psycopg://"):
        Store.open(url)


# The world is down


def test_a_sqlite_store_is_private_crash_safe_and_keeps_its_foreign_keys(tmp_path: Path) -> None:
    with ready(Store.open(f"sqlite:///{tmp_path / 'store.db'}")) as store:
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
        with store._engine.connect() as connection:
            pragmas = ("journal_mode", "foreign_keys", "synchronous")
            values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]
    assert values == ["wal", 1, 2]


def says(error: pytest.ExceptionInfo[WorldError]) -> str:
    """What a person reads; it never shows the database library's words, statements or values."""
    text = str(error.value)
    assert error.value.__suppress_context__
    assert not any(word in text for word in ("sqlalche", "sqlite3", "INSERT", "secret", "[SQL", "psycopg"))
    return text


def test_a_locked_database_is_waited_for_and_then_named(sqlite_url: str, tmp_path: Path) -> None:
    with ready(Store.open(sqlite_url, wait_s=0.2)) as store:
        other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(WorldError) as e:
            store.finish(a_case("key", reason="secret"), {}, AT)
        assert "is locked by another process for more than 0.2 s" in says(e)
        assert store.case("key") is None
        other.execute("ROLLBACK")
        store.finish(a_case("key"), {}, AT)
        other.close()


def test_a_read_only_database_can_be_read_and_verified_and_says_so_when_written(sqlite_url: str) -> None:
    with ready(Store.open(sqlite_url)) as store:
        store.finish(a_case("key"), {}, AT)
    path = sqlite_url.removeprefix("sqlite:///")
    with Store.open(f"sqlite:///file:{path}?mode=ro&uri=true") as store:
        assert problems(store) == []
        with pytest.raises(WorldError) as e:
            store.finish(a_case("other", reason="secret"), {}, AT)
        assert "is read-only" in says(e)


def test_a_full_disk_is_named_and_leaves_an_unbroken_chain(sqlite_url: str) -> None:
    with ready(Store.open(sqlite_url)) as store:
        store.finish(a_case("key"), {}, AT)
        with store._engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()

        @sa.event.listens_for(store._engine, "begin")
        def no_room(connection: sa.Connection) -> None:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

        with pytest.raises(WorldError) as e:
            store.finish(a_case("other", reason="secret" * 10_000), {}, AT)
        assert "is full" in says(e)
        assert [row.case for row in store.cases()] == ["key"]
        assert problems(store) == []


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorldError) as e:
        Store.open(f"sqlite:///{tmp_path / 'gone' / 'store.db'}")
    assert "cannot be created: No such file" in says(e)


def test_a_file_that_is_no_database_is_named_and_left_alone(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"not a database" * 100)
    with pytest.raises(WorldError) as e:
        Store.open(sqlite_url)
    assert "is not a medrec store" in says(e)
    assert (tmp_path / "store.db").read_bytes() == b"not a database" * 100


def test_a_server_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(WorldError) as e:
        Store.open(f"postgresql+psycopg://someone:secret@/medrec?host={tmp_path}")
    assert "cannot be reached" in says(e)


def test_a_database_that_is_not_there_is_named(postgresql_url: str) -> None:
    with pytest.raises(WorldError) as e:
        Store.open(postgresql_url.replace("/postgres?", "/nowhere?"))
    assert "does not exist" in says(e) or "cannot be reached" in says(e)


def test_a_server_that_went_away_is_found_again(postgresql_url: str) -> None:
    with ready(Store.open(postgresql_url)) as store:
        with sa.create_engine(postgresql_url).connect() as connection:
            others = "FROM pg_stat_activity WHERE usename = current_user AND pid <> pg_backend_pid()"
            connection.exec_driver_sql(f"SELECT pg_terminate_backend(pid) {others}")
        store.finish(a_case("key"), {}, AT)
        assert problems(store) == []


# Deliveries to a PACS


def test_a_delivery_is_there_once_and_each_change_is_in_the_ledger(store: Store) -> None:
    store.finish(a_case("a"), {}, AT)
    for _ in range(2):
        store.enqueue("a", "pacs", "results", State.QUEUED, AT)
    (delivery,) = store.deliveries()
    delivery = store.trying(delivery)
    sent = store.move(delivery, State.SENT, LATER, objects={"2.25.1": "0" * 64})
    again = store.move(sent, State.SENT, LATER)
    done = store.move(again, State.CONFIRMED, LATER)
    assert store.deliveries() == (done,)
    assert (done.attempts, done.changed_at, done.created_at) == (1, LATER, AT)
    records = [r for r in store.ledger() if r.kind.startswith("delivery")]
    assert [r.facts["state"] for r in records] == ["queued", "sent", "confirmed"]
    assert [r.kind for r in records] == ["delivery state", "delivery", "delivery state"]
    assert records[1].facts["objects"] == {"2.25.1": "0" * 64}
    assert store.sent("a", "pacs", "results") == {"2.25.1"}
    assert store.sent("a", "pacs", "rejection") == store.sent("a", "other", "results") == frozenset()
    assert list(store.verify()) == []


def test_a_delivery_of_an_unknown_case_is_refused(store: Store) -> None:
    with pytest.raises(DataError):
        store.enqueue("nobody", "pacs", "results", State.QUEUED, AT)
    with pytest.raises(DataError):
        store.sign_review(answer(store, "nobody", "accept", "DOE", AT), signer("DOE"))
    assert store.deliveries() == ()
    assert store.head() == GENESIS


def test_only_analysed_cases_in_force_that_were_not_recalled_go_anywhere(store: Store) -> None:
    store.finish(a_case("old"), {}, AT)
    store.finish(a_case("new"), {}, AT)
    store.finish(a_case("refused", model="other", status=Status.REFUSED, verdict=None), {}, AT)
    assert [c.case for c in store.undelivered("pacs")] == ["new"]
    store.enqueue("new", "pacs", "results", State.REVIEW, AT)
    assert store.undelivered("pacs") == ()
    assert [c.case for c in store.undelivered("other")] == ["new"]
    assert store.recall("new", "safety", LATER)
    assert not store.recall("new", "quality", LATER)
    assert store.recalled("new") == ("safety", LATER)
    assert store.undelivered("other") == ()


def test_a_case_is_accepted_once(store: Store) -> None:
    store.finish(a_case("a"), reported("a"), AT)
    assert store.accepted("a") is None
    accept(store, "a", "DOE", AT)
    accept(store, "a", "ROE", LATER)
    assert store.accepted("a") == ("DOE", AT)
    assert [r.kind for r in store.ledger()].count("case accepted") == 1


def test_the_reports_of_a_model_since_a_day(store: Store) -> None:
    store.finish(a_case("early", study="study", finished_at=AT), {}, AT)
    store.finish(a_case("late", study="study", finished_at=LATER), {}, LATER)
    assert [c.case for c in store.made_by("brain_mr", "2026-03-02")] == ["late"]
    assert [c.case for c in store.made_by("brain_mr", "2026-03-01")] == ["early", "late"]
    assert store.made_by("another", "2026-03-01") == ()


# Lesions that are known from before


def test_a_match_is_followed_to_the_first_and_can_be_taken_back(store: Store) -> None:
    for key in ("a", "b", "c"):
        store.finish(a_case(key), {}, AT)
    a1, b1, c2 = Lesion("a", 1), Lesion("b", 1), Lesion("c", 2)
    assert store.origin(c2) == c2
    store.match(c2, b1, "DOE", "same place", AT)
    store.match(b1, a1, "DOE", "same place", AT)
    assert (store.matches("c"), store.origin(c2)) == ({2: b1}, a1)
    assert store.matches("a") == {}
    store.lift_match(b1, "ROE", "another lobe", LATER)
    assert store.origin(c2) == b1
    with pytest.raises(DataError, match="not matched"):
        store.lift_match(b1, "ROE", "again", LATER)
    store.match(b1, a1, "DOE", "it is, after all", LATER)
    assert store.origin(c2) == a1
    assert problems(store) == []


def test_a_match_that_contradicts_is_refused(store: Store) -> None:
    store.remember_study("elsewhere", "somebody", AT)
    for key in ("a", "b", "c"):
        store.finish(a_case(key), {}, AT)
    store.finish(a_case("stranger", study="elsewhere", patient="somebody"), {}, AT)
    store.match(Lesion("b", 1), Lesion("a", 1), "DOE", "same place", AT)
    for lesion, same_as, words in (
        (Lesion("b", 2), Lesion("a", 1), "lesion 1 of the same case is that one already"),
        (Lesion("b", 1), Lesion("a", 2), "take that back first"),
        (Lesion("a", 1), Lesion("b", 1), "known from this case"),
        (Lesion("a", 1), Lesion("a", 2), "of one case"),
        (Lesion("a", 1), Lesion("stranger", 1), "two patients"),
        (Lesion("a", 1), Lesion("nobody", 1), "no such case"),
    ):
        with pytest.raises(DataError, match=words):
            store.match(lesion, same_as, "DOE", "looks alike", AT)
    assert [r.kind for r in store.ledger()].count("lesions matched") == 1


# What may stand where


def test_a_review_before_any_report_and_a_promotion_without_evaluation_are_refused(store: Store) -> None:
    review = {"case": "key", "report": "digest", "by": "reader", "decision": "agreed"}
    with pytest.raises(DataError, match=r"'review' of case key without 'case analysed' before it"):
        store.append("review", AT, review)
    store.finish(a_failure("key"), {}, AT)
    with pytest.raises(DataError, match="without 'case analysed'"):
        store.append("review", AT, review)
    store.finish(a_case("key"), {}, AT)
    store.append("review", AT, review)
    promoted, evaluated = {"card": "c", "by": "somebody"}, {"card": "c", "evaluation": "digest"}
    for kind, facts in (("model promoted", promoted), ("model eligible", evaluated), ("model rolled back", promoted)):
        with pytest.raises(DataError, match="before it"):
            store.append(kind, AT, facts)
    for kind in ("model evaluated", "model eligible"):
        store.append(kind, AT, evaluated)
    store.append("model promoted", AT, promoted)
    store.append("model disabled", AT, {**promoted, "why": "drift"})
    with pytest.raises(DataError, match="after 'model disabled'"):
        store.append("model promoted", AT, promoted)
    assert problems(store) == []


def test_a_record_of_no_kind_without_its_facts_or_of_a_row_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="no kind of record called 'reveiw'"):
        store.append("reveiw", AT, {})
    with pytest.raises(ValueError, match="must say report, decision"):
        store.append("review", AT, {"case": "key", "by": "reader"})
    with pytest.raises(ValueError, match="together with the rows"):
        store.append("case analysed", AT, {"case": "key", "status": "analysed", "files": {}})
    assert list(store.ledger()) == []


def test_the_story_of_a_case_is_every_record_about_it(store: Store) -> None:
    store.finish(a_case("old"), {}, AT)
    store.append("configuration changed", AT, {"configuration": "0"})
    store.finish(a_case("new"), {}, LATER)
    story = [(number, record.kind) for number, record in store.about("case old")]
    assert story == [(1, "case analysed"), (4, "case superseded")]
    assert [number for number, _ in store.about("case new")] == [3, 4]
    latest = store.latest("configuration changed")
    assert latest is not None
    assert latest.facts == {"configuration": "0"}


def test_digests_of_what_came_from_a_patient_are_keyed_with_the_patients_salt(store: Store) -> None:
    store.remember_study("theirs", "other", AT)
    told = {"inputs": ["digest"], "pixels": {"flair": "digest"}}
    one = store.finish(a_case("one"), told, AT).facts
    two = store.finish(a_case("two", study="theirs", patient="other"), told, AT).facts
    assert "digest" not in str(one)
    assert one["inputs"] == [hmac.new(store.salt("patient").encode(), b"digest", "sha256").hexdigest()]
    assert one["inputs"] != two["inputs"]
    assert one["pixels"] != two["pixels"]


# People's rights


def test_an_erased_patient_leaves_a_tombstone_and_no_row(store: Store) -> None:
    store.remember_study("theirs", "other", AT)
    summary = '{"cases": [{"case": "old"}, {"case": "kept"}], "refusals": [{"sha256": "digest"}]}'
    store.finish(a_case("old"), wrote("old"), AT)
    store.finish(a_case("new"), wrote("new"), AT)
    store.finish(a_case("kept", study="theirs", patient="other"), wrote("kept"), AT)
    store.finish_batch("night", AT, summary)
    assert store.erase("patient", ["digest"], ["model 1"], "somebody", LATER) == ("old", "new")
    assert [row.case for row in store.cases()] == ["kept"]
    assert [entry.case for entry in store.pending("mlflow")] == ["kept"]
    assert (store.erased_patients(), store.of_patient("patient")) == ({"patient"}, ())
    (batch,) = store.batches()
    assert json.loads(batch.summary or "") == {"cases": [{"case": "kept"}], "refusals": []}
    assert problems(store) == []
    assert list(store.contradictions()) == []
    *_, last, rewritten = store.ledger()
    assert (rewritten.kind, rewritten.facts["why"]) == ("night rewritten", "patient erased")
    assert last.facts == {"cases": ["old", "new"], "models": ["model 1"], "by": "somebody", "labels": []}
    with pytest.raises(DataError, match="no case of patient"):
        store.erase("patient", (), (), "somebody", LATER)
    with pytest.raises(DataError, match="after 'patient erased'"):
        store.append("review", LATER, {"case": "old", "report": "r", "by": "b", "decision": "d"})


@pytest.mark.parametrize("who", ["one", "two"])
def test_a_study_of_several_patients_is_erased_with_any_of_them(store: Store, who: str) -> None:
    store.remember_study("mixed", "mixed", AT, ("one", "two"))
    store.finish(a_case("key", study="mixed", patient="mixed"), wrote("key"), AT)
    store.rename({"mixed": "mixed2", "one": "one2", "two": "two2"}, {"by": "b", "mapping": "m", "key": "k"}, LATER, str)
    assert store.of_patient(f"{who}2") == ("key",)
    assert store.erase(f"{who}2", (), (), "somebody", LATER) == ("key",)
    assert store.pseudonyms() == {"study", "patient", f"{who}2"}  # the erased is known by name only
    with pytest.raises(DataError, match="no case of patient"):
        store.erase("mixed2", (), (), "somebody", LATER)
    assert problems(store) == []
    assert list(store.contradictions()) == []


def test_renamed_studies_and_patients_are_renamed_everywhere_and_verify_by_their_first_names(store: Store) -> None:
    store.finish(a_case("key"), {}, AT)
    store.finish_batch("night", AT, '{"cases": [{"case": "key", "study": "study"}], "refusals": []}')
    steps = {"study": "new study", "patient": "new patient"}
    store.rename(steps, {"by": "b", "mapping": "m", "key": "k"}, LATER, str)
    row = store.case("key")
    assert row is not None
    assert (row.study, row.patient) == ("new study", "new patient")
    assert store.pseudonyms() == {"new study", "new patient"}
    assert "new study" in (store.batches()[0].summary or "")
    first = {new: old for old, new in steps.items()}
    assert [str(p) for p in store.verify(original=lambda name: first.get(name, name))] == []
    assert any("study is" in str(p) for p in store.verify())


def test_a_held_case_is_not_erased(store: Store) -> None:
    store.finish(a_case("key"), {}, AT)
    told = {"case": "key", "by": "b", "why": "court"}
    with pytest.raises(DataError, match="without 'hold placed'"):
        store.append("hold lifted", AT, told)
    store.append("hold placed", AT, told)
    assert store.held("key") == "court"
    with pytest.raises(DataError, match="on hold"):
        store.erase("patient", (), (), "b", AT)
    store.append("hold lifted", AT, told)
    assert store.erase("patient", (), (), "b", AT) == ("key",)


def test_a_store_of_the_first_schema_is_brought_up_to_this_one_with_its_records(url: str) -> None:
    with ready(Store.open(url)) as store:
        old = store.finish(a_case("key"), {}, AT)
        with store._writing() as connection:  # as 0001 left it
            for statement in (
                *("DROP TABLE reviews", "DROP TABLE label_requests"),
                *("DROP TABLE sides", "DROP TABLE labels", "DROP TABLE known"),
                *("DROP TABLE deliveries", "DROP TABLE accepted", "DROP TABLE recalled"),
                *("DROP TABLE ledger_subjects", "DROP TABLE salts", "DROP TABLE erased", "DROP TABLE study_patients"),
                *("DROP TABLE claims", "DROP TABLE observed", "DROP TABLE shadows"),
                *("ALTER TABLE outbox DROP COLUMN leased_by", "ALTER TABLE outbox DROP COLUMN leased_until"),
                *("ALTER TABLE batches DROP COLUMN mlflow_run_id", "UPDATE medrec_schema SET version_num = '0001'"),
            ):
                connection.exec_driver_sql(statement)
    with Store.open(url) as store:
        assert store.salt("patient") == ""
        assert [record.digest for _, record in store.about("case key")] == [old.digest]
