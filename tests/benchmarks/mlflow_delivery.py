"""How long MLflow takes for one study, with few runs in it and with many: prints a table, asserts nothing.

    python tests/benchmarks/mlflow_delivery.py [RUNS ...]

Runs are prefilled by copying one real delivery within MLflow's database.
"""

import sqlite3
import statistics
import sys
import time
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent.parent))

from test_night import small_study

from medrec.config import load
from medrec.home import Home
from medrec.night import Night, Request
from medrec.store import Store
from medrec.tracking import Tracker

COPIED = ("runs", "tags", "params", "metrics", "latest_metrics")
REPEATS = 20


def prefill(database: Path, run_id: str, count: int) -> None:
    """Copy a run, each copy with a case of its own."""
    with sqlite3.connect(database) as connection:
        for table in COPIED:
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            rows = connection.execute(
                f"SELECT {', '.join(names)} FROM {table} WHERE run_uuid = ?", (run_id,)
            ).fetchall()
            marks = ", ".join("?" * len(names))
            at = names.index("run_uuid")
            for number in range(count):
                new = uuid.uuid5(uuid.NAMESPACE_OID, str(number)).hex
                copies = [[new if i == at else value for i, value in enumerate(row)] for row in rows]
                if table == "tags":
                    key = names.index("key"), names.index("value")
                    for row in copies:
                        row[key[1]] = f"{number:024x}" if row[key[0]] == "medrec.case" else row[key[1]]
                connection.executemany(f"INSERT INTO {table} VALUES ({marks})", copies)


def measure(count: int) -> tuple[float, float, float, float]:
    """Seconds of a fresh delivery: median, slowest, of the processor; median of one that looks for a run first."""
    with TemporaryDirectory() as place:
        root = Path(place)
        small_study(root / "in")
        home = Home(root / "home")
        with Night(Request(root / "in", home, load())) as night:
            night.index()
            for planned in night.planned:
                night.analyse(planned)
            (case,) = night.close().cases
        prefill(home.mlflow_database, str(case.mlflow_run_id), count)
        tracker = Tracker(home, "medrec")
        with Store.open(home.store_url) as store:
            row = store.case(case.case)
        assert row is not None
        fresh, looked = [], []
        worked = time.process_time()
        for _ in range(REPEATS):
            start = time.perf_counter()
            tracker.deliver(row, 0, fresh=True)
            fresh.append(time.perf_counter() - start)
        worked = (time.process_time() - worked) / REPEATS
        for _ in range(REPEATS):
            start = time.perf_counter()
            tracker.deliver(row, 0)
            looked.append(time.perf_counter() - start)
        return statistics.median(fresh), max(fresh), worked, statistics.median(looked)


if __name__ == "__main__":
    print("runs before | fresh, median s | fresh, slowest s | of the processor s | looked for, median s")
    for count in map(int, sys.argv[1:] or ["100", "10000"]):
        print("{:11d} | {:15.3f} | {:16.3f} | {:18.3f} | {:20.3f}".format(count, *measure(count)), flush=True)
