"""Whether the memory of a night grows with its studies: resident MiB after each quarter of them.

    python tests/benchmarks/memory.py [STUDIES [OUT.json]]

Studies have 16 x 16 x 16 voxels; the first quarter also fills caches that stay.
"""

import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent.parent))

from paired import tell_numbers
from tiny import ready_home, tiny_configuration, tiny_studies

from medrec.night import Night, Request
from medrec.pace import AT_ONCE


def resident_mib() -> float:
    """What this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    """One night."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    numbers: dict[str, float | str] = {}
    with TemporaryDirectory() as place:
        own = tiny_configuration(Path(place, "own"))
        tiny_studies(Path(place, "in"), count)
        with Night(Request(Path(place, "in"), ready_home(Path(place, "home")), own)) as night:
            night.index()
            numbers["MiB before the first"] = resident_mib()

            def progress(done: int, total: int) -> None:
                if done % (count // 4) == 0:
                    numbers[f"MiB after {done}"] = resident_mib()

            with ThreadPoolExecutor(AT_ONCE) as threads:
                night.lead(lambda p: threads.submit(night.analyse, p), progress)
            night.close()
    last, first = (float(numbers[f"MiB after {n * (count // 4)}"]) for n in (4, 1))
    numbers["MiB a hundred studies, after the first quarter"] = 100 * (last - first) / (3 * (count // 4))
    tell_numbers(f"memory of a night of {count}", numbers, Path(sys.argv[2]) if len(sys.argv) > 2 else None)


if __name__ == "__main__":
    main()
