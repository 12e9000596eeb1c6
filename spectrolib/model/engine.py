"""Fast losses and gradients of a model in which the weights of one component at a time are moved away from w*.

Moving one component leaves most of a forward pass as it was. The engine computes only what changes:

* A layer adds attention and MLP to the residual, so the residual after the component is a constant plus the component:
  ``rest + component(weights, x)``. What lies before the component is computed once for all windows; what lies after it
  has frozen weights, so the streams of several components run through it as one batch. (A GPT-NeoX adds both to the
  same residual; in other families what a head adds passes through the MLP of its layer first.)
* Only the component's slice of weights gets a gradient. Frozen layers pass one back to their input alone, by hand, a
  few windows at a time, so that what they keep for it stays in the cache (`layers.FrozenLayer`).
* Cross-entropy, most of the cost of a small model, walks over blocks of tokens and vocabulary that fit the cache, and
  sums the gradients in the same sweep (`cross_entropy`).

A `Group` is the set of components that share a prefix: the heads and the MLP of one layer, or ``embed``, ``unembed``
or ``full`` alone. Its results do not depend on which process runs it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..posterior import Gradients, Settings, minibatches
from .components import Component, Heads, blocks, check_component, gather, head_blocks, split
from .layers import (
    FrozenHalves,
    FrozenLayer,
    Rotary,
    attention_of,
    embed,
    forward,
    norm,
    norms_of,
    retrace,
    some_heads,
    some_mlp,
)
from .loss import centred, sweep
from .shapes import Shape

TOKENS_PER_PASS = {"cpu": 1024, "cuda": 65_536}
"""Tokens in one pass, summed over components that run together: few enough for a core's cache, or to fill a GPU."""
CACHE_BYTES = 512 * 2**20
"""Activations that do not depend on the moving component are stored up to this size; above, they are computed again at
each use."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread. The last bits of results depend on the number of threads, and on a processor several
    processes are faster than several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# The model ----------------------------------------------------------------------------------------------------------


class Engine:
    """A model at w*, ready to run with the weights of single components moved.

    Args:
        shape: the architecture.
        weights: every parameter by its name (`shapes.tensors`), float32.
        tokens_per_pass: tokens that run through the frozen part at once; the default suits the device.
    """

    def __init__(self, shape: Shape, weights: Mapping[str, Tensor], *, tokens_per_pass: int | None = None):
        self.shape = shape
        self.weights = {name: tensor.detach() for name, tensor in weights.items()}
        self.device = self.weights[shape.embed].device
        self.rotary = Rotary(shape, self.device)
        frozen = FrozenLayer if shape.family == "gpt_neox" and shape.parallel else FrozenHalves
        self.layers = [frozen(self.weights, layer, shape, self.rotary) for layer in range(shape.layers)]
        self.unembedding = centred(self.weights[shape.unembed])
        self.tokens_per_pass = tokens_per_pass or TOKENS_PER_PASS.get(self.device.type, 65_536)

    def ids(self, windows) -> Int[Tensor, "windows length"]:
        """Token ids on the engine's device, checked.

        Raises:
            ValueError: for an empty set, windows of fewer than 2 tokens or more than the model reads, or ids beyond the
                vocabulary.
        """
        ids = torch.as_tensor(np.asarray(getattr(windows, "ids", windows)), dtype=torch.int64, device=self.device)
        if ids.ndim != 2 or len(ids) == 0:
            raise ValueError(f"token windows must be a non-empty (windows, length) array, got shape {tuple(ids.shape)}")
        if ids.shape[1] < 2:
            raise ValueError(f"windows must hold at least 2 tokens (a context and its next token), got {ids.shape[1]}")
        if self.shape.longest and ids.shape[1] - 1 > self.shape.longest:
            raise ValueError(
                f"windows must hold at most {self.shape.longest + 1} tokens, got {ids.shape[1]}: "
                f"the model reads {self.shape.longest} at once"
            )
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.shape.vocabulary:
            raise ValueError(
                f"token ids must lie in 0 to {self.shape.vocabulary - 1}, got {low} to {high}: "
                "were the windows made with another tokenizer?"
            )
        return ids

    def residual(self, inputs: Int[Tensor, "windows time"], layer: int) -> Float[Tensor, "tokens width"]:
        """The residual before ``layer`` at w* (for ``layer == layers`` after the last, before the final norm)."""
        x = embed(self.weights, self.shape, inputs).flatten(0, 1)
        for frozen in self.layers[:layer]:
            x, _ = frozen.forward(x, inputs.shape[1])
        return x

    def hidden(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
        """What the unembedding reads, from the residual after the last layer."""
        return norm(x, self.weights, self.shape.where.final_norm, self.shape)

    def finish(
        self,
        x: Float[Tensor, "tokens width"],
        layer: int,
        targets: Int[Tensor, "windows time"],
        gradient: bool = False,
        weights: Float[Tensor, " tokens"] | None = None,
    ) -> tuple[Float[Tensor, " tokens"], Float[Tensor, "tokens width"] | None]:
        """Losses, in nats, given the residual before a layer; with ``gradient`` also the gradient of their sum.

        Args:
            x: the residual stream before ``layer``.
            layer: the first layer to run.
            targets: the next token at each position.
            gradient: whether to return the gradient of the summed losses with respect to ``x``, else None.
            weights: of each token's loss in that sum; 1 by default.
        """
        kept = [] if gradient else None
        for frozen in self.layers[layer:]:
            x, _ = frozen.forward(x, targets.shape[1], kept)
        with torch.set_grad_enabled(gradient):
            x = x.detach().requires_grad_(gradient)
            hidden = self.hidden(x)
        slope = torch.empty_like(x) if gradient else None
        losses = sweep(hidden.detach(), self.unembedding, targets.flatten(), slope=slope)
        if gradient:
            slope = slope if weights is None else slope * weights[:, None]
            (slope,) = torch.autograd.grad(hidden, x, slope)
            for frozen in reversed(self.layers[layer:]):
                slope = frozen.backward(slope, kept)
        return losses, slope

    @torch.no_grad()
    def losses(self, windows) -> Float[Tensor, "windows time"]:
        """Loss of every token but the first of each window at w*, nats."""
        chunks = self._chunks(self.ids(windows))
        losses = [self.finish(self.residual(ids[:, :-1], 0), 0, ids[:, 1:])[0].view(len(ids), -1) for ids in chunks]
        return torch.cat(losses)

    def _chunks(self, ids: Int[Tensor, "windows length"]) -> tuple[Tensor, ...]:
        return ids.split(max(1, self.tokens_per_pass // (ids.shape[1] - 1)))

    def group(self, names: Sequence[str | Component]) -> Group:
        """The `Group` of the components ``names``, which must share a prefix (see `groups`).

        A name may be given several times; then that many copies of the component move independently.

        Raises:
            ValueError: for an unknown component, or components of different groups.
        """
        members = tuple(check_component(name, self.shape) for name in names)
        if len({member.prefix for member in members}) != 1:
            raise ValueError(f"components {list(map(str, names))} do not share a prefix: take one of {groups(names)}")
        return Group(self, members)


def groups(names: Sequence[str | Component]) -> list[tuple[str, ...]]:
    """Components sorted into groups that share a prefix: those of one layer together, every other one alone."""
    found: dict[object, list[str]] = {}
    for name in names:
        found.setdefault(Component.of(name).prefix, []).append(str(name))
    return [tuple(group) for group in found.values()]


def _placed(piece: Tensor, whole: Tensor, start: int) -> Tensor:
    """``whole`` with ``piece`` in its place: from ``start`` on along the one axis on which it is shorter, if any."""
    axis = next((i for i, (a, b) in enumerate(zip(piece.shape, whole.shape, strict=True)) if a < b), None)
    return piece if axis is None else torch.slice_scatter(whole, piece, axis, start, start + piece.shape[axis])


# Groups of components ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cached:
    """Windows, with the activations at w* that do not depend on the moving component; None where they are not stored.

    For heads and MLPs these are activations of their layer; ``unembed`` needs only the residual after the last layer.
    """

    ids: Int[Tensor, "windows length"]
    residual: Float[Tensor, "windows time width"] | None = None
    context: Float[Tensor, "windows time heads_dim"] | None = None
    """The heads' outputs before their projection."""
    after: Float[Tensor, "windows time width"] | None = None
    """The residual after the layer; in models whose MLP reads the residual after attention, that one."""

    def take(self, rows) -> Cached:
        """Some of the windows."""
        return Cached(*(None if part is None else part[rows] for part in vars(self).values()))


