"""Labelled studies -> challenger -> gate -> a version that may be promoted, as a Prefect flow.

Prefect sees the name of a card and of a step: never a path, a patient or an array. Its state is advisory; what is done
stands in the store and in the home, and a killed flow goes on there.
"""

import secrets
from collections.abc import Callable
from contextlib import nullcontext

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import Progress
from flows.server import Server
from medrec.errors import MedrecError
from medrec.retraining import Outcome, Request, Retraining

# A flow's parameters are stored by Prefect's server, so that a retraining is handed over by a name of its own.
_RUNNING: dict[str, dict[str, Callable[[], None]]] = {}


@task(name="step", task_run_name="{name}", cache_policy=NO_CACHE)
def step(run_name: str, name: str) -> None:
    """One step of a retraining; done once."""
    _RUNNING[run_name].pop(name)()


@flow(name="retrain", flow_run_name="retrain {run_name}", validate_parameters=False)
def retrain(run_name: str) -> None:
    """The steps in their order."""
    for name in list(_RUNNING[run_name]):
        step(run_name, name)


def run(
    request: Request, started: Callable[[], Server | None], progress: Progress, tell: Callable[[str], None]
) -> Outcome:
    """Open a retraining, run the flow over it, close it.

    `started` gives the server, or None where the environment names one.

    Raises ConfigError, DataError, WorldError.
    """
    with Retraining(request, tell) as retraining:
        if not retraining.is_due():
            return retraining.outcome
        run_name = f"{retraining.draft.name} {secrets.token_hex(3)}"
        steps: dict[str, Callable[[], None]] = {
            "gather": lambda: retraining.gather(progress),
            "divide": retraining.divide,
            "train": lambda: retraining.train(progress),
            "evaluate": lambda: retraining.evaluate(progress),
            "describe": retraining.describe,
        }
        _RUNNING[run_name] = steps
        try:
            server = started()
            if server is not None:
                server.wait()
            with temporary_settings({PREFECT_API_URL: server.url}) if server is not None else nullcontext():
                retrain(run_name)
        except MedrecError:
            raise
        except Exception as error:  # Prefect's server did not start or went away, or a step of ours broke
            if len(steps) < 5 and not _is_prefects(error):
                raise
            tell(f"Prefect could not run the training ({type(error).__name__}); it went on without")
            for name in list(steps):
                steps.pop(name)()
        finally:
            del _RUNNING[run_name]
        return retraining.close()


def _is_prefects(error: Exception) -> bool:
    """Whether Prefect itself failed: its own errors and those of its connection to its server."""
    return type(error).__module__.split(".")[0] in ("prefect", "httpx", "httpcore", "sqlalchemy")
