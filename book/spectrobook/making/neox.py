"""A GPT-NeoX as a function of its tensors, for training: architecture, initial weights, losses.

Tensors have transformers' names, but there are no modules: worker processes need not import transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectrolib.model.layers import Rotary, forward
from spectrolib.model.loss import cross_entropy
from spectrolib.model.shapes import Shape


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
    """The final hidden states, by the plain forward pass of the engine."""
    plain = Shape.from_config(shape.config())
    return forward(weights, plain, Rotary(plain, ids.device), ids)


def total_loss(
    weights: dict[str, Tensor], windows: Int[Tensor, "windows length+1"], shape: Architecture
) -> Float[Tensor, ""]:
    """Sum of the losses of all predictions, in nats."""
    return _token_losses(weights, windows, shape).sum()


@torch.no_grad()
def window_losses(
    weights: dict[str, Tensor], windows: Int[Tensor, "windows length+1"], shape: Architecture
) -> Float[Tensor, " windows"]:
    """Mean loss of each window's predictions, in nats per token."""
    return torch.cat([_token_losses(weights, part, shape).view(len(part), -1).mean(1) for part in windows.split(8)])


def _token_losses(
    weights: dict[str, Tensor], windows: Int[Tensor, "windows length+1"], shape: Architecture
) -> Float[Tensor, " predictions"]:
    hidden = hidden_states(weights, windows[:, :-1], shape).flatten(0, 1)
    return cross_entropy(hidden, weights["embed_out.weight"], windows[:, 1:].flatten())
