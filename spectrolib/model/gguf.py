"""Models in the GGUF format of llama.cpp: one file with the configuration, the tokenizer and the weights.

Weights are often rounded to a few bits in blocks; the package `gguf` (extra ``gguf``) widens them to float32, and what
is measured is the model of the rounded weights. Only Llama's family is read. Names and layout become those of
transformers: the rows of queries and keys, which llama.cpp interleaves for its rotations, go back to their order.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gguf import GGUFReader
    from tokenizers import Tokenizer

SUFFIX = ".gguf"

_FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
"""The file's fields of the family, and what config.json calls them."""
_NEEDED = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
_IMPLIED = ("attention.value_length", "rope.dimension_count")
"""Fields that must equal the size of a head."""
_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
_WORDS += r"|\s+(?!\S)|\s+"
"""How Llama 3 cuts text into words."""
_CUTS = ("gpt-2", "smollm", "llama-bpe")
"""Ways of cutting text into words (``tokenizer.ggml.pre``) that are known here, as llama.cpp has them."""
_CONTROL, _USER = 3, 4
"""Types of tokens that stand for themselves in a text: marks such as <|endoftext|>, and words that somebody added."""


def read_config(file: Path) -> dict:
    """What a config.json of the model would say.

    Raises:
        ValueError: if this is no such file, its model is not of Llama's family, or it says something that is not known
            here, and so would be ignored.
        ImportError: without the package `gguf`.
    """
    reader = _open(file)
    family = _value(reader, "general.architecture")
    if family != "llama":
        raise ValueError(f"{file} holds a model of family {family!r}: of GGUF files only 'llama' is read")
    prefix = "llama."
    said = {name.removeprefix(prefix): _value(reader, name) for name in reader.fields if name.startswith(prefix)}
    if said.get("rope.scaling.type") == "none":
        del said["rope.scaling.type"]
    if unknown := sorted(said.keys() - _FIELDS.keys() - set(_IMPLIED)):
        raise ValueError(f"{file} says {', '.join(f'{n} {said[n]}' for n in unknown)}, which is not known here")
    if missing := [name for name in _NEEDED if name not in said]:
        raise ValueError(f"{file} does not say {', '.join(prefix + name for name in missing)}")
    config = {_FIELDS[name]: value for name, value in said.items() if name in _FIELDS}
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    for name in _IMPLIED:
        if said.get(name, config["head_dim"]) != config["head_dim"]:
            raise ValueError(f"{file} says {name} {said[name]}: only heads of one size, turned whole, are known here")
    sizes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    config.setdefault("vocab_size", sizes.get("token_embd.weight", [0, 0])[1])
    config["tie_word_embeddings"] = "output.weight" not in sizes
    return {"model_type": "llama", "hidden_act": "silu"} | config


def read_sizes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors, by transformers' names."""
    return {_name(tensor.name, file): tuple(tensor.shape.tolist()[::-1]) for tensor in _open(file).tensors}


def read_weights(file: Path, config: Mapping) -> dict[str, Tensor]:
    """All tensors, in float32, by transformers' names."""
    from gguf import dequantize

    heads = {"q_proj": config["num_attention_heads"]}
    heads["k_proj"] = config.get("num_key_value_heads") or heads["q_proj"]
    weights = {}
    for tensor in _open(file).tensors:
        name, weight = _name(tensor.name, file), torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        count = heads.get(name.split(".")[-2])
        weights[name] = weight.float() if count is None else _halves(weight.float(), count)
    return weights


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys from llama.cpp's order, in which those that turn together lie side by side."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def read_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer, byte-level BPE.

    Raises:
        ValueError: if it is of another kind, or cuts text into words in a way that is not known here.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models

    reader = _open(file)
    kind, cut = _value(reader, "tokenizer.ggml.model"), _value(reader, "tokenizer.ggml.pre") or "gpt-2"
    if kind != "gpt2" or cut not in _CUTS:
        raise ValueError(
            f"{file} has a tokenizer of kind {kind!r}, cutting words as {cut!r}: known are 'gpt2' with one of "
            f"{', '.join(_CUTS)}. Give the model as a folder in the format of the hub"
        )
    words = _value(reader, "tokenizer.ggml.tokens")
    merges = [tuple(pair.split(" ", 1)) for pair in _value(reader, "tokenizer.ggml.merges")]
    types = _value(reader, "tokenizer.ggml.token_type") or [1] * len(words)
    result = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    result.pre_tokenizer, result.decoder = _cutter(cut), decoders.ByteLevel()
    alone = [(word, own) for word, own in zip(words, types, strict=True) if own in (_CONTROL, _USER)]
    result.add_tokens([AddedToken(w, special=own == _CONTROL, normalized=False) for w, own in alone])
    return result


def _cutter(name: str):
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if name == "llama-bpe":
        return Sequence([Split(Regex(_WORDS), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    whole = ByteLevel(add_prefix_space=False)
    return Sequence([Digits(individual_digits=True), whole]) if name == "smollm" else whole


def _open(file: Path) -> GGUFReader:
    """The file's reader. Reading the tokenizer takes it seconds, so the last file's is kept."""
    try:
        found = file.stat()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    return _reader(file, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _reader(file: Path, size: int, changed: int) -> GGUFReader:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ImportError("GGUF files need the extra: pip install 'spectrolib[gguf]'") from error
    try:
        return GGUFReader(file)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise ValueError(f"{file} is not a GGUF file, or is cut short: {error}") from error


def _value(reader: GGUFReader, name: str):
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _name(name: str, file: Path) -> str:
    """transformers' name of a tensor."""
    *layer, own, what = name.split(".")
    known = own in _TENSORS and what == "weight" and (not layer or (len(layer) == 2 and layer[0] == "blk"))
    if not known:
        raise ValueError(f"{file} holds the tensor {name}, which is not known here, and so would be ignored")
    return f"{f'model.layers.{layer[1]}.' if layer else ''}{_TENSORS[own]}.weight"
