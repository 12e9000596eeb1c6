"""The shape of a model: its architecture in numbers, and where its family keeps the weights.

A `Shape` is read from a ``config.json``, in the layout of transformers 4 or 5. It holds all that the engine and the
estimates of cost need. `KNOWN` holds the shapes of widely used models. With them costs can be estimated without the
files of a model, and a model with the name of a Pythia is checked to have its shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..text.jsonfiles import Fields, short


@dataclass(frozen=True)
class Family:
    """Names of the weights of a family of models, as in transformers; those inside a layer follow its prefix."""

    embed: str
    unembed: str
    layer: str
    """Prefix of all names in a layer; {} stands for its number."""
    norms: tuple[str, str]
    """The norms before attention and before the MLP."""
    final_norm: str
    attention: tuple[str, ...]
    """Queries, keys and values: one matrix, or three."""
    out: str
    up: tuple[str, ...]
    """The MLP's first matrix, after the one of its gate if it has one."""
    down: str
    fused: Literal["", "interleaved", "concatenated"] = ""
    """How a single matrix holds queries, keys and values: "interleaved" head by head, "concatenated" with all queries
    first; "" for three matrices."""
    transposed: bool = False
    """Whether matrices have the shape (inputs, outputs)."""
    positions: str = ""
    """Learned position embeddings; "" if there are none."""


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
    """The architecture of a model, from the numbers of its ``config.json``."""

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
    """Which matrices have a bias: "attention" (queries, keys and values), "out" (output projection), "mlp"."""
    head_norms: bool = False
    """Whether each query and key has a norm (Qwen 3)."""
    tied: bool = False
    """Whether the unembedding is the embedding."""
    scaling: Scaling | None = None
    longest: int = 0
    """The largest number of tokens that the model reads at once; 0 for no limit (rotary positions)."""

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
        if not isinstance(family, str) or family not in FAMILIES:
            known = "'gpt_neox' (Pythia), 'gpt2', 'llama', 'mistral', 'qwen2' or 'qwen3'"
            raise ValueError(f"model family {family!r} is not supported: the family must be {known}")
        fields = Fields(config, f"the configuration of a {family!r}")
        found = {"gpt_neox": _neox_shape, "gpt2": _gpt2_shape}.get(family, _llama_shape)(fields, family)
        activation = found.pop("activation")
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation {activation!r} is not supported: it must be one of {', '.join(sorted(ACTIVATIONS))}"
            )
        if not fields.flag("is_causal", True):
            raise ValueError("is_causal is false: only models that read from left to right are supported")
        tied = fields.flag("tie_word_embeddings", family == "gpt2")  # what transformers takes where it is not said
        _refuse_others(fields)
        return cls(family=family, activation=activation, tied=tied, **found)


_ARITHMETIC = re.compile(
    r"soft_?cap|multiplier|scal(e|ing|ar)|qk_|norm(?!.*eps)|bias|clip|expert|sink|window|rope|rotary|alibi|residual|compress|"
    r"quant|adapter|lora|per_layer|layer_types|cross_attention|bidirectional|parallel_(attn|residual)|multi_query|"
    r"pre_attn|head_dim|key_value"
)
"""Parts of the names of config fields that change the computation of some model."""


def _refuse_others(fields: Fields) -> None:
    """Refuse a field that is not read here but may change the computation (`_ARITHMETIC`), unless it is off."""
    for name, value in fields.unasked():
        off = value is False or value in ("", [], {}) or (type(value) in (int, float) and value in (0, 1))
        if _ARITHMETIC.search(name) and not off:
            raise ValueError(
                f"{name} is {short(value)} in {fields.source}: that is not supported, and would change the numbers"
            )


