"""The shape of a model: its architecture in numbers, and where its family keeps the weights.

A `Shape` is read from a ``config.json``, in the layout of transformers 4 or 5, and says all that an engine or a count
of costs needs to know. `KNOWN` holds shapes of models that many people use, so that their costs can be counted without
their files, and so that a model which is called Pythia is checked to be one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple


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


# Shapes of known models ---------------------------------------------------------------------------------------------


def _pythia(layers: int, heads: int, width: int, vocabulary: int = 50_304) -> Shape:
    rotary = width // heads // 4
    return Shape(layers, heads, width, 4 * width, vocabulary, rotary, 10_000.0, 1e-5, "gelu")


PYTHIA = {
    "pythia-14m": _pythia(6, 4, 128),
    "pythia-31m": _pythia(6, 8, 256),
    "pythia-70m": _pythia(6, 8, 512),
    "pythia-160m": _pythia(12, 12, 768),
    "pythia-410m": _pythia(24, 16, 1024),
    "pythia-1b": _pythia(16, 8, 2048),
    "pythia-1.4b": _pythia(24, 16, 2048),
    "pythia-2.8b": _pythia(32, 32, 2560),
    "pythia-6.9b": _pythia(32, 32, 4096, 50_432),
    "pythia-12b": _pythia(36, 40, 5120, 50_688),
}
"""Shapes of the family, as their config.json files have them."""


def _gpt2(layers: int, heads: int, width: int) -> Shape:
    numbers = (layers, heads, width, 4 * width, 50_257, 0, 0.0, 1e-5, "gelu_new")
    return Shape(*numbers, family="gpt2", parallel=False, tied=True, longest=1024)


def _llama(family: str, layers: int, heads: int, groups: int, width: int, mlp: int, vocabulary: int, dim: int) -> Shape:
    return Shape(
        *(layers, heads, width, mlp, vocabulary, dim, 10_000.0, 1e-5, "silu"),
        family=family,
        groups=groups,
        head_dim=dim,
        parallel=False,
        rms=True,
        biases=("attention",) if family == "qwen2" else (),
        head_norms=family == "qwen3",
        tied=True,
    )


OTHERS = {
    "gpt2": _gpt2(12, 12, 768),
    "gpt2-medium": _gpt2(24, 16, 1024),
    "gpt2-large": _gpt2(36, 20, 1280),
    "gpt2-xl": _gpt2(48, 25, 1600),
    "smollm2-135m": _llama("llama", 30, 9, 3, 576, 1536, 49_152, 64),
    "llama-3.2-1b": _llama("llama", 16, 32, 8, 2048, 8192, 128_256, 64),
    "qwen2.5-0.5b": _llama("qwen2", 24, 14, 2, 896, 4864, 151_936, 64),
    "qwen3-0.6b": _llama("qwen3", 28, 16, 8, 1024, 3072, 151_936, 128),
}
"""Shapes of models of other families: for costs alone, so bases of rotations and the like are not theirs."""


KNOWN = PYTHIA | OTHERS


def check_named(model: str, shape: Shape) -> None:
    """Raise a ValueError if a model that is called by a name of the Pythia family has another architecture."""
    expected = PYTHIA.get(plain_name(model))
    if expected is None or expected == shape:
        return
    differing = [
        f"{field} {getattr(shape, field)} instead of {value}"
        for field, value in vars(expected).items()
        if getattr(shape, field) != value
    ]
    raise ValueError(f"{model!r} has another architecture than that name has: {', '.join(differing)}")


def plain_name(model: str) -> str:
    """The name of a Pythia without its owner on the hub and the variants of one shape."""
    return re.sub(r"-(deduped|v0)$", "", model.lower().removeprefix("eleutherai/"))
