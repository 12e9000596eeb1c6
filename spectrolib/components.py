"""Components of a GPT-NeoX model: names, and the blocks of weights they mean.

A component is a block of weights: every attention head, every MLP, the embedding and the unembedding
(paper, "Susceptibilities"; block boundaries as in the authors' library ``devinterp``). For head ``h`` these are

* the rows of ``query_key_value.{weight,bias}``, viewed as ``(heads, 3, head_dim)``, at ``h``;
* columns ``h * head_dim`` to ``(h + 1) * head_dim`` of ``attention.dense.weight``.

``attention.dense.bias`` and the layer norms belong to no component; an MLP is both its matrices and both its biases.
The name ``full`` stands for every weight of the model: the unrestricted chain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

FULL = "full"
EMBED = "gpt_neox.embed_in.weight"
UNEMBED = "embed_out.weight"
ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class Shape:
    """What the engine needs to know of a GPT-NeoX: the numbers of its ``config.json``."""

    layers: int
    heads: int
    width: int
    mlp: int
    vocabulary: int
    rotary: int
    """Rotated dimensions of each head."""
    rotary_base: float
    norm_epsilon: float
    activation: str

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @classmethod
    def from_config(cls, config: Mapping) -> Shape:
        """Read a ``config.json`` (as a dict), in the layout of transformers 4 or 5.

        Raises:
            ValueError: if the model is of another family, or a GPT-NeoX of a kind that the engine does not run.
        """
        family = config.get("model_type")
        if family != "gpt_neox":
            raise ValueError(f"model family {family!r} is not supported: the family must be 'gpt_neox' (Pythia)")
        if not config.get("use_parallel_residual", True):
            raise ValueError("use_parallel_residual is false: only GPT-NeoX with parallel residuals is supported")
        if not config.get("attention_bias", True):
            raise ValueError("attention_bias is false: only GPT-NeoX with attention biases is supported")
        if config.get("tie_word_embeddings", False):
            raise ValueError("tie_word_embeddings is true: embedding and unembedding must be two components, untied")
        activation = config.get("hidden_act", "gelu")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is not supported: it must be one of {ACTIVATIONS}")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if rope.get("rope_type", "default") != "default":
            raise ValueError(f"rotary embedding of type {rope['rope_type']!r} is not supported: it must be 'default'")
        heads, width = config["num_attention_heads"], config["hidden_size"]
        fraction = config.get("rotary_pct", rope.get("partial_rotary_factor", 0.25))
        return cls(
            layers=config["num_hidden_layers"],
            heads=heads,
            width=width,
            mlp=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            rotary=int(width // heads * fraction),
            rotary_base=float(config.get("rotary_emb_base", rope.get("rope_theta", 10_000))),
            norm_epsilon=config.get("layer_norm_eps", 1e-5),
            activation=activation,
        )


@dataclass(frozen=True)
class Block:
    """A slice of one parameter: ``weights[parameter][index]``."""

    parameter: str
    index: tuple[slice, ...] = ()

    def of(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The block as a view into ``weights``."""
        return weights[self.parameter][self.index] if self.index else weights[self.parameter]


def names(shape: Shape) -> list[str]:
    """Names of all components: heads by layer, then MLPs, then ``embed`` and ``unembed``.

    Pythia-14M (6 layers, 4 heads) has 6 * 4 + 6 + 2 = 32.
    """
    heads = [f"l{layer}h{head}" for layer in range(shape.layers) for head in range(shape.heads)]
    mlps = [f"l{layer} mlp" for layer in range(shape.layers)]
    return [*heads, *mlps, "embed", "unembed"]


def components(model) -> list[str]:
    """Names of all components of ``model`` (a `LanguageModel`, a transformers model, a config dict or a `Shape`)."""
    if isinstance(model, Shape):
        return names(model)
    config = model if isinstance(model, Mapping) else model.config
    return names(Shape.from_config(config if isinstance(config, Mapping) else config.to_dict()))


def layer_of(component: str) -> int | None:
    """The layer of a head or an MLP; None for ``embed``, ``unembed`` and ``full``."""
    match = re.fullmatch(r"l(\d+)(h\d+| mlp)", component)
    return int(match[1]) if match else None


def check(component: str, shape: Shape) -> None:
    """Raise a ValueError unless ``component`` is a component of the model, or ``full``."""
    if component != FULL and component not in names(shape):
        raise ValueError(
            f"unknown component {component!r}: the model has heads l0h0 to l{shape.layers - 1}h{shape.heads - 1}, "
            f"MLPs 'l0 mlp' to 'l{shape.layers - 1} mlp', 'embed' and 'unembed' ('full' is the whole model)"
        )


def blocks(component: str, shape: Shape, parameters: Sequence[str] = ()) -> tuple[Block, ...]:
    """The blocks of weights of a component, in the order in which `gather` flattens them.

    For a head: query-key-value rows, their biases, the columns of the output projection. For an MLP: both matrices,
    each followed by its bias. For ``full``: every name in ``parameters``.
    """
    check(component, shape)
    if component == FULL:
        return tuple(Block(name) for name in parameters)
    if component == "embed":
        return (Block(EMBED),)
    if component == "unembed":
        return (Block(UNEMBED),)
    layer = layer_of(component)
    prefix = f"gpt_neox.layers.{layer}"
    if component.endswith("mlp"):
        parts = ("dense_h_to_4h.weight", "dense_h_to_4h.bias", "dense_4h_to_h.weight", "dense_4h_to_h.bias")
        return tuple(Block(f"{prefix}.mlp.{part}") for part in parts)
    head, dim = int(component.split("h")[1]), shape.head_dim
    rows = slice(3 * dim * head, 3 * dim * (head + 1))
    columns = slice(dim * head, dim * (head + 1))
    return (
        Block(f"{prefix}.attention.query_key_value.weight", (rows,)),
        Block(f"{prefix}.attention.query_key_value.bias", (rows,)),
        Block(f"{prefix}.attention.dense.weight", (slice(None), columns)),
    )


def gather(weights: Mapping[str, Tensor], parts: Sequence[Block]) -> Float[Tensor, " parameters"]:
    """The blocks of a component as one flat copy."""
    return torch.cat([block.of(weights).reshape(-1) for block in parts])


def split(flat: Float[Tensor, " parameters"], shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The flat weights of a component as its blocks: views, so that gradients flow back to ``flat``."""
    pieces = flat.split([shape.numel() for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def replace(
    weights: Mapping[str, Tensor], parts: Sequence[Block], flat: Float[Tensor, " parameters"]
) -> dict[str, Tensor]:
    """A copy of ``weights`` (sharing what is untouched) with a component's blocks set to ``flat``."""
    changed = dict(weights)
    for block, piece in zip(parts, split(flat, [block.of(weights).shape for block in parts]), strict=True):
        changed[block.parameter] = weights[block.parameter].clone()
        block.of(changed)[...] = piece
    return changed
