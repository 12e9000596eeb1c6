"""A GPT-NeoX as a function of its tensors, for training: initial weights, hidden states, losses.

The same function as the one in transformers, under the same names, but without modules: worker processes need not
import transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Architecture:
    """Numbers of a GPT-NeoX; the defaults are Pythia-14M's body over a vocabulary of 4 096."""

    layers: int = 6
    heads: int = 4
    width: int = 128
    mlp: int = 512
    vocabulary: int = 4096
    context: int = 2048
    rotary: float = 0.25

    def config(self) -> dict:
        """The hub's config.json."""
        return {
            "architectures": ["GPTNeoXForCausalLM"],
            "model_type": "gpt_neox",
            "attention_bias": True,
            "attention_dropout": 0.0,
            "bos_token_id": 0,
            "classifier_dropout": 0.1,
            "dtype": "float16",
            "eos_token_id": 0,
            "hidden_act": "gelu",
            "hidden_dropout": 0.0,
            "hidden_size": self.width,
            "initializer_range": 0.02,
            "intermediate_size": self.mlp,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": self.context,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "rotary_emb_base": 10000,
            "rotary_pct": self.rotary,
            "tie_word_embeddings": False,
            "use_cache": True,
            "use_parallel_residual": True,
            "vocab_size": self.vocabulary,
        }


def initial_weights(shape: Architecture, seed: int) -> dict[str, Tensor]:
    """Normal(0, 0.02) matrices, zero projections back into the residual stream, unit norms, zero biases."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator) * 0.02

    w, m = shape.width, shape.mlp
    weights = {"gpt_neox.embed_in.weight": normal(shape.vocabulary, w)}
    for layer in range(shape.layers):
        p = f"gpt_neox.layers.{layer}."
        weights |= {
            p + "attention.query_key_value.weight": normal(3 * w, w),
            p + "attention.query_key_value.bias": torch.zeros(3 * w),
            p + "attention.dense.weight": torch.zeros(w, w),
            p + "attention.dense.bias": torch.zeros(w),
            p + "mlp.dense_h_to_4h.weight": normal(m, w),
            p + "mlp.dense_h_to_4h.bias": torch.zeros(m),
            p + "mlp.dense_4h_to_h.weight": torch.zeros(w, m),
            p + "mlp.dense_4h_to_h.bias": torch.zeros(w),
        }
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights |= {p + norm + ".weight": torch.ones(w), p + norm + ".bias": torch.zeros(w)}
    norm = "gpt_neox.final_layer_norm"
    weights |= {norm + ".weight": torch.ones(w), norm + ".bias": torch.zeros(w)}
    return weights | {"embed_out.weight": normal(shape.vocabulary, w)}


def hidden_states(
    weights: dict[str, Tensor], ids: Int[Tensor, "windows length"], shape: Architecture
) -> Float[Tensor, "windows length width"]:
    """The final hidden states; the same function as transformers' GPTNeoX, with less overhead."""
    windows, length = ids.shape
    head, rotated = shape.width // shape.heads, int(shape.rotary * shape.width // shape.heads)
    frequency = 1e4 ** -(torch.arange(0, rotated, 2, device=ids.device).float() / rotated)
    angle = torch.outer(torch.arange(length, device=ids.device).float(), frequency)
    cos, sin = angle.cos(), angle.sin()

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (shape.width,), weights[name + ".weight"], weights[name + ".bias"], 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[name + ".weight"], weights[name + ".bias"])

    def rotate(x: Tensor) -> Tensor:  # windows heads length head
        a, b, rest = x.split([rotated // 2, rotated // 2, head - rotated], dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)

    x = F.embedding(ids, weights["gpt_neox.embed_in.weight"])
    for layer in range(shape.layers):
        p = f"gpt_neox.layers.{layer}."
        qkv = linear(norm(x, p + "input_layernorm"), p + "attention.query_key_value")
        q, k, v = qkv.view(windows, length, shape.heads, 3 * head).transpose(1, 2).split(head, dim=-1)
        attended = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        attended = attended.transpose(1, 2).reshape(windows, length, shape.width)
        wide = F.gelu(linear(norm(x, p + "post_attention_layernorm"), p + "mlp.dense_h_to_4h"))
        x = x + linear(attended, p + "attention.dense") + linear(wide, p + "mlp.dense_4h_to_h")
    return norm(x, "gpt_neox.final_layer_norm")


class _CrossEntropy(torch.autograd.Function):
    """Sum of token losses, and its gradient, in one sweep over blocks of tokens that stay in the cache."""

    @staticmethod
    def forward(ctx, h: Tensor, unembed: Tensor, targets: Tensor, block: int = 512) -> Tensor:
        dh, dunembed_t = torch.empty_like(h), torch.zeros_like(unembed.T)
        total = h.new_zeros(())
        for start in range(0, len(h), block):
            cut = slice(start, start + block)
            logits = h[cut] @ unembed.T
            target = targets[cut, None]
            chosen = logits.gather(1, target).sum()
            top = logits.amax(1, keepdim=True)
            p = logits.sub_(top).exp_()
            z = p.sum(1, keepdim=True)
            total += (z.log() + top).sum() - chosen
            p.div_(z).scatter_add_(1, target, p.new_full(target.shape, -1.0))
            dh[cut] = p @ unembed
            dunembed_t.addmm_(h[cut].T, p)
        ctx.save_for_backward(dh, dunembed_t.T)
        return total

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple:
        dh, dunembed = ctx.saved_tensors
        return g * dh, g * dunembed, None, None


def total_loss(
    weights: dict[str, Tensor], windows: Int[Tensor, "windows length+1"], shape: Architecture
) -> Float[Tensor, ""]:
    """Sum of the losses of all predictions, in nats."""
    h = hidden_states(weights, windows[:, :-1], shape)
    return _CrossEntropy.apply(h.flatten(0, 1), weights["embed_out.weight"], windows[:, 1:].flatten())


@torch.no_grad()
def window_losses(
    weights: dict[str, Tensor], windows: Int[Tensor, "windows length+1"], shape: Architecture
) -> Float[Tensor, " windows"]:
    """Mean loss of each window's predictions, in nats per token."""
    losses = []
    for part in windows.split(8):
        logits = hidden_states(weights, part[:, :-1], shape) @ weights["embed_out.weight"].T
        token = F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none")
        losses.append(token.view(len(part), -1).mean(1))
    return torch.cat(losses)
