"""New studies -> cases -> reports, as a Prefect flow.

Prefect sees a batch id and case keys: never a path, a name or an array. Its state is advisory; the store is the truth.
What the world does to a study (disk, database, memory) is tried again here; what is wrong with a study is not.
"""

from datetime import UTC, datetime

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from flows import Progress
from medrec.errors import MedrecError, WorldError
from medrec.night import Night, Request, Summary
from medrec.pipeline import Planned

RETRY_SECONDS = [1.0, 10.0]

# A flow's parameters are stored by Prefect's server, so that a night is handed over by its batch id.
_NIGHTS: dict[str, tuple[Night, Progress]] = {}


def _world_is_down(task: "Task[..., object]", run: TaskRun, state: "State[object]") -> bool:
    try:
        state.result()
    except WorldError:
        return True
    except Exception:
        return False
    return False


@task(name="index", cache_policy=NO_CACHE)
def index(batch: str) -> None:
    """Read every header and plan."""
    night, progress = _NIGHTS[batch]
    night.index(lambda done, total: progress("files", done, total))


@task(
    name="study",
    task_run_name="case {case}",
    cache_policy=NO_CACHE,
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=_world_is_down,
)
def study(batch: str, case: str) -> None:
    """Lead one planned case through the pipeline."""
    night, _ = _NIGHTS[batch]
    night.analyse(_planned(night, case))


@flow(name="nightly", flow_run_name="nightly {batch}", validate_parameters=False)
def nightly(batch: str) -> None:
    """One night over the folder that the caller registered under `batch`."""
    night, progress = _NIGHTS[batch]
    index(batch)
    for number, planned in enumerate(night.planned, 1):
        started = datetime.now(UTC)
        try:
            study(batch, planned.case)
        except WorldError as error:
            night.give_up(planned, str(error), started)
        progress("studies", number, len(night.planned))


def run(request: Request, progress: Progress) -> Summary:
    """Open a night, run the flow over it, close it. Raises ConfigError, AlreadyRunningError and WorldError."""
    with Night(request) as night:
        _NIGHTS[night.batch] = (night, progress)
        try:
            nightly(night.batch)
        except MedrecError:
            raise
        except Exception as error:  # Prefect's server did not start or went away: the night goes on without it
            night.warn(f"Prefect could not run the night ({type(error).__name__}); it went on without")
            _without_prefect(night, progress)
        finally:
            del _NIGHTS[night.batch]
        return night.close()


def _without_prefect(night: Night, progress: Progress) -> None:
    """Whatever of the night is not done yet."""
    if not night.planned:
        night.index(lambda done, total: progress("files", done, total))
    for number, planned in enumerate(night.planned, 1):
        if not night.is_done(planned):
            try:
                night.analyse(planned)
            except WorldError as error:
                night.give_up(planned, str(error))
        progress("studies", number, len(night.planned))


def _planned(night: Night, case: str) -> Planned:
    return next(p for p in night.planned if p.case == case)
