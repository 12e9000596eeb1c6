"""Components of a model: names, and the blocks of weights they mean.

A component is a block of weights: every attention head, every MLP, the embedding and the unembedding
(paper, "Susceptibilities"; block boundaries as in the authors' library ``devinterp``). For head ``h`` of a GPT-NeoX
these are

* the rows of ``query_key_value.{weight,bias}``, viewed as ``(heads, 3, head_dim)``, at ``h``;
* columns ``h * head_dim`` to ``(h + 1) * head_dim`` of ``attention.dense.weight``.

The bias of the output projection and the norms belong to no component; an MLP is its matrices and their biases. The
name ``full`` stands for every weight of the model: the unrestricted chain.

Other families differ in where things lie (`FAMILIES`) and in two ways that change what a component is:

* Where several query heads share keys and values, *groups* ``l0g0``, ``l0g1``, ... partition the attention weights: the
  query heads that share, with what they share. A single query head ``l0h3`` may be named too, as in ``devinterp``; it
  holds the shared keys and values, so heads of one group overlap, and `names` does not list them.
* Where embedding and unembedding are one matrix, it is the component ``embed``, moved in both places; there is no
  ``unembed``.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

FULL = "full"


@dataclass(frozen=True)
class Family:
    """Where a family of models keeps its weights: transformers' names, those inside a layer relative to it."""

    embed: str
    unembed: str
    layer: str
    """With the layer's number for {}."""
    norms: tuple[str, str]
    """Those that attention and MLP read through."""
    final_norm: str
    attention: tuple[str, ...]
    """Queries, keys and values: one matrix, or three."""
    out: str
    up: tuple[str, ...]
    """The MLP's first matrix, after the one of its gate if it has one."""
    down: str
    fused: Literal["", "interleaved", "concatenated"] = ""
    """How one matrix holds queries, keys and values: head by head, or all queries first."""
    transposed: bool = False
    """Whether matrices have the shape (inputs, outputs)."""
    positions: str = ""
    """Learned positions."""


_NEOX = Family(
    embed="gpt_neox.embed_in.weight",
    unembed="embed_out.weight",
    layer="gpt_neox.layers.{}.",
    norms=("input_layernorm", "post_attention_layernorm"),
    final_norm="gpt_neox.final_layer_norm",
    attention=("attention.query_key_value",),
    fused="interleaved",
    out="attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
)
_GPT2 = Family(
    embed="transformer.wte.weight",
    unembed="lm_head.weight",
    layer="transformer.h.{}.",
    norms=("ln_1", "ln_2"),
    final_norm="transformer.ln_f",
    attention=("attn.c_attn",),
    fused="concatenated",
    out="attn.c_proj",
    up=("mlp.c_fc",),
    down="mlp.c_proj",
    transposed=True,
    positions="transformer.wpe.weight",
)
_LLAMA = Family(
    embed="model.embed_tokens.weight",
    unembed="lm_head.weight",
    layer="model.layers.{}.",
    norms=("input_layernorm", "post_attention_layernorm"),
    final_norm="model.norm",
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.o_proj",
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
)

FAMILIES = {
    "gpt_neox": _NEOX,
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}
"""By the ``model_type`` of a config.json."""

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "relu": "relu",
}


class Scaling(NamedTuple):
    """How Llama 3 stretches slow rotations for longer contexts (rope_type ``llama3``)."""

    factor: float
    low: float
    high: float
    context: float


