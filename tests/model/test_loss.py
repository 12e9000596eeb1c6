"""Cross-entropy in blocks: against torch, finite differences, at the ends of the number range."""

import pytest
import torch
import torch.nn.functional as F
from reference import Reference

from spectrolib.model import loss as fast
from spectrolib.model.loss import cross_entropy


def random_head(tokens, vocabulary, width, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(tokens * 7919 + vocabulary)
    hidden = scale * torch.randn(tokens, width, generator=generator, dtype=dtype)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    upstream = torch.randn(tokens, generator=generator, dtype=dtype)
    return hidden, weight, targets, upstream


def with_gradients(function, hidden, weight, targets, upstream):
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    losses = function(hidden, weight, targets)
    losses.backward(upstream)
    return losses.detach(), hidden.grad, weight.grad


def plain_cross_entropy(hidden, weight, targets):
    return F.cross_entropy(hidden @ weight.T, targets, reduction="none")


SIZES = [(1, 2, 1), (5, 53, 7), (256, 1024, 16), (257, 1025, 3), (255, 1023, 8), (600, 2100, 5), (3, 5000, 4)]


@pytest.mark.parametrize("tokens, vocabulary, width", SIZES)
def test_cross_entropy_and_its_gradients(tokens, vocabulary, width):
    """Sizes on either side of the blocks, which they need not divide."""
    case = random_head(tokens, vocabulary, width)
    for got, expected in zip(
        with_gradients(cross_entropy, *case), with_gradients(plain_cross_entropy, *case), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("rows, columns", [(1, 1), (4, 7), (64, 1000)])
def test_cross_entropy_in_blocks_of_any_size(monkeypatch, rows, columns):
    monkeypatch.setattr(fast, "TOKEN_BLOCK", rows)
    monkeypatch.setattr(fast, "VOCABULARY_BLOCK", columns)
    case = random_head(23, 31, 6)
    for got, expected in zip(
        with_gradients(cross_entropy, *case), with_gradients(plain_cross_entropy, *case), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)


def test_cross_entropy_gradients_by_finite_differences():
    hidden, weight, targets, _ = random_head(4, 9, 3)
    assert torch.autograd.gradcheck(
        lambda h, w: cross_entropy(h, w, targets), (hidden.requires_grad_(), weight.requires_grad_())
    )


@pytest.mark.parametrize("dtype, worst", [(torch.float32, 80.0), (torch.float64, 600.0)])
def test_very_confident_and_very_wrong_tokens(dtype, worst):
    """Logits spread until a token has probability 1 up to rounding, or a loss near the largest that can be held."""
    hidden = torch.eye(3, dtype=dtype)
    weight = torch.zeros(5, 3, dtype=dtype)
    weight[0, 0], weight[1, 1], weight[2, 2] = worst, 20.0, -worst / 2
    targets = torch.tensor([0, 1, 2])  # certain, confident, wrong by worst / 2
    wrong = torch.tensor([1, 0, 2])  # wrong by worst, wrong by 20
    for chosen in (targets, wrong):
        case = (hidden, weight, chosen, torch.ones(3, dtype=dtype))
        reference = [
            x.double()
            for x in with_gradients(plain_cross_entropy, *(c.double() if c.is_floating_point() else c for c in case))
        ]
        got = with_gradients(cross_entropy, *case)
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(got[0].double(), reference[0], rtol=8 * unit, atol=8 * unit)
        for gradient, expected in zip(got[1:], reference[1:], strict=True):
            assert gradient.isfinite().all()
            torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=64 * unit * worst)


def test_a_logit_whose_exponential_overflows_is_taken_relative_to_the_largest():
    hidden, weight = torch.ones(1, 1), torch.tensor([[0.0], [200.0]])
    assert cross_entropy(hidden, weight, torch.tensor([0])).item() == 200.0
    assert cross_entropy(hidden, weight, torch.tensor([1])).item() == 0


def test_logits_that_all_lie_far_below_zero_keep_their_gradients():
    """Their exponentials are zero in any number range; relative to their mean they are not."""
    hidden, *case = random_head(5, 53, 7)
    hidden[:, 0] = 1
    case[0][:, 0] -= 1500
    for got, expected in zip(
        with_gradients(cross_entropy, hidden, *case), with_gradients(plain_cross_entropy, hidden, *case), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def test_cross_entropy_in_float32_is_as_accurate_as_torchs():
    hidden, weight, targets, upstream = random_head(300, 1500, 32, torch.float32, scale=0.5)
    truth = with_gradients(plain_cross_entropy, hidden.double(), weight.double(), targets, upstream.double())
    ours = with_gradients(cross_entropy, hidden, weight, targets, upstream)
    theirs = with_gradients(plain_cross_entropy, hidden, weight, targets, upstream)
    for mine, other, exact in zip(ours, theirs, truth, strict=True):
        assert (mine - exact).norm() < 4 * (other - exact).norm() + 1e-7 * exact.norm()


def test_only_the_gradient_that_is_asked_for_is_made():
    hidden, weight, targets, _ = random_head(6, 11, 4)
    (gradient,) = torch.autograd.grad(cross_entropy(hidden.requires_grad_(), weight, targets).sum(), hidden)
    (expected,) = torch.autograd.grad(plain_cross_entropy(hidden, weight, targets).sum(), hidden)
    torch.testing.assert_close(gradient, expected)
    hidden = hidden.detach()
    (gradient,) = torch.autograd.grad(cross_entropy(hidden, weight.requires_grad_(), targets).sum(), weight)
    (expected,) = torch.autograd.grad(plain_cross_entropy(hidden, weight, targets).sum(), weight)
    torch.testing.assert_close(gradient, expected)
    assert not cross_entropy(hidden, weight.detach(), targets).requires_grad


@pytest.fixture(scope="module")
def reference(tiny_gpt_neox):
    return Reference(tiny_gpt_neox)
