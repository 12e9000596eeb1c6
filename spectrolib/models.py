"""Language models: the bundled one, a local folder, or a name on the hub.

Weights are read from safetensors only, and no code from a model's repository is run. `load_model` gives a transformers
module; `load_weights` gives the bare tensors without importing transformers, which is what worker processes use.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .components import Shape
from .corpus import BUNDLED

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_BUFFERS = re.compile(r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$")  # in files written by older versions


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in evaluation mode, its parameters frozen, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast | None
    name: str
    path: Path | None = None
    """local folder with config.json and safetensors files"""
    revision: str | None = None

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of configuration and weights: of the files where there are any, otherwise of the tensors."""
        digest = hashlib.sha256()
        if self.path is not None:
            digest.update(json.dumps(_config(self.path), sort_keys=True).encode())
            for file in _weight_files(self.path):
                with file.open("rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
        else:
            digest.update(self.model.config.to_json_string(use_diff=False).encode())
            for name, tensor in sorted(self.model.state_dict().items()):
                digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()


def load_model(
    name_or_path: str | Path = "bundled",
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> LanguageModel:
    """Load a causal language model and its tokenizer.

    Parameters
    ----------
    name_or_path
        "bundled"; a folder with config.json and safetensors files; or a name on the hub, "EleutherAI/pythia-14m".
    revision
        Branch, tag or commit on the hub; for Pythia also a training step, "step1000".
    device
        "auto" takes a CUDA device if there is one.
    dtype
        "float32", "float16" or "bfloat16"; files in half precision are widened to it.

    Raises
    ------
    ValueError
        If there is no such model; its family is not supported; its weights are not safetensors, are incomplete or
        truncated; or device or dtype is unknown.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: one of {', '.join(_DTYPES)}")
    target = _device(device)
    name = str(name_or_path)
    folder = _folder(name, revision)
    Shape.from_config(_config(folder))
    _check_weights(folder)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"local_files_only": True, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=_DTYPES[dtype], use_safetensors=True, **options)
    has_tokenizer = (folder / "tokenizer.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(folder, **options) if has_tokenizer else None
    return LanguageModel(model.to(target), tokenizer, name, folder, revision)


def load_weights(path: str | Path) -> tuple[dict, dict[str, Tensor]]:
    """Configuration and float32 tensors of a model folder, without transformers.

    Tensors have the hub's names, the unembedding being `embed_out.weight` whatever the file calls it.

    Raises
    ------
    ValueError
        As `load_model`.
    """
    folder = Path(path)
    config = _config(folder)
    shape = Shape.from_config(config)
    _check_weights(folder)
    from safetensors.torch import load_file

    weights = {}
    for file in _weight_files(folder):
        for name, tensor in load_file(file).items():
            if not _BUFFERS.search(name):
                weights["embed_out.weight" if name == "lm_head.weight" else name] = tensor.float()
    expected = dict(_tensor_sizes(shape))
    for name, size in expected.items():
        if name not in weights:
            raise ValueError(f"the weights in {folder} lack the tensor {name}: the file does not match its config.json")
        if tuple(weights[name].shape) != size:
            raise ValueError(f"{name} in {folder} has shape {tuple(weights[name].shape)}, its config.json says {size}")
    return config, {name: weights[name] for name in expected}


def _tensor_sizes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors of a GPT-NeoX."""
    width, mlp = shape.width, shape.mlp
    yield "gpt_neox.embed_in.weight", (shape.vocabulary, width)
    for layer in range(shape.layers):
        prefix = f"gpt_neox.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield from _affine(prefix + norm, (width,))
        yield from _affine(prefix + "attention.query_key_value", (3 * width, width))
        yield from _affine(prefix + "attention.dense", (width, width))
        yield from _affine(prefix + "mlp.dense_h_to_4h", (mlp, width))
        yield from _affine(prefix + "mlp.dense_4h_to_h", (width, mlp))
    yield from _affine("gpt_neox.final_layer_norm", (width,))
    yield "embed_out.weight", (shape.vocabulary, width)


def _affine(name: str, size: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield name + ".weight", size
    yield name + ".bias", size[:1]


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: 'auto', 'cpu', 'cuda', 'cuda:1', ...") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but there is no CUDA device here")
    return target


# ---------------------------------------------------------------------------------------------------------------------
# Folders and files


def _folder(name: str, revision: str | None) -> Path:
    """The local folder of a model, fetched from the hub if need be."""
    if name == "bundled":
        return BUNDLED
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    known = "give 'bundled', a folder with config.json and safetensors files, or a name on the hub such as "
    known += "'EleutherAI/pythia-14m'"
    if path.exists() or not _HUB_NAME.fullmatch(name):
        raise ValueError(f"no model folder {name!r}: {known}")
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        # The configuration first: an unsupported model is refused before its weights are fetched.
        Shape.from_config(_config(Path(hf_hub_download(name, "config.json", revision=revision)).parent))
        wanted = ["*.json", "*.safetensors"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except ValueError as error:
        if type(error) is ValueError:  # our own; the hub's errors are subclasses
            raise
        reason = error
    except Exception as error:  # no such repository, no network, no access, ...
        reason = error
    first_line = (str(reason).strip().splitlines() or [""])[0]
    raise ValueError(f"cannot get model {name!r}: {known} ({type(reason).__name__}: {first_line[:200]})") from reason


def _config(folder: Path) -> dict:
    file = folder / "config.json"
    if not file.exists():
        raise ValueError(f"{folder} is no model folder: it has no config.json")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if config.get("tie_word_embeddings", False):
        raise ValueError(f"{file} ties embedding and unembedding: only untied models are supported")
    return config


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in order of name."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    if index.exists():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        if missing := [f.name for f in files if not f.exists()]:
            raise ValueError(f"{folder} lacks {', '.join(missing)}, which {index.name} names")
        return files
    other = sorted(f.name for f in folder.glob("*") if f.suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"))
    found = f"only {', '.join(other)}, which is not read because it can run code" if other else "none"
    raise ValueError(f"{folder} has no safetensors weights (model.safetensors); found {found}")


def _check_weights(folder: Path) -> None:
    """Compare the length of each safetensors file with what its header announces."""
    for file in _weight_files(folder):
        size = file.stat().st_size
        with file.open("rb") as content:
            header_size = int.from_bytes(content.read(8), "little")
            if size < 8 or header_size > size - 8:
                raise ValueError(f"{file} is truncated or not a safetensors file ({size} bytes)")
            try:
                header = json.loads(content.read(header_size))
                ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"{file} is not a safetensors file: its header cannot be read") from error
        announced = 8 + header_size + max(ends, default=0)
        if size != announced:
            raise ValueError(f"{file} is truncated or damaged: {size} bytes, but its header announces {announced}")