@dataclass(frozen=True)
class Shape:
    """What the engine needs to know of a model: the numbers of its ``config.json``."""

    layers: int
    heads: int
    """Query heads."""
    width: int
    mlp: int
    vocabulary: int
    rotary: int
    """Rotated dimensions of each head; 0 where positions are learned."""
    rotary_base: float
    norm_epsilon: float
    activation: str
    family: str = "gpt_neox"
    groups: int = 0
    """Heads of keys and values; as many as query heads by default."""
    head_dim: int = 0
    """``width / heads`` by default."""
    parallel: bool = True
    """Whether attention and MLP read the same residual; else the MLP reads it after attention."""
    rms: bool = False
    """Whether norms divide by the root mean square, without centring and bias."""
    biases: tuple[str, ...] = ("attention", "out", "mlp")
    """What has a bias: queries, keys and values; the output projection; the MLP's matrices."""
    head_norms: bool = False
    """Whether each query and key has a norm (Qwen 3)."""
    tied: bool = False
    """Whether the unembedding is the embedding."""
    scaling: Scaling | None = None
    longest: int = 0
    """Most tokens that it reads at once; 0 where rotations set no limit."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", self.groups or self.heads)
        object.__setattr__(self, "head_dim", self.head_dim or self.width // self.heads)
        if self.heads % self.groups:
            raise ValueError(f"{self.heads} query heads cannot share {self.groups} heads of keys and values evenly")

    @property
    def where(self) -> Family:
        """Where the weights lie."""
        return FAMILIES[self.family]

    @property
    def embed(self) -> str:
        """Name of the embedding."""
        return self.where.embed

    @property
    def unembed(self) -> str:
        """Name of the unembedding: the embedding's where they are tied."""
        return self.where.embed if self.tied else self.where.unembed

    @property
    def shared(self) -> int:
        """Query heads that share keys and values."""
        return self.heads // self.groups

    @classmethod
    def from_config(cls, config: Mapping) -> Shape:
        """Read a ``config.json`` (as a dict), in the layout of transformers 4 or 5.

        Raises:
            ValueError: if the model is of another family, or of a kind that the engine does not run.
        """
        family = config.get("model_type")
        if family not in FAMILIES:
            known = "'gpt_neox' (Pythia), 'gpt2', 'llama', 'mistral', 'qwen2' or 'qwen3'"
            raise ValueError(f"model family {family!r} is not supported: the family must be {known}")
        try:
            found = {"gpt_neox": _neox_shape, "gpt2": _gpt2_shape}.get(family, _llama_shape)(config)
        except KeyError as error:
            raise ValueError(f"the configuration of a {family!r} lacks {error.args[0]!r}") from None
        activation = found.pop("activation")
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation {activation!r} is not supported: it must be one of {', '.join(sorted(ACTIVATIONS))}"
            )
        tied = bool(config.get("tie_word_embeddings", family == "gpt2"))  # what transformers takes where it is not said
        return cls(family=family, activation=activation, tied=tied, **found)


