"""The ledger and its files as a folder that a third party verifies without medrec.

Holds `ledger.jsonl` (each record's exact bytes, one a line), `bundle.json`, `files/`, `anchors/`, and `verify.py`,
which needs Python's standard library only. Pseudonymised: what leaves here is what reports hold.
"""

import json
import shutil
from pathlib import Path

from medrec import __version__, audit_verifier
from medrec.audit import written_files
from medrec.errors import ConfigError, WorldError
from medrec.events import CASE_KINDS
from medrec.home import Home
from medrec.store import Store

README = """A bundle of medrec {version}: {records} records, head {head}.

    python3 verify.py . [HEAD ...]

checks the chain and the files; a HEAD is one that you kept yourself (from MLflow, from a DICOM SR). Signed anchors:

    openssl pkeyutl -verify -pubin -inkey KEY.pub -rawin -in anchors/NAME.json -sigfile anchors/NAME.sig

Signatures of reviews, promotions and audits are not checked by verify.py: a record holds `signature` and `key`
(Ed25519, base64), which openssl verifies over the facts that were signed.

The chain alone does not show that its end was cut off, or that all of it was written anew: heads kept by others do.
Reports are pseudonymised, not anonymous.
"""


def export(home: Home, store: Store, folder: Path, anchors: Path | None = None) -> int:
    """Write the bundle into a new or empty folder; returns the number of records.

    Raises ConfigError when the folder holds something, WorldError when it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError([f"{folder} is not empty; choose a new folder"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        records, head, paths = 0, "0" * 64, set[str]()
        with (folder / "ledger.jsonl").open("wb") as file:
            for record in store.ledger():
                file.write(record.body + b"\n")
                records, head = records + 1, record.digest
                if record.kind in CASE_KINDS:
                    paths |= written_files(record.facts).keys()
        for path in sorted(paths):
            if path.startswith("outbox/") or path.endswith(audit_verifier.STAYS):
                continue  # under the patient's name, or for the patient's next study alone: these stay in the home
            if (home.root / path).is_dir():  # masks of single images
                shutil.copytree(home.root / path, folder / "files" / path)
            elif (home.root / path).is_file():  # erased, pruned, or for verify.py to name
                (folder / "files" / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(home.root / path, folder / "files" / path)
        if anchors is not None:
            shutil.copytree(anchors, folder / "anchors")
        told = {"records": records, "head": head, "medrec": __version__}
        (folder / "bundle.json").write_text(json.dumps(told, sort_keys=True) + "\n")
        (folder / "README.txt").write_text(README.format(version=__version__, records=records, head=head))
        shutil.copyfile(audit_verifier.__file__, folder / "verify.py")
    except OSError as error:
        raise WorldError(f"the bundle cannot be written: {error.strerror}") from None
    return records
