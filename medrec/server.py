"""MLflow's web server over one home, small and on 127.0.0.1 only."""

import os
import subprocess
import sys
from collections.abc import Callable

from medrec.errors import ConfigError
from medrec.home import Home


def serve(home: Home, port: int, tell: Callable[[str], None]) -> None:
    """Run the server until it is interrupted. Raises ConfigError when the home has no reports yet."""
    if not home.mlflow_database.is_file():
        raise ConfigError([f"--home: {home.root} holds no MLflow database; run medrec nightly or medrec demo first"])
    from medrec.tracking import ENVIRONMENT, experiment_page

    uri = f"sqlite:///{home.mlflow_database}"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", uri, "--artifacts-destination", str(home.mlflow_artifacts)),
    ]
    tell(f"MLflow starts on http://127.0.0.1:{port}{experiment_page(home)} (Ctrl+C ends it)")
    process = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT})
    try:
        process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
