"""Sketched gradients: those of autograd for every family, in float64; unbiased; the same bits however a text is cut."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import KINDS, random_model

from spectrolib.model import gradients
from spectrolib.model.components import blocks, components, names
from spectrolib.model.engine import Engine
from spectrolib.model.gradients import TokenGradients, mean_gradient
from spectrolib.model.layers import forward
from spectrolib.model.loading import engine_of

WIDTH = 6


def in_float64(model) -> Engine:
    engine = engine_of(model)
    return Engine(engine.shape, {name: weight.double() for name, weight in engine.weights.items()})


def text(engine: Engine, windows: int = 2, length: int = 9, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, engine.shape.vocabulary, (windows, length), generator=generator)


def dense(engine: Engine, ids: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """The gradient of each token's loss with respect to every weight, by autograd on the plain forward pass."""
    weights = {name: weight.detach().requires_grad_() for name, weight in engine.weights.items()}
    hidden = forward(weights, engine.shape, engine.rotary, ids[None, :-1])[0]
    losses = F.cross_entropy(hidden @ weights[engine.shape.unembed].T, ids[1:], reduction="none")
    rows = [torch.autograd.grad(loss, list(weights.values()), retain_graph=True, allow_unused=True) for loss in losses]
    return [
        {name: torch.zeros_like(w) if g is None else g for (name, w), g in zip(weights.items(), row, strict=True)}
        for row in rows
    ]


def flat(engine: Engine, block, weight: torch.Tensor, table: bool) -> torch.Tensor:
    """A block in the order of a sketch's matrix: outputs, then inputs."""
    piece = block.of({block.parameter: weight})
    return (piece.T if engine.shape.where.transposed and piece.ndim == 2 and not table else piece).reshape(-1)


def by_hand(engine: Engine, found: TokenGradients, rows, name: str, half: int) -> torch.Tensor:
    """Sketches of one component from dense gradients and explicit matrices."""
    table, total = name in ("embed", "unembed"), 0
    for i, block in enumerate(found.blocks[name]):
        matrix = found.sketches[name, i][half].matrix()
        total = total + torch.stack([flat(engine, block, row[block.parameter], table) for row in rows]) @ matrix
    return total


@pytest.mark.parametrize("kind", ["gpt_neox", *KINDS])
@pytest.mark.parametrize("side", [512, 16])
def test_sketches_are_those_of_autograd(kind, side, tiny_gpt_neox, monkeypatch):
    """With long sides kept, and with them reduced: then S is a product of random matrices."""
    monkeypatch.setattr(gradients, "SIDE", side)
    monkeypatch.setattr(gradients, "REDUCED", 12)
    engine = in_float64(tiny_gpt_neox if kind == "gpt_neox" else random_model(kind))
    ids = text(engine)
    singles = [f"l1h{engine.shape.heads - 1}"] if engine.shape.shared > 1 else []  # shares its keys and values
    found = TokenGradients(engine, [*names(engine.shape), *singles], width=WIDTH, seed=3)
    for window, own in zip(ids, found(ids), strict=True):
        rows = dense(engine, window)
        assert own.rows.shape == (2, len(rows), len(found.components), WIDTH)
        for i, name in enumerate(found.components):
            for half in (0, 1):
                expected = by_hand(engine, found, rows, name, half)
                torch.testing.assert_close(own.rows[half, :, i], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_slopes_are_products_with_the_mean_gradient(kind):
    engine = in_float64(random_model(kind))
    ids, driving = text(engine), text(engine, windows=3, seed=1)
    mean = mean_gradient(engine, driving)
    every = [row for window in driving for row in dense(engine, window)]
    for name, slope in mean.items():
        expected = torch.stack([row[name] for row in every]).mean(dim=0)
        torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-9)
    found = TokenGradients(engine, names(engine.shape), width=1, mean=mean)
    for window, own in zip(ids, found(ids), strict=True):
        for t, row in enumerate(dense(engine, window)):
            for i, name in enumerate(found.components):
                pieces = [(block.of(row), block.of(mean)) for block in blocks(name, engine.shape)]
                expected = sum((a * b).sum() for a, b in pieces)
                torch.testing.assert_close(own.slopes[t, i], expected, rtol=1e-6, atol=1e-9)


def test_losses_are_the_engines(tiny_gpt_neox):
    engine = engine_of(tiny_gpt_neox)
    ids = text(engine, windows=3)
    losses = torch.stack([own.losses for own in TokenGradients(engine, ["l0h0"], width=1)(ids)])
    torch.testing.assert_close(losses, engine.losses(ids), rtol=1e-4, atol=1e-5)


def test_inner_products_are_right_on_average(tiny_gpt_neox):
    """Over seeds, the mean of <Sa, Sb> lies within its own error of <a, b>; and its variance is about 2 / width."""
    engine = engine_of(tiny_gpt_neox)
    ids, name = text(engine, windows=1), "l0 mlp"
    rows = torch.stack(
        [
            torch.cat([block.of(row).reshape(-1) for block in blocks(name, engine.shape)])
            for row in dense(engine, ids[0])
        ]
    )
    truth, seeds = (rows @ rows.T).numpy(), 200
    own = [
        next(TokenGradients(engine, [name], width=8, seed=seed, halves=1)(ids)).rows[0, :, 0] for seed in range(seeds)
    ]
    products = np.stack([(row @ row.T).numpy() for row in own])
    error = products.std(axis=0) / np.sqrt(seeds)
    assert np.abs((products.mean(axis=0) - truth) / error).max() < 4.5
    relative = products.var(axis=0).diagonal() / truth.diagonal() ** 2
    assert 0.6 * 2 / 8 < relative.mean() < 1.4 * 2 / 8