@dataclass(frozen=True)
class _Prepared:
    """What the components of a group need for a batch of windows; none of it depends on the moving weights."""

    ids: Int[Tensor, "windows length"]
    entering: Mapping[Component, Float[Tensor, "tokens width"]]
    """Input of each component."""
    rest: Mapping[Component, Float[Tensor, "tokens width"]]
    """Residual after the layer without the component's own contribution."""


class Group:
    """Losses and gradients of several components that share a prefix, each at a position of its own, on shared windows.

    Positions are flat tensors, one for each member, as in ``start``.
    """

    def __init__(self, engine: Engine, members: tuple[Component, ...]):
        self.engine, self.members = engine, members
        self.layer = members[0].layer
        self.whole = members[0].kind in ("embed", "full")  # nothing comes before them
        parameters = tuple(engine.weights)
        self.blocks = {str(member): blocks(member, engine.shape, parameters) for member in dict.fromkeys(members)}
        self.shapes = {name: [block.of(engine.weights).shape for block in owned] for name, owned in self.blocks.items()}
        owned = [block.parameter for block in self.blocks[str(members[0])]]
        self.unembed = owned.index(engine.shape.unembed) if engine.shape.unembed in owned else None
        if self.layer is not None:
            self.attention = attention_of(engine.weights, engine.shape, self.layer)

    @functools.cached_property
    def start(self) -> list[Float[Tensor, " parameters"]]:
        """w* restricted to each member, flat. Copies of one component share a tensor."""
        own = {name: gather(self.engine.weights, owned) for name, owned in self.blocks.items()}
        return [own[str(member)] for member in self.members]

    # What does not depend on the moving weights

    @torch.no_grad()
    def cache(self, windows) -> Cached:
        """Windows with the activations at w* that the members need; bare ids if these exceed `CACHE_BYTES`."""
        ids = self.engine.ids(windows)
        floats = ids[:, 1:].numel() * self.engine.shape.width * (1 if self.layer is None else 3)
        if self.whole or 4 * floats > CACHE_BYTES:
            return Cached(ids)
        found = [vars(self._prefix(chunk)).values() for chunk in self.engine._chunks(ids)]
        return Cached(*(None if pieces[0] is None else torch.cat(pieces) for pieces in zip(*found, strict=True)))

    def _prefix(self, ids: Int[Tensor, "windows length"]) -> Cached:
        engine, inputs = self.engine, ids[:, :-1]
        unflat = lambda y: y.view(*inputs.shape, -1)  # noqa: E731
        if self.layer is None:
            return Cached(ids, unflat(engine.residual(inputs, engine.shape.layers)))
        x = engine.residual(inputs, self.layer)
        frozen = engine.layers[self.layer]
        after, context = (frozen.forward if engine.shape.parallel else frozen.attend)(x, inputs.shape[1])
        return Cached(ids, unflat(x), unflat(context), unflat(after))

    def _prepare(self, cached: Cached, rows) -> _Prepared:
        cached = cached.take(rows)
        if self.whole:
            return _Prepared(cached.ids, {}, {})
        if cached.residual is None:
            cached = self._prefix(cached.ids)
        x = cached.residual.flatten(0, 1)
        if self.layer is None:
            return _Prepared(cached.ids, {self.members[0]: self.engine.hidden(x)}, {})
        shape, out = self.engine.shape, self.attention.out
        context, after = cached.context.flatten(0, 1), cached.after.flatten(0, 1)
        before_attention, before_mlp = norms_of(shape, self.layer)
        entering, rest = {}, {}
        for member in dict.fromkeys(self.members):
            if member.kind == "mlp":
                rest[member] = out.onto(x, context, shape) if shape.parallel else after
                entering[member] = norm(x if shape.parallel else after, self.engine.weights, before_mlp, shape)
            else:
                columns = self._heads(member).columns(shape)
                own = out.weight[columns] if shape.where.transposed else out.weight[:, columns].T
                rest[member] = torch.addmm(after, context[:, columns], own, alpha=-1)
                entering[member] = norm(x, self.engine.weights, before_attention, shape)
        return _Prepared(cached.ids, entering, rest)

    def _heads(self, member: Component) -> Heads:
        """The heads whose outputs depend on the member: where keys and values are shared, all heads that share them."""
        shape = self.engine.shape
        heads = Heads.of(member, shape)
        return heads if shape.shared == 1 else Heads.sharing(heads.group, shape)

    def _all_that_share(self, member: Component, pieces: Sequence[Tensor]) -> Sequence[Tensor]:
        """Weights of all heads that share keys and values with one head: this one's as given, the others' at w*."""
        shape = self.engine.shape
        heads = self._heads(member)
        if Heads.of(member, shape) == heads:
            return pieces
        prefix = shape.where.layer.format(self.layer)
        whole = [block.of(self.engine.weights) for block in head_blocks(heads, shape, prefix)]
        start = (Heads.of(member, shape).queries.start - heads.queries.start) * shape.head_dim
        return [_placed(piece, within, start) for piece, within in zip(pieces, whole, strict=True)]

    # What depends on the moving weights

    def _output(
        self, member: Component, pieces: Sequence[Tensor], prepared: _Prepared
    ) -> Float[Tensor, "tokens width"]:
        """The residual where the frozen rest of the model begins; for ``full``, the last hidden state."""
        engine, shape, inputs = self.engine, self.engine.shape, prepared.ids[:, :-1]
        if member.kind == "unembed":
            return prepared.entering[member]
        if self.whole:
            moved = dict(zip((block.parameter for block in self.blocks[str(member)]), pieces, strict=True))
            weights = engine.weights | moved
            everywhere = self.unembed is not None  # with a tied embedding, also where ``embed`` moves
            x = forward(weights, shape, engine.rotary, inputs) if everywhere else embed(weights, shape, inputs)
            return x.flatten(0, 1)
        entering, rest = prepared.entering[member], prepared.rest[member]
        if member.kind == "mlp":
            mlp = some_mlp(pieces, shape)
            return mlp.down.onto(rest, mlp.neurons(entering, shape), shape)
        heads = some_heads(self._all_that_share(member, pieces), shape, self.attention.norms)
        context = heads.context(entering.view(*inputs.shape, -1), shape, engine.rotary)
        return heads.out.onto(rest, context.flatten(0, 1), shape)

    def _before_mlp(self, members: Sequence[Component]) -> list[int]:
        """Members whose output the MLP of their layer reads: heads, unless attention and MLP run in parallel."""
        if self.engine.shape.parallel or self.layer is None:
            return []
        return [i for i, member in enumerate(members) if member.kind != "mlp"]

    def _token_losses(
        self,
        flats: Sequence[Tensor],
        members: Sequence[Component],
        prepared: _Prepared,
        into: Sequence[Tensor] | None = None,
        weights: Float[Tensor, " tokens"] | None = None,
    ) -> Float[Tensor, "members tokens"]:
        """Losses of some members. If ``into`` is given, the gradient of their sum (weighted by ``weights``) is added to
        these flat tensors, one for each member."""
        learn, targets = into is not None, prepared.ids[:, 1:]
        pieces = [split(flat.detach(), self.shapes[str(member)]) for flat, member in zip(flats, members, strict=True)]
        slopes = [split(flat, self.shapes[str(member)]) for flat, member in zip(into or (), members, strict=learn)]
        with torch.set_grad_enabled(learn):
            leaves = [[piece.detach().requires_grad_(learn) for piece in own] for own in pieces]
            outputs = [self._output(member, own, prepared) for member, own in zip(members, leaves, strict=True)]
        x = torch.cat([output.detach() for output in outputs])
        if self.unembed is not None:
            slope = torch.empty_like(x) if outputs[0].requires_grad else None
            weight, weight_slope = pieces[0][self.unembed], slopes[0][self.unembed] if learn else None
            losses = sweep(
                x, centred(weight), targets.flatten(), slope=slope, weight_slope=weight_slope, upstream=weights
            )
            slope = slope if slope is None or weights is None else slope * weights[:, None]
        else:
            losses, slope = self._finish(x.view(len(members), -1, x.shape[-1]), members, targets, learn, weights)
        if learn and slope is not None:
            for output, own, totals, above in zip(outputs, leaves, slopes, slope.chunk(len(members)), strict=True):
                found = torch.autograd.grad(output, own, above, allow_unused=True)
                for total, part in zip(totals, found, strict=True):
                    total.add_(0 if part is None else part)
        return losses.view(len(members), -1)

    def _finish(
        self,
        x: Float[Tensor, "members tokens width"],
        members: Sequence[Component],
        targets: Int[Tensor, "windows time"],
        gradient: bool,
        weights: Float[Tensor, " tokens"] | None = None,
    ) -> tuple[Float[Tensor, " members_tokens"], Float[Tensor, "members_tokens width"] | None]:
        """Losses of the members from their outputs on, through the frozen rest, and their gradient if asked."""
        after = 0 if self.layer is None else self.layer + 1
        early, kept = self._before_mlp(members), [] if gradient else None
        if early:
            read = self.engine.layers[self.layer].transform(x[early].flatten(0, 1), kept)
            x[early] = read.view(len(early), *x.shape[1:])
        count = len(members)
        own = None if weights is None else weights.repeat(count)
        losses, slope = self.engine.finish(x.flatten(0, 1), after, targets.repeat(count, 1), gradient, own)
        if early and gradient:
            above = slope.view(x.shape)
            above[early] = retrace(above[early].flatten(0, 1), kept).view(len(early), *x.shape[1:])
        return losses, slope

    def _passes(self, windows: int, time: int) -> Iterator[tuple[slice, list[list[int]]]]:
        """Slices of the windows, each with packs of members that run together: at most ``tokens_per_pass`` tokens."""
        limit = self.engine.tokens_per_pass
        rows = min(windows, max(1, limit // time))
        together = 1 if self.unembed is not None else max(1, limit // (rows * time))  # weights of its own, to the end
        members = list(range(len(self.members)))
        packs = [members[i : i + together] for i in range(0, len(members), together)]
        for start in range(0, windows, rows):
            yield slice(start, min(start + rows, windows)), packs

    @torch.no_grad()
    def losses(self, positions: Sequence[Tensor], cached: Cached) -> Float[Tensor, "components windows time"]:
        """Loss of every token but the first of each window, for each member at its position, in nats.

        Args:
            positions: flat weights of each member.
            cached: the windows, from `cache`.
        """
        windows, time = cached.ids.shape[0], cached.ids.shape[1] - 1
        result = positions[0].new_empty(len(self.members), windows, time)
        for rows, packs in self._passes(windows, time):
            prepared = self._prepare(cached, rows)
            for pack in packs:
                losses = self._token_losses([positions[i] for i in pack], [self.members[i] for i in pack], prepared)
                result[pack, rows] = losses.view(len(pack), -1, time)
        return result

    @torch.no_grad()
    def gradients(
        self,
        positions: Sequence[Tensor],
        cached: Cached,
        rows: Int[np.ndarray, " batch"],
        weights: Float[Tensor, "batch time"] | None = None,
    ) -> tuple[list[float], list[Tensor]]:
        """Mean loss of each member on the windows ``rows``, in nats, and its gradient with respect to its weights.

        Args:
            positions: flat weights of each member.
            cached: windows, from `cache`.
            rows: which of them to use.
            weights: if given, Σ weights · losses takes the place of the mean loss.
        """
        gradients = [torch.zeros_like(position) for position in positions]
        totals = positions[0].new_zeros(len(positions))
        time = cached.ids.shape[1] - 1
        rows = torch.as_tensor(rows, device=self.engine.device)
        for part, packs in self._passes(len(rows), time):
            prepared = self._prepare(cached, rows[part])
            for pack in packs:
                flats, into = [positions[i] for i in pack], [gradients[i] for i in pack]
                members = [self.members[i] for i in pack]
                own = None if weights is None else weights[part].flatten()
                losses = self._token_losses(flats, members, prepared, into, own)
                totals[pack] += losses.sum(dim=1) if own is None else losses @ own
        tokens = len(rows) * time if weights is None else 1
        return (totals / tokens).tolist(), [gradient.div_(tokens) for gradient in gradients]

    def minibatch_gradients(self, windows, settings: Settings, chain: int) -> Gradients:
        """Mean losses and gradients on the minibatches of a chain, one after another (`posterior.minibatches`)."""
        cached = self.cache(windows)
        batches = minibatches(len(cached.ids), settings, chain)
        return lambda positions: self.gradients(positions, cached, next(batches))
