"""A challenger beside the champion, in a process of its own: `python -m medrec.beside`, a request on stdin.

Owns `Comparison`. Reads the archive, the home's reports and the store; writes one line of JSON for each study and
nothing else, anywhere. Invariants: whatever happens to it happens to nobody else: it is the first that the system ends
when memory runs out, the least when processors are scarce, and its parent may end it at any time.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from medrec import pipeline, planning
from medrec.config import CardFiles, Configuration, Settings
from medrec.dicom import Archive, Pseudonyms
from medrec.errors import WorldError
from medrec.home import Home
from medrec.outputs import nifti
from medrec.pipeline import Prepared, Setting
from medrec.prediction import ModelCard, Predictor
from medrec.registry import Registry
from medrec.report import Case
from medrec.routing import rules_of
from medrec.series import ScanFile, group
from medrec.statistics import dice
from medrec.store import Store
from medrec.volume import LPS_TO_RAS

READ_EVERY = 200  # files between two signs of life
DIGITS = 5
GRID_MM = 1e-2  # NIfTI keeps affines in single precision
Say = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """`cases` are the champion's by study; `card` is the digest of the challenger of the model `name`."""

    input: str
    home: str
    device: str
    threads: int
    name: str
    card: str
    cases: Mapping[str, str]

    def to_json(self) -> str:
        """What `of` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> "Wanted":
        """From JSON."""
        return cls(**json.loads(text))


def run(wanted: Wanted, say: Say) -> None:
    """Compare every study; each is answered for with a line, also one of which nothing could be said."""
    home = Home(Path(wanted.home))
    with Store.open(home.store_url) as store:
        kept = Registry(home, store).load(wanted.name, wanted.card)
        card = kept.card
        if not isinstance(card, ModelCard):
            raise WorldError("only models of volumes can run beside the champion")
        archive = Archive(Path(wanted.input), Pseudonyms.load(home.key), rules_of([card]), memory=_memory_of(home))
        files = _files(archive, wanted, say)
        from medrec.models import inference

        inference.use_threads(wanted.threads)
        predictor = inference.load(card, kept.weights, inference.device_name(wanted.device))
        configuration = Configuration(Settings(), (CardFiles(card, kept.weights),))
        setting = Setting("", home, store, configuration, wanted.device)
        for planned in planning.plan(group(files), configuration):
            say({"study": planned.study.study, **_answer(planned, archive, predictor, setting, wanted)})


def _memory_of(home: Home) -> Path:
    """Beside the night's: other patterns are another memory, and would make the night forget its own."""
    folder = home.index / "beside"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def _files(archive: Archive, wanted: Wanted, say: Say) -> list[ScanFile]:
    found: list[ScanFile] = []
    for number, several in enumerate(archive.scan()):
        found += [f for f in several if isinstance(f, ScanFile) and f.study in wanted.cases]
        if number % READ_EVERY == 0:
            say({"read": number})
    return found


def _answer(
    planned: planning.Planned, archive: Archive, predictor: Predictor, setting: Setting, wanted: Wanted
) -> dict[str, Any]:
    """What a study's line says: `facts`, or why there are none."""
    try:
        prepared = pipeline.prepare(planned, archive)
        if not isinstance(prepared, Prepared):
            return {"why": "the challenger refuses the study"}
        prediction = pipeline.predict(prepared, predictor)
        case = pipeline.case_of(planned, prepared, prediction, setting, datetime.now(UTC))
        return {"facts": compared(case, setting.home, wanted.cases[planned.study.study])}
    except WorldError as error:
        return {"why": "out of memory" if "memory" in str(error) else "something is down"}
    except Exception as error:  # its text may quote a header
        return {"why": f"internal error ({type(error).__name__})"}


def compared(case: Any, home: Home, champion: str) -> dict[str, Any]:
    """Numbers of the challenger's case beside the champion's, which is read from its report. Raises OSError."""
    folder = home.reports / champion
    report = json.loads((folder / "report.json").read_text())
    verdicts = [report["verdict"], case.report.verdict.value if case.report.verdict else None]
    facts: dict[str, Any] = {"champion": champion, "verdict": verdicts}
    facts["volume_ml"] = [
        _ml(f["volume_mm3"] for f in report["findings"]),
        _ml(f.volume_mm3 for f in case.report.findings),
    ]
    facts["lesions"] = [len(report["findings"]), len(case.report.findings)]
    return facts | {"dice": _overlap(case, folder)}


def _ml(volumes_mm3: Any) -> float:
    return float(f"{sum(volumes_mm3) / 1000:.{DIGITS}g}")


def _overlap(case: Any, folder: Path) -> float | None:
    """Dice between both masks; None where they are not of one grid: the models read different series."""
    if not isinstance(case, Case) or case.labels is None or case.card is None:
        return None
    image: Any = nibabel.load(folder / nifti.NAME)
    theirs: npt.NDArray[np.bool_] = np.asarray(image.dataobj) > 0
    grid = case.volumes[case.card.grid].affine_ijk_to_lps
    if theirs.shape != case.labels.shape or not np.allclose(image.affine, LPS_TO_RAS @ grid, atol=GRID_MM):
        return None
    return round(dice(theirs, case.labels > 0), DIGITS)


def main() -> None:
    """The child's own end of the pipe."""
    with suppress(OSError):
        os.nice(10)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # Linux ends this process before any other

    def say(line: Mapping[str, Any]) -> None:
        sys.stdout.write(json.dumps(line, allow_nan=False) + "\n")
        sys.stdout.flush()

    run(Wanted.of(sys.stdin.read()), say)


if __name__ == "__main__":
    main()
