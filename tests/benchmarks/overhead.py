"""What a study costs in the store, Prefect, MLflow and the ledger, with few studies there and with many.

    python tests/benchmarks/overhead.py [OUT.json]

The networks are stubbed, and the studies have 16 x 16 x 16 voxels; reading, measuring and writing them is in the wall.
Prefilled cases are finished through the store, MLflow's runs are copies within its database.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent.parent))

from mlflow_delivery import prefill
from paired import json_path, tell_numbers
from tiny import ready_home, tiny_configuration, tiny_studies

import flows
from medrec.accounts import Summary
from medrec.home import Home
from medrec.night import Request
from medrec.report import Status, Verdict
from medrec.store import CaseRow, Store

STUDIES = 20


def fill_store(home: Home, count: int) -> None:
    """Finish so many cases of as many patients."""
    with Store.open(home.store_url) as store:
        at = "2026-01-01T00:00:00Z"
        store.start_batch("prefilled", at)
        for number in range(count):
            key = f"{number:024x}"
            store.remember_study(key, key, at)
            said = (Status.ANALYSED, "", Verdict.INCONCLUSIVE, None, None, None, at, 5, None)
            row = CaseRow(key, key, key, "prefilled", "tiny", "1.0.0", key, *said)
            store.finish(row, {"inputs": [key], "files": {}}, at)
        with store._writing() as connection:
            connection.exec_driver_sql("UPDATE outbox SET delivered_at = '2026-01-01T00:00:00Z'")


def night(inbox: Path, home: Home, own: object) -> tuple[Summary, float]:
    """A night, and the seconds that its studies took."""
    begun: list[float] = []
    ended: list[float] = []

    def progress(what: str, done: int, total: int) -> None:
        if what == "studies":
            ended.append(time.perf_counter())
        else:
            begun.append(time.perf_counter())

    summary = flows.run_nightly(Request(inbox, home, own), progress)  # type: ignore[arg-type]
    return summary, (ended[-1] - ended[0]) / (len(ended) - 1)


def main() -> None:
    """With a hundred, and with ten thousand."""
    numbers: dict[str, float | str] = {}
    with TemporaryDirectory() as place:
        own = tiny_configuration(Path(place, "own"))
        for number, count in enumerate((100, 10_000)):
            home = ready_home(Path(place, f"home {count}"))
            tiny_studies(Path(place, "first"), 1)
            first = flows.run_nightly(Request(Path(place, "first"), home, own), lambda *_: None)
            prefill(home.mlflow_database, str(first.cases[0].mlflow_run_id), count)
            fill_store(home, count)
            inbox = Path(place, f"in {count}")
            tiny_studies(inbox, STUDIES, 100 * (number + 1))
            summary, seconds = night(inbox, home, own)
            assert [c.status for c in summary.cases] == ["analysed"] * STUDIES
            numbers[f"s a study with {count} there"] = seconds
            numbers |= {f"  {stage} with {count} there": s / STUDIES for stage, s in summary.stages.items()}
    few, many = (float(numbers[f"s a study with {count} there"]) for count in (100, 10_000))
    numbers["10,000 / 100"] = many / few
    tell_numbers("overhead", numbers, json_path())


if __name__ == "__main__":
    main()
