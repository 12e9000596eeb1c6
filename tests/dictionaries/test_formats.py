"""Dictionaries in files: of all formats, in folders, on the hub, refused."""

import json
import shutil
import zipfile
from dataclasses import replace

import huggingface_hub
import numpy as np
import pytest
import torch
from autoencoding import random_autoencoder
from safetensors.torch import save_file

from spectrolib.dictionaries import autoencoders, formats
from spectrolib.dictionaries.autoencoders import Autoencoder
from spectrolib.dictionaries.formats import load, save
from spectrolib.model.engine import Engine
from spectrolib.model.loading import load_model
from spectrolib.text import hub
from spectrolib.text.corpus import bundled_windows

# Which dictionaries


def test_the_dictionaries_in_a_folder(tmp_path, monkeypatch):
    def one(site, narrow_folder):
        sae = Autoencoder(torch.ones(4, 8), torch.zeros(4), torch.ones(4, 8), torch.zeros(8), 2, site)
        return formats.save(sae, narrow_folder)

    names = {"l2 mlp": "many/layers.2.mlp", "l0 residual": "many/layers.0", "l5 residual": "named/here/layers.5"}
    for site, name in names.items():
        one(site, (tmp_path / name).parent)
    (tmp_path / "many" / "layers.x").mkdir()
    (tmp_path / "many" / "layers.x" / "cfg.json").write_text("{}")  # no site
    marks = tmp_path / "marks" / "pythia" / "mlp_out_layer1" / "10_4"
    marks.mkdir(parents=True)
    shutil.copy(one("l1 mlp", tmp_path / "spare") / "sae.safetensors", marks / "ae.pt")
    many, named = tmp_path / "many", tmp_path / "named"
    both = [(f"{many}/layers.0", "l0 residual"), (f"{many}/layers.2.mlp", "l2 mlp")]
    assert formats.listed([many]) == both
    assert formats.listed([many], ["l2 mlp"]) == both[1:]
    assert formats.listed([named, many], ["l5 residual", "l0 residual"]) == [
        (f"{named}/here/layers.5", "l5 residual"),
        both[0],
    ]
    assert formats.listed([named / "here" / "layers.5"]) == [(f"{named}/here/layers.5", "l5 residual")]
    for depth in (tmp_path / "marks", marks.parent.parent, marks.parent, marks):
        assert formats.listed([depth]) == [(str(marks), "l1 mlp")]
    for name, site in both:
        assert formats.load(name, site).site == site
    monkeypatch.chdir(many / "layers.0")
    assert formats.listed(["."]) == [(".", "l0 residual")]
    hub = "EleutherAI/sae-pythia-70m-32k"
    assert formats.listed([hub], ["l3 residual"]) == [(hub, "l3 residual")]


def test_features_are_those_of_all_activations_at_once(tmp_path):
    """Piece by piece, too; and of shuffled weights where the card says so."""
    model, windows = load_model("bundled", device="cpu"), bundled_windows("heldout").take(slice(0, 7)).cut(33)
    for name, engine in (("l3mlp-512-k16", model), ("untrained-l3-1024-k16", autoencoders.untrained(model))):
        sae = formats.load(f"bundled/{name}")
        x = autoencoders.activations(engine, windows, sae.site)
        whole = sae.encode(x.reshape(-1, x.shape[-1]))
        small = Engine(model.shape, model.weights, tokens_per_pass=70)
        for reader in (model, small):
            found = formats.features(sae, reader, windows)
            assert found.shape == whole.shape == (7 * 33, sae.features)
            np.testing.assert_allclose(found.toarray(), whole.toarray(), atol=1e-4)
    other = replace(sae, card={"model_hash": "1" * 64})
    with pytest.raises(ValueError, match="was made for a model with hash 111111111111"):
        formats.features(other, model, windows)


# Files ---------------------------------------------------------------------------------------------------------------


def same(a: Autoencoder, b: Autoencoder) -> bool:
    tensors = ("encoder", "encoder_bias", "decoder", "bias")
    return (a.k, a.site) == (b.k, b.site) and all(torch.equal(getattr(a, t), getattr(b, t)) for t in tensors)


