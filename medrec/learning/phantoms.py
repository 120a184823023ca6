"""Labelled phantom studies on disk, for training the demo's model: python -m medrec.learning.phantoms OUT COUNT.

Writes OUT/dicom, OUT/masks and OUT/studies.csv, as `python -m medrec.learning` reads them.
"""

import csv
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from medrec.phantom import random_head, render, uid, write_dicom
from medrec.volume import LPS_TO_RAS


def write(out: Path, count: int, seed: int = 0) -> None:
    """`count` random heads with 0 to 3 lesions each."""
    rng = np.random.default_rng(seed)
    (out / "masks").mkdir(parents=True, exist_ok=True)
    with (out / "studies.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["study_instance_uid", "patient"])
        for number in range(count):
            head = random_head(rng, number % 4)
            voxels, mask = render(head)
            patient, study = f"TRAINING-{number}", uid("training", str(seed), str(number))
            write_dicom(
                voxels,
                head.affine,
                out / "dicom" / patient,
                patient_id=patient,
                study_uid=study,
                patient_name=f"PHANTOM^TRAINING{number}",
            )
            image = nib.Nifti1Image(mask.astype(np.uint8), LPS_TO_RAS @ head.affine)
            nib.save(image, out / "masks" / f"{patient}.nii.gz")
            table.writerow([study, patient])


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
