"""report.json: the facts of a case for programs and auditors.

Keys are sorted and numbers are written as they are. Refuses NaN and infinity, which JSON does not have (RFC
8259).
"""

import json
from pathlib import Path

from medrec.errors import DataError
from medrec.report import AnyCase

NAME = "report.json"


def write(case: AnyCase, folder: Path) -> None:
    """Write the report's facts into `folder`.

    Raises DataError when a number is not finite.
    """
    try:
        text = json.dumps(case.report.facts(), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise DataError(f"{NAME} takes finite numbers only, case {case.report.case}: {error}") from error
    (folder / NAME).write_bytes(text.encode() + b"\n")
