"""Layers: rotations that turn and keep lengths, slopes of activations, the slow rotations of long contexts."""

from dataclasses import replace

import pytest
import torch

from spectrolib.model import layers
from spectrolib.model.shapes import ACTIVATIONS, PYTHIA, Scaling

SHAPE = PYTHIA["pythia-14m"]
CPU = torch.device("cpu")


def vectors(seed: int = 0, time: int = 7) -> torch.Tensor:
    return torch.randn(2, time, 3, SHAPE.head_dim, generator=torch.Generator().manual_seed(seed))


def test_rotations_keep_lengths_and_the_first_position():
    rotary, x = layers.Rotary(SHAPE, CPU), vectors()
    turned = rotary(x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[:, 0], x[:, 0])
    torch.testing.assert_close(turned[..., rotary.dims :], x[..., rotary.dims :], rtol=0, atol=0)


def test_products_of_turned_vectors_depend_on_their_distance_alone():
    rotary = layers.Rotary(SHAPE, CPU)
    query, key = (vectors(seed, time=1).expand(-1, 9, -1, -1) for seed in (1, 2))
    products = torch.einsum("wahd,wbhd->whab", rotary(query), rotary(key))
    torch.testing.assert_close(products[..., 1:, 1:], products[..., :-1, :-1], rtol=1e-4, atol=1e-4)


def test_turning_in_place_is_the_same_in_the_order_of_pairs_and_can_be_undone():
    rotary, x = layers.Rotary(SHAPE, CPU), vectors()
    order = rotary.paired(SHAPE.head_dim)
    paired = x[..., order].contiguous()
    rotary.turn_(paired)
    torch.testing.assert_close(paired, rotary(x)[..., order])
    rotary.turn_(paired, back=True)
    torch.testing.assert_close(paired, x[..., order])


def test_the_mask_hides_what_comes_after():
    mask = layers.Rotary(SHAPE, CPU).mask(4)
    assert torch.equal(mask == 0, torch.ones(4, 4).tril().bool())
    assert mask.min() == -torch.inf


def test_odd_rotations_are_refused():
    with pytest.raises(ValueError, match="even number of dimensions"):
        layers.Rotary(replace(SHAPE, rotary=5), CPU)


def test_only_slow_rotations_are_stretched():
    scaling = Scaling(factor=8.0, low=1.0, high=4.0, context=64)
    turns = torch.tensor([100.0, 4.0, 2.5, 1.0, 0.01])  # within the context
    frequencies = turns * 2 * torch.pi / 64
    factors = layers.stretched(frequencies, scaling) / frequencies
    torch.testing.assert_close(factors, torch.tensor([1.0, 1.0, 0.5 + 0.5 / 8, 1 / 8, 1 / 8]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_way_back_through_an_activation_is_autograds(activation):
    shape = replace(SHAPE, activation=activation)
    x = torch.linspace(-4, 4, 40, dtype=torch.float64).requires_grad_()
    slope = torch.linspace(1, 2, 40, dtype=torch.float64)
    (expected,) = torch.autograd.grad(layers.activate(shape, x), x, slope)
    torch.testing.assert_close(layers.activate_back(shape, slope, x.detach()), expected)
