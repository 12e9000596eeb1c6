"""Losses with a component silenced: its output to the residual stream is replaced by its mean over the text.

This is mean ablation. A silenced component adds the same vector everywhere. What is lost is how its output depends on
the context; its constant part stays. The output of a head is its own part of the projection after attention, that of a
group of heads the sum of theirs, that of an MLP its whole output.

Embedding and unembedding cannot be silenced. Without the embedding no context could be told from another, and without
the unembedding no token: every loss would rise to that of a model that does not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .components import Component, Heads, check_component
from .engine import Engine
from .layers import attention_of, mlp_of, norm, norms_of


def silenceable(names: Sequence[str]) -> list[str]:
    """Those of the named components that can be silenced: heads, groups of heads and MLPs."""
    return [name for name in names if Component.of(name).layer is not None]


@torch.no_grad()
def silenced_losses(
    engine: Engine, names: Sequence[str], windows, report: Callable[[int], None] = lambda tokens: None
) -> Float[Tensor, "components windows time"]:
    """Loss of every token but the first of each window, with each component silenced in turn, nats.

    What comes before a layer is computed once for all components of the layer.

    Args:
        names: heads, groups of heads, MLPs.
        windows: `Windows`, or token ids (windows, length). The mean output is taken over the same windows.
        report: called with the number of tokens whose losses were found since the last call.

    Raises:
        ValueError: for a component that is none of these, or windows that the model cannot read.
    """
    members = [check_component(name, engine.shape) for name in names]
    for member in members:
        if member.layer is None:
            raise ValueError(f"{str(member)!r} cannot be silenced: only heads, groups of heads and MLPs can")
    ids = engine.ids(windows)
    chunks = ids.split(max(1, engine.tokens_per_pass // (ids.shape[1] - 1)))
    found = torch.empty(len(names), len(ids), ids.shape[1] - 1, device=engine.device, dtype=engine.unembedding.dtype)
    for layer in sorted({member.layer for member in members}):
        own = [i for i, member in enumerate(members) if member.layer == layer]
        silent = _Layer(engine, layer, [members[i] for i in own])
        means = silent.means(chunks)
        first = 0
        for chunk in chunks:
            for i, losses in zip(own, silent.losses(chunk, means), strict=True):
                found[i, first : first + len(chunk)] = losses
                report(losses.numel())
            first += len(chunk)
    return found


class _Layer:
    """One layer, and what some of its components add to the residual."""

    def __init__(self, engine: Engine, layer: int, members: Sequence[Component]):
        self.engine, self.layer, self.members = engine, layer, members
        self.frozen = engine.layers[layer]
        self.out = attention_of(engine.weights, engine.shape, layer).out
        self.mlp = mlp_of(engine.weights, engine.shape, layer)
        self.before_mlp = norms_of(engine.shape, layer)[1]

    def outputs(
        self, ids: Int[Tensor, "windows length"]
    ) -> tuple[Float[Tensor, "tokens width"], Iterator[Float[Tensor, "tokens width"]]]:
        """The residual after the layer (after attention, if the MLP reads that), and the output of each member."""
        shape, inputs = self.engine.shape, ids[:, :-1]
        x = self.engine.residual(inputs, self.layer)
        after, context = (self.frozen.forward if shape.parallel else self.frozen.attend)(x, inputs.shape[1])
        read = x if shape.parallel else after
        return after, (self._output(member, read, context) for member in self.members)

    def _output(self, member: Component, read: Tensor, context: Tensor) -> Float[Tensor, "tokens width"]:
        shape = self.engine.shape
        if member.kind == "mlp":
            return self.mlp(norm(read, self.engine.weights, self.before_mlp, shape), shape)
        columns = Heads.of(member, shape).columns(shape)
        own = self.out.weight[columns] if shape.where.transposed else self.out.weight[:, columns].T
        return context[:, columns] @ own

    def means(self, chunks: Sequence[Int[Tensor, "windows length"]]) -> list[Float[Tensor, " width"]]:
        """The mean output of each member over all tokens that the model reads."""
        totals, tokens = [0.0] * len(self.members), 0
        for chunk in chunks:
            after, outputs = self.outputs(chunk)
            totals = [total + output.double().sum(dim=0) for total, output in zip(totals, outputs, strict=True)]
            tokens += len(after)
        return [(total / tokens).to(self.engine.unembedding.dtype) for total in totals]

    def losses(
        self, ids: Int[Tensor, "windows length"], means: Sequence[Float[Tensor, " width"]]
    ) -> Iterator[Float[Tensor, "windows time"]]:
        """Losses with each member's output replaced by its mean, in turn."""
        after, outputs = self.outputs(ids)
        for member, output, mean in zip(self.members, outputs, means, strict=True):
            x = after + mean if member.kind == "mlp" and not self.engine.shape.parallel else after - output + mean
            if member.kind != "mlp" and not self.engine.shape.parallel:
                x = self.frozen.transform(x)
            yield self.engine.finish(x, self.layer + 1, ids[:, 1:])[0].view(len(ids), -1)
