"""What Prefect starts by itself or for an operator: one flow for each job, listed in `DEPLOYMENTS`.

Home and configuration come from MEDREC_HOME and MEDREC_CONFIG, so that a flow's parameters, which Prefect's server
stores, hold neither a path nor a name. A run that comes late does nothing when a night has begun since its time: the
next night takes everything that is pending, so that missed nights never pile up.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import Flow, flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows import run_nightly, run_retrain
from flows.monitor import looked
from flows.sharded import shard
from medrec import answers, notices, retraining
from medrec import backfill as backfilling
from medrec import config as configurations
from medrec.accounts import Summary
from medrec.cli.nights import request_of
from medrec.config import Configuration, Settings
from medrec.errors import AlreadyRunningError, MedrecError
from medrec.home import Home
from medrec.night import Request
from medrec.schedule import Monitoring, Retraining, Schedule
from medrec.store import Store

BY = "schedule"  # who asked for a retraining that nobody asked for by hand
PATIENCE_S = 900.0  # a backfill that is told to make room still finishes the studies in hand


@dataclass(frozen=True, slots=True)
class Times:
    """When something starts by itself that the settings know by another name."""

    cron: str
    timezone: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """A flow that Prefect knows; `schedule` says by which of the settings it starts by itself, None is never."""

    flow: "Flow[..., Any]"
    schedule: Callable[[Settings], Schedule | Retraining | Monitoring | Times | None]


def home() -> Home:
    """The home that the environment names."""
    return Home(Home.default())


def configuration_folder() -> Path | None:
    """The operator's folder of configuration that the environment names."""
    named = os.environ.get("MEDREC_CONFIG")
    return Path(named) if named else None


@flow(name="night", validate_parameters=False)
def night() -> "State[None]":
    """The night of the configured schedule, or one that somebody starts by hand."""
    due = flow_run.scheduled_start_time
    try:
        if due is not None and begun_since(home(), due):
            return Completed(message="a night has begun since this one was due; it takes everything")
        request = scheduled(datetime.now(UTC))
        return _told(run_nightly(request, lambda *_: None))
    except AlreadyRunningError:
        return Completed(message="another night is at it; it takes everything")
    except MedrecError as error:
        return _failed(error)


@flow(name="backfill", validate_parameters=False)
def backfill(since: str, model: str | None = None, limit: int | None = None) -> "State[None]":
    """Make reports of earlier versions of a model again."""
    try:
        now = datetime.now(UTC)
        request = scheduled(now)
        with Store.open(request.home.store_url) as store:
            found = backfilling.asked(store, request.configuration, since, model, limit)
        if not found:
            return Completed(message="nothing is behind")
        return _told(run_nightly(backfilling.again(request, found, now), lambda *_: None))
    except MedrecError as error:
        return _failed(error)


@flow(name="retraining", validate_parameters=False)
def retrain() -> "State[None]":
    """A challenger of every model that the configuration names and that has enough new labels."""
    try:
        configuration = configurations.load(configuration_folder())
        wanted = configuration.settings.retraining
        if wanted is None:
            return Completed(message="medrec.yaml names no retraining")
        came = [_retrained(name, wanted.new_labels, configuration) for name in wanted.models]
        return Completed(message="; ".join(came))
    except AlreadyRunningError:
        return Completed(message="another retraining is at it")
    except MedrecError as error:
        return _failed(error)


def _retrained(name: str, new_labels: int, configuration: Configuration) -> str:
    request = retraining.Request(name, home(), configuration, BY, if_new_labels=new_labels)
    outcome = run_retrain(request, lambda *_: None, lambda line: None)
    return f"{name}: {outcome.status}"


@flow(name="monitor", validate_parameters=False)
def monitor() -> "State[None]":
    """Whether anything changed, and whether all that is checked holds."""
    try:
        return looked(home(), configurations.load(configuration_folder()))
    except MedrecError as error:
        return _failed(error)


@flow(name="review-sync", validate_parameters=False)
def review_sync() -> "State[None]":
    """Read answers back from MLflow, as each night does."""
    try:
        place, configuration = home(), configurations.load(configuration_folder())
        if not place.holds_store():
            return Completed(message="there is no home yet")
        with Store.open(place.store_url) as store, place.lock():
            done = answers.sync_by_itself(place, store, configuration.settings)
    except AlreadyRunningError:
        return Completed(message="a night is at it; it reads answers itself")
    except MedrecError as error:
        return _failed(error)
    return Completed(message=f"{done.claimed} new answers, {len(done.conflicts)} in conflict")


def _between_nights(settings: Settings) -> Times | None:
    review = settings.review
    return Times(review.cron, review.timezone) if review is not None and review.cron is not None else None


DEPLOYMENTS: dict[str, Deployment] = {
    "nightly": Deployment(night, lambda settings: settings.schedule),
    "retrain": Deployment(retrain, lambda settings: settings.retraining),
    "monitor": Deployment(monitor, lambda settings: settings.monitoring),
    "review-sync": Deployment(review_sync, _between_nights),
    "backfill": Deployment(backfill, lambda settings: None),
    "shard": Deployment(shard, lambda settings: None),
}


def scheduled(now: datetime) -> Request:
    """A night as the schedule wants it. Raises ConfigError with every mistake."""
    request = request_of(None, None, configuration_folder(), False)
    schedule = request.configuration.settings.schedule
    window = schedule.window(now) if schedule is not None else None
    return replace(request, window=window, patience_s=PATIENCE_S)


def begun_since(place: Home, due: datetime) -> bool:
    """Whether any night has begun since a time."""
    if not place.holds_store():
        return False
    with Store.open(place.store_url) as store:
        return any(datetime.fromisoformat(b.started_at) > due for b in store.recent_batches(1))


def _failed(error: MedrecError) -> "State[None]":
    """In words that quote no path: Prefect's server keeps them."""
    return Failed(message=" ".join(notice.text for notice in notices.of_error(error)))


def _told(summary: Summary) -> "State[None]":
    return (Failed if summary.exit_code else Completed)(message=summary.outcome)
