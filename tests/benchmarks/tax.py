"""What a night costs beyond the networks: (wall - bare forward passes of the same tensors) for each study.

    python tests/benchmarks/tax.py DICOM [STUDIES [OUT.json]]

DICOM is a folder of studies that the packaged card brain_mr takes, each in a folder of its own. Start-up is left out:
the clock runs from the first study's beginning to the last one's end.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from paired import tell_numbers

from medrec import config
from medrec.home import Home
from medrec.models import inference
from medrec.night import Night, Request
from medrec.pace import AT_ONCE


def main() -> None:
    """Lead a night over some of the studies, then run its networks alone on the tensors that they saw."""
    studies = sorted(Path(sys.argv[1]).iterdir())[: int(sys.argv[2]) if len(sys.argv) > 2 else 40]
    stacks: list[torch.Tensor] = []
    ladder = inference.TorchPredictor._on_the_ladder
    predictors: list[inference.TorchPredictor] = []

    def noted(self: inference.TorchPredictor, stack: torch.Tensor) -> object:
        stacks.append(stack.clone())
        predictors.append(self)
        return ladder(self, stack)

    with TemporaryDirectory() as place:
        inbox = Path(place, "in")
        inbox.mkdir()
        for folder in studies:
            (inbox / folder.name).symlink_to(folder.resolve())
        with Night(Request(inbox, Home(Path(place, "home")), config.load())) as night:
            night.index()
            inference.TorchPredictor._on_the_ladder = noted  # type: ignore[method-assign, assignment]
            started = time.perf_counter()
            with ThreadPoolExecutor(AT_ONCE) as threads:
                night.lead(lambda p: threads.submit(night.analyse, p), lambda done, total: None)
            wall_s = time.perf_counter() - started
            inference.TorchPredictor._on_the_ladder = ladder  # type: ignore[method-assign]
            summary = night.close()
    started = time.perf_counter()
    for predictor, stack in islice(zip(predictors, stacks, strict=True), None):
        predictor._run(stack, inference.LADDER[0], predictor.device)
    bare_s = time.perf_counter() - started
    count = len(stacks)
    numbers: dict[str, float | str] = {
        "studies analysed": str(count),
        "wall s a study": wall_s / count,
        "bare forward passes s a study": bare_s / count,
        "tax s a study": (wall_s - bare_s) / count,
        "wall / bare": wall_s / bare_s,
    }
    numbers |= {f"{stage} s a study": seconds / count for stage, seconds in summary.stages.items()}
    tell_numbers("pipeline tax", numbers, Path(sys.argv[3]) if len(sys.argv) > 3 else None)


if __name__ == "__main__":
    main()
