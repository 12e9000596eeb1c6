"""The layers of a GPT-NeoX: written plainly, for weights that move, and frozen, with a backward pass by hand."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .components import EMBED, Shape

FINAL_NORM = "gpt_neox.final_layer_norm"
aten = torch.ops.aten


class Rotary:
    """Causal positions: rotary embedding of the first ``shape.rotary`` dimensions of queries and keys, the mask.

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
        self.length = 0

    def turns(self, time: int) -> Tensor:
        """e^{i angle} for each position and pair of dimensions."""
        if time > self.length:
            angles = torch.outer(torch.arange(time, dtype=torch.float32, device=self.device), self.frequencies)
            self.table, self.length = torch.polar(torch.ones_like(angles), angles), time
        return self.table[:time]

    def __call__(self, x: Float[Tensor, "windows time vectors dim"]) -> Tensor:
        turns = self.turns(x.shape[1])[:, None]
        first, second, kept = x.split([self.dims // 2, self.dims // 2, x.shape[-1] - self.dims], dim=-1)
        turned = torch.complex(first, second) * turns
        return torch.cat([turned.real, turned.imag, kept], dim=-1)

    def turn_(self, x: Float[Tensor, "windows time vectors dim"], back: bool = False) -> None:
        """The same in place (or its inverse), for vectors in which the dimensions of a pair stand side by side."""
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


def activate(shape: Shape, x: Tensor) -> Tensor:
    """The MLP's activation."""
    return F.gelu(x, approximate=_approximation(shape))


def _approximation(shape: Shape) -> str:
    return "none" if shape.activation == "gelu" else "tanh"


def attend(
    qkv: Float[Tensor, "windows time joined"], shape: Shape, rotary: Rotary
) -> Float[Tensor, "windows time heads_dim"]:
    """Causal attention of however many heads ``qkv`` holds; each head's query, key and value stand side by side."""
    windows, time, _ = qkv.shape
    qkv = qkv.view(windows, time, -1, shape.head_dim)
    turned = rotary(qkv).unflatten(2, (-1, 3))
    q, k, v = turned[..., 0, :], turned[..., 1, :], qkv.unflatten(2, (-1, 3))[..., 2, :]
    context = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True)
    return context.transpose(1, 2).reshape(windows, time, -1)


def norm(x: Tensor, weights: Mapping[str, Tensor], name: str, shape: Shape) -> Tensor:
    """The layer norm called ``name``."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], shape.norm_epsilon)


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
        qkv = linear(norm(x, weights, f"{name}.input_layernorm", shape), "attention.query_key_value")
        inner = linear(norm(x, weights, f"{name}.post_attention_layernorm", shape), "mlp.dense_h_to_4h")
        attention = linear(attend(qkv, shape, rotary), "attention.dense")
        x = x + attention + linear(activate(shape, inner), "mlp.dense_4h_to_h")
    return norm(x, weights, FINAL_NORM, shape)


class FrozenLayer:
    """A frozen layer, forward and backward by hand: only the residual gets a gradient, and little is kept for it.

    Its norms are folded into the matrices that follow, 1/√dim into the queries; queries, keys and values of all heads
    stand in three rows, with the dimensions that the rotary embedding turns together side by side.
    """

    def __init__(self, weights: Mapping[str, Tensor], layer: int, shape: Shape, rotary: Rotary):
        own = lambda part: weights[f"gpt_neox.layers.{layer}.{part}"]  # noqa: E731
        self.shape, self.rotary = shape, rotary
        self.norms = [
            (own(f"{name}.weight"), own(f"{name}.bias")) for name in ("input_layernorm", "post_attention_layernorm")
        ]
        (qkv, qkv_bias), (self.up, self.up_bias) = (
            (own(f"{part}.weight") * gain, own(f"{part}.bias") + own(f"{part}.weight") @ offset)
            for part, (gain, offset) in zip(("attention.query_key_value", "mlp.dense_h_to_4h"), self.norms, strict=True)
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
            attention = torch.baddbmm(self.rotary.mask(time), q, k.mT).softmax(dim=-1)
            context = torch.bmm(attention, v).view(-1, heads, time, dim)
        context = context.transpose(1, 2).reshape(x.shape)
        if kept is not None:
            kept.append((x, mean, scale, inner, q, k, v, attention, context))
        after = (x + (self.out_bias + self.down_bias)).addmm_(context, self.out.T)
        return after.addmm_(activate(self.shape, inner), self.down.T), context

    def backward(self, slope: Float[Tensor, "tokens width"], kept: tuple) -> Float[Tensor, "tokens width"]:
        """From the gradient with respect to the residual after the layer, that with respect to the one before it."""
        x, mean, scale, inner, q, k, v, attention, context = kept
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
        inner = aten.gelu_backward(slope @ self.down, inner, approximate=_approximation(self.shape))
        plain = torch.mm(vectors.reshape(len(x), -1), self.qkv).addmm_(inner, self.up)
        return (
            slope
            + aten.native_layer_norm_backward(plain, x, x.shape[-1:], mean, scale, None, None, (True, False, False))[0]
        )
