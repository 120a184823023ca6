"""What `medrec convert` makes of every case of the conformance set, beside reference volumes and dcm2niix, as a table.

python tests/conformance.py writes .readme/conformance.md; a test holds that it is what comes out.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np

from medrec.conversion import convert

ROOT = Path(__file__).parent.parent
TABLE = ROOT / ".readme" / "conformance.md"
SHARED = ROOT.parent / "shared" / "data"
HEAD = """# Equality with other programs

Made by `python tests/conformance.py`. "equal" means: the same grid, every corner within 1e-3 mm, and the same voxels
(rescaled values within single precision) as the reference volume that others made (dicom2nifti, dcm_qa_ts) or as
`dcm2niix -p n`.

| case | verdict | against | volumes |
|---|---|---|---|
"""
Part = tuple[np.ndarray, np.ndarray]


def canonical(path: Path) -> Iterator[Part]:
    """(voxels, affine) of each 3D part of a file, nearest to RAS; colour is left out."""
    image = nibabel.load(path)
    if image.get_data_dtype().fields:
        return
    image = nibabel.as_closest_canonical(image)
    voxels = np.asarray(image.dataobj, float)
    for part in np.moveaxis(voxels, 3, 0) if voxels.ndim == 4 else voxels[None]:
        yield part, image.affine


def same(one: Part, other: Part) -> bool:
    """Equal voxels (float32 rounding of rescaled ones apart), affines within 1e-3 mm at every corner of the grid."""
    if one[0].shape != other[0].shape:
        return False
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in one[0].shape])).reshape(3, -1)
    away = (one[1] - other[1])[:3, :3] @ corners + (one[1] - other[1])[:3, 3:]
    return bool(
        np.abs(away).max() < 1e-3 and np.allclose(one[0], other[0], rtol=1e-6, atol=1e-6 * np.abs(one[0]).max())
    )


def dcm2niix(source: Path, out: Path) -> list[Part]:
    """What dcm2niix makes of a folder or file."""
    out.mkdir(parents=True)
    command = ["dcm2niix", "-z", "n", "-b", "n", "-p", "n", "-o", out, "-f", "x", source]
    subprocess.run(command, capture_output=True, check=False, timeout=300)
    return [part for path in sorted(out.glob("*.nii")) for part in canonical(path)]


def cases(shared: Path) -> Iterator[tuple[str, Path, list[Path]]]:
    """(name, folder or file, reference volumes) of each case."""
    conformance = shared / "conformance"
    for root in (conformance, shared / "real_dicom"):
        for folder in sorted({p.parent for p in root.rglob("*") if p.is_file()}):
            files = [p for p in folder.iterdir() if p.suffix.lower() in (".dcm", ".ima", "") and p.is_file()]
            files = [p for p in files if not p.name.isupper() and not p.name.startswith(".")]
            if folder.name == "In":
                for path in sorted(files):
                    yield f"transfer_syntaxes/{path.stem}", path, [folder.parent / "Ref" / f"{path.stem}.nii"]
            elif files and folder.name != "Ref":
                reference = folder.with_name(f"{folder.name}_ground_truth.nii.gz")
                yield folder.relative_to(root).as_posix(), folder, [reference] if reference.is_file() else []


def rows(shared: Path) -> Iterator[tuple[str, str, str, int]]:
    """(case, verdict, against whom, number of our volumes)."""
    with tempfile.TemporaryDirectory() as place:
        for number, (name, source, references) in enumerate(cases(shared)):
            work = Path(place, str(number))
            done = convert(source, work / "ours")
            ours = [part for path in (work / "ours").iterdir() for part in canonical(path)]
            theirs = [part for path in references for part in canonical(path)]
            against = "reference"
            if not theirs:
                theirs, against = dcm2niix(source, work / "theirs"), "dcm2niix"
            yield name, _verdict(done.problems, ours, theirs), against if theirs else "none", len(ours)
            shutil.rmtree(work)


def _verdict(problems: tuple[str, ...], ours: list[Part], theirs: list[Part]) -> str:
    if not ours:
        return "refused: " + "; ".join(sorted({p.split(": ", 1)[1] for p in problems}))
    if not theirs:
        return "converted; nobody else does"
    return "equal" if all(any(same(part, our) for our in ours) for part in theirs) else "converted otherwise"


def table(shared: Path) -> str:
    """The page."""
    return HEAD + "".join(f"| {name} | {verdict} | {by} | {count} |\n" for name, verdict, by, count in rows(shared))


if __name__ == "__main__":
    TABLE.write_text(table(SHARED))
