"""The layers of a model, twice: written plainly, for weights that move, and as frozen layers that are fast.

Frozen layers of a GPT-NeoX have a backward pass written by hand (`FrozenLayer`); those of other families use autograd
(`FrozenHalves`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .shapes import ACTIVATIONS, HEAD_NORMS, Scaling, Shape

aten = torch.ops.aten


class Rotary:
    """The rotary embedding of the first ``shape.rotary`` dimensions of queries and keys, and the causal mask.

    Dimensions i and i + rotary/2 turn as one complex number, by ``position * frequency[i]``.
    """

    def __init__(self, shape: Shape, device: torch.device):
        if shape.rotary % 2 or shape.head_dim % 2:
            raise ValueError(
                f"heads must have an even number of dimensions, rotated ones too: got {shape.head_dim}, {shape.rotary}"
            )
        self.dims, self.device = shape.rotary, device
        exponents = torch.arange(0, self.dims, 2, dtype=torch.float32, device=device) / max(self.dims, 1)
        self.frequencies = 1.0 / shape.rotary_base**exponents
        if shape.scaling:
            self.frequencies = stretched(self.frequencies, shape.scaling)
        self.length = 0

    def turns(self, time: int) -> Tensor:
        """e^{i angle} for each position and pair of dimensions."""
        if time > self.length:
            angles = torch.outer(torch.arange(time, dtype=torch.float32, device=self.device), self.frequencies)
            self.table, self.length = torch.polar(torch.ones_like(angles), angles), time
        return self.table[:time]

    def __call__(self, x: Float[Tensor, "windows time vectors dim"]) -> Tensor:
        if not self.dims:
            return x
        turns = self.turns(x.shape[1])[:, None]
        first, second, kept = x.split([self.dims // 2, self.dims // 2, x.shape[-1] - self.dims], dim=-1)
        turned = torch.complex(first, second) * turns
        return torch.cat([turned.real, turned.imag, kept], dim=-1)

    def turn_(self, x: Float[Tensor, "windows time vectors dim"], back: bool = False) -> None:
        """Rotate in place (or back), for vectors in which the dimensions of a pair stand side by side."""
        if self.dims:
            turns = self.turns(x.shape[1])[:, None]
            pairs = torch.view_as_complex(x[..., : self.dims].unflatten(-1, (-1, 2)))
            pairs.mul_(turns.conj() if back else turns)

    def mask(self, time: int) -> Float[Tensor, "time time"]:
        """-inf where a key lies after its query."""
        return torch.full((time, time), -torch.inf, device=self.device).triu_(1)

    def paired(self, dim: int) -> Int[Tensor, " dim"]:
        """The order of a head's dimensions that puts pairs side by side."""
        turned = torch.arange(self.dims).view(2, -1).T.reshape(-1)
        return torch.cat([turned, torch.arange(self.dims, dim)]).to(self.device)


def stretched(frequencies: Float[Tensor, " pairs"], scaling: Scaling) -> Float[Tensor, " pairs"]:
    """Frequencies as in Llama 3: slow ones divided by a factor, fast ones kept, those between interpolated."""
    turns = scaling.context * frequencies / (2 * math.pi)  # within the context that the model was first trained on
    kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def activate(shape: Shape, x: Tensor) -> Tensor:
    """The MLP's activation."""
    kind = ACTIVATIONS[shape.activation]
    if kind in ("silu", "relu"):
        return getattr(F, kind)(x)
    return F.gelu(x, approximate=_APPROXIMATION[kind])


def activate_back(shape: Shape, slope: Tensor, x: Tensor) -> Tensor:
    """Backward pass of `activate`: the gradient with respect to x, from that with respect to the output."""
    kind = ACTIVATIONS[shape.activation]
    if kind == "silu":
        return aten.silu_backward(slope, x)
    if kind == "relu":
        return aten.threshold_backward(slope, x, 0)
    return aten.gelu_backward(slope, x, approximate=_APPROXIMATION[kind])


_APPROXIMATION = {"gelu": "none", "gelu_tanh": "tanh"}


def norms_of(shape: Shape, layer: int) -> tuple[str, str]:
    """Names of the norms that attention and MLP of a layer read through."""
    return tuple(shape.where.layer.format(layer) + name for name in shape.where.norms)


