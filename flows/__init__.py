"""The only place that knows Prefect: thin flows over `medrec.night`.

Importing this package does not import Prefect; `run_nightly` first tells it, through its environment, to keep
everything in the home, to call nobody and to keep quiet on the console.
"""

import os
from collections.abc import Callable

from medrec.night import Request, Summary


def run_nightly(request: Request, progress: "Progress") -> Summary:
    """Run one night as a Prefect flow on the embedded server, or on the one that PREFECT_API_URL names."""
    request.home.create()
    for name, value in _environment(request).items():
        os.environ.setdefault(name, value)
    from flows.nightly import run

    return run(request, progress)


def _environment(request: Request) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(request.home.prefect),
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
