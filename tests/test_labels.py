"""Labels: accepted whole and on record, or refused by name."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from medrec import labels
from medrec.errors import DataError
from medrec.home import Home
from medrec.labels import Known, Label, Origin
from medrec.labels.masks import keep, mask_file, mask_sha256
from medrec.store import Store

AT = "2026-01-01T00:00:00Z"


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def a_known(image: str = "its image", patient: str = "patient", **changed: object) -> Known:
    fields: dict[str, object] = {
        "image": image, "study": f"study of {patient}", "patient": patient, "series": "series", "frame": None,
        "modality": "MR", "cards": ("toy",), "shape": (4, 3, 2), "affine": tuple(float(n) for n in np.eye(4).ravel()),
        "instances": ("a", "b"), "inputs": (sha("a"), sha("b")), "geometry_sha256": sha("grid"),
        "pixels_sha256": sha("pixels"), "at": AT,
    }  # fmt: skip
    return Known(**(fields | changed))  # type: ignore[arg-type]


def a_label(known: Known, **changed: object) -> Label:
    fields: dict[str, object] = {
        "label": "", "card": "toy", "study": known.study, "patient": known.patient, "image": known.image,
        "what": "mask", "mask_sha256": sha("mask"), "classes": {}, "origin": Origin.BLIND, "by": "dr. a", "at": AT,
        "source_sha256": sha("file"), "geometry_sha256": known.geometry_sha256, "pixels_sha256": known.pixels_sha256,
    }  # fmt: skip
    return Label(**(fields | changed))  # type: ignore[arg-type]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


@pytest.fixture
def store(home: Home) -> Store:
    return Store.open(home.store_url)


def knowing(store: Store, *known: Known) -> None:
    for one in known:
        store.remember_study(one.study, one.patient, AT)
        assert store.know(one)


def test_a_label_supersedes_the_one_before_it_and_neither_is_lost(store: Store) -> None:
    known = a_known()
    knowing(store, known)
    first = store.add_label(a_label(known))
    again = store.add_label(a_label(known))
    second = store.add_label(a_label(known, by="dr. b"))
    kinds = store.add_label(a_label(known, what="class", mask_sha256=None, classes={"pathology": "benign"}))
    assert again is None
    assert first is not None
    assert second is not None
    assert kinds is not None
    assert labels.current(store, "toy") == (second, kinds)
    assert [(x.by, x.superseded_by) for x in store.labels(superseded=True)] == [
        ("dr. a", second.label), ("dr. b", None), ("dr. a", None),
    ]  # fmt: skip
    assert [r.kind for r in store.ledger()] == ["label"] * 3
    assert labels.current(store, "another") == ()


def test_the_ledger_says_who_and_how_but_nothing_that_finds_the_patient(store: Store) -> None:
    known = a_known()
    knowing(store, known)
    store.add_label(a_label(known, origin=Origin.EDITED_AI))
    (record,) = store.ledger()
    assert (record.facts["by"], record.facts["origin"], record.facts["card"]) == ("dr. a", "edited-AI", "toy")
    for secret in (known.study, known.patient, known.image, sha("file"), sha("mask"), known.pixels_sha256):
        assert secret.encode() not in record.body


def test_a_label_of_an_unknown_study_is_not_taken(store: Store) -> None:
    with pytest.raises(DataError, match="unknown here"):
        store.add_label(a_label(a_known()))
    assert list(store.ledger()) == []


def test_what_is_known_of_an_image_grows_and_stays(store: Store) -> None:
    known = a_known()
    knowing(store, known)
    assert not store.know(known)
    assert store.know(a_known(cards=("other",)))
    assert labels.known(store, "toy") == labels.known(store, "other") == (a_known(cards=("other", "toy")),)
    assert labels.known(store, "third") == ()


@pytest.mark.parametrize("shape", [(5, 3, 2), (7, 9), (1, 1)])
def test_a_mask_comes_out_of_the_home_as_it_went_in(home: Home, shape: tuple[int, ...]) -> None:
    marks = np.random.default_rng(1).random(shape) > 0.5
    digest = keep(home, marks)
    assert digest == keep(home, marks) == mask_sha256(marks) != mask_sha256(~marks)
    assert np.array_equal(labels.mask(home, a_label(a_known(), mask_sha256=digest)), marks)
    assert mask_file(home, digest).stat().st_mode & 0o077 == 0


def test_a_changed_mask_is_refused_by_name(home: Home) -> None:
    one, other = (keep(home, np.eye(4, dtype=bool) ^ flip) for flip in (False, True))
    mask_file(home, one).write_bytes(mask_file(home, other).read_bytes())
    with pytest.raises(DataError, match="was changed"):
        labels.mask(home, a_label(a_known(), mask_sha256=one))
    mask_file(home, one).unlink()
    with pytest.raises(DataError, match="is gone"):
        labels.mask(home, a_label(a_known(), mask_sha256=one))