def norm(x: Tensor, weights: Mapping[str, Tensor], name: str, shape: Shape) -> Tensor:
    """Apply the norm called ``name``."""
    if shape.rms:
        return F.rms_norm(x, x.shape[-1:], weights[f"{name}.weight"], shape.norm_epsilon)
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], shape.norm_epsilon)


def embed(
    weights: Mapping[str, Tensor], shape: Shape, ids: Int[Tensor, "windows time"]
) -> Float[Tensor, "windows time width"]:
    """The residual before the first layer: token embeddings, plus position embeddings where they are learned."""
    x = F.embedding(ids, weights[shape.embed])
    if shape.where.positions:
        x = x + weights[shape.where.positions][: ids.shape[1]]
    return x


class Linear(NamedTuple):
    """A matrix in the orientation of its family, and its bias if it has one."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor, shape: Shape) -> Tensor:
        return F.linear(x, self.weight.T if shape.where.transposed else self.weight, self.bias)

    def onto(self, rest: Float[Tensor, "tokens outputs"], x: Float[Tensor, "tokens inputs"], shape: Shape) -> Tensor:
        """``rest`` plus the output for x."""
        rest = rest if self.bias is None else rest + self.bias
        return torch.addmm(rest, x, self.weight if shape.where.transposed else self.weight.T)


class Attention(NamedTuple):
    """The attention weights of some heads, or of all."""

    inputs: tuple[Linear, ...]
    """Queries, keys and values: one matrix if they are interleaved, else three."""
    out: Linear
    norms: tuple[Tensor, ...] = ()
    """Weights of the norms of queries and of keys, where there are such norms."""

    def context(
        self, x: Float[Tensor, "windows time width"], shape: Shape, rotary: Rotary
    ) -> Float[Tensor, "windows time heads_dim"]:
        """Outputs of the heads, before their projection; x is the normed residual that attention reads."""
        parts = [part(x, shape).unflatten(-1, (-1, shape.head_dim)) for part in self.inputs]
        if len(parts) == 1:
            parts = parts[0].unflatten(2, (-1, 3)).unbind(3)
        q, k, v = parts
        if self.norms:
            q, k = (
                F.rms_norm(y, y.shape[-1:], gain, shape.norm_epsilon)
                for y, gain in zip((q, k), self.norms, strict=True)
            )
        q, k, v = (y.transpose(1, 2) for y in (rotary(q), rotary(k), v))
        shared = q.shape[1] != k.shape[1]
        context = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
        return context.transpose(1, 2).flatten(2)


class MLP(NamedTuple):
    """The weights of an MLP."""

    up: tuple[Linear, ...]
    """The matrix into the MLP; in an MLP with a gate, the gate's matrix comes before it."""
    down: Linear

    def neurons(self, x: Tensor, shape: Shape) -> Tensor:
        """The inner activations."""
        first, *rest = (part(x, shape) for part in self.up)
        inner = activate(shape, first)
        return inner * rest[0] if rest else inner

    def __call__(self, x: Tensor, shape: Shape) -> Tensor:
        return self.down(self.neurons(x, shape), shape)


def attention_of(weights: Mapping[str, Tensor], shape: Shape, layer: int) -> Attention:
    """The attention of a layer."""
    where, prefix = shape.where, shape.where.layer.format(layer)
    linear = [_linear(weights, prefix + name) for name in (*where.attention, where.out)]
    norms = tuple(weights[f"{prefix}{name}.weight"] for name in HEAD_NORMS) if shape.head_norms else ()
    if where.fused == "concatenated":
        fused, out = linear
        matrices = fused.weight.chunk(3, dim=1 if where.transposed else 0)
        biases = (None,) * 3 if fused.bias is None else fused.bias.chunk(3)
        linear = [*map(Linear, matrices, biases), out]
    return Attention(tuple(linear[:-1]), linear[-1], norms)


def mlp_of(weights: Mapping[str, Tensor], shape: Shape, layer: int) -> MLP:
    """The MLP of a layer."""
    where, prefix = shape.where, shape.where.layer.format(layer)
    return MLP(tuple(_linear(weights, prefix + name) for name in where.up), _linear(weights, prefix + where.down))


