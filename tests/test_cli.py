"""The commands as a person or a script runs them: a process of its own, its exit code, its two streams."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medrec.phantom import Known

MEDREC = Path(sys.executable).parent / "medrec"


def medrec(*words: object, cwd: Path, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW", "MEDREC"))}
    environment |= variables
    return subprocess.run(
        [MEDREC, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=timeout, env=environment
    )


def test_help_names_every_command(tmp_path: Path) -> None:
    result = medrec("--help", cwd=tmp_path)
    assert result.returncode == 0
    for command in ("nightly", "demo", "ui", "audit"):
        assert command in result.stdout


def test_mistakes_of_command_and_configuration_come_all_at_once_without_traceback(tmp_path: Path) -> None:
    (tmp_path / "own" / "models").mkdir(parents=True)
    (tmp_path / "own" / "medrec.yaml").write_text("device: quantum\n")
    (tmp_path / "own" / "models" / "x.yaml").write_text("name: X\n")
    result = medrec("nightly", "--input", "nowhere", "--home", "home", "--config", "own", cwd=tmp_path)
    assert result.returncode == 2
    for part in ("medrec.yaml: device", "x.yaml: name", "x.yaml: version", "--input: nowhere is not a folder"):
        assert part in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    "words", [["nightly"], ["nightly", "--inptu", "x"], ["nope"], ["audit", "verify", "--home", "nowhere"]]
)
def test_a_wrong_command_exits_with_2(tmp_path: Path, words: list[str]) -> None:
    result = medrec(*words, cwd=tmp_path)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_night_by_command_runs_in_prefect_prints_one_json_and_locks_its_home(
    demo: tuple[Path, tuple[Known, ...]], tmp_path: Path
) -> None:
    folder, _ = demo
    words = ["nightly", "--input", str(folder), "--home", "home", "--json"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW", "MEDREC"))}
    first = subprocess.Popen(
        [MEDREC, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    lock = tmp_path / "home" / "medrec.db"
    until = time.monotonic() + 120
    while not lock.exists() and time.monotonic() < until:
        time.sleep(0.1)
    second = medrec(*words, cwd=tmp_path)
    assert second.returncode == 2
    assert "already running" in second.stderr
    assert second.stdout == ""
    out, err = first.communicate(timeout=300)
    assert first.returncode == 0, err
    assert "Traceback" not in err
    summary = json.loads(out)
    assert set(summary) >= {"batch", "files", "refusals", "cases"}
    assert set(summary["cases"][0]) >= {
        *("case", "study", "inputs", "status", "reason", "verdict", "report", "mlflow_run_id", "seconds")
    }
    assert sorted(c["status"] for c in summary["cases"]) == ["analysed", "analysed", "refused"]
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    assert prefect_runs(tmp_path / "home") == {f"nightly {summary['batch']}": "COMPLETED"}
    verified = medrec("audit", "verify", "--home", "home", cwd=tmp_path)
    assert verified.returncode == 0, verified.stdout
    report = tmp_path / "home" / summary["cases"][0]["report"]
    report.write_bytes(report.read_bytes() + b" ")
    noticed = medrec("audit", "verify", "--home", "home", cwd=tmp_path)
    assert noticed.returncode == 1
    assert "report.html" in noticed.stdout


def prefect_runs(home: Path) -> dict[str, str]:
    """Name and state of each flow run in the home's own Prefect database."""
    import sqlite3

    with sqlite3.connect(home / "prefect" / "prefect.db") as connection:
        return dict(connection.execute("select name, state_type from flow_run").fetchall())


def test_a_ledger_that_was_taken_away_is_not_verified_as_empty(tmp_path: Path) -> None:
    (tmp_path / "home" / "reports" / "abc").mkdir(parents=True)
    result = medrec("audit", "verify", "--home", "home", cwd=tmp_path)
    assert result.returncode == 2
    assert "no store" in result.stderr
    assert not (tmp_path / "home" / "medrec.db").exists()


@pytest.mark.parametrize("home", ["a#b", "why?", "file"])
def test_a_home_that_cannot_be_one_is_a_mistake_of_the_command(tmp_path: Path, home: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "file").write_text("x")
    result = medrec("nightly", "--input", "in", "--home", home, cwd=tmp_path)
    assert result.returncode == 2
    assert "--home" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_night_ends_well_while_prefects_server_is_away(demo: tuple[Path, tuple[Known, ...]], tmp_path: Path) -> None:
    words = ["nightly", "--input", demo[0], "--home", "home", "--json"]
    result = medrec(*words, cwd=tmp_path, PREFECT_API_URL="http://127.0.0.1:1/api")
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    summary = json.loads(result.stdout)
    assert sorted(c["status"] for c in summary["cases"]) == ["analysed", "analysed", "refused"]
    assert any("went on without" in w for w in summary["warnings"])


@pytest.mark.slow
def test_the_demo_finds_what_it_planted(tmp_path: Path) -> None:
    result = medrec("demo", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Known against measured" in result.stderr
    assert "medrec ui --home" in result.stderr
    assert len(list((tmp_path / "medrec-demo" / "home" / "reports").glob("*/report.html"))) == 3
