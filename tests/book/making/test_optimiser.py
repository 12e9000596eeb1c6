"""Muon and AdamW: singular values, steps, states."""

import torch

from spectrobook.making.optimiser import orthogonalise


def test_orthogonalise_flattens_the_singular_values():
    for size in ((48, 16), (16, 48), (16, 16)):
        generator = torch.Generator().manual_seed(0)
        found = orthogonalise(torch.randn(3, *size, generator=generator))
        values = torch.linalg.svdvals(found)
        assert found.shape == (3, *size)
        assert values.min() > 0.3 and values.max() < 1.3