def write_sparsify(folder, sae: Autoencoder, **changes) -> None:
    """The files of EleutherAI/sae-pythia-70m-32k, byte by byte as their cfg.json has it, only smaller."""
    folder.mkdir(parents=True)
    config = {"expansion_factor": 32, "normalize_decoder": True, "num_latents": sae.features, "k": sae.k}
    config |= {"signed": False, "d_in": sae.width} | changes
    (folder / "cfg.json").write_text(json.dumps(config))
    tensors = {"encoder.weight": sae.encoder, "encoder.bias": sae.encoder_bias, "W_dec": sae.decoder, "b_dec": sae.bias}
    save_file(tensors, folder / "sae.safetensors")


def write_marks(file, sae: Autoencoder, **changes) -> None:
    """The file ae.pt of dictionary_learning: a state dict, the decoder's directions in columns."""
    file.parent.mkdir(parents=True)
    tensors = {"bias": sae.bias, "encoder.weight": sae.encoder, "encoder.bias": sae.encoder_bias}
    torch.save(tensors | {"decoder.weight": sae.decoder.T.contiguous()} | changes, file)


@pytest.mark.parametrize("site, folder", [("l3 residual", "layers.3"), ("l0 mlp", "layers.0.mlp")])
def test_a_folder_in_the_format_of_sparsify(tmp_path, site, folder):
    sae = random_autoencoder(site=site)
    write_sparsify(tmp_path / folder, sae)
    assert same(load(tmp_path, site), sae)
    assert same(load(tmp_path), sae)  # the only one there
    assert same(load(tmp_path / folder), sae)
    write_sparsify(tmp_path / "layers.1.attention", random_autoencoder(seed=1))
    assert same(load(tmp_path, site), sae)
    with pytest.raises(ValueError, match="name a site"):
        load(tmp_path)
    with pytest.raises(ValueError, match="holds no dictionary of 'l5 residual'"):
        load(tmp_path, "l5 residual")


@pytest.mark.parametrize(
    "site, folder", [("embed", "embed"), ("l3 residual", "resid_out_layer3"), ("l1 attention", "attn_out_layer1")]
)
def test_a_folder_in_the_format_of_marks(tmp_path, site, folder):
    sae = random_autoencoder(k=None, site=site)
    write_marks(tmp_path / "pythia-70m-deduped" / folder / "10_32768" / "ae.pt", sae)
    for place in (tmp_path, tmp_path / "pythia-70m-deduped", tmp_path / "pythia-70m-deduped" / folder / "10_32768"):
        assert same(load(place, site), sae)
    assert same(load(tmp_path / "pythia-70m-deduped"), sae)
    assert same(load(tmp_path / "pythia-70m-deduped" / folder / "10_32768"), sae)


def test_names_on_the_hub(tmp_path, monkeypatch):
    """Which files are asked for, and what is made of them."""
    top, relu = random_autoencoder(), random_autoencoder(k=None, site="l3 mlp")
    write_sparsify(tmp_path / "snapshot" / "layers.3", top)
    write_marks(tmp_path / "zip" / "dictionaries/pythia-70m-deduped/mlp_out_layer3/10_32768/ae.pt", relu)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in (tmp_path / "zip").rglob("*.pt"):
            archive.write(file, file.relative_to(tmp_path / "zip"))
    asked = []

    def snapshot(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path / "snapshot")

    def download(name, file):
        asked.append((name, file))
        return str(tmp_path / "all.zip")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert same(load("EleutherAI/sae-pythia-70m-32k", "l3 residual"), top)
    assert same(load("saprmarks/pythia-70m-deduped-saes", "l3 mlp"), relu)
    assert asked == [
        ("EleutherAI/sae-pythia-70m-32k", "layers.3/*"),
        ("saprmarks/pythia-70m-deduped-saes", "dictionaries_pythia-70m-deduped_10.zip"),
    ]
    with pytest.raises(ValueError, match="no dictionary of 'l4 mlp'"):
        load("saprmarks/pythia-70m-deduped-saes", "l4 mlp")
    with pytest.raises(ValueError, match="name a site"):
        load("EleutherAI/sae-pythia-70m-32k")

    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.setattr(hub, "_answers", lambda endpoint: True)  # on any machine
    with pytest.raises(ValueError, match=r"cannot get dictionary 'nobody/nothing'.*no network"):
        load("nobody/nothing", "l3 residual")


