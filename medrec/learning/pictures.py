"""Train and measure the networks of a card of pictures.

python -m medrec.learning.pictures CARD --dicom DIR --table CSV --masks DIR --test-fold NAME --out DIR

The table names each image's SOP instance, patient and fold, and the class in the card's column; the mask is
MASKS/<image>.png, of the image's size. Writes the weights beside a new card that pins them. Goes on where a killed run
stopped; weights that are there already are only measured. Patients stay on one side: a fold that shares a patient
with another is refused. `--test-fold none` holds back nobody, and leaves what the card says was measured.
"""

import argparse
import csv
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from PIL import Image
from torch.nn import functional as F

from medrec.dicom import Pseudonyms, stills
from medrec.errors import ConfigError, ScanError
from medrec.learning import augmentation, fitting, training
from medrec.models import inference, marks, still
from medrec.pictures import PictureCard
from medrec.prediction import Measured, Network, Recipe
from medrec.statistics import Interval, auc, dice, mean_of_images

log = logging.getLogger("medrec.learning.pictures")

AT_ONCE = 16
CALIPERS = 2  # a distance has two ends: an image with fewer crosses counts as one without
COLUMNS = ("image", "sop_instance_uid", "patient_id", "fold")
SMOOTHED = 0.03  # of a class: pathology is certain, what one image shows of it is not
ROTATION_RAD, SHIFT = 0.3, 0.1
SCALE_OF_WHOLE, SCALE_OF_CROP = (0.8, 1.25), (0.62, 0.92)  # crops are kept wider than they are shown, and cut again
WIDER = 1.35
STRETCH = (0.87, 1.15)
GAMMA, CONTRAST, BRIGHTNESS, NOISE = 0.5, (0.75, 1.3), 0.3, 0.1


@dataclass(frozen=True, slots=True, eq=False)
class LabelledPicture:
    """One image: pixels (rows, columns) float32 in 0..1, mask (rows, columns) bool, and whether it is positive.

    `outlined` and `classed` say which of these a label tells: where none does, the mask is empty, the class negative.
    `graded` is what the label says in the column by which the card softens classes, if any.
    """

    image: str
    patient: str
    fold: str
    pixels: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    positive: bool
    pixels_sha256: str
    outlined: bool = True
    classed: bool = True
    graded: str = ""


def load(card: PictureCard, dicom: Path, table: Path, masks: Path) -> Iterator[LabelledPicture]:
    """Every image that the table names. Raises ConfigError for a table that lacks columns or splits a patient,
    ScanError for a mask of another size than its image.
    """
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    graded = None if card.softened is None else card.softened.column
    wanted = {*COLUMNS, *(column for column in (card.class_column, graded) if column)}
    if not rows or not wanted <= set(rows[0]):
        raise ConfigError([f"{table.name}: the columns {', '.join(sorted(wanted))} are needed"])
    folds = Counter(patient for patient, _ in {(r["patient_id"], r["fold"]) for r in rows})
    split = sum(count > 1 for count in folds.values())
    if split:
        raise ConfigError([f"{table.name}: {split} patients are in more than one fold"])
    pseudonyms = Pseudonyms(hashlib.sha256(b"labelled pictures").digest())
    row_of = {pseudonyms.of("instance", r["sop_instance_uid"]): r for r in rows}
    for found in stills.read_folder(dicom, pseudonyms):
        row = row_of.get(found.instance)
        if row is None:
            continue
        mask = np.asarray(Image.open(masks / f"{row['image']}.png")) > 0
        if mask.shape != found.pixels.shape:
            raise ScanError(
                f"a mask of {mask.shape} pixels is not of its image's {found.pixels.shape}: it was not used"
            )
        positive = card.class_column is not None and row[card.class_column] == card.positive
        yield LabelledPicture(
            row["image"], found.patient, row["fold"], found.pixels, mask, positive, found.pixels_sha256,
            graded=row[graded] if graded else "",
        )  # fmt: skip


