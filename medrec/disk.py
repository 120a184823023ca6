"""Files that are whole or not there, also after a power cut: contents first, then the folder that names them."""

import os
import secrets
from pathlib import Path


def flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Put a private file in the place of an older one, whole or not at all."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")  # another worker may write the same file
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    flush(path.parent)
