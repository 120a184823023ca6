"""The same pixels are found whatever was done to them; other patients' are not."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medrec import likeness
from medrec.dicom import Pseudonyms, stills
from medrec.phantom import random_head, render


def head(seed: int) -> np.ndarray:
    return render(random_head(np.random.default_rng(seed), seed % 4))[0].astype(np.float32)


def jpeg(image: np.ndarray, quality: int = 60) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray((image * 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)).astype(np.float32) / 255


def altered(image: np.ndarray) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    near_lossless = np.clip(image + rng.integers(-1, 2, image.shape) / 255, 0, 1)
    return [near_lossless, np.clip(image * 1.1 + 0.03, 0, 1), image**0.85, jpeg(image), image[3:-3, 3:-3]]


def test_a_head_is_like_its_altered_copy_and_like_no_other_head() -> None:
    heads = {f"p{n}": head(n) for n in range(6)}
    prints = {name: [likeness.of_slices(v)] for name, v in heads.items()}
    rng = np.random.default_rng(0)
    copy = np.round((heads["p2"] * 1.1 + 20 + rng.normal(0, 6, heads["p2"].shape)) / 8) * 8
    prints["relabelled"] = [likeness.of_slices(copy.astype(np.float32)[:, :, 2:-3])]
    prints["reversed"] = [likeness.of_slices(heads["p4"][:, :, ::-1])]
    assert likeness.shared(prints) == (("p2", "relabelled"), ("p4", "reversed"))


def test_bodies_of_one_shape_are_told_apart_by_what_is_within_them() -> None:
    i, j = np.mgrid[:64, :56]
    body = ((i - 32) / 28) ** 2 + ((j - 28) / 24) ** 2 < 1

    def ct(seed: int) -> np.ndarray:
        """Air at -1000, tissue around 40 with a texture of 9 HU: the outline is a hundred times as strong."""
        rng = np.random.default_rng(seed)
        texture = np.kron(rng.normal(0, 9, (16, 14, 10)), np.ones((4, 4, 1)))
        values = np.where(body[:, :, None], 40 + texture, -1000)
        return (values + rng.normal(0, 2, texture.shape)).astype(np.float32)

    bodies = {f"p{n}": ct(n) for n in range(6)}
    prints = {name: [likeness.of_slices(v)] for name, v in bodies.items()}
    again = bodies["p3"] + np.random.default_rng(9).normal(0, 3, bodies["p3"].shape)
    prints["relabelled"] = [likeness.of_slices(again.astype(np.float32))]
    assert likeness.shared(prints) == (("p3", "relabelled"),)


def test_blank_images_are_like_nothing() -> None:
    blank = np.full((60, 70), 0.3, np.float32)
    assert len(likeness.fingerprint(blank)) == 0
    assert likeness.shared({"a": [likeness.fingerprint(blank)], "b": [likeness.fingerprint(blank)]}) == ()


def test_equal_digests_link_their_owners() -> None:
    found = likeness.same_digest({"a": ["1", "2"], "b": ["3"], "c": ["2"], "d": ["3", "9"]})
    assert found == (("a", "c"), ("b", "d"))


def test_of_real_ultrasound_every_altered_copy_is_found_and_no_two_patients_are_alike(shared_data: Path) -> None:
    pseudonyms = Pseudonyms(b"k" * 32)
    prints: dict[str, list[likeness.Prints]] = {}
    copies = 0
    files = sorted(p for p in (shared_data / "breast_us" / "dicom").rglob("*") if p.is_file())[:150]
    for number, path in enumerate(files):
        found = stills.read(path.read_bytes(), pseudonyms)
        prints.setdefault(found.patient, []).append(likeness.fingerprint(found.pixels))
        if number % 15 == 0:
            for n, image in enumerate(altered(found.pixels)):
                prints[f"{found.patient} again {n}"] = [likeness.fingerprint(image.astype(np.float32))]
                copies += 1
    pairs = likeness.shared(prints)
    assert {b for _, b in pairs} | {a for a, _ in pairs} >= {p for p in prints if "again" in p}
    assert all(a.split(" ")[0] == b.split(" ")[0] for a, b in pairs)
    assert copies == 50


@pytest.mark.parametrize("shape", [(20, 25), (400, 31), (32, 32)])
def test_any_size_has_a_fingerprint_of_length_one(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(3).random(shape).astype(np.float32)
    found = likeness.fingerprint(image)
    assert found.shape == (1, 1024)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
