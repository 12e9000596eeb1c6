"""The fast path: a GPT-NeoX whose weights move in one component at a time.

Moving one component leaves most of a forward pass as it was, and the engine computes only the rest:

* GPT-NeoX adds attention and MLP to the same residual, so the residual after layer l is a constant plus the component:
  ``x_{l+1} = rest + component(weights, x_l)``. What lies before the component is computed once for all windows; what lies after
  it has frozen weights, so the streams of several components (and their batches) run through it as one batch.
* Only the component's slice of weights gets a gradient; autograd never forms another.
* Frozen layer norms are folded into the matrices that follow them, and the two input matrices of a layer into one.
* Cross-entropy, most of the cost of a small model, walks over blocks of tokens and vocabulary that fit the cache, and sums
  the gradient with respect to the hidden state in the same sweep (`cross_entropy`). Logits are never held.

A `Group` is the set of components that share a prefix: the heads and the MLP of one layer, or ``embed``, ``unembed`` or ``full``
alone. Its results do not depend on which process runs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .components import EMBED, FULL, UNEMBED, Shape, blocks, check, gather, layer_of, split
from .posterior import Gradients, Settings, minibatches

FINAL_NORM = "gpt_neox.final_layer_norm"
TOKEN_BLOCK, VOCABULARY_BLOCK = 256, 1024
"""Rows and columns of logits held at once: about a megabyte, so that they stay in the cache."""
TOKENS_PER_PASS = {"cpu": 2048, "cuda": 65_536}
"""Tokens of all streams together in one pass: small enough for a core's cache, large enough to fill a GPU."""
CACHE_BYTES = 512 * 2**20
"""Residuals before the component are kept for all windows up to this size, and computed again at each use beyond it."""


# Cross-entropy -------------------------------------------------------------------------------------------------------


def _sweep(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " tokens"],
    slope: Float[Tensor, "tokens width"] | None,
) -> Float[Tensor, " tokens"]:
    """Losses; fills ``slope`` with d loss / d hidden if it is given.

    Logits are taken relative to the target's, z_v - z_y, so the loss is log Σ_v exp(z_v - z_y) and no maximum is needed: the
    sum overflows only where a loss exceeds 88 nats, and then the loss is infinite, which the chain reports.
    """
    losses = hidden.new_empty(len(hidden))
    target_logits = (hidden * weight[targets]).sum(dim=1, keepdim=True)
    columns = VOCABULARY_BLOCK if hidden.device.type == "cpu" else len(weight)
    rows = TOKEN_BLOCK if hidden.device.type == "cpu" else 4 * TOKEN_BLOCK
    buffer = hidden.new_empty(min(rows, len(hidden)) * min(columns, len(weight)))
    for start in range(0, len(hidden), rows):
        h, t = hidden[start : start + rows], target_logits[start : start + rows]
        total = hidden.new_zeros(len(h))
        for first in range(0, len(weight), columns):
            w = weight[first : first + columns]
            z = buffer[: len(h) * len(w)].view(len(h), len(w))
            torch.mm(h, w.T, out=z)
            z.sub_(t).exp_()
            total += z.sum(dim=1)
            if slope is not None:
                slope[start : start + rows].addmm_(z, w, beta=0 if first == 0 else 1)
        torch.log(total, out=losses[start : start + rows])
        if slope is not None:
            slope[start : start + rows].div_(total[:, None])
    if slope is not None:
        slope.sub_(weight[targets])
    return losses


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets):
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        losses = _sweep(hidden, weight, targets, slope)
        ctx.save_for_backward(slope, *((hidden, weight, targets, losses) if ctx.needs_input_grad[1] else ()))
        return losses

    @staticmethod
    def backward(ctx, upstream):
        slope, *rest = ctx.saved_tensors
        hidden_gradient = slope * upstream[:, None] if slope is not None else None
        return hidden_gradient, _weight_gradient(*rest, upstream) if rest else None, None


def _weight_gradient(hidden, weight, targets, losses, upstream):
    """Σ_t upstream_t (softmax_t - onehot_t) h_tᵀ, block by block over the vocabulary."""
    weighted = hidden * upstream[:, None]
    normaliser = (hidden * weight[targets]).sum(dim=1) + losses  # log-sum-exp of each token
    gradient = torch.empty_like(weight)
    for first in range(0, len(weight), VOCABULARY_BLOCK):
        block = slice(first, first + VOCABULARY_BLOCK)
        p = torch.mm(hidden, weight[block].T).sub_(normaliser[:, None]).exp_()
        torch.mm(p.T, weighted, out=gradient[block])
    return gradient.index_add_(0, targets, weighted, alpha=-1)


