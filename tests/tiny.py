"""A card whose networks are tiny and untrained, and studies of 16 x 16 x 16 voxels: nights that take a second.

What they mark means nothing; that every study is done once, written whole and recorded does not depend on it.
"""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
import yaml
from conftest import copy_home

from medrec import config
from medrec.config import Configuration
from medrec.home import Home
from medrec.models import networks, weights
from medrec.night import Night, Request
from medrec.phantom import Head, grid, render, write_dicom

SIZE = (16, 16, 16)


def tiny_folder(folder: Path, **settings: object) -> Path:
    """A folder of configuration, for --config, in which the card `tiny` is the only one."""
    (folder / "models").mkdir(parents=True)
    card = yaml.safe_load((config.packaged_configs() / "models" / "phantom.yaml").read_text())
    card |= {"name": "tiny", "trained_on": [], "measured": [], "returned": {}}
    card["preprocessing"] = {"size_px": 32, "neighbours": 1}
    card["segmentation"]["settings"] = {"channels": [4, 8], "res_units": 1}
    card["classification"]["settings"] = {"blocks": [1], "growth": 4, "first": 4, "dropout": 0.0}
    torch.manual_seed(1)
    for part in ("segmentation", "classification"):
        network = networks.build(card[part]["kind"], card[part]["settings"], 3)
        card[part]["weights"] = f"tiny_{part}.safetensors"
        card[part]["sha256"] = weights.write(network.state_dict(), folder / "models" / card[part]["weights"])
    (folder / "models" / "tiny.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    (folder / "medrec.yaml").write_text(yaml.safe_dump({"models": ["tiny"], "threads": 1, **settings}))
    return folder


def tiny_configuration(folder: Path, **settings: object) -> Configuration:
    """The same, loaded."""
    return config.load(tiny_folder(folder, **settings))


def tiny_studies(folder: Path, count: int, first: int = 1) -> tuple[Path, ...]:
    """So many studies of as many patients, each in a folder of its own."""
    head = Head((), SIZE, grid(SIZE, (14.0, 14.0, 11.0)), seed=5)
    voxels = render(head)[0]
    places = []
    for number in range(first, first + count):
        place = folder / f"study {number}"
        other = np.roll(voxels, number, axis=2)  # no two studies hold the same pixels
        write_dicom(other, head.affine, place, patient_name=f"TINY^{number}", patient_id=f"TINY-{number}")
        places.append(place)
    return tuple(places)


def ready_home(place: Path) -> Home:
    """A home at `place` after a night without studies: its databases are there, which takes seconds to make."""
    return copy_home(_template(), place)


@cache
def _template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="medrec-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "in").mkdir()
    with Night(Request(folder / "in", Home(folder / "home"), tiny_configuration(folder / "own"))) as night:
        night.index()
        night.close()
    return folder / "home"