def shown(picture: LabelledPicture, card: PictureCard) -> torch.Tensor:
    """(1, 1, rows, columns): what the networks see of it."""
    hide = card.preprocessing.paint_out_marks
    pixels = picture.pixels
    return still.seen(marks.painted_out(pixels, marks.find(pixels)) if hide else pixels)


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Training images (n, c, size, size) float16 and targets; `weight` (n,) is how often each is drawn."""

    images: torch.Tensor
    targets: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def to_outline(cls, pictures: Sequence[LabelledPicture], card: PictureCard) -> "Pictures":
        """Whole images, and masks as targets (n, 1, size, size)."""
        size = card.preprocessing.size_px
        images = [still.whole(shown(p, card), size).half() for p in pictures]
        targets = [still.whole(torch.from_numpy(p.mask.astype(np.float32))[None, None], size).half() for p in pictures]
        return cls(torch.cat(images), torch.cat(targets), torch.ones(len(pictures)))

    @classmethod
    def to_classify(cls, pictures: Sequence[LabelledPicture], card: PictureCard) -> "Pictures":
        """What is close to each outline, and classes as targets (n, 1); patients and classes weigh alike."""
        images = [still.looked_at(shown(p, card), p.mask, card.preprocessing, WIDER).half() for p in pictures]
        positive = torch.tensor([float(p.positive) for p in pictures])
        views = Counter(p.patient for p in pictures)
        weight = torch.tensor([1 / views[p.patient] for p in pictures])
        for side in (positive > 0, positive == 0):
            weight[side] /= weight[side].sum()
        return cls(torch.cat(images), softened(pictures, card)[:, None], weight)

    def looks(self) -> list[fitting.Batch]:
        """All images as they are, in batches."""
        return list(zip(self.images.float().split(AT_ONCE), self.targets.float().split(AT_ONCE), strict=True))

    def batches(self, recipe: Recipe, device: str) -> training.Batches:
        """Batches of varied images, which lie on `device` from the start."""
        images, targets = self.images.to(device), self.targets.to(device)

        def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            pick = torch.multinomial(self.weight, recipe.batch, True, generator=generator).to(device)
            return varied(images[pick].float(), targets[pick].float(), generator)

        return batch


Made = Callable[[Sequence[LabelledPicture], PictureCard], Pictures]


def varied(x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, c, s, s) posed, brightened, bent and noisy; targets that are maps move along, classes stay.

    The first channel is the image, others are outlines, whose values stay.
    """
    n, maps = len(x), y.ndim == 4

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator).to(x.device) * (high - low) + low

    angle, scale = uniform(-ROTATION_RAD, ROTATION_RAD, n), uniform(*(SCALE_OF_WHOLE if maps else SCALE_OF_CROP), n)
    stretched, mirror = scale * uniform(*STRETCH, n), uniform(0, 1, n).round() * 2 - 1
    theta = torch.zeros(n, 2, 3, device=x.device)
    theta[:, 0, 0], theta[:, 0, 1] = scale * angle.cos() * mirror, stretched * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = -scale * angle.sin() * mirror, stretched * angle.cos()
    theta[:, :, 2] = uniform(-SHIFT, SHIFT, n, 2)
    grid = F.affine_grid(theta, [n, 1, *x.shape[2:]], align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    if maps:
        y = (F.grid_sample(y, grid, align_corners=False) > 0.5).float()
    picture = ((x[:, :1] + 2) / 4).clamp(0, 1) ** uniform(-GAMMA, GAMMA, n, 1, 1, 1).exp() * 4 - 2
    picture = picture * uniform(*CONTRAST, n, 1, 1, 1) + uniform(-BRIGHTNESS, BRIGHTNESS, n, 1, 1, 1)
    picture = picture + augmentation.noise_like(picture, generator) * uniform(0, NOISE, n, 1, 1, 1)
    return torch.cat([picture, x[:, 1:]], 1), y


def softened(pictures: Sequence[LabelledPicture], card: PictureCard) -> torch.Tensor:
    """Targets (n,) in 0..1: each image's class, moved as the card says; where an image is not graded, not at all."""
    hard = torch.tensor([float(p.positive) for p in pictures])
    if card.softened is None:
        return hard
    graded = np.array([p.graded for p in pictures])
    usual = hard.clone()
    for grade in set(graded) - {""}:
        usual[torch.from_numpy(graded == grade)] = hard[torch.from_numpy(graded == grade)].mean()
    return hard + card.softened.share * (usual - hard)


def class_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of classes (n, 1), a little smoothed."""
    return F.binary_cross_entropy_with_logits(logits, target * (1 - 2 * SMOOTHED) + SMOOTHED)


def train(
    card: PictureCard,
    pictures: Sequence[LabelledPicture],
    out: Path,
    device: str,
    watching: Sequence[LabelledPicture] = (),
    following: fitting.Following | None = None,
) -> PictureCard:
    """Fit the networks of a card; returns the card with the digests of the weights written to `out`."""

    def fit(part: Network, channels: int, made: Made, loss: training.Loss, steps: int) -> Network:
        recipe = part.training or card.training
        steps = steps if part.training is None else part.training.steps
        learn, watch = ([p for p in of if told(p, made)] for of in (pictures, watching))
        batches = made(learn, card).batches(recipe, device)
        looks = made(watch, card).looks() if watch else []
        return fitting.fit(part, channels, recipe, steps, batches, loss, out, device, looks, following)

    def told(picture: LabelledPicture, made: Made) -> bool:
        return picture.outlined if made == Pictures.to_outline else picture.classed

    steps, outlining, calling = card.training, card.segmentation, card.classification
    if outlining is not None:
        loss = training.outline_loss((outlining.training or steps).overlap)
        channels = still.CHANNELS_TO_OUTLINE
        outlining = fit(outlining, channels, Pictures.to_outline, loss, steps.segmentation_steps)
    if calling is not None:
        channels = still.CHANNELS_TO_CLASSIFY
        calling = fit(calling, channels, Pictures.to_classify, class_loss, steps.classification_steps)
    return card.model_copy(update={"segmentation": outlining, "classification": calling})


def measured(
    pictures: Sequence[LabelledPicture], predictor: still.StillPredictor, on: str
) -> tuple[tuple[Measured, ...], list[dict[str, Any]]]:
    """Numbers for a card, each with an interval over patients, and what was said of each image."""
    rows: list[dict[str, Any]] = []
    for p in pictures:
        said = predictor.predict(p.pixels)
        row = {"image": p.image, "patient": p.patient, "dice": dice(said.mask, p.mask), "marks": said.marks}
        rows.append(row | {"says": said.positive, "is": p.positive})
    return numbers(rows, predictor.card.positive if predictor.card.classification else None, on), rows


def numbers(rows: Sequence[dict[str, Any]], positive: str | None, on: str) -> tuple[Measured, ...]:
    """Numbers of images (`measured`'s rows) for a card, each with an interval over patients."""

    def overlap(part: Sequence[dict[str, Any]], statistic: Callable[..., float] = np.mean) -> Interval:
        return mean_of_images([r["dice"] for r in part], [r["patient"] for r in part], statistic)

    values = [("Dice, mean by image", overlap(rows)), ("Dice, median by image", overlap(rows, np.median))]
    sides = {"with": [r for r in rows if r["marks"] >= CALIPERS], "without": [r for r in rows if r["marks"] < CALIPERS]}
    values += [(f"Dice, mean by image {side} calipers", overlap(part)) for side, part in sides.items() if part]
    if positive is not None:
        patients = sorted({r["patient"] for r in rows})
        own = [[r for r in rows if r["patient"] == p] for p in patients]
        says = np.array([np.mean([r["says"] for r in part]) for part in own])
        truth = np.array([any(r["is"] for r in part) for part in own])
        values.append((f"AUC of {positive} by patient", auc(says, truth)))
    return tuple(
        Measured(what=what, value=round(i.value, 3), low=round(i.low, 3), high=round(i.high, 3), on=on)
        for what, i in values
    )


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("card", type=Path)
    for name in ("dicom", "table", "masks", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--test-fold", required=True)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    draft = yaml.safe_load(options.card.read_text())
    draft.pop("familiarity", None)  # that of earlier networks; `medrec.learning.knowing` tells that of these
    card = PictureCard.model_validate(draft)
    pictures = sorted(load(card, options.dicom, options.table, options.masks), key=lambda p: p.pixels_sha256)
    learn = [p for p in pictures if p.fold != options.test_fold]
    held_back = [p for p in pictures if p.fold == options.test_fold]
    log.info("%d images to learn from, %d to measure on", len(learn), len(held_back))
    device = inference.device_name(options.device)
    trained = train(card, learn, options.out, device)
    parts = {"segmentation", "classification"}
    draft |= trained.model_dump(mode="json", include=parts, exclude_none=True, exclude_defaults=True)
    draft["trained_on"] = sorted({p.pixels_sha256 for p in learn})
    finished = PictureCard.model_validate(draft)
    files = {p.weights: options.out / p.weights for p in finished.networks.values()}
    patients = len({p.patient for p in held_back})
    on = f"{len(held_back)} images of {patients} patients not trained on"
    results, rows = measured(held_back, still.load(finished, files, device), on) if held_back else ((), [])
    if held_back:
        draft["measured"] = [m.model_dump() for m in results]
    (options.out / options.card.name).write_text(yaml.safe_dump(draft, sort_keys=False, width=110, allow_unicode=True))
    (options.out / "validation.json").write_text(json.dumps(rows, indent=1))
    for m in results:
        log.info("%s: %.3f [%.3f, %.3f] on %s", m.what, m.value, m.low, m.high, m.on)


if __name__ == "__main__":
    main()