def cross_entropy(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " tokens"],
) -> Float[Tensor, " tokens"]:
    """-log softmax(weight @ hidden)[target] for each token, in nats, without ever holding tokens x vocabulary.

    Differentiable once in ``hidden`` and ``weight``. The gradient with respect to ``hidden`` is summed in the forward sweep: two
    matrix products in all. The one with respect to ``weight`` needs the normaliser first and takes two more.
    """
    return _CrossEntropy.apply(hidden, weight, targets)


# The architecture ----------------------------------------------------------------------------------------------------


class Rotary:
    """Rotary position embedding of the first ``shape.rotary`` dimensions of queries and keys."""

    def __init__(self, shape: Shape, device: torch.device):
        self.dims, self.device = shape.rotary, device
        exponents = torch.arange(0, self.dims, 2, dtype=torch.float32, device=device) / max(self.dims, 1)
        self.frequencies = 1.0 / shape.rotary_base**exponents
        self.length = 0

    def __call__(self, x: Float[Tensor, "windows time heads any dim"]) -> Tensor:
        if self.dims == 0:
            return x
        time = x.shape[1]
        if time > self.length:
            angles = torch.outer(
                torch.arange(time, dtype=torch.float32, device=self.device), self.frequencies
            )
            angles = torch.cat([angles, angles], dim=1)[:, None, None, :]
            self.cos, self.sin, self.length = angles.cos(), angles.sin(), time
        turned, kept = x[..., : self.dims], x[..., self.dims :]
        first, second = turned.chunk(2, dim=-1)
        turned = turned * self.cos[:time] + torch.cat([-second, first], dim=-1) * self.sin[:time]
        return torch.cat([turned, kept], dim=-1)


def _act(shape: Shape, x: Tensor) -> Tensor:
    return F.gelu(x, approximate="none" if shape.activation == "gelu" else "tanh")


def _attend(
    qkv: Float[Tensor, "windows time joined"], shape: Shape, rotary: Rotary
) -> Float[Tensor, "windows time heads_dim"]:
    """Causal attention of however many heads ``qkv`` holds; each head's query, key and value stand side by side."""
    windows, time, _ = qkv.shape
    qkv = qkv.view(windows, time, -1, 3, shape.head_dim)
    q, k = rotary(qkv[..., :2, :]).unbind(3)
    q, k, v = (x.transpose(1, 2) for x in (q, k, qkv[..., 2, :]))
    context = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return context.transpose(1, 2).reshape(windows, time, -1)


def _norm(x: Tensor, weights: Mapping[str, Tensor], name: str, shape: Shape) -> Tensor:
    return F.layer_norm(
        x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], shape.norm_epsilon
    )


def forward(
    weights: Mapping[str, Tensor], shape: Shape, rotary: Rotary, ids: Int[Tensor, "windows time"]
) -> Float[Tensor, "windows time width"]:
    """Final hidden states of a GPT-NeoX, written plainly: any weight may carry a gradient."""
    x = F.embedding(ids, weights[EMBED])
    for layer in range(shape.layers):
        name = f"gpt_neox.layers.{layer}"
        linear = lambda x, part, name=name: F.linear(  # noqa: E731
            x, weights[f"{name}.{part}.weight"], weights[f"{name}.{part}.bias"]
        )
        qkv = linear(_norm(x, weights, f"{name}.input_layernorm", shape), "attention.query_key_value")
        inner = linear(_norm(x, weights, f"{name}.post_attention_layernorm", shape), "mlp.dense_h_to_4h")
        attention = linear(_attend(qkv, shape, rotary), "attention.dense")
        x = x + attention + linear(_act(shape, inner), "mlp.dense_4h_to_h")
    return _norm(x, weights, FINAL_NORM, shape)


class _Layer:
    """A frozen layer with its norms folded into one input matrix for attention and MLP together."""

    def __init__(self, weights: Mapping[str, Tensor], layer: int, shape: Shape):
        name = f"gpt_neox.layers.{layer}"
        self.norms = [
            (weights[f"{name}.{norm}.weight"], weights[f"{name}.{norm}.bias"])
            for norm in ("input_layernorm", "post_attention_layernorm")
        ]
        matrices, biases = [], []
        for part, (scale, shift) in zip(
            ("attention.query_key_value", "mlp.dense_h_to_4h"), self.norms, strict=True
        ):
            matrix, bias = weights[f"{name}.{part}.weight"], weights[f"{name}.{part}.bias"]
            matrices.append(matrix * scale)
            biases.append(bias + matrix @ shift)
        self.inward, self.inward_bias = torch.cat(matrices), torch.cat(biases)
        self.attention_out = weights[f"{name}.attention.dense.weight"]
        self.mlp_out = weights[f"{name}.mlp.dense_4h_to_h.weight"]
        self.out_bias = weights[f"{name}.attention.dense.bias"] + weights[f"{name}.mlp.dense_4h_to_h.bias"]
        self.mlp_bias = weights[f"{name}.mlp.dense_4h_to_h.bias"]


