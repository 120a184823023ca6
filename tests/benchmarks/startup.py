"""How long people wait before anything happens: `medrec --help`, and a night with nothing to do.

python tests/benchmarks/startup.py [OUT.json]
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent.parent))

from paired import json_path, measure, tell
from tiny import ready_home, tiny_folder, tiny_studies

MEDREC = Path(sys.executable).parent / "medrec"


def run(*command: object) -> None:
    """Run a command quietly."""
    subprocess.run([str(c) for c in command], check=True, capture_output=True)


def main() -> None:
    """Both, beside a bare start of Python with typer and rich."""
    with TemporaryDirectory() as place:
        home, own = ready_home(Path(place, "home")).root, tiny_folder(Path(place, "own"))
        tiny_studies(Path(place, "in"), 3)
        nightly = (MEDREC, "nightly", "--input", Path(place, "in"), "--home", home, "--config", own)
        run(*nightly)
        seconds = measure(
            {
                "typer and rich alone": lambda: run(sys.executable, "-c", "import typer, rich"),
                "medrec --help": lambda: run(MEDREC, "--help"),
                "a night with nothing to do": lambda: run(*nightly),
            },
            rounds=3,
        )
    tell("start-up", seconds, "typer and rich alone", json_path())


if __name__ == "__main__":
    main()
