"""A series is taken apart into volumes by what its headers say, or refused by name; no image gets lost on the way."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phantoms import SAGITTAL, scan_file, stack

from medrec.phantom import grid
from medrec.series import Plane, Reason, ScanFile, Series, Skipped, Traits
from medrec.stacks import stacks

SIZE = (12, 10, 6)
SPACING_MM = (1.5, 2.0, 5.0)


def volume(start: int = 0, rotation=(0.0, 0.0, 0.0), **traits: object) -> list[ScanFile]:
    """Six slices with digests, ordinals and instances that begin at `start`."""
    files = stack(grid(SIZE, SPACING_MM, rotation), SIZE)
    return [
        replace(
            f, sha256=f"{start + f.ordinal:064x}", ordinal=start + f.ordinal, instance=f"i{start + f.ordinal}",
            content=f"c{start + f.ordinal}", traits=Traits(**traits),
        )
        for f in files
    ]  # fmt: skip


def taken_apart(files: list[ScanFile]) -> tuple[list[Series], list[Skipped]]:
    """(volumes, refusals), after checking that every file is in one of them."""
    results = stacks(files)
    assert {f.ordinal for r in results for f in r.files} == {f.ordinal for f in files}
    return [r for r in results if isinstance(r, Series)], [r for r in results if isinstance(r, Skipped)]


def reasons(skipped: list[Skipped]) -> list[Reason]:
    return [s.reason for s in skipped]


def test_a_plain_series_is_one_volume() -> None:
    (one,), rest = taken_apart(volume())
    assert (len(one.slices), one.part, one.promised_slices, rest) == (6, "", None, [])


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("echo_ms", (12.0, 90.0), "echo time"),
        ("image_type", (("ORIGINAL", "PRIMARY", "M"), ("ORIGINAL", "PRIMARY", "P")), "image type"),
        ("diffusion", ((0.0,), (1000.0, 1.0, 0.0, 0.0), (1000.0, 0.0, 1.0, 0.0)), "diffusion weighting"),
        ("temporal", (1, 2, 3), "temporal position"),
        ("trigger_ms", (0.0, 40.0), "trigger time"),
        ("dimensions", (("1",), ("2",)), "dimension index"),
        ("acquisition", (1, 2), "acquisition"),
        ("moment", ("a", "b"), "acquisition time"),
    ],
)
def test_volumes_at_one_place_are_told_apart_by_what_their_headers_say(name, values, words) -> None:
    files = [f for n, value in enumerate(values) for f in volume(10 * n, **{name: value})]
    volumes, rest = taken_apart(files)
    assert [len(v.slices) for v in volumes] == [6] * len(values)
    assert [v.part for v in volumes] == [f"volume {n} of {len(values)}, by {words}" for n in range(1, len(values) + 1)]
    assert not rest
    for v in volumes:
        assert len({getattr(f.traits, name) for f in v.files}) == 1


def test_a_repeated_b_value_needs_two_traits() -> None:
    files = [
        f
        for n, (b, run) in enumerate([(0.0, 1), (0.0, 2), (1000.0, 1), (1000.0, 2)])
        for f in volume(10 * n, diffusion=(b,), temporal=run)
    ]
    volumes, rest = taken_apart(files)
    assert len(volumes) == 4
    assert not rest
    assert all("diffusion weighting and temporal position" in v.part for v in volumes)


def test_volumes_that_nothing_tells_apart_are_refused() -> None:
    volumes, rest = taken_apart(volume() + volume(10))
    assert (volumes, reasons(rest)) == ([], [Reason.SAME_POSITION])
    assert "2 images" in rest[0].detail


def test_a_trait_that_differs_in_every_slice_tears_no_volume_apart() -> None:
    files = [replace(f, traits=Traits(trigger_ms=float(n))) for n, f in enumerate(volume() + volume(10))]
    assert reasons(taken_apart(files)[1]) == [Reason.SAME_POSITION]


def test_the_same_image_under_another_uid_is_dropped_and_said() -> None:
    files = volume()
    twin = replace(files[2], sha256="f" * 64, ordinal=9, instance="other")
    (one,), rest = taken_apart([*files, twin])
    assert len(one.slices) == 6
    assert reasons(rest) == [Reason.DUPLICATE]


def test_equal_pixels_of_another_time_are_no_duplicate() -> None:
    """Slices of nothing but air are equal in every volume of a 4D series."""
    second = [replace(f, content=f"c{n}") for n, f in enumerate(volume(10, temporal=2))]
    volumes, rest = taken_apart(volume(temporal=1) + second)
    assert (len(volumes), rest) == (2, [])


def test_a_localizer_of_three_planes_becomes_three_stacks() -> None:
    planes = [(0.0, 0.0, 0.0), SAGITTAL, (90.0, 0.0, 0.0)]
    files = [f for n, p in enumerate(planes) for f in volume(10 * n, p)]
    volumes, rest = taken_apart(files)
    assert [len(v.slices) for v in volumes] == [6, 6, 6]
    assert not rest


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rows": 99}, Reason.TOO_FEW_SLICES),
        ({"spacing_mm": (1.0, 1.0)}, Reason.TOO_FEW_SLICES),
        ({"orientation": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)}, Reason.TOO_FEW_SLICES),
        ({"photometric": "RGB"}, Reason.NOT_GREYSCALE),
        ({"position_mm": None}, Reason.MISSING_POSITION),
        ({"orientation": None}, Reason.MISSING_ORIENTATION),
        ({"spacing_mm": None}, Reason.MISSING_SPACING),
        ({"frames": 30}, Reason.MULTI_FRAME),
        ({"frames": 30, "modality": "US"}, Reason.CINE),
        ({"mosaic": True}, Reason.MOSAIC),
    ],
)
def test_one_stray_image_does_not_spoil_a_series(change, reason) -> None:
    stray = replace(scan_file(), sha256="e" * 64, ordinal=9, instance="stray", content="stray", **change)
    (one,), rest = taken_apart([*volume(), stray])
    assert len(one.slices) == 6
    assert reasons(rest) == [reason]


def test_a_missing_slice_stays_a_refusal() -> None:
    files = volume()
    del files[3]
    assert reasons(taken_apart(files)[1]) == [Reason.MISSING_SLICE]


def test_one_slice_is_a_volume_where_its_file_says_how_thick_it_is() -> None:
    (one,), rest = taken_apart([scan_file(thickness_mm=4.0)])
    assert (one.direction_mm, rest) == ((0.0, 0.0, 4.0), [])
    assert reasons(taken_apart([scan_file()])[1]) == [Reason.TOO_FEW_SLICES]
    assert reasons(taken_apart([scan_file(thickness_mm=-1.0)])[1]) == [Reason.TOO_FEW_SLICES]
    assert reasons(taken_apart([scan_file(thickness_mm=4.0, spacing_mm=(0.0, 1.0))])[1]) == [Reason.BAD_GEOMETRY]


def test_inverted_greyscale_keeps_its_values_and_says_so() -> None:
    (one,), _ = taken_apart([replace(f, photometric="MONOCHROME1") for f in volume()])
    assert one.first.photometric == "MONOCHROME1"


def several(start: int, count: int = 6, **traits: object) -> ScanFile:
    """One file that holds slices 5 mm apart."""
    planes = tuple(
        Plane((0.0, 0.0, 5.0 * k), (1.0, 0, 0, 0, 1.0, 0), (2.0, 1.5), 5.0, Traits(**traits)) for k in range(count)
    )
    return replace(scan_file(), sha256=f"{start:064x}", ordinal=start, instance=f"m{start}", frames=count,
                   planes=planes, content=f"m{start}")  # fmt: skip


def test_a_file_of_several_slices_is_a_volume_and_counts_as_one_file() -> None:
    (one,), rest = taken_apart([several(0)])
    assert [copies[0].frame for copies in one.slices] == [0, 1, 2, 3, 4, 5]
    assert (len(one.files), rest) == (1, [])


def test_files_of_several_slices_at_one_place_are_volumes_of_their_own() -> None:
    volumes, rest = taken_apart([several(0), several(1), several(2)])
    assert [len(v.slices) for v in volumes] == [6, 6, 6]
    assert not rest


@pytest.mark.parametrize(("kept", "promised"), [(6, 6), (5, 6)])
def test_what_headers_promise_is_carried_along(kept, promised) -> None:
    images = [replace(f, promised_images=6) for f in volume()][:kept]
    slices = [replace(f, promised_slices=6) for f in volume()][:kept]
    for files in (images, slices):
        (one,), _ = taken_apart(files)
        assert one.promised_slices == (promised if kept < 6 or files is slices else None)


def test_a_promise_of_all_volumes_together_is_not_read_as_one_of_each() -> None:
    files = [replace(f, promised_images=12) for n in (1, 2) for f in volume(10 * n, temporal=n)]
    volumes, _ = taken_apart(files)
    assert [v.promised_slices for v in volumes] == [None, None]


def test_the_order_of_files_is_irrelevant() -> None:
    files = [several(0), *volume(20)[:3], replace(scan_file(), ordinal=9, sha256="9" * 64, rows=3, content="x")]
    assert len({repr(stacks(list(order))) for order in permutations(files)}) == 1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(range(24)), min_size=1, max_size=24, unique=True), st.integers(0, 3))
def test_no_file_is_ever_lost(chosen, strangeness) -> None:
    pool = [f for n in range(4) for f in volume(10 * n, temporal=n % 2, acquisition=n // 2)]
    files = [pool[i] for i in chosen]
    if strangeness:
        files[0] = replace(files[0], **[{"rows": 3}, {"position_mm": None}, {"photometric": "RGB"}][strangeness - 1])
    volumes, _ = taken_apart(files)
    for v in volumes:
        steps = np.diff([c[0].position_mm[2] for c in v.slices])
        assert np.allclose(steps, steps[:1])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("echo_ms", (20.0, 100.0)),
        ("image_type", (("ORIGINAL", "PRIMARY", "M"), ("ORIGINAL", "PRIMARY", "P"))),
        ("diffusion", ((0.0,), (1000.0,))),
        ("temporal", (1, 2)),
    ],
)
@pytest.mark.parametrize("owner", [lambda k: k // 3, lambda k: k % 2], ids=["halves", "alternating"])
def test_slices_of_two_contrasts_never_make_one_volume_though_no_place_is_taken_twice(name, values, owner) -> None:
    files = [replace(f, traits=Traits(**{name: values[owner(k)]})) for k, f in enumerate(volume())]
    volumes, rest = taken_apart(files)
    assert ([len(v.slices) for v in volumes], rest) == ([3, 3], [])
    assert all(v.part.startswith("volume ") for v in volumes)
    for one in volumes:
        assert len({getattr(c.traits, name) for copies in one.slices for c in copies}) == 1


def test_slices_acquired_at_different_moments_are_one_volume() -> None:
    files = [
        replace(f, traits=Traits(moment=f"{k}", acquisition=k, trigger_ms=float(k))) for k, f in enumerate(volume())
    ]
    (one,), rest = taken_apart(files)
    assert (len(one.slices), one.part, rest) == (6, "", [])
