"""A small autoencoder of random weights."""

import torch

from spectrolib.dictionaries.autoencoders import Autoencoder

# Encoding ------------------------------------------------------------------------------------------------------------


def random_autoencoder(features: int = 40, width: int = 12, k: int | None = 5, seed: int = 0, site="l3 residual"):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=g)  # noqa: E731
    return Autoencoder(draw(features, width), 0.3 * draw(features), draw(features, width), draw(width), k, site)
