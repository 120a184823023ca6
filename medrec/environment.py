"""What medrec runs in: the installed distributions, the interpreter and the processor, as one digest.

A report is repeated bit for bit only in the environment that made it; elsewhere the digest differs, and replay compares
within stated tolerances. Nothing here names a host, a user or a path.
"""

import hashlib
import json
import platform
import re
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

# What decides which instructions numeric libraries choose; the many other flags change with kernels.
INSTRUCTION_SETS = re.compile(r"\b(avx\w*|fma|amx\w*|sse4_2|asimd\w*|sve\w*)\b")


@cache
def content() -> bytes:
    """Names and versions of everything installed, the interpreter and the processor: canonical JSON."""
    installed = {d.name.lower().replace("_", "-"): d.version for d in distributions() if d.name}
    facts = {"distributions": installed, "python": platform.python_version(), "processor": processor()}
    return json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()


def digest() -> str:
    """SHA-256 of `content`."""
    return hashlib.sha256(content()).hexdigest()


def processor(source: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's architecture, model and instruction sets, as far as the system tells them."""
    try:
        text = source.read_text(errors="replace")
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    sets = sorted(set(INSTRUCTION_SETS.findall(flags[1]))) if flags else []
    return " ".join([platform.machine(), model[1].strip() if model else platform.processor(), *sets]).strip()