def _neox_shape(config: Mapping) -> dict:
    if not config.get("attention_bias", True):
        raise ValueError("attention_bias is false: only GPT-NeoX with attention biases is supported")
    rope = _rope(config)
    heads, width = config["num_attention_heads"], config["hidden_size"]
    fraction = config.get("rotary_pct", rope.get("partial_rotary_factor", 0.25))
    return {
        "layers": config["num_hidden_layers"],
        "heads": heads,
        "width": width,
        "mlp": config["intermediate_size"],
        "vocabulary": config["vocab_size"],
        "rotary": int(width // heads * fraction),
        "rotary_base": float(config.get("rotary_emb_base", rope.get("rope_theta", 10_000))),
        "norm_epsilon": config.get("layer_norm_eps", 1e-5),
        "activation": config.get("hidden_act", "gelu"),
        "parallel": config.get("use_parallel_residual", True),
    }


def _gpt2_shape(config: Mapping) -> dict:
    for name, usual in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if config.get(name, usual) != usual:
            raise ValueError(f"{name} is {not usual}: only GPT-2 with {name} {usual} is supported")
    return {
        "layers": config["n_layer"],
        "heads": config["n_head"],
        "width": config["n_embd"],
        "mlp": config.get("n_inner") or 4 * config["n_embd"],
        "vocabulary": config["vocab_size"],
        "rotary": 0,
        "rotary_base": 0.0,
        "norm_epsilon": config.get("layer_norm_epsilon", 1e-5),
        "activation": config.get("activation_function", "gelu_new"),
        "parallel": False,
        "longest": config.get("n_positions", 1024),
    }


def _llama_shape(config: Mapping) -> dict:
    rope, qwen = _rope(config), config["model_type"].startswith("qwen")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"partial_rotary_factor is {rope['partial_rotary_factor']}: only whole heads are turned here")
    heads, width = config["num_attention_heads"], config["hidden_size"]
    dim = config.get("head_dim") or (128 if config["model_type"] == "qwen3" else width // heads)
    biased = config["model_type"] == "qwen2", config.get("attention_bias", False), config.get("mlp_bias", False)
    biases = {"attention": any(biased[:2]), "out": biased[1], "mlp": biased[2]}
    window = config.get("sliding_window") if not qwen or config.get("use_sliding_window") else None
    return {
        "layers": config["num_hidden_layers"],
        "heads": heads,
        "groups": config.get("num_key_value_heads") or heads,
        "head_dim": dim,
        "width": width,
        "mlp": config["intermediate_size"],
        "vocabulary": config["vocab_size"],
        "rotary": dim,
        "rotary_base": float(config.get("rope_theta", rope.get("rope_theta", 10_000))),
        "norm_epsilon": config.get("rms_norm_eps", 1e-6),
        "activation": config.get("hidden_act", "silu"),
        "parallel": False,
        "rms": True,
        "biases": tuple(name for name, has in biases.items() if has),
        "head_norms": config["model_type"] == "qwen3",
        "scaling": _scaling(rope),
        "longest": window or 0,
    }


def _rope(config: Mapping) -> Mapping:
    """The settings of the rotary embedding; refused if they are of a kind that we do not know."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    known = ("default", "llama3") if config["model_type"] != "gpt_neox" else ("default",)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in known:
        raise ValueError(f"rotary embedding of type {kind!r} is not supported: it must be {' or '.join(known)}")
    return rope


def _scaling(rope: Mapping) -> Scaling | None:
    if rope.get("rope_type") != "llama3":
        return None
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return Scaling(*(float(rope[name]) for name in names))


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors of a model."""
    where, width = shape.where, shape.width

    def matrix(name: str, outputs: int, inputs: int, biased: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (inputs, outputs) if where.transposed else (outputs, inputs)
        if biased in shape.biases:
            yield f"{name}.bias", (outputs,)

    def norm(name: str, size: int = width) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (size,)
        if not shape.rms:
            yield f"{name}.bias", (size,)

    queries, keys = shape.heads * shape.head_dim, shape.groups * shape.head_dim
    sizes = (queries + 2 * keys,) if where.fused else (queries, keys, keys)
    yield where.embed, (shape.vocabulary, width)
    if where.positions:
        yield where.positions, (shape.longest, width)
    for layer in range(shape.layers):
        prefix = where.layer.format(layer)
        for name in where.norms:
            yield from norm(prefix + name)
        for name, size in zip(where.attention, sizes, strict=True):
            yield from matrix(prefix + name, size, width, "attention")
        if shape.head_norms:
            for name in HEAD_NORMS:
                yield from norm(prefix + name, shape.head_dim)
        yield from matrix(prefix + where.out, width, queries, "out")
        for name in where.up:
            yield from matrix(prefix + name, shape.mlp, width, "mlp")
        yield from matrix(prefix + where.down, width, shape.mlp, "mlp")
    yield from norm(where.final_norm)
    if not shape.tied:
        yield where.unembed, (shape.vocabulary, width)


HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
"""The norms of queries and keys, where there are any."""


@dataclass(frozen=True)
class Block:
    """A slice of one parameter: ``weights[parameter][index]``."""

    parameter: str
    index: tuple[slice, ...] = ()

    def of(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The block as a view into ``weights``."""
        return weights[self.parameter][self.index] if self.index else weights[self.parameter]


def names(shape: Shape) -> list[str]:
    """Names of all components: heads (or groups of heads) by layer, then MLPs, then ``embed`` and ``unembed``.

    Pythia-14M (6 layers, 4 heads) has 6 * 4 + 6 + 2 = 32.
    """
    heads = _heads(shape)
    if shape.shared > 1:
        heads = [f"l{layer}g{group}" for layer in range(shape.layers) for group in range(shape.groups)]
    mlps = [f"l{layer} mlp" for layer in range(shape.layers)]
    return [*heads, *mlps, "embed", *(() if shape.tied else ("unembed",))]


def _heads(shape: Shape) -> list[str]:
    return [f"l{layer}h{head}" for layer in range(shape.layers) for head in range(shape.heads)]


def components(model) -> list[str]:
    """Names of all components of ``model`` (a `LanguageModel`, a transformers model, a config dict or a `Shape`)."""
    if isinstance(model, Shape):
        return names(model)
    config = model if isinstance(model, Mapping) else model.config
    return names(Shape.from_config(config if isinstance(config, Mapping) else config.to_dict()))


def layer_of(component: str) -> int | None:
    """The layer of a head, a group of heads or an MLP; None for ``embed``, ``unembed`` and ``full``."""
    match = re.fullmatch(r"l(\d+)([hg]\d+| mlp)", component)
    return int(match[1]) if match else None


def check(component: str, shape: Shape) -> None:
    """Raise a ValueError unless ``component`` is a component of the model, or ``full``."""
    if component == FULL or component in names(shape) or component in _heads(shape):
        return
    last = shape.layers - 1
    grouped = f", groups l0g0 to l{last}g{shape.groups - 1}" if shape.shared > 1 else ""
    ends = "'embed' (which is the unembedding too)" if shape.tied else "'embed' and 'unembed'"
    raise ValueError(
        f"unknown component {component!r}: the model has heads l0h0 to l{last}h{shape.heads - 1}{grouped}, "
        f"MLPs 'l0 mlp' to 'l{last} mlp', {ends} ('full' is the whole model)"
    )


class Heads(NamedTuple):
    """The heads that a component of the attention weights holds."""

    queries: range
    group: int

    @classmethod
    def of(cls, component: str, shape: Shape) -> Heads:
        """Those of a head ``l0h1`` or a group ``l0g1``."""
        number = int(re.split("[hg]", component)[1])
        if "g" in component:
            return cls.sharing(number, shape)
        return cls(range(number, number + 1), number // shape.shared)

    @classmethod
    def sharing(cls, group: int, shape: Shape) -> Heads:
        """All that share the keys and values of a group."""
        return cls(range(group * shape.shared, (group + 1) * shape.shared), group)

    def columns(self, shape: Shape) -> slice:
        """Where their outputs stand among those of all heads."""
        return slice(self.queries.start * shape.head_dim, self.queries.stop * shape.head_dim)


def blocks(component: str, shape: Shape, parameters: Sequence[str] = ()) -> tuple[Block, ...]:
    """The blocks of weights of a component, in the order in which `gather` flattens them.

    For a head: rows of queries, keys and values, their biases, the columns of the output projection. For an MLP: its
    matrices, each followed by its bias. For ``full``: every name in ``parameters``.
    """
    check(component, shape)
    where = shape.where
    if component == FULL:
        return tuple(Block(name) for name in parameters)
    if component in ("embed", "unembed"):
        return (Block(shape.embed if component == "embed" else shape.unembed),)
    prefix = where.layer.format(layer_of(component))
    if component.endswith("mlp"):
        kinds = ("weight", "bias") if "mlp" in shape.biases else ("weight",)
        return tuple(Block(f"{prefix}{matrix}.{kind}") for matrix in (*where.up, where.down) for kind in kinds)
    return head_blocks(Heads.of(component, shape), shape, prefix)


def head_blocks(heads: Heads, shape: Shape, prefix: str) -> tuple[Block, ...]:
    """The blocks of some heads of the layer whose tensors' names begin with ``prefix``."""
    where, dim = shape.where, shape.head_dim
    columns, group = heads.columns(shape), slice(heads.group * dim, (heads.group + 1) * dim)
    if where.fused == "interleaved":
        parts = [(where.attention[0], slice(3 * columns.start, 3 * columns.stop))]
    elif where.fused:
        shifts = (0, shape.heads * dim, 2 * shape.heads * dim)
        parts = [(where.attention[0], slice(columns.start + shift, columns.stop + shift)) for shift in shifts]
    else:
        parts = list(zip(where.attention, (columns, group, group), strict=True))

    def outputs(part: slice) -> tuple[slice, ...]:
        return (slice(None), part) if where.transposed else (part,)

    found = [Block(f"{prefix}{name}.weight", outputs(part)) for name, part in parts]
    if "attention" in shape.biases:
        found += [Block(f"{prefix}{name}.bias", (part,)) for name, part in parts]
    inputs = (columns,) if where.transposed else (slice(None), columns)
    return (*found, Block(f"{prefix}{where.out}.weight", inputs))


@functools.cache
def _sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    return dict(tensors(shape))


def size(component: str, shape: Shape) -> int:
    """Number of weights of a component, or of the whole model (``full``)."""
    sizes, total = _sizes(shape), 0
    for block in blocks(component, shape, tuple(sizes)):
        whole = sizes[block.parameter]
        index = block.index + (slice(None),) * (len(whole) - len(block.index))
        total += math.prod(len(range(*part.indices(length))) for part, length in zip(index, whole, strict=True))
    return total


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
        if changed[block.parameter] is weights[block.parameter]:
            changed[block.parameter] = weights[block.parameter].clone()
        block.of(changed)[...] = piece
    return changed
