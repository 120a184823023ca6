"""visit.json: when a study was made and of whom, as keyed names and shifted days; for the patient's next study alone.

It stays in the home: nothing of it is in the report, in MLflow or in the store.
"""

import json
from dataclasses import asdict
from pathlib import Path

from medrec.report import Case
from medrec.series import Visit

NAME = "visit.json"


def write(case: Case, folder: Path) -> None:
    """Write the visit into `folder`; nothing when nothing was analysed."""
    if case.labels is not None:
        (folder / NAME).write_text(json.dumps(asdict(case.visit), sort_keys=True, indent=2) + "\n")


def read(data: bytes) -> Visit:
    """The visit in the bytes of a file. Raises ValueError or TypeError when they are none."""
    return Visit(**json.loads(data))