def _linear(weights: Mapping[str, Tensor], name: str) -> Linear:
    return Linear(weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def some_heads(pieces: Sequence[Tensor], shape: Shape, norms: tuple[Tensor, ...] = ()) -> Attention:
    """The attention of a component, from its blocks in the order of `components.blocks`; the projection has no bias."""
    *inputs, out = pieces
    count = 1 if shape.where.fused == "interleaved" else 3
    biases = inputs[count:] or [None] * count
    return Attention(tuple(map(Linear, inputs[:count], biases)), Linear(out, None), norms)


def some_mlp(pieces: Sequence[Tensor], shape: Shape) -> MLP:
    """The MLP, from its blocks in the order of `components.blocks`."""
    biased = "mlp" in shape.biases
    parts = zip(pieces[::2], pieces[1::2], strict=True) if biased else ((piece, None) for piece in pieces)
    *up, down = (Linear(*part) for part in parts)
    return MLP(tuple(up), down)


def forward(
    weights: Mapping[str, Tensor], shape: Shape, rotary: Rotary, ids: Int[Tensor, "windows time"]
) -> Float[Tensor, "windows time width"]:
    """Final hidden states of a model, written plainly: any weight may carry a gradient."""
    x = embed(weights, shape, ids)
    for layer in range(shape.layers):
        before_attention, before_mlp = norms_of(shape, layer)
        attention, mlp = attention_of(weights, shape, layer), mlp_of(weights, shape, layer)
        y = x + attention.out(attention.context(norm(x, weights, before_attention, shape), shape, rotary), shape)
        x = y + mlp(norm(x if shape.parallel else y, weights, before_mlp, shape), shape)
    return norm(x, weights, shape.where.final_norm, shape)


class FrozenHalves:
    """A frozen layer whose MLP reads the residual after attention; only the residual gets a gradient."""

    def __init__(self, weights: Mapping[str, Tensor], layer: int, shape: Shape, rotary: Rotary):
        self.weights, self.shape, self.rotary = weights, shape, rotary
        self.norms = norms_of(shape, layer)
        self.attention, self.mlp = attention_of(weights, shape, layer), mlp_of(weights, shape, layer)

    def entering(self, x: Tensor, half: int) -> Tensor:
        """The normed residual that attention (0) or the MLP (1) reads."""
        return norm(x, self.weights, self.norms[half], self.shape)

    def attend(self, x: Float[Tensor, "tokens width"], time: int) -> tuple[Tensor, Float[Tensor, "tokens heads_dim"]]:
        """The residual after attention, and the heads' outputs before their projection."""
        windows = self.entering(x, 0).view(-1, time, x.shape[-1])
        context = self.attention.context(windows, self.shape, self.rotary).flatten(0, 1)
        return x + self.attention.out(context, self.shape), context

    def transform(self, x: Float[Tensor, "tokens width"], kept: list | None = None) -> Float[Tensor, "tokens width"]:
        """The residual after the layer, given the residual after attention."""
        return _remember(lambda x: x + self.mlp(self.entering(x, 1), self.shape), x, kept)

    def forward(
        self, x: Float[Tensor, "tokens width"], time: int, kept: list | None = None
    ) -> tuple[Float[Tensor, "tokens width"], Float[Tensor, "tokens heads_dim"]]:
        """The residual after the layer, and the heads' outputs before their projection.

        With ``kept``, what `backward` needs is appended to it, and the heads' outputs are None.
        """
        if kept is None:
            after, context = self.attend(x, time)
            return self.transform(after), context
        return self.transform(_remember(lambda x: self.attend(x, time)[0], x, kept), kept), None

    def backward(self, slope: Float[Tensor, "tokens width"], kept: list) -> Float[Tensor, "tokens width"]:
        """The gradient with respect to the residual before the layer, from that with respect to the one after it."""
        return retrace(retrace(slope, kept), kept)


def _remember(run: Callable[[Tensor], Tensor], x: Tensor, kept: list | None) -> Tensor:
    """``run(x)``; with ``kept``, the autograd graph from x to the result is appended to it."""
    if kept is None:
        return run(x)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        after = run(x)
    kept.append((x, after))
    return after.detach()


def retrace(slope: Tensor, kept: list) -> Tensor:
    """Backward pass through the graph that was appended to ``kept`` last, which is removed."""
    x, after = kept.pop()
    return torch.autograd.grad(after, x, slope)[0]


class FrozenLayer:
    """A frozen layer of a GPT-NeoX, with forward and backward pass by hand: only the residual gets a gradient.

    The norms' gains and offsets are folded into the matrices that follow, and 1/√dim into the queries. Outputs of the
    query-key-value matrix are reordered: all queries, all keys, all values, with the two dimensions that the rotary
    embedding turns together side by side.
    """

    def __init__(self, weights: Mapping[str, Tensor], layer: int, shape: Shape, rotary: Rotary):
        own = lambda part: weights[f"gpt_neox.layers.{layer}.{part}"]  # noqa: E731
        self.shape, self.rotary = shape, rotary
        norms = [(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in norms_of(shape, layer)]
        (qkv, qkv_bias), (self.up, self.up_bias) = (
            (own(f"{part}.weight") * gain, own(f"{part}.bias") + own(f"{part}.weight") @ offset)
            for part, (gain, offset) in zip(("attention.query_key_value", "mlp.dense_h_to_4h"), norms, strict=True)
        )
        rows = torch.arange(3 * shape.width, device=qkv.device).view(shape.heads, 3, shape.head_dim).transpose(0, 1)
        rows = torch.cat([rows[:2][..., rotary.paired(shape.head_dim)], rows[2:]])  # (3, heads, dim)
        scale = torch.where(torch.arange(3, device=qkv.device) == 0, shape.head_dim**-0.5, 1.0)
        scale = scale.repeat_interleave(shape.width)
        self.qkv, self.qkv_bias = qkv[rows.flatten()] * scale[:, None], qkv_bias[rows.flatten()] * scale
        self.out, self.out_bias = own("attention.dense.weight"), own("attention.dense.bias")
        self.down, self.down_bias = own("mlp.dense_4h_to_h.weight"), own("mlp.dense_4h_to_h.bias")

    def forward(
        self, x: Float[Tensor, "tokens width"], time: int, kept: list | None = None
    ) -> tuple[Float[Tensor, "tokens width"], Float[Tensor, "tokens width"]]:
        """The residual after the layer, and the heads' outputs before their projection.

        Appends to ``kept`` what `backward` needs. Attention is then written out: torch's fused one is faster forward
        and much slower backward.
        """
        heads, dim = self.shape.heads, self.shape.head_dim
        plain, mean, scale = torch.native_layer_norm(x, x.shape[-1:], None, None, self.shape.norm_epsilon)
        inner = torch.addmm(self.up_bias, plain, self.up.T)
        vectors = torch.addmm(self.qkv_bias, plain, self.qkv.T).view(-1, time, 3 * heads, dim)
        self.rotary.turn_(vectors[:, :, : 2 * heads])
        q, k, v = vectors.unflatten(2, (3, heads)).permute(2, 0, 3, 1, 4)  # each (windows, heads, time, dim)
        if kept is None:
            context = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
        else:
            q, k, v = (y.reshape(-1, time, dim) for y in (q, k, v))
            attention = torch.baddbmm(self.rotary.mask(time).to(q), q, k.mT).softmax(dim=-1)
            context = torch.bmm(attention, v).view(-1, heads, time, dim)
        context = context.transpose(1, 2).reshape(x.shape)
        if kept is not None:
            kept.append((x, mean, scale, inner, q, k, v, attention, context))
        after = (x + (self.out_bias + self.down_bias)).addmm_(context, self.out.T)
        return after.addmm_(activate(self.shape, inner), self.down.T), context

    def backward(self, slope: Float[Tensor, "tokens width"], kept: list) -> Float[Tensor, "tokens width"]:
        """The gradient with respect to the residual before the layer, from that with respect to the one after it."""
        x, mean, scale, inner, q, k, v, attention, context = kept.pop()
        heads, time, dim = self.shape.heads, *q.shape[1:]

        def by_head(y: Tensor) -> Tensor:
            return y.view(-1, time, heads, y.shape[1] // heads).transpose(1, 2).reshape(len(q), time, -1)

        above = slope @ self.out
        mean_score = by_head((above * context).view(-1, heads, dim).sum(dim=2))
        above = by_head(above)
        scores = torch.baddbmm(mean_score, above, v.mT, beta=-1).mul_(attention)
        vectors = torch.stack([scores @ k, scores.mT @ q, attention.mT @ above])
        vectors = vectors.view(3, -1, heads, time, dim).permute(1, 3, 0, 2, 4).reshape(-1, time, 3 * heads, dim)
        self.rotary.turn_(vectors[:, :, : 2 * heads], back=True)
        inner = activate_back(self.shape, slope @ self.down, inner)
        plain = torch.mm(vectors.reshape(len(x), -1), self.qkv).addmm_(inner, self.up)
        return (
            slope
            + aten.native_layer_norm_backward(plain, x, x.shape[-1:], mean, scale, None, None, (True, False, False))[0]
        )