class Engine:
    """The model at w*, ready to run with any of its components elsewhere.

    Args:
        shape: the architecture.
        weights: every parameter by its transformers name (the unembedding as ``embed_out.weight``), float32.
        tokens_per_pass: tokens that run through the frozen part at once; the default suits the device.
    """

    def __init__(self, shape: Shape, weights: Mapping[str, Tensor], *, tokens_per_pass: int | None = None):
        self.shape = shape
        self.weights = {name: tensor.detach() for name, tensor in weights.items()}
        self.device = self.weights[EMBED].device
        self.rotary = Rotary(shape, self.device)
        self.layers = [_Layer(self.weights, layer, shape) for layer in range(shape.layers)]
        self.tokens_per_pass = tokens_per_pass or TOKENS_PER_PASS.get(self.device.type, 65_536)

    @classmethod
    def of(cls, model) -> Engine:
        """The engine of a `LanguageModel` (or of a transformers GPT-NeoX)."""
        module = getattr(model, "model", model)
        module = module if hasattr(module, "config") else model
        weights = {name: tensor.detach() for name, tensor in module.named_parameters()}
        output = module.get_output_embeddings().weight.detach()
        weights = {name: tensor for name, tensor in weights.items() if name.startswith("gpt_neox.")}
        return cls(Shape.from_config(module.config.to_dict()), {**weights, UNEMBED: output})

    def ids(self, windows) -> Int[Tensor, "windows length"]:
        """Token ids on the engine's device, checked.

        Raises:
            ValueError: for an empty set, windows of fewer than 2 tokens, or ids beyond the vocabulary.
        """
        ids = torch.as_tensor(
            np.asarray(getattr(windows, "ids", windows)), dtype=torch.int64, device=self.device
        )
        if ids.ndim != 2 or len(ids) == 0:
            raise ValueError(
                f"token windows must be a non-empty (windows, length) array, got shape {tuple(ids.shape)}"
            )
        if ids.shape[1] < 2:
            raise ValueError(
                f"windows must hold at least 2 tokens (a context and its next token), got {ids.shape[1]}"
            )
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.shape.vocabulary:
            raise ValueError(
                f"token ids must lie in 0 to {self.shape.vocabulary - 1}, got {low} to {high}: "
                "were the windows made with another tokenizer?"
            )
        return ids

    def block(
        self, x: Float[Tensor, "windows time width"], layer: int
    ) -> Float[Tensor, "windows time width"]:
        """The residual after a frozen layer."""
        frozen = self.layers[layer]
        qkv, inner = self._inward(x, frozen)
        x = x + F.linear(_attend(qkv, self.shape, self.rotary), frozen.attention_out, frozen.out_bias)
        return x + F.linear(_act(self.shape, inner), frozen.mlp_out)

    def _inward(self, x: Tensor, frozen: _Layer) -> tuple[Tensor, Tensor]:
        plain = F.layer_norm(x, x.shape[-1:], eps=self.shape.norm_epsilon)
        joined = F.linear(plain, frozen.inward, frozen.inward_bias)
        return joined[..., : 3 * self.shape.width], joined[..., 3 * self.shape.width :]

    def residual(self, ids: Int[Tensor, "windows time"], layer: int) -> Float[Tensor, "windows time width"]:
        """The residual before ``layer`` at w* (after the last layer, before the final norm, for ``layer == layers``)."""
        x = F.embedding(ids, self.weights[EMBED])
        for frozen in range(layer):
            x = self.block(x, frozen)
        return x

    def final(
        self, x: Float[Tensor, "windows time width"], layer: int
    ) -> Float[Tensor, "windows time width"]:
        """From the residual before ``layer`` through the frozen rest, final norm included."""
        for frozen in range(layer, self.shape.layers):
            x = self.block(x, frozen)
        return _norm(x, self.weights, FINAL_NORM, self.shape)

    @torch.no_grad()
    def losses(self, windows) -> Float[Tensor, "windows time"]:
        """Loss of every token but the first of each window at w*, nats."""
        ids = self.ids(windows)
        rows = max(1, self.tokens_per_pass // ids.shape[1])
        return torch.cat(
            [
                cross_entropy(
                    self.final(self.residual(chunk[:, :-1], 0), 0).flatten(0, 1),
                    self.weights[UNEMBED],
                    chunk[:, 1:].flatten(),
                ).view(len(chunk), -1)
                for chunk in ids.split(rows)
            ]
        )

    def group(self, names: Sequence[str]) -> Group:
        """The components ``names``, which must share a prefix (see `groups`), ready to be moved together.

        Raises:
            ValueError: for an unknown component, or components of different groups.
        """
        for name in names:
            check(name, self.shape)
        if len(groups(names)) != 1:
            raise ValueError(f"components {list(names)} do not share a prefix: take one of {groups(names)}")
        return Group(self, tuple(names))


def groups(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Components by the prefix that they share: those of one layer together, every other one alone."""
    found: dict[object, list[str]] = {}
    for name in names:
        layer = layer_of(name)
        found.setdefault(name if layer is None else layer, []).append(name)
    return [tuple(group) for group in found.values()]


# Groups of components ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cached:
    """Windows, with the residual that enters the group's layer where it is worth keeping."""

    ids: Int[Tensor, "windows length"]
    residual: Float[Tensor, "windows time width"] | None


@dataclass(frozen=True)
class _Prepared:
    """What a component of the group needs of a batch of windows: all of it independent of the moving weights."""

    inputs: Int[Tensor, "windows time"]
    targets: Int[Tensor, " tokens"]
    entering: Mapping[str, Tensor]
    """Input of each component."""
    rest: Mapping[str, Tensor]
    """Residual after the layer without the component's own contribution."""


class Group:
    """Components that share a prefix, each with weights of its own: their losses and gradients on shared windows."""

    def __init__(self, engine: Engine, names: tuple[str, ...]):
        self.engine, self.names = engine, names
        self.layer = layer_of(names[0])
        parameters = tuple(engine.weights)
        self.blocks = {name: blocks(name, engine.shape, parameters) for name in names}
        self.shapes = {
            name: [block.of(engine.weights).shape for block in owned] for name, owned in self.blocks.items()
        }
        self.start = [gather(engine.weights, self.blocks[name]) for name in names]
        """w* restricted to each component, flat."""

    # What does not depend on the moving weights

    @property
    def _frozen_from(self) -> int:
        """First frozen layer after the component."""
        return 0 if self.layer is None else self.layer + 1

    def cache(self, windows) -> Cached:
        """Windows with the residual before the component, computed once if it fits `CACHE_BYTES`."""
        engine, ids = self.engine, self.engine.ids(windows)
        depth = engine.shape.layers if self.names == ("unembed",) else self.layer
        if depth is None or 4 * ids[:, 1:].numel() * engine.shape.width > CACHE_BYTES:
            return Cached(ids, None)
        with torch.no_grad():
            rows = max(1, engine.tokens_per_pass // ids.shape[1])
            residual = torch.cat([engine.residual(chunk[:, :-1], depth) for chunk in ids.split(rows)])
            return Cached(ids, residual)

    @torch.no_grad()
    def _prepare(self, cached: Cached, rows) -> _Prepared:
        engine, shape = self.engine, self.engine.shape
        ids = cached.ids[rows]
        inputs, targets = ids[:, :-1], ids[:, 1:].reshape(-1)
        residual = None if cached.residual is None else cached.residual[rows]
        if self.names == ("unembed",):
            x = engine.residual(inputs, shape.layers) if residual is None else residual
            return _Prepared(inputs, targets, {"unembed": _norm(x, engine.weights, FINAL_NORM, shape)}, {})
        if self.layer is None:
            return _Prepared(inputs, targets, {}, {})
        x = engine.residual(inputs, self.layer) if residual is None else residual
        frozen = engine.layers[self.layer]
        plain = F.layer_norm(x, x.shape[-1:], eps=shape.norm_epsilon)
        normed = [torch.addcmul(shift, plain, scale) for scale, shift in frozen.norms]
        qkv, inner = engine._inward(x, frozen)
        context = _attend(qkv, shape, engine.rotary)
        mlp = F.linear(_act(shape, inner), frozen.mlp_out)
        after = x + F.linear(context, frozen.attention_out, frozen.out_bias) + mlp
        entering, rest = {}, {}
        for name in self.names:
            if name.endswith("mlp"):
                entering[name], rest[name] = normed[1], after - mlp - frozen.mlp_bias
            else:
                (columns,) = (block.index[1] for block in self.blocks[name] if len(block.index) == 2)
                own = F.linear(context[..., columns], frozen.attention_out[:, columns])
                entering[name], rest[name] = normed[0], after - own
        return _Prepared(inputs, targets, entering, rest)

    # What does

    def _after(self, name: str, flat: Tensor, prepared: _Prepared) -> Tensor:
        """The residual after the component (its embedding, for ``embed``)."""
        engine, shape = self.engine, self.engine.shape
        pieces = split(flat, self.shapes[name])
        if name == "embed":
            return F.embedding(prepared.inputs, pieces[0])
        if name.endswith("mlp"):
            up, up_bias, down, down_bias = pieces
            inner = _act(shape, F.linear(prepared.entering[name], up, up_bias))
            return prepared.rest[name] + F.linear(inner, down, down_bias)
        qkv, qkv_bias, out = pieces
        context = _attend(F.linear(prepared.entering[name], qkv, qkv_bias), shape, engine.rotary)
        return prepared.rest[name] + F.linear(context, out)

    def _token_losses(self, members: Sequence[int], flats: Sequence[Tensor], prepared: _Prepared) -> Tensor:
        """(members, tokens) losses of some members of the group, as one batch through the frozen part."""
        engine = self.engine
        if self.names == ("unembed",):
            (weight,) = split(flats[0], self.shapes["unembed"])
            return cross_entropy(prepared.entering["unembed"].flatten(0, 1), weight, prepared.targets)[None]
        if self.names == (FULL,):
            pieces = split(flats[0], self.shapes[FULL])
            weights = dict(zip(engine.weights, pieces, strict=True))
            hidden = forward(weights, engine.shape, engine.rotary, prepared.inputs)
            return cross_entropy(hidden.flatten(0, 1), weights[UNEMBED], prepared.targets)[None]
        after = [self._after(self.names[i], flat, prepared) for i, flat in zip(members, flats, strict=True)]
        hidden = engine.final(torch.cat(after) if len(after) > 1 else after[0], self._frozen_from)
        targets = prepared.targets.repeat(len(members))
        return cross_entropy(hidden.flatten(0, 1), engine.weights[UNEMBED], targets).view(len(members), -1)

    def _passes(self, windows: int, time: int) -> Iterator[tuple[slice, list[list[int]]]]:
        """Slices of the windows, each with the members that go through together: at most `tokens_per_pass` tokens."""
        limit = self.engine.tokens_per_pass
        rows = min(windows, max(1, limit // time))
        together = max(1, limit // (rows * time))
        members = list(range(len(self.names)))
        packs = [members[i : i + together] for i in range(0, len(members), together)]
        for start in range(0, windows, rows):
            yield slice(start, min(start + rows, windows)), packs

    @torch.no_grad()
    def losses(self, positions: Sequence[Tensor], cached: Cached) -> Float[Tensor, "components windows time"]:
        """Loss of every token but the first of each window, for each component at its position, nats."""
        windows, time = cached.ids.shape[0], cached.ids.shape[1] - 1
        result = torch.empty(len(self.names), windows, time, device=self.engine.device)
        for rows, packs in self._passes(windows, time):
            prepared = self._prepare(cached, rows)
            for pack in packs:
                losses = self._token_losses(pack, [positions[i] for i in pack], prepared)
                result[pack, rows] = losses.view(len(pack), -1, time)
        return result

    def gradients(
        self, positions: Sequence[Tensor], cached: Cached, rows: Int[np.ndarray, " batch"]
    ) -> tuple[list[float], list[Tensor]]:
        """Mean loss on the windows ``rows``, and its gradient with respect to each component's weights."""
        leaves = [position.detach().requires_grad_() for position in positions]
        gradients: list[Tensor | None] = [None] * len(leaves)
        totals = torch.zeros(len(leaves), device=self.engine.device)
        time = cached.ids.shape[1] - 1
        rows = torch.as_tensor(rows, device=self.engine.device)
        for part, packs in self._passes(len(rows), time):
            prepared = self._prepare(cached, rows[part])
            for pack in packs:
                losses = self._token_losses(pack, [leaves[i] for i in pack], prepared).sum(dim=1)
                totals[pack] += losses.detach()
                slopes = torch.autograd.grad(losses.sum(), [leaves[i] for i in pack])
                for i, slope in zip(pack, slopes, strict=True):
                    gradients[i] = slope if gradients[i] is None else gradients[i].add_(slope)
        tokens = len(rows) * time
        return (totals / tokens).tolist(), [gradient.div_(tokens) for gradient in gradients]

    def minibatch_gradients(self, windows, settings: Settings, chain: int) -> Gradients:
        """Mean losses and gradients on the minibatches of a chain, one after another (`posterior.minibatches`)."""
        cached = self.cache(windows)
        batches = minibatches(len(cached.ids), settings, chain)
        return lambda positions: self.gradients(positions, cached, next(batches))
