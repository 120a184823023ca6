"""The only place that knows Prefect: thin flows over `medrec.night` and `medrec.retraining`.

Importing this package does not import Prefect; `run_nightly` and `run_retrain` first tell it, by its environment, to
keep everything in the home, to call nobody and to keep quiet on the console.
"""

import os
from collections.abc import Callable

from medrec import retraining
from medrec.home import Home
from medrec.night import Request, Summary


def run_nightly(request: Request, progress: "Progress") -> Summary:
    """Run one night as a Prefect flow on the embedded server, or on the one that PREFECT_API_URL names."""
    _prepare(request.home)
    from flows.nightly import run

    return run(request, progress)


def run_retrain(request: retraining.Request, progress: "Progress", tell: Callable[[str], None]) -> retraining.Outcome:
    """Run one retraining as a Prefect flow; `tell` hears each line of its outcome when it is known."""
    _prepare(request.home)
    from flows.retrain import run

    return run(request, progress, tell)


def _prepare(home: Home) -> None:
    home.create()
    for name, value in _environment(home).items():
        os.environ.setdefault(name, value)


def _environment(home: Home) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(home.prefect),
        "DO_NOT_TRACK": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # a busy machine needs more than 20 s
        # Prefect logs errors with tracebacks, its server also while it shuts down; ours are told in words.
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_CLI_PROMPT": "false",
    }


Progress = Callable[[str, int, int], None]
"""Called with what is being done ("files" or "studies"), how many are done, and how many there are."""
