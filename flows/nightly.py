"""New studies -> cases -> reports, as a Prefect flow.

Prefect sees a batch id and case keys: never a path, a name or an array. Its state is advisory; the store is the truth.
What the world does to a study (disk, database, memory) is tried again here; what is wrong with a study is not. Three
studies are under way at a time, so that one is decoded while another is predicted and a third is written.
"""

from contextlib import nullcontext

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import Task

from flows import Progress, told_to_stop
from medrec.errors import WorldError
from medrec.night import Night
from medrec.pace import AT_ONCE

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
    night.analyse(night.case(case))


@flow(
    name="nightly",
    flow_run_name="nightly {batch}",
    validate_parameters=False,
    task_runner=ThreadPoolTaskRunner(max_workers=AT_ONCE),  # type: ignore[arg-type]  # Prefect's own default
)
def nightly(batch: str) -> None:
    """One night over the folder that the caller registered under `batch`."""
    night, progress = _NIGHTS[batch]
    with told_to_stop(night):  # again: Prefect puts its own handler first, which would break the night off
        night.lead(lambda p: study.submit(batch, p.case), lambda done, total: progress("studies", done, total))


def run(night: Night, url: str | None, progress: Progress) -> None:
    """Run the flow over a night that is ready, on the server at `url`, or on the one that the environment names."""
    _NIGHTS[night.batch] = (night, progress)
    try:
        with temporary_settings({PREFECT_API_URL: url}) if url is not None else nullcontext():
            nightly(night.batch)
    finally:
        del _NIGHTS[night.batch]
