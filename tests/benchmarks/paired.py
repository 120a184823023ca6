"""Timings that can be compared: candidates take turns, and their times are told as ratios of medians.

What another program does on the machine hits all of them alike; a time in seconds from another day says nothing.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median


def measure(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each candidate in each round; the first round of all is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def tell(title: str, seconds: Mapping[str, list[float]], against: str, out: Path | None) -> None:
    """Print a table of medians and ratios, and beside it those of an earlier run; keep this one as JSON."""
    earlier = json.loads(out.read_text()) if out is not None and out.is_file() else {}
    base = median(seconds[against])
    print(f"\n{title}\n{'':34}{'median s':>10}{'least s':>10}{'x ' + against:>16}{'earlier x':>12}")
    told = {}
    for name, found in seconds.items():
        ratio = median(found) / base
        before = earlier.get(title, {}).get(name)
        print(f"{name:34}{median(found):10.3f}{min(found):10.3f}{ratio:16.2f}{before if before else '':>12}")
        told[name] = round(ratio, 3)
    if out is not None:
        out.write_text(json.dumps({**earlier, title: told}, indent=1) + "\n")


def json_path() -> Path | None:
    """The file that the command line names, if any."""
    return Path(sys.argv[1]) if len(sys.argv) > 1 else None


def tell_numbers(title: str, numbers: Mapping[str, float | str], out: Path | None) -> None:
    """Print named numbers beside those of an earlier run; keep these as JSON."""
    earlier = json.loads(out.read_text()) if out is not None and out.is_file() else {}
    print(f"\n{title}\n{'':58}{'now':>12}{'earlier':>12}")
    for name, value in numbers.items():
        shown = f"{value:12.3f}" if isinstance(value, float) else f"{value:>12}"
        print(f"{name:58}{shown}{earlier.get(title, {}).get(name, ''):>12}")
    if out is not None:
        rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in numbers.items()}
        out.write_text(json.dumps({**earlier, title: rounded}, indent=1) + "\n")
