"""Nights by themselves: when they are due and late, who is told, how things stand, and reports made again."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tiny import ready_home, tiny_configuration, tiny_folder, tiny_studies
from typer.testing import CliRunner

import flows
from medrec import backfill, config, notices
from medrec.accounts import CaseLine, Summary
from medrec.cli import app
from medrec.config import CardFiles, Configuration
from medrec.errors import AlreadyRunningError, ConfigError, SentinelError, WorldError
from medrec.home import Home
from medrec.night import Night, Request
from medrec.notices import Notice
from medrec.report import Status
from medrec.schedule import Notify, Schedule
from medrec.standing import standing
from medrec.store import Store

NIGHTLY = Schedule(cron="0 20 * * *", timezone="Europe/Berlin", until="06:00")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_a_night_is_due_by_the_clocks_of_its_time_zone_in_summer_and_winter() -> None:
    assert NIGHTLY.next(at("2026-01-05T12:00:00+00:00")) == at("2026-01-05T19:00:00+00:00")
    assert NIGHTLY.next(at("2026-07-05T12:00:00+00:00")) == at("2026-07-05T18:00:00+00:00")
    assert NIGHTLY.last(at("2026-07-05T12:00:00+00:00")) == at("2026-07-04T18:00:00+00:00")
    window = NIGHTLY.window(at("2026-07-04T18:00:00+00:00"))
    assert window is not None
    assert window.until == at("2026-07-05T04:00:00+00:00")


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        ({"cron": "0 25 * * *"}, "five fields of cron"),
        ({"cron": "daily"}, "five fields of cron"),
        ({"cron": "0 20 * * *", "timezone": "Berlin"}, "no time zone 'Berlin'"),
        ({"cron": "0 20 * * *", "until": "6 o'clock"}, "until"),
    ],
)
def test_a_schedule_that_cannot_be_is_a_mistake_by_name(mistake: dict[str, str], named: str, tmp_path: Path) -> None:
    (tmp_path / "medrec.yaml").write_text(json.dumps({"schedule": mistake}))
    with pytest.raises(ConfigError, match=named):
        config.load(tmp_path)


def test_a_scheduled_retraining_waits_for_enough_new_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    wanted = {"cron": "0 12 * * 6", "models": ["phantom"], "new_labels": 1}
    (tmp_path / "own" / "medrec.yaml").write_text(json.dumps({"models": ["phantom"], "retraining": wanted}))
    monkeypatch.setenv("MEDREC_HOME", str(tmp_path / "home"))
    configuration = config.load(tmp_path / "own")
    from flows.deployed import _retrained

    assert configuration.settings.retraining is not None
    assert _retrained("phantom", configuration.settings.retraining.new_labels, configuration) == "phantom: waiting"


# Notices


def a_summary(*statuses: Status) -> Summary:
    lines = tuple(CaseLine(str(n), "s", (), s.value, "", None, None, None, 0.0) for n, s in enumerate(statuses))
    return Summary("batch", {"seen": len(lines)}, (), lines, ())


def test_what_is_told_of_a_night() -> None:
    assert notices.of_night(a_summary(Status.ANALYSED, Status.REFUSED, Status.ALREADY_DONE)) == ()
    told = notices.of_night(a_summary(Status.FAILED, Status.WAITING, Status.WAITING))
    assert [(n.event, n.text.split(",")[0].split(" for")[0]) for n in told] == [
        ("studies failed", "1 of 3 studies failed"),
        ("studies left", "2 of 3 studies were left"),
    ]


def test_what_is_told_of_a_night_that_did_not_end_quotes_no_path() -> None:
    assert notices.of_error(AlreadyRunningError("busy")) == ()
    (told,) = notices.of_error(ConfigError(["--input: /archive/DOE^JANE is not a folder"]))
    assert (told.event, "DOE" in told.text) == ("night failed", False)
    (told,) = notices.of_error(SentinelError(["its mirror image: wanted right, got left"]))
    assert "wanted right, got left" in told.text


@pytest.mark.parametrize(("days", "silent"), [(3, False), (2, True), (None, False)])
def test_silence_is_told_after_the_configured_days(days: int | None, silent: bool) -> None:
    schedule = NIGHTLY.model_copy(update={"quiet_days": days})
    told = notices.of_silence(schedule, "2026-01-01T00:00:00Z", at("2026-01-03T12:00:00+00:00"))
    assert [n.event for n in told] == (["no studies"] if silent else [])


@pytest.fixture
def hook() -> Iterator[tuple[str, list[tuple[str | None, dict[str, object]]], list[int]]]:
    """A webhook that keeps what it is told, and answers with the last of `codes`."""
    told: list[tuple[str | None, dict[str, object]]] = []
    codes = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.append((self.headers["Authorization"], json.loads(body)))
            self.send_response(codes[-1])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/secret", told, codes
    server.shutdown()
    server.server_close()


def test_a_webhook_gets_one_object_a_notice_and_one_that_is_away_is_a_warning(
    hook: tuple[str, list[tuple[str | None, dict[str, object]]], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, told, codes = hook
    monkeypatch.setenv("HOOK_TOKEN", "sesame")
    assert notices.send(Notify(webhook=url, token="HOOK_TOKEN"), "b1", [Notice("studies left", "2 left")]) == ""
    assert told == [
        ("Bearer sesame", {"source": "medrec", "event": "studies left", "text": "medrec: 2 left", "batch": "b1"})
    ]
    codes.append(503)
    assert notices.send(Notify(webhook=url), None, [Notice("x", "y")]) == "the webhook answers 503"
    gone = notices.send(Notify(webhook="http://127.0.0.1:9/secret"), None, [Notice("x", "y")])
    assert gone == "the webhook cannot be reached (ConnectionError)"
    assert notices.send(Notify(), None, [Notice("x", "y")]) == ""


def test_a_night_that_leaves_studies_tells_the_webhook(
    hook: tuple[str, list[tuple[str | None, dict[str, object]]], list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, told, _ = hook
    monkeypatch.setattr(flows, "embedded", lambda home: None)
    monkeypatch.setattr(flows, "_lead", lambda night, server, progress: flows.without_prefect(night, progress))
    monkeypatch.setattr(Night, "prove", lambda self: self.stop("medrec was told to stop"))
    tiny_studies(tmp_path / "in", 1)
    own = tiny_configuration(tmp_path / "own", notify={"webhook": url})
    flows.run_nightly(Request(tmp_path / "in", ready_home(tmp_path / "home"), own), lambda *_: None)
    assert [t[1]["event"] for t in told] == ["studies left"]


# How things stand


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    home = Home(tmp_path / "home")
    home.create()
    with Store.open(home.store_url) as store:
        yield store


def overdue(store: Store, tmp_path: Path, now: str) -> tuple[str, ...]:
    settings = config.load().settings.model_copy(update={"schedule": NIGHTLY})
    return standing(Home(tmp_path / "home"), store, settings, at(now)).overdue


def test_a_night_that_did_not_begin_is_overdue_after_its_time_and_not_before(store: Store, tmp_path: Path) -> None:
    store.start_batch("b", "2026-01-04T19:00:05Z")
    store.finish_batch("b", "2026-01-04T20:00:00Z", '{"cases": [], "files": {}}')
    assert overdue(store, tmp_path, "2026-01-05T18:59:00+00:00") == ()
    assert overdue(store, tmp_path, "2026-01-05T19:59:00+00:00") == ()
    (told,) = overdue(store, tmp_path, "2026-01-05T20:01:00+00:00")
    assert told == "the night of 2026-01-05 19:00 UTC did not begin; does medrec serve run?"


def test_a_night_that_was_killed_is_overdue_and_one_that_runs_is_not(store: Store, tmp_path: Path) -> None:
    store.start_batch("b", "2026-01-05T19:00:05Z")
    with Home(tmp_path / "home").lock():
        assert overdue(store, tmp_path, "2026-01-06T03:00:00+00:00") == ()
    (told,) = overdue(store, tmp_path, "2026-01-06T03:00:00+00:00")
    assert "began and did not come to its end" in told


def test_a_lock_that_is_looked_at_does_not_stop_a_night(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.create()
    stop = threading.Event()
    looking = threading.Thread(target=lambda: [home.is_busy() for _ in iter(stop.is_set, True)])
    looking.start()
    try:
        for _ in range(20):
            with home.lock():
                pass
    finally:
        stop.set()
        looking.join()


# A night, `medrec status`, and reports made again


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Configuration]:
    """A folder with `in`, `home` and `own` after a night over three studies."""
    folder = tmp_path_factory.mktemp("done")
    own = tiny_configuration(folder / "own", schedule={"cron": "0 20 * * *", "input": str(folder / "in")})
    tiny_studies(folder / "in", 3)
    run(Request(folder / "in", ready_home(folder / "home"), own))
    return folder, own


def run(request: Request) -> Summary:
    with Night(request) as night:
        night.index()
        flows.without_prefect(night, lambda *_: None)
        return night.close()


def test_status_says_all_in_one_object(done: tuple[Path, Configuration]) -> None:
    folder, _ = done
    arguments = ["status", "--home", str(folder / "home"), "--config", str(folder / "own")]
    told = CliRunner().invoke(app, [*arguments, "--json"])
    assert told.exit_code == 0
    facts = json.loads(told.stdout)
    assert facts["nights"][0]["outcome"] == "3 inconclusive"
    assert (facts["nights"][0]["studies"], facts["waiting"], facts["to_mlflow"], facts["workers"]) == (3, 0, 0, {})
    assert facts["ledger_records"] > 3
    assert facts["newest_study"] >= facts["nights"][0]["started_at"]
    assert 0 < facts["disk_free_bytes"] < facts["disk_bytes"]
    assert datetime.fromisoformat(facts["next_night"]) > datetime.now(UTC)
    screen = CliRunner().invoke(app, arguments)
    assert screen.exit_code == 0


def newer(own: Configuration) -> Configuration:
    (files,) = own.cards
    return replace(own, cards=(CardFiles(files.card.model_copy(update={"version": "2.0.0"}), files.weights),))


def test_a_backfill_makes_what_is_behind_again_as_much_as_it_may_and_the_old_reports_stay(
    done: tuple[Path, Configuration], tmp_path: Path
) -> None:
    folder, own = done
    home, now = Home(folder / "home"), datetime.now(UTC)
    with Store.open(home.store_url) as store:
        assert backfill.asked(store, own, "2026-01-01", None, None) == ()
        new = newer(own)
        assert len(backfill.asked(store, new, "2026-01-01", "tiny", None)) == 3
        assert backfill.asked(store, new, f"{now + timedelta(days=2):%Y-%m-%d}", None, None) == ()
        two = backfill.asked(store, new, "2026-01-01", None, 2)
    summary = run(backfill.again(Request(folder / "in", home, new), two, now))
    assert [c.status for c in summary.cases] == ["analysed"] * 2
    assert summary.files == {"seen": 48, "analysed": 32, "unused": 0, "refused": 0, "left out": 16}
    with Store.open(home.store_url) as store:
        assert len(backfill.asked(store, new, "2026-01-01", None, None)) == 1
        for one in two:
            row = store.case(one.row.case)
            assert row is not None
            assert row.superseded_by is not None
            assert (home.root / (row.report or "")).is_file()


def test_a_backfill_makes_room_for_the_next_night(done: tuple[Path, Configuration]) -> None:
    folder, own = done
    now = at("2026-01-05T12:00:00+00:00")
    request = backfill.again(Request(folder / "in", Home(folder / "home"), own), (), now)
    assert request.window is not None
    assert request.window.until == at("2026-01-05T20:00:00+00:00")


def test_a_backfill_of_no_such_model_or_day_is_a_mistake(done: tuple[Path, Configuration]) -> None:
    folder, own = done
    with Store.open(Home(folder / "home").store_url) as store, pytest.raises(ConfigError) as caught:
        backfill.asked(store, own, "yesterday", "lungs", None)
    assert len(caught.value.problems) == 2


def test_a_dry_backfill_only_says_which(done: tuple[Path, Configuration], tmp_path: Path) -> None:
    folder, _ = done
    own = tiny_folder(tmp_path / "own", schedule={"cron": "0 20 * * *", "input": str(folder / "in")})
    card = own / "models" / "tiny.yaml"
    card.write_text(card.read_text().replace("version: 1.0.0", "version: 9.0.0"))
    before = sorted((folder / "home" / "reports").iterdir())
    arguments = ["backfill", "--since", "2026-01-01", "--home", str(folder / "home"), "--config", str(own)]
    told = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert told.exit_code == 0, told.output
    assert sorted((folder / "home" / "reports").iterdir()) == before


def test_a_late_run_does_nothing_when_a_night_has_begun_since(done: tuple[Path, Configuration]) -> None:
    from flows.deployed import begun_since

    home = Home(done[0] / "home")
    assert begun_since(home, datetime.now(UTC) - timedelta(hours=1))
    assert not begun_since(home, datetime.now(UTC) + timedelta(hours=1))
    assert not begun_since(Home(done[0] / "elsewhere"), datetime.now(UTC))


def test_a_scheduled_night_has_the_schedules_input_and_window(
    done: tuple[Path, Configuration], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.deployed import scheduled

    own = tiny_folder(tmp_path / "own", schedule={"cron": "0 20 * * *", "input": str(done[0] / "in"), "until": "06:00"})
    monkeypatch.setenv("MEDREC_CONFIG", str(own))
    monkeypatch.setenv("MEDREC_HOME", str(done[0] / "home"))
    request = scheduled(at("2026-01-05T20:00:00+00:00"))
    assert request.input == done[0] / "in"
    assert request.window is not None
    assert request.window.until == at("2026-01-06T06:00:00+00:00")


def test_a_world_that_is_down_is_told_in_words() -> None:
    (told,) = notices.of_error(WorldError("the store (PostgreSQL) cannot be reached"))
    assert "something is down" in told.text
