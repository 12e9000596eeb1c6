"""Dictionaries on disk: the format of sparsify, that of Marks et al., names on the hub, and those that ship.

Public families for Pythia-70m: the TopK dictionaries `EleutherAI/sae-pythia-70m-32k`, in the format of sparsify, which
is ours too; and those of Marks et al. for Pythia-70m-deduped, `saprmarks/pythia-70m-deduped-saes`, with a ReLU.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from scipy.sparse import csr_array, vstack

from ..model.activations import activations, place, untrained
from ..model.loading import check_finite, engine_of
from ..text.corpus import BUNDLED, Windows
from ..text.hub import asking_hub
from ..text.jsonfiles import Fields, check_fetched, read_json
from .autoencoders import Autoencoder

FOLDER = BUNDLED / "autoencoders"
MARKS = "saprmarks/pythia-70m-deduped-saes"


def _folder_names(site: str) -> tuple[str, str | None]:
    """What sparsify and what Marks et al. call a site."""
    layer, part = place(site)
    if site == "embed":
        return "embed_in", "embed"
    suffix = {"residual": "", "attention": ".attention", "mlp": ".mlp", "neurons": ".mlp.act"}[part]
    prefix = {"residual": "resid", "attention": "attn", "mlp": "mlp"}.get(part)
    return f"layers.{layer}{suffix}", prefix and f"{prefix}_out_layer{layer}"


def save(autoencoder: Autoencoder, folder: str | Path, *, dtype: torch.dtype = torch.float16) -> Path:
    """Write an autoencoder in the format of sparsify: FOLDER/SITE/cfg.json and sae.safetensors; and card.json.

    Raises:
        ValueError: for an autoencoder without k, which that format cannot express.
    """
    from safetensors.torch import save_file

    if autoencoder.k is None:
        raise ValueError("only TopK autoencoders are saved: this one has a ReLU")
    target = Path(folder) / _folder_names(autoencoder.site)[0]
    target.mkdir(parents=True, exist_ok=True)
    config = {
        "expansion_factor": autoencoder.features // autoencoder.width,
        "normalize_decoder": True,
        "num_latents": autoencoder.features,
        "k": autoencoder.k,
        "signed": False,
        "d_in": autoencoder.width,
    }
    tensors = {
        "encoder.weight": autoencoder.encoder,
        "encoder.bias": autoencoder.encoder_bias,
        "W_dec": autoencoder.decoder,
        "b_dec": autoencoder.bias,
    }
    save_file({name: w.to(dtype).contiguous() for name, w in tensors.items()}, target / "sae.safetensors")
    (target / "cfg.json").write_text(json.dumps(config) + "\n")
    (target / "card.json").write_text(json.dumps({"site": autoencoder.site, **autoencoder.card}, indent=1) + "\n")
    return target


def shipped() -> dict[str, dict]:
    """The cards of the autoencoders that come with the library, by the names that `load` takes, with their sites."""
    return {f"bundled/{card.parent.parent.name}": json.loads(card.read_text()) for card in _cards()}


def shipped_for(model) -> list[str]:
    """The names of the shipped autoencoders that were made for a model.

    Raises:
        ValueError: if there is none.
    """
    found = [name for name, card in shipped().items() if card["model_hash"] == model.hash]
    if not found:
        raise ValueError(
            f"no autoencoder ships for model {model.name!r}: name a folder of them with --dictionaries, in the format "
            "of sparsify or of Marks et al."
        )
    return found


def _cards() -> list[Path]:
    return sorted(FOLDER.glob("*/*/card.json"))


def load(name_or_path: str | Path, site: str | None = None) -> Autoencoder:
    """Load a dictionary.

    Args:
        name_or_path: "bundled/NAME", see `shipped`; a local folder in the format of sparsify or of Marks et al.; or one
            of these on the hub: "EleutherAI/sae-pythia-70m-32k" (any repository in the format of sparsify), and
            "saprmarks/pythia-70m-deduped-saes", a zip archive that is fetched whole.
        site: which of the dictionaries: "l3 residual", "l3 mlp", "l3 attention", "embed". It may be left out for a
            folder that holds a single one. Marks et al. number residual streams as we do: 3 is the one after layer 3.

    Raises:
        ValueError: if there is no such dictionary, its files do not fit each other, or it is of a kind that is neither
            TopK nor ReLU.
    """
    name = str(name_or_path)
    if name.startswith("bundled/"):
        path = FOLDER / name.removeprefix("bundled/")
        if not path.is_dir():
            raise ValueError(f"no autoencoder {name!r}: those there are, are {', '.join(sorted(shipped()))}")
    else:
        path = Path(name).expanduser()
        if not path.is_dir():
            return _from_hub(name, site)
    return _from_folder(path, site)


def listed(names: Sequence[str | Path], sites: Sequence[str] = ()) -> list[tuple[str, str]]:
    """What there is to `load` under some names: pairs of a name and a site.

    Args:
        names: as `load` takes them; a folder may also hold several dictionaries, or folders of them.
        sites: only these; for names on the hub they must be given.

    Raises:
        ValueError: if a name holds none, or a site is no site or not there.
    """
    for site in sites:
        place(site)
    found = [pair for name in names for pair in _listed(str(name), sites)]
    there = {site for _, site in found}
    if absent := sorted(set(sites) - there):
        raise ValueError(f"there is no dictionary of {absent[0]!r}, but of {', '.join(sorted(there))}")
    return [(name, site) for name, site in found if site in sites or not sites]


def _listed(name: str, sites: Sequence[str]) -> list[tuple[str, str]]:
    path = Path(name).expanduser()
    if name.startswith("bundled/"):
        return [(name, load(name).site)]
    if path.is_dir():
        found = _inside(path)
        if not found:
            raise ValueError(
                f"{path} holds no dictionary: expected SITE/cfg.json and sae.safetensors (sparsify), SITE such as "
                "layers.3, or SITE/.../ae.pt (Marks et al.), SITE such as resid_out_layer3"
            )
        return found
    if not sites:
        raise ValueError(f"no folder {name!r}; if this is a name on the hub, name sites too, such as 'l3 residual'")
    return [(name, site) for site in sites]


def _inside(path: Path) -> list[tuple[str, str]]:
    """Folders of dictionaries in a folder, or the folder itself, with their sites."""
    names = {file.parent: _full(file).parts[-2] for depth in _DEPTHS[:3] for file in path.glob(f"{depth}cfg.json")}
    names |= {file.parent: _full(file).parts[-3] for depth in _DEPTHS for file in path.glob(f"{depth}ae.pt")}
    return [(str(folder), site) for folder, name in sorted(names.items()) if (site := _site_of(name))]


_DEPTHS = ("", "*/", "*/*/", "*/*/*/")


def _full(file: Path) -> Path:
    return Path(os.path.abspath(file))


def features(autoencoder: Autoencoder, model, windows: Windows) -> csr_array:
    """Magnitudes of a dictionary's features at every position of the windows, one window after the other.

    It takes the windows piece by piece, so that the activations of all of them need not fit into memory.

    Args:
        model: a `LanguageModel`, or its `Engine`. For a control (`of_shuffled_weights`) its weights are shuffled.

    Returns:
        (windows x time, features).

    Raises:
        ValueError: if the model has no such site, or its activations are of another width.
    """
    check_fits(autoencoder, model)
    engine = engine_of(model)
    engine = untrained(engine) if of_shuffled_weights(autoencoder) else engine
    size = max(1, engine.tokens_per_pass // windows.length)
    pieces = (activations(engine, windows.ids[i : i + size], autoencoder.site) for i in range(0, len(windows), size))
    return csr_array(vstack([autoencoder.encode(x.reshape(-1, x.shape[-1])) for x in pieces], format="csr"))


def of_shuffled_weights(autoencoder: Autoencoder) -> bool:
    """Whether an autoencoder is a control, made from the bundled model with shuffled weights: its card says so."""
    return str(autoencoder.card.get("model", "")).endswith("its weights shuffled")


def check_fits(autoencoder: Autoencoder, model) -> None:
    """Check that a dictionary fits a model.

    Raises:
        ValueError: for a layer or a width that the model does not have, or a card that names other weights.
    """
    _, part = place(autoencoder.site, model.shape.layers)
    width = model.shape.mlp if part == "neurons" else model.shape.width
    if autoencoder.width != width:
        raise ValueError(
            f"the dictionary of {autoencoder.site!r} is for activations of width {autoencoder.width}, those of the "
            f"model have {width}: it is another model's"
        )
    made_for, ours = autoencoder.card.get("model_hash"), getattr(model, "hash", None)
    if made_for and ours and made_for != ours:
        raise ValueError(
            f"the dictionary of {autoencoder.site!r} was made for a model with hash {made_for[:12]}, not for this one, "
            f"with hash {ours[:12]}"
        )


def _from_folder(path: Path, site: str | None) -> Autoencoder:
    if site is None:
        site = _only_site(path)
    sparsify, marks = _folder_names(site)
    for source in (path, path / sparsify):
        if (source / "cfg.json").exists():
            return _read_sparsify(source, site)
    candidates = [path / "ae.pt", *sorted(path.glob(f"{marks}/*/ae.pt")), *sorted(path.glob(f"*/{marks}/*/ae.pt"))]
    for file in candidates if marks else []:
        if file.exists():
            return _read_marks(file.read_bytes(), str(file), site)
    raise ValueError(
        f"{path} holds no dictionary of {site!r}: expected {sparsify}/cfg.json and sae.safetensors (sparsify), or "
        f"{marks}/.../ae.pt (Marks et al.)"
    )


def _only_site(path: Path) -> str:
    """The site of the single dictionary that a folder is, or holds."""
    names = [path.name] if (path / "cfg.json").exists() else [file.parent.name for file in path.glob("*/cfg.json")]
    names += [path.parent.name] if (path / "ae.pt").exists() else [file.parts[-3] for file in path.glob("*/*/ae.pt")]
    sites = sorted({_site_of(name) for name in names} - {None})
    if len(sites) != 1:
        raise ValueError(f"name a site, as in load({str(path)!r}, 'l3 residual'): found {', '.join(sites) or 'none'}")
    return sites[0]


def _site_of(folder: str) -> str | None:
    if folder in ("embed", "embed_in"):
        return "embed"
    if found := re.fullmatch(r"layers\.(\d+)(\.mlp\.act|\.mlp|\.attention|)", folder):
        part = {"": "residual", ".mlp.act": "neurons"}.get(found[2], found[2][1:])
        return f"l{found[1]} {part}"
    if found := re.fullmatch(r"(resid|attn|mlp)_out_layer(\d+)", folder):
        return f"l{found[2]} " + {"resid": "residual", "attn": "attention", "mlp": "mlp"}[found[1]]
    return None


def _read_sparsify(source: Path, site: str) -> Autoencoder:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = source / "sae.safetensors"
    config = read_json(source / "cfg.json")
    try:
        check_fetched(file)
        tensors = {name: w.float() for name, w in load_file(file).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{source} cannot be read as a dictionary of sparsify: {error}") from error
    for option in ("signed", "transcode", "skip_connection", "embed_skip", "gram_lookup"):
        if config.get(option):
            raise ValueError(f"{source}/cfg.json has {option!r} set: only plain TopK autoencoders are supported")
    if config.get("activation", "topk") != "topk":
        raise ValueError(f"{source}/cfg.json has activation {config['activation']!r}: only 'topk' is supported")
    fields = Fields(config, f"{source}/cfg.json")
    width, k = fields.whole("d_in"), fields.whole("k")
    latents = fields.whole("num_latents", 0, least=0)  # 0 says: as many as the expansion factor makes
    features = latents or width * fields.whole("expansion_factor")
    if k > features:
        raise ValueError(f"k is {k} in {source}/cfg.json: there are only {features} features")
    _check_shapes(tensors, {"W_dec": (features, width), "b_dec": (width,)}, features, width, file)
    card = read_json(source / "card.json") if (source / "card.json").exists() else {"source": str(source)}
    parts = (tensors[name] for name in ("encoder.weight", "encoder.bias", "W_dec", "b_dec"))
    return Autoencoder(*parts, k=k, site=site, card=card)


def _read_marks(data: bytes, source: str, site: str) -> Autoencoder:
    try:
        tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)  # runs no code
        tensors = {name: w.float() for name, w in tensors.items()}
    except Exception as error:  # the many ways in which a pickle can be unfit
        raise ValueError(f"{source} is not a file of tensors: {type(error).__name__}") from error
    features, width = tensors["encoder.weight"].shape if "encoder.weight" in tensors else (0, 0)
    _check_shapes(tensors, {"decoder.weight": (width, features), "bias": (width,)}, features, width, source)
    decoder = tensors["decoder.weight"].T.contiguous()
    parts = tensors["encoder.weight"], tensors["encoder.bias"], decoder, tensors["bias"]
    return Autoencoder(*parts, k=None, site=site, card={"source": source})


def _check_shapes(tensors: Mapping, others: Mapping, features: int, width: int, source) -> None:
    wanted = {"encoder.weight": (features, width), "encoder.bias": (features,), **others}
    found = {name: tuple(w.shape) for name, w in tensors.items()}
    if found != wanted:
        wrong = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise ValueError(
            f"{source} does not hold the tensors of a plain autoencoder of {features} features and width {width}: "
            + "; ".join(f"{name} is {found.get(name, 'missing')}, not {wanted.get(name, 'wanted')}" for name in wrong)
        )
    check_finite(tensors, str(source))


def _from_hub(name: str, site: str | None) -> Autoencoder:
    from huggingface_hub import hf_hub_download, snapshot_download

    if site is None:
        raise ValueError(f"name a site, as in load({name!r}, 'l3 residual')")
    sparsify, marks = _folder_names(site)
    known = "give 'bundled/NAME', a local folder, or a name on the hub such as 'EleutherAI/sae-pythia-70m-32k'"
    with asking_hub(f"dictionary {name!r}", known):
        if name == MARKS:
            archive = hf_hub_download(name, "dictionaries_pythia-70m-deduped_10.zip")
        else:
            folder = Path(snapshot_download(name, allow_patterns=f"{sparsify}/*"))
    if name != MARKS:
        return _from_folder(folder, site)
    with zipfile.ZipFile(archive) as content:
        members = [member for member in content.namelist() if re.search(rf"(^|/){marks}/[^/]+/ae\.pt$", member)]
        if not members:
            raise ValueError(f"{name} holds no dictionary of {site!r}")
        return _read_marks(content.read(members[0]), f"{name}/{members[0]}", site)


# The autoencoders that ship with the library -------------------------------------------------------------------------