def _neox_shape(fields: Fields, family: str) -> dict:
    if not fields.flag("attention_bias", True):
        raise ValueError("attention_bias is false: only GPT-NeoX with attention biases is supported")
    heads, width = fields.whole("num_attention_heads"), fields.whole("hidden_size")
    _, base, fraction = _rope(fields, family, "rotary_emb_base", "rotary_pct", 0.25)
    _agree(fields, "rope_theta", base)
    _agree(fields, "partial_rotary_factor", fraction)
    _agree(fields, "head_dim", width // heads)
    return {
        "layers": fields.whole("num_hidden_layers"),
        "heads": heads,
        "width": width,
        "mlp": fields.whole("intermediate_size"),
        "vocabulary": fields.whole("vocab_size"),
        "rotary": int(width // heads * fraction),
        "rotary_base": base,
        "norm_epsilon": fields.real("layer_norm_eps", 1e-5),
        "activation": fields.word("hidden_act", "gelu"),
        "parallel": fields.flag("use_parallel_residual", True),
    }


def _gpt2_shape(fields: Fields, family: str) -> dict:
    for name, usual in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if fields.flag(name, usual) != usual:
            raise ValueError(f"{name} is {not usual}: only GPT-2 with {name} {usual} is supported")
    layers, heads, width = (fields.whole(name) for name in ("n_layer", "n_head", "n_embd"))
    longest = fields.whole("n_positions", 1024)
    same = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": width}
    for name, value in (same | {"max_position_embeddings": longest, "head_dim": width // heads}).items():
        _agree(fields, name, value)
    return {
        "layers": layers,
        "heads": heads,
        "width": width,
        "mlp": fields.whole("n_inner", 4 * width),
        "vocabulary": fields.whole("vocab_size"),
        "rotary": 0,
        "rotary_base": 0.0,
        "norm_epsilon": fields.real("layer_norm_epsilon", 1e-5),
        "activation": fields.word("activation_function", "gelu_new"),
        "parallel": False,
        "longest": longest,
    }


_GROUPS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
"""Heads of keys and values that transformers takes where a configuration does not say."""


def _llama_shape(fields: Fields, family: str) -> dict:
    rope, base, fraction = _rope(fields, family, "rope_theta", "partial_rotary_factor", 1.0)
    if fraction != 1.0:
        raise ValueError(f"partial_rotary_factor is {fraction:g}: only whole heads are turned here")
    heads, width = fields.whole("num_attention_heads"), fields.whole("hidden_size")
    dim = fields.whole("head_dim", 128 if family == "qwen3" else width // heads)
    layers = fields.whole("num_hidden_layers")
    groups = fields.whole("num_key_value_heads", heads if "num_key_value_heads" in fields.content else None)
    return {
        "layers": layers,
        "heads": heads,
        "groups": groups or _GROUPS.get(family, heads),
        "head_dim": dim,
        "width": width,
        "mlp": fields.whole("intermediate_size"),
        "vocabulary": fields.whole("vocab_size"),
        "rotary": dim,
        "rotary_base": base,
        "norm_epsilon": fields.real("rms_norm_eps", 1e-6),
        "activation": fields.word("hidden_act", "silu"),
        "parallel": False,
        "rms": True,
        "biases": _llama_biases(fields, family),
        "head_norms": family == "qwen3",
        "scaling": _scaling(fields, rope),
        "longest": _window(fields, family, layers) or 0,
    }


def _llama_biases(fields: Fields, family: str) -> tuple[str, ...]:
    """What has biases, as transformers reads the family; where it reads none, a field that asks for them is refused."""
    if family == "qwen2":
        _agree(fields, "attention_bias", True)  # of queries, keys and values, whatever the configuration says
        return ("attention",)
    biased = {"attention": False, "mlp": False}
    if family != "mistral":
        biased["attention"] = fields.flag("attention_bias", False)
    if family == "llama":
        biased["mlp"] = fields.flag("mlp_bias", False)
    return (("attention", "out") if biased["attention"] else ()) + (("mlp",) if biased["mlp"] else ())


def _window(fields: Fields, family: str, layers: int) -> int | None:
    """Tokens that a layer with sliding attention sees; None where no layer has any."""
    kinds = set(fields.words("layer_types", []))
    slides, first = True, fields.whole("max_window_layers", 28, least=0)
    if family.startswith("qwen"):
        slides = fields.flag("use_sliding_window", False) and (
            "sliding_attention" in kinds if kinds else first < layers
        )
    elif kinds - {"full_attention"}:
        raise ValueError(
            f"layer_types of a {family!r} are {', '.join(sorted(kinds))}: only full_attention is supported"
        )
    if other := kinds - {"full_attention", "sliding_attention"}:
        raise ValueError(f"layer_types hold {sorted(other)[0]!r}: only full and sliding attention are supported")
    said = "sliding_window" in fields.content or family == "llama"
    window = fields.whole("sliding_window", None if said else 4096)
    return window if slides else None


def _agree(fields: Fields, name: str, value: float) -> None:
    """Refuse a field that contradicts ``value``, which is what transformers uses whatever this field says."""
    said = fields.content.get(name)
    fields.asked.add(name)
    if said is not None and said != value:
        raise ValueError(f"{name} is {short(said)} in {fields.source}, and its other fields say {short(value)}")


def _rope(fields: Fields, family: str, base: str, fraction: str, whole: float) -> tuple[Fields, float, float]:
    """The settings of the rotary embedding, its base, and the turned part of a head, as transformers resolves them.

    What stands in the table of settings goes before what stands beside it, and rope_scaling before rope_parameters.

    Raises:
        ValueError: if they are of a kind that we do not know.
    """
    tables = [fields.table(name, {}) for name in ("rope_scaling", "rope_parameters")]
    rope = next((table for table in tables if table.content), tables[0])
    known = ("default", "llama3") if family != "gpt_neox" else ("default",)
    kind = rope.word("rope_type", rope.word("type", "default"))
    if kind not in known:
        raise ValueError(f"rotary embedding of type {kind!r} is not supported: it must be {' or '.join(known)}")
    beside = fields.real(base, 10_000), fields.real(fraction, whole)
    found = rope.real("rope_theta", beside[0]), rope.real("partial_rotary_factor", beside[1])
    if kind == "llama3":
        rope.asked.update(_LLAMA3)
    if others := [name for name, _ in rope.unasked() if name != "original_max_position_embeddings"]:
        raise ValueError(
            f"{others[0]} is set in {rope.source}: a rotary embedding of type {kind!r} has no such setting"
        )
    return (rope, *found)


_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def _scaling(fields: Fields, rope: Fields) -> Scaling | None:
    if rope.word("rope_type", rope.word("type", "default")) != "llama3":
        return None
    *numbers, context = _LLAMA3
    trained = rope.real(context, fields.real("max_position_embeddings", 2048))
    trained = fields.real(context, trained)  # what stands beside the table goes first here, as transformers has it
    return Scaling(*(rope.real(name) for name in numbers), trained)


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
"""Shapes of models of other families, only for estimates of cost: rotary bases and the like are not the models' own."""


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
    """A Pythia's name in small letters, without its owner and without "-deduped" or "-v0", which share its shape."""
    return re.sub(r"-(deduped|v0)$", "", model.lower().removeprefix("eleutherai/"))
