"""A night is shared: workers plan what its coordinator planned, do every study once, and what they leave is not lost.

Workers are threads here; `test_workers` has processes, PostgreSQL and a Prefect server.
"""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import ready_home, tiny_configuration, tiny_studies

import flows
from medrec.accounts import Summary
from medrec.config import CardFiles, Configuration
from medrec.errors import DataError
from medrec.home import Home
from medrec.night import Night, Request
from medrec.pictures import card_of
from medrec.registry import Registry
from medrec.shards import Shard, coordinate
from medrec.store import Store

AT = "2026-01-01T00:00:00Z"


@pytest.fixture
def own(tmp_path: Path) -> Configuration:
    return tiny_configuration(tmp_path / "own", workers={"shards": 2, "patience_s": 1})


@pytest.fixture
def four(tmp_path: Path) -> Path:
    tiny_studies(tmp_path / "in", 4)
    return tmp_path / "in"


def nobody(*_: object) -> None:
    pass


def work(home: Home, own: Configuration, batch: str, number: int, of: int) -> list[str]:
    """What the flow `shard` does; the cases that this worker has a line for."""
    with Shard(home, own, batch, number, of) as part:
        part.scan()
        if part.has_work:
            part.get_ready()
            flows.without_prefect(part, nobody)
        part.told()
        return [line.status for line in part.summary().cases]


def shared(folder: Path, home: Home, own: Configuration, workers: Configuration) -> tuple[Summary, list[Future]]:
    """A night that is shared with workers of a configuration, what they leave is done alone."""
    begun: list[Future] = []
    with ThreadPoolExecutor(2) as threads, Night(Request(folder, home, own)) as night:
        night.scan()
        coordinate(night, lambda *told: begun.append(threads.submit(work, home, workers, *told)), nobody)
        if night.has_work:
            night.get_ready()
            flows.without_prefect(night, nobody)
        return night.close(), begun


def in_force(home: Home, own: Configuration) -> CardFiles:
    """A version of the card `tiny` that passed its gate and was promoted in this home."""
    (packaged,) = own.cards
    card = card_of(json.loads(packaged.card.content) | {"version": "9.9.9"})
    facts = {"card": card.digest, "model": card.name, "version": card.version, "licence": card.licence}
    with Store.open(home.store_url) as store:
        registry = Registry(home, store, own.cards)
        registry.put(card, packaged.weights)
        store.append("model trained", AT, facts | {"dataset": "d", "weights": {}})
        store.append("model evaluated", AT, facts | {"evaluation": "e"})
        store.append("model eligible", AT, facts | {"evaluation": "e"})
        registry.promote(card.digest, "dr. a", "better", AT)
    return replace(packaged, card=card)


def test_workers_do_every_study_once_and_their_seconds_are_counted(
    own: Configuration, four: Path, tmp_path: Path
) -> None:
    summary, workers = shared(four, ready_home(tmp_path / "home"), own, own)
    assert [c.status for c in summary.cases] == ["analysed"] * 4
    assert summary.warnings == ()
    assert summary.stages["predict"] > 0
    assert {len(worker.result()) for worker in workers} <= {0, 1, 2, 3, 4}


def test_workers_use_the_version_that_is_in_force(own: Configuration, four: Path, tmp_path: Path) -> None:
    home = ready_home(tmp_path / "home")
    promoted = in_force(home, own)
    summary, workers = shared(four, home, own, own)
    assert all(worker.exception() is None for worker in workers)
    assert summary.warnings == ()
    with Store.open(home.store_url) as store:
        assert {store.case(line.case).version for line in summary.cases} == {promoted.card.version}


def test_a_worker_of_another_configuration_takes_nothing_and_the_night_says_that_it_was_alone(
    own: Configuration, four: Path, tmp_path: Path
) -> None:
    summary, workers = shared(
        four, ready_home(tmp_path / "home"), own, tiny_configuration(tmp_path / "other", quiet_minutes=1)
    )
    assert [c.status for c in summary.cases] == ["analysed"] * 4
    assert ["give it the same folder" in str(w.exception()) for w in workers] == [True, True]
    assert "no worker was at it for 1 s; the 4 studies that are left are done alone" in summary.warnings


def test_a_worker_that_comes_when_the_night_is_over_is_told(own: Configuration, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is over"):
        Shard(ready_home(tmp_path / "home"), own, "20260101T000000Z-0000", 0, 2)
