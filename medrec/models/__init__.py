"""Networks, weights and inference: with `medrec.learning` the one place that knows MONAI and torch.

`networks` builds what a card names, `weights` proves that they are the card's, `preprocessing` turns volumes into
tensors (the same way for training and for prediction), `inference` is the `Predictor`.
"""
