"""Labels: what people say of images that are known, kept so that a training can trust it.

Owns the way from a file that somebody made to a `Label` in force, and the masks in the home. What other rooms need:
`known` (what may be labelled), `current` (what was said of it and is in force) and `mask` (the voxels of a label).
Invariants: a label fits its image to the voxel or is refused; it is never resized; nothing is deleted but with its
patient; every acceptance is in the ledger.
"""

from medrec.labels.masks import mask, mask_file
from medrec.store import Known, Label, Origin, Store

__all__ = ["Known", "Label", "Origin", "current", "known", "mask", "mask_file"]


def current(store: Store, card: str) -> tuple[Label, ...]:
    """The labels in force of one card, in the order in which they were given.

    One image may have two: its mask (`what == "mask"`) and its classes (`what == "class"`).
    """
    return store.labels(card)


def known(store: Store, card: str) -> tuple[Known, ...]:
    """The images that one card takes, labelled or not."""
    return store.known(card)
