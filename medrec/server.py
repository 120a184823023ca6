"""MLflow's web server over one home, small and on 127.0.0.1 only."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

from medrec.errors import ConfigError
from medrec.home import Home


def serve(home: Home, port: int, tell: Callable[[str], None]) -> None:
    """Run the server until it is interrupted. Raises ConfigError when the home has no reports yet."""
    if not home.mlflow_database.is_file():
        raise ConfigError([f"--home: {home.root} holds no MLflow database; run medrec nightly or medrec demo first"])
    from medrec.tracking import ENVIRONMENT, experiment_page, last_sheet

    uri = f"sqlite:///{home.mlflow_database}"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", uri, "--artifacts-destination", str(home.mlflow_artifacts)),
    ]
    tell(f"MLflow starts on http://127.0.0.1:{port}{experiment_page(home)} (Ctrl+C ends it)")
    if (sheet := last_sheet(home)) is not None:
        tell(f"the last night's contact sheet: http://127.0.0.1:{port}{sheet}")
    # MLflow starts processes of its own: all of them are in one session, and end with us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    process = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, start_new_session=True)
    try:
        process.wait()
    except KeyboardInterrupt:
        tell("MLflow ends")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
