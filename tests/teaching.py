"""Labelled stills of patients who never lived, put into a home as `medrec labels add` would: known and labelled."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from test_pictures import disc
from test_stills import image

from medrec.dicom import Pseudonyms, stills
from medrec.home import Home
from medrec.labels import Known, Label, Origin
from medrec.labels.masks import keep
from medrec.store import Store

AT = "2026-01-01T00:00:00Z"
SIZE = (70, 50)


class Shot(NamedTuple):
    """One still on disk: its mask, and whether it is malignant (a large disc)."""

    path: Path
    mask: np.ndarray
    malignant: bool


def shots(folder: Path, count: int, first: int = 0, prefix: str = "P") -> list[Shot]:
    """A bright disc on a textured ground, one still a patient, every other malignant."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for n in range(first, first + count):
        rng = np.random.default_rng(n)
        malignant = n % 2 == 0
        lesion = disc(SIZE, int(rng.integers(25, 45)), int(rng.integers(20, 30)), 15 if malignant else 8)
        ground = np.kron(rng.integers(20, 90, (7, 5)), np.ones((10, 10)))  # what tells one patient from the other
        pixels = np.where(lesion, 200, ground) + rng.integers(0, 20, SIZE)
        made.append(shot(folder / f"{prefix}{n}", pixels, f"{prefix}{n}", lesion, malignant))
    return made


def shot(path: Path, pixels: np.ndarray, patient: str, lesion: np.ndarray, malignant: bool) -> Shot:
    uid = str(int(hashlib.sha256(str(path).encode()).hexdigest()[:12], 16))
    data = image(pixels.astype(np.uint16), SOPInstanceUID=f"1.2.3.{uid}", StudyInstanceUID=f"1.2.4.{uid}",
                 PatientID=patient)  # fmt: skip
    path.write_bytes(data)
    return Shot(path, lesion, malignant)


def teach(
    home: Home,
    card: str,
    shots: Iterable[Shot],
    origin: Origin = Origin.BLIND,
    what: tuple[str, ...] = ("mask", "class"),
) -> None:
    """Make stills known and label them."""
    home.create()
    pseudonyms = Pseudonyms.load(home.key)
    with Store.open(home.store_url) as store:
        for one in shots:
            found = stills.read(one.path.read_bytes(), pseudonyms)
            study = pseudonyms.of("study", one.path.name)
            store.remember_study(study, found.patient, AT)
            known = Known(
                found.instance, study, found.patient, study, None, "US", (card,), found.pixels.shape, None,
                (found.instance,), (found.sha256,), "0" * 64, found.pixels_sha256, AT,
            )  # fmt: skip
            store.know(known)
            for kind in what:
                store.add_label(
                    Label(
                        "",
                        card,
                        study,
                        found.patient,
                        found.instance,
                        "mask" if kind == "mask" else "class",
                        keep(home, one.mask) if kind == "mask" else None,
                        {} if kind == "mask" else {"pathology": "malignant" if one.malignant else "benign"},
                        origin,
                        "dr. a",
                        AT,
                        found.sha256,
                        "0" * 64,
                        found.pixels_sha256,
                    )
                )
