"""Cross-entropy, most of the cost of a small model, without ever holding tokens x vocabulary.

It walks over blocks of tokens and vocabulary that fit the cache, and sums the gradients in the same sweep.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

TOKEN_BLOCK, VOCABULARY_BLOCK = 256, 1024
"""Rows and columns of logits held at once: about a megabyte, so that they stay in the cache."""


LOG2_E = 1.4426950408889634


def centred(weight: Float[Tensor, "vocabulary width"]) -> Float[Tensor, "vocabulary width"]:
    """Subtract the mean row, so that logits have mean zero over the vocabulary. The softmax stays the same, and Σ_v exp
    z_v cannot underflow, as it is at least the size of the vocabulary."""
    return weight - weight.mean(dim=0)


def _powers(
    h: Float[Tensor, "rows width"],
    blocks: Sequence[Tensor],
    buffers: Float[Tensor, "held most columns"],
    slope: Float[Tensor, "rows width"] | None,
    shift: Float[Tensor, " rows"] | None = None,
) -> Float[Tensor, " rows"]:
    """Σ_v 2^(w_v·h - shift); fills ``slope`` with Σ_v w_v 2^(w_v·h - shift), ``buffers`` with the last powers."""
    total = h.new_zeros(len(h))
    for i, block in enumerate(blocks):
        z = torch.mm(h, block.T, out=buffers[i % len(buffers), : len(h), : len(block)])
        z = z if shift is None else z.sub_(shift[:, None])
        total += z.exp2_().sum(dim=1)
        if slope is not None:
            slope.addmm_(z, block, beta=min(i, 1))
    return total


def sweep(
    hidden: Float[Tensor, "tokens width"],
    unembedding: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " tokens"],
    *,
    slope: Float[Tensor, "tokens width"] | None = None,
    weight_slope: Float[Tensor, "vocabulary width"] | None = None,
    upstream: Float[Tensor, " tokens"] | None = None,
) -> Float[Tensor, " tokens"]:
    """Cross-entropy of each token, in nats, in one pass over blocks of tokens and vocabulary.

    Powers of two cost less than those of e. Centred logits need no maximum subtracted: their sum overflows only where a
    logit lies 88 nats above the mean, and such blocks are swept again relative to their maximum.

    Args:
        hidden: what the unembedding reads.
        unembedding: `centred`.
        slope: if given, is filled with d loss / d hidden.
        weight_slope: if given, d Σ upstream · loss / d unembedding is added to it.
        upstream: weight of each token's loss in that sum; 1 by default.
    """
    on_cpu = hidden.device.type == "cpu"
    rows, columns = (TOKEN_BLOCK, VOCABULARY_BLOCK) if on_cpu else (4 * TOKEN_BLOCK, len(unembedding))
    blocks = unembedding.split(columns)
    held = 1 if weight_slope is None else len(blocks)  # the weights' gradient needs the normaliser first
    buffers = hidden.new_empty(held, min(rows, len(hidden)), min(columns, len(unembedding)))
    upstream = hidden.new_ones(len(hidden)) if upstream is None else upstream
    losses = (hidden * unembedding[targets]).sum(dim=1).neg_()
    for part in (slice(start, start + rows) for start in range(0, len(hidden), rows)):
        h, above, shift = hidden[part] * LOG2_E, None if slope is None else slope[part], 0.0
        total = _powers(h, blocks, buffers, above)
        if not total.isfinite().all():
            shift = torch.stack([torch.mm(h, block.T).amax(dim=1) for block in blocks]).amax(dim=0)
            total = _powers(h, blocks, buffers, above, shift)
        losses[part] += (total.log2() + shift) / LOG2_E
        if above is not None:
            above.div_(total[:, None])
        if weight_slope is not None:
            weighted = hidden[part] * (upstream[part] / total)[:, None]
            for powers, into in zip(buffers, weight_slope.split(columns), strict=True):
                into.addmm_(powers[: len(h), : len(into)].T, weighted)
    if slope is not None:
        slope.sub_(unembedding[targets])
    if weight_slope is not None:
        weight_slope.index_add_(0, targets, hidden * upstream[:, None], alpha=-1)
    return losses


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets):
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        losses = sweep(hidden, centred(weight), targets, slope=slope)
        ctx.save_for_backward(slope, *((hidden, weight, targets) if ctx.needs_input_grad[1] else ()))
        return losses

    @staticmethod
    def backward(ctx, upstream):
        slope, *rest = ctx.saved_tensors
        weight_slope = None
        if rest:
            hidden, weight, targets = rest
            weight_slope = torch.zeros_like(weight)
            sweep(hidden, centred(weight), targets, weight_slope=weight_slope, upstream=upstream)
        return None if slope is None else slope * upstream[:, None], weight_slope, None


def cross_entropy(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " tokens"],
) -> Float[Tensor, " tokens"]:
    """-log softmax(weight @ hidden)[target] for each token, in nats, without ever holding tokens x vocabulary.

    Differentiable once in ``hidden`` and ``weight``. The gradient with respect to ``hidden`` is summed in the forward
    sweep: two matrix products in all. The one with respect to ``weight`` needs the normaliser first and sweeps again.
    """
    return _CrossEntropy.apply(hidden, weight, targets)