def test_files_that_do_not_fit(tmp_path):
    sae = random_autoencoder()
    for number, (change, message) in enumerate(
        [
            ({"signed": True}, "'signed' set"),
            ({"gram_lookup": True}, "'gram_lookup' set"),
            ({"activation": "groupmax"}, "activation 'groupmax'"),
            ({"num_latents": 41}, r"W_dec is \(40, 12\), not \(41, 12\)"),
        ]
    ):
        write_sparsify(tmp_path / str(number) / "layers.3", sae, **change)
        with pytest.raises(ValueError, match=message):
            load(tmp_path / str(number), "l3 residual")
    file = tmp_path / "0" / "layers.3" / "sae.safetensors"
    (tmp_path / "0" / "layers.3" / "cfg.json").write_text((tmp_path / "3" / "layers.3" / "cfg.json").read_text())
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as a dictionary of sparsify"):
        load(tmp_path / "0", "l3 residual")
    write_marks(tmp_path / "gated" / "ae.pt", sae, r_mag=torch.zeros(40))
    with pytest.raises(ValueError, match=r"plain autoencoder.*r_mag"):
        load(tmp_path / "gated", "l3 residual")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_in": None}, "cfg.json lacks 'd_in'"),
        ({"k": None}, "cfg.json lacks 'k'"),
        ({"k": "8"}, 'k is "8" in .*cfg.json: it must be a whole number of at least 1'),
        ({"k": 0}, "k is 0 in .*cfg.json"),
        ({"k": 41}, "k is 41 in .*cfg.json: there are only 40 features"),
        ({"d_in": 12.0}, "d_in is 12.0"),
        ({"num_latents": None, "expansion_factor": "32"}, 'expansion_factor is "32"'),
    ],
)
def test_a_configuration_that_is_not_what_is_meant(tmp_path, change, message):
    write_sparsify(tmp_path / "layers.3", random_autoencoder(), **change)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, "l3 residual")


@pytest.mark.parametrize("content", ["[]", "null", "version https://git-lfs.github.com/spec/v1\n"])
def test_files_of_a_dictionary_that_are_no_objects(tmp_path, content):
    write_sparsify(tmp_path / "layers.3", random_autoencoder())
    for name in ("card.json", "cfg.json"):
        (tmp_path / "layers.3" / name).write_text(content)
        with pytest.raises(ValueError, match=rf"{name} (must hold a JSON object|is a Git LFS pointer)"):
            load(tmp_path, "l3 residual")


def test_weights_of_a_dictionary_that_are_no_numbers(tmp_path):
    sae = random_autoencoder()
    sae.bias[3] = torch.nan
    write_sparsify(tmp_path / "layers.3", sae)
    write_marks(tmp_path / "marks" / "ae.pt", sae)
    for place, name in ((tmp_path, "b_dec"), (tmp_path / "marks", "bias")):
        with pytest.raises(ValueError, match=rf"{name} in .* holds NaN or infinity"):
            load(place, "l3 residual")


class Evil:
    def __reduce__(self):
        return (print, ("code was run",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"encoder.weight": Evil()}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match="is not a file of tensors"):
        load(tmp_path, "l3 residual")
    assert "code was run" not in capsys.readouterr().out


def test_saving_and_loading(tmp_path):
    sae = replace(random_autoencoder(site="l2 attention"), card={"note": "a trial"})
    save(sae, tmp_path / "a", dtype=torch.float32)
    back = load(tmp_path / "a")
    assert same(back, sae) and back.card["note"] == "a trial"
    half = load(save(sae, tmp_path / "b"))
    torch.testing.assert_close(half.encoder, sae.encoder, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="only TopK"):
        save(random_autoencoder(k=None), tmp_path / "c")