def test_halves_components_and_seeds_are_independent(tiny_gpt_neox):
    """Sketches of one gradient with two matrices have nothing in common; the same seed gives the same bits."""
    engine = engine_of(tiny_gpt_neox)
    first = TokenGradients(engine, ["l0h0", "l0h1"], width=64)
    same, other = (TokenGradients(engine, ["l0h1"], width=64, seed=seed) for seed in (0, 1))
    mine = [first.sketches["l0h0", 0][0], first.sketches["l0h0", 0][1], first.sketches["l0h1", 0][0]]
    for a in mine:
        for b in (*mine, other.sketches["l0h1", 0][0]):
            overlap = float((a.signs * b.signs).sum() / a.signs.square().sum())
            assert overlap == pytest.approx(1.0) if a is b else abs(overlap) < 5 / len(a.signs) ** 0.5 / 8
    assert torch.equal(first.sketches["l0h1", 0][1].signs, same.sketches["l0h1", 0][1].signs)


@pytest.mark.parametrize("kind", ["gpt_neox", *KINDS])
def test_no_two_blocks_share_a_random_matrix(kind, tiny_gpt_neox):
    """Nor two components that own the same weights, such as an embedding tied to the unembedding."""
    engine = engine_of(tiny_gpt_neox if kind == "gpt_neox" else random_model(kind))
    found = TokenGradients(engine, [*names(engine.shape), "l1h0"] if engine.shape.shared > 1 else names(engine.shape))
    drawn = [sketch.signs for halves in found.sketches.values() for sketch in halves]
    assert len({signs.numpy().tobytes() for signs in drawn}) == len(drawn)


def test_tokens_far_into_a_window_have_the_gradients_of_autograd(tiny_gpt_neox):
    """More of them than run together."""
    engine = in_float64(tiny_gpt_neox)
    (window,) = text(engine, windows=1, length=gradients.TARGETS + 8, seed=5)
    found = TokenGradients(engine, ["l0h1", "embed"], width=WIDTH)
    (own,) = found(window[None])
    rows = dense(engine, window)
    for i, name in enumerate(found.components):
        torch.testing.assert_close(own.rows[0, :, i], by_hand(engine, found, rows, name, 0), rtol=1e-6, atol=1e-9)


def test_a_window_gives_the_same_bits_in_any_company(tiny_gpt_neox):
    engine = engine_of(tiny_gpt_neox)
    ids = text(engine, windows=4)
    every = TokenGradients(engine, components(tiny_gpt_neox), width=4)
    together, alone = list(every(ids)), next(TokenGradients(engine, ["l1 mlp"], width=4)(ids[2:3]))
    place = every.components.index("l1 mlp")
    assert torch.equal(together[2].rows[:, :, place], alone.rows[:, :, 0])
    assert torch.equal(together[2].rows, next(every(ids[2:3])).rows)


def test_gradients_are_the_covariances_of_a_stiff_posterior(tiny_gpt_neox):
    """Cov(l, l') γ -> ∇l · ∇l' as γ grows: small Gaussian moves of one component."""
    engine, name = in_float64(tiny_gpt_neox), "l0h1"
    ids = text(engine, windows=1)
    group = engine_of(tiny_gpt_neox).group([name])
    rows = torch.stack(
        [
            torch.cat([block.of(row).reshape(-1) for block in blocks(name, engine.shape)])
            for row in dense(engine, ids[0])
        ]
    )
    gamma, cached, start = 1e5, group.cache(ids), group.start[0]
    noise = torch.randn(4000, len(start), generator=torch.Generator().manual_seed(0)) / gamma**0.5
    losses = torch.stack([group.losses([start + move], cached)[0, 0].double() for move in noise])
    covariance, exact = torch.cov(losses.T) * gamma, rows @ rows.T
    assert float((covariance - exact).norm() / exact.norm()) < 0.08


@pytest.mark.parametrize(
    ("names", "width", "message"),
    [
        (["full"], 4, "'full' has no sketch"),
        (["l9h0"], 4, "unknown component 'l9h0'"),
        (["l0h0"], 0, "at least 1, got 0"),
    ],
)
def test_what_has_no_gradient_is_refused(names, width, message, tiny_gpt_neox):
    with pytest.raises(ValueError, match=message):
        TokenGradients(engine_of(tiny_gpt_neox), names, width=width)


def test_quiet_tokens_keep_their_digits(tiny_gpt_neox):
    """Where p_y is near 1, p_y - 1 in float32 has few digits left: the gradients of such tokens must not."""
    engine, sure = engine_of(tiny_gpt_neox), in_float64(tiny_gpt_neox)
    for one in (engine, sure):
        one.weights["embed_out.weight"] = one.weights["embed_out.weight"] * 60
    ids = text(engine, windows=60, length=5, seed=4)
    with torch.no_grad():  # the last token the likeliest one: some are nearly sure
        hidden = forward(sure.weights, sure.shape, sure.rotary, ids[:, :-1])[:, -1]
        ids[:, -1] = (hidden @ sure.weights["embed_out.weight"].T).argmax(dim=1)
    checked = 0
    for mine, true in zip(*(TokenGradients(one, ["l1 mlp"], width=16)(ids) for one in (engine, sure)), strict=True):
        if 1e-12 < true.losses[-1] < 1e-4:
            error = (mine.rows[0, -1, 0] - true.rows[0, -1, 0]).norm() / true.rows[0, -1, 0].norm()
            assert float(error) < 0.02
            checked += 1
    assert checked >= 2
