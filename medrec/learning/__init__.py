"""From labelled studies to weights: cases, augmentation, training, evaluation.

`cases` reads labelled studies through the same rooms as the nightly run, `augmentation` varies them, `training` fits
one network, `evaluation` measures on patients that were not trained on, `__main__` is the command that stands in the
cards. Invariants: a patient is on one side of a split only; the split depends on pixels, not on names or order.
"""
