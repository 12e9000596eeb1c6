"""Autoencoders: activations against transformers, planted features found and matched, health, files of all formats."""

import json
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scipy.sparse import csr_array
from spectrobook import shipped
from spectrobook.making import autoencoders as making

from spectrolib import load_model
from spectrolib.dictionaries import autoencoders, formats
from spectrolib.dictionaries.autoencoders import Autoencoder, Recipe, activations, health, match, train
from spectrolib.dictionaries.formats import load, save
from spectrolib.model.activations import PARTS
from spectrolib.model.loading import engine_of
from spectrolib.text.corpus import bundled_windows

SITES = [f"l{layer} {part}" for layer in (0, 3, 5) for part in PARTS]


@pytest.fixture(scope="module")
def model():
    return load_model("bundled", device="cpu")


@pytest.fixture(scope="module")
def engine(model):
    return engine_of(model)


# Activations ---------------------------------------------------------------------------------------------------------


def test_activations_are_those_of_transformers(model):
    ids = torch.as_tensor(bundled_windows("heldout").ids[:3, :40].astype(np.int64))
    body, seen = model.model.gpt_neox, {}

    def keep(site):
        return lambda module, inputs, output: seen.update({site: output[0] if isinstance(output, tuple) else output})

    modules = {"embed": body.embed_in}
    for site in SITES:
        layer = body.layers[int(site[1])]
        parts = {"residual": layer, "attention": layer.attention, "mlp": layer.mlp, "neurons": layer.mlp.act}
        modules[site] = parts[site.split()[1]]
    hooks = [module.register_forward_hook(keep(site)) for site, module in modules.items()]
    with torch.no_grad():
        model.model(ids)
    for hook in hooks:
        hook.remove()
    for site in modules:
        found = activations(model, ids.numpy(), site)
        assert found.shape[:2] == (3, 40)
        np.testing.assert_allclose(found, seen[site].numpy(), atol=3e-4 * float(seen[site].abs().max()))


def test_the_residual_is_the_sum_of_its_parts(engine):
    ids = bundled_windows("heldout").ids[:2, :50]
    before, after = activations(engine, ids, "l1 residual"), activations(engine, ids, "l2 residual")
    added = activations(engine, ids, "l2 attention") + activations(engine, ids, "l2 mlp")
    np.testing.assert_allclose(before + added, after, atol=2e-4)


def test_a_site_that_is_not_there(engine):
    ids = bundled_windows("heldout").ids[:1]
    for site in ("l3", "residual 3", "l3 resid"):
        with pytest.raises(ValueError, match="must be 'embed' or like 'l3 residual'"):
            activations(engine, ids, site)
    with pytest.raises(ValueError, match="beyond the model's 6 layers"):
        activations(engine, ids, "l6 mlp")


def test_the_untrained_model_has_the_same_numbers_and_has_learned_nothing(model, engine):
    mixed, again = autoencoders.untrained(model, seed=3), autoencoders.untrained(model, seed=3)
    for name, w in mixed.weights.items():
        assert torch.equal(w, again.weights[name])
        assert torch.equal(w.flatten().sort().values, engine.weights[name].flatten().sort().values)
    windows = bundled_windows("heldout").take(slice(0, 40, 4)).cut(65)
    assert engine.losses(windows).mean() < 4 < np.log(4096) - 1 < mixed.losses(windows).mean()


def test_rows_of_a_result_find_their_activations():
    result = shipped.shipped_result().isel(token=slice(100, 700))  # not from the start of a window
    windows = autoencoders.probe_windows(result)
    flat = windows.ids.ravel()
    rows = {at: autoencoders.token_rows(result, windows, at) for at in ("context", "predicted")}
    np.testing.assert_array_equal(flat[rows["predicted"]], result.token_id.values)
    first = result.position.values == 1
    inner = np.flatnonzero(~first)[1:]
    np.testing.assert_array_equal(flat[rows["context"]][inner], result.token_id.values[inner - 1])
    assert set(rows["context"][first] % windows.length) == {0}
    with pytest.raises(ValueError, match="is in none of the 1024 windows"):
        autoencoders.probe_windows(result, bundled_windows("sampling"))
    with pytest.raises(ValueError, match="'context' or 'predicted'"):
        autoencoders.token_rows(result, windows, "both")


def test_a_passage_of_two_documents_is_that_of_the_results_own():
    pool = bundled_windows("heldout").take([3, 3])
    pool = replace(pool, document=np.array(["first", "second"]))
    result = shipped.shipped_result().isel(token=slice(0, 100))
    one = result.assign_coords(
        token_id=("token", pool.ids[0, result.position.values]),
        document=("token", np.repeat("second", result.sizes["token"])),
        sequence=("token", np.zeros(result.sizes["token"], dtype=int)),
    )
    assert autoencoders.probe_windows(one, pool).document.tolist() == ["second"]
    assert autoencoders.probe_windows(one.drop_vars("document"), pool).document.tolist() == ["first"]


# Encoding ------------------------------------------------------------------------------------------------------------


def random_autoencoder(features: int = 40, width: int = 12, k: int | None = 5, seed: int = 0, site="l3 residual"):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=g)  # noqa: E731
    return Autoencoder(draw(features, width), 0.3 * draw(features), draw(features, width), draw(width), k, site)


@pytest.mark.parametrize("k", [1, 5, 40, None])
def test_encoding_by_the_formula(k, monkeypatch):
    monkeypatch.setattr(autoencoders, "_CHUNK", 400)  # ten tokens at a time
    sae = random_autoencoder(k=k)
    x = np.random.default_rng(0).normal(size=(33, 12)).astype(np.float32)
    wanted = np.zeros((33, 40))
    for row, vector in enumerate(x):
        reached = sae.encoder.numpy() @ (vector - sae.bias.numpy()) + sae.encoder_bias.numpy()
        for feature in np.argsort(-reached)[:k]:
            wanted[row, feature] = max(reached[feature], 0)
    found = sae.encode(x)
    assert isinstance(found, csr_array) and found.has_sorted_indices and (found.data > 0).all()
    np.testing.assert_allclose(found.toarray(), wanted, atol=1e-5)
    np.testing.assert_allclose(sae.reconstruct(x), wanted @ sae.decoder.numpy() + sae.bias.numpy(), atol=1e-4)
    with pytest.raises(ValueError, match=r"shape \(tokens, 12\)"):
        sae.encode(x[:, :5])


def test_sparsest_keeps_the_largest_positive_values():
    x = np.array([[3.0, -1, 2, 1], [-1, -2, -3, -4], [0, 5, 0, 0]])
    np.testing.assert_array_equal(autoencoders.sparsest(x, 2).toarray(), [[3, 0, 2, 0], [0] * 4, [0, 5, 0, 0]])


# Training ------------------------------------------------------------------------------------------------------------


def planted(seed: int = 0, tokens: int = 40_000, width: int = 24, features: int = 40, active: int = 3):
    """Vectors that are sums of a few of known directions, which are more than there are axes."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(features, width))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    chosen = rng.random((tokens, features)).argsort(axis=1)[:, :active]
    magnitudes = np.zeros((tokens, features))
    np.put_along_axis(magnitudes, chosen, rng.uniform(0.5, 2, (tokens, active)), axis=1)
    x = 7 * (magnitudes @ directions) + 3 + 0.02 * rng.normal(size=(tokens, width))
    return x.astype(np.float32), directions, magnitudes


def test_planted_features_are_recovered_and_matched():
    """Superposed features come back; clusters made of some match those, and a made-up cluster matches nothing."""
    x, directions, magnitudes = planted()
    sae = train(x, features=48, k=3, passes=12, batch=512, site="l3 residual")
    cosine = directions @ sae.decoder.numpy().T
    assert np.quantile(cosine.max(axis=1), 0.1) > 0.97
    assert 1 - ((sae.reconstruct(x) - x) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum() > 0.9

    rng, some = np.random.default_rng(1), slice(0, 6000)
    labels = np.full(6000, -1)
    for cluster in range(5):  # tokens with a planted feature, four in five of them
        labels[(magnitudes[some, cluster] > 0) & (rng.uniform(size=6000) < 0.8) & (labels < 0)] = cluster
    labels[rng.permutation(np.flatnonzero(labels < 0))[:300]] = 5
    found = match(labels, sae.encode(x[some]), keep=rng.integers(0, 10, 6000), permutations=99)
    assert found.matched(0.5).tolist() == [True] * 5 + [False]
    np.testing.assert_array_equal(found.pairs.feature[found.best[:5]], cosine[:5].argmax(axis=1))


def test_training_follows_the_scale_and_the_place_of_the_vectors():
    """x -> 5x + 2 moves the biases and nothing else."""
    x, _, _ = planted(tokens=4000)
    settings = dict(features=32, k=3, passes=2, batch=256)
    a, b = train(x, **settings), train(5 * x + 2, **settings)
    torch.testing.assert_close(a.decoder, b.decoder, atol=2e-2, rtol=0)
    torch.testing.assert_close(5 * a.encoder_bias, b.encoder_bias, atol=0.3, rtol=0.05)
    torch.testing.assert_close(a.decoder.norm(dim=1), torch.ones(32))
    again = train(x, **settings)
    assert torch.equal(a.encoder, again.encoder) and not torch.equal(a.encoder, train(x, seed=1, **settings).encoder)


def test_recipes_out_of_range():
    x = np.zeros((100, 4), dtype=np.float32)
    with pytest.raises(ValueError, match="k must lie between 1 and the 8 features"):
        Recipe(features=8, k=9)
    with pytest.raises(ValueError, match="at least 1, rate above 0"):
        Recipe(rate=0)
    with pytest.raises(ValueError, match="at least one batch of 512 vectors"):
        train(x, batch=512)
    with pytest.raises(ValueError, match="not finite"):
        train(np.full_like(x, np.nan), batch=10)


# Health --------------------------------------------------------------------------------------------------------------


def lossless(width: int, site: str) -> Autoencoder:
    """Every axis and its opposite: an autoencoder that loses nothing."""
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    return Autoencoder(both, torch.zeros(2 * width), both, torch.zeros(width), None, site)


@pytest.mark.parametrize("site", ["embed", "l0 residual", "l5 residual", "l2 attention", "l4 mlp"])
def test_health_of_what_loses_nothing_and_of_what_loses_all(engine, site):
    windows = bundled_windows("heldout").take(slice(0, 480, 80)).cut(65)
    whole = lossless(128, site)
    good = health(whole, engine, windows)
    assert good.loss == pytest.approx(float(engine.losses(windows).mean()), rel=1e-5)
    assert good.spliced_loss == pytest.approx(good.loss, rel=1e-4)
    assert good.explained_variance == pytest.approx(1) and good.recovered == pytest.approx(1, abs=1e-3)
    assert good.mean_loss > good.loss and good.dead < 0.1
    x = activations(engine, windows.ids[:, :-1], site).reshape(-1, 128)
    mean = torch.from_numpy(x.mean(axis=0))
    silent = replace(whole, encoder_bias=torch.full((256,), -1e9), bias=mean)
    bad = health(silent, engine, windows)
    assert bad.explained_variance == pytest.approx(0, abs=1e-5) and bad.recovered == pytest.approx(0, abs=1e-3)
    assert bad.dead == 1 and bad.active == 0
    assert sum(bad.summary()["density_counts"]) == 0 and sum(good.summary()["density_counts"]) == round(
        256 * (1 - good.dead)
    )


def test_a_splice_is_what_a_hook_on_transformers_does(model, engine):
    """Loss with the reconstruction, computed by replacing the layer's output in the reference model."""
    windows = bundled_windows("heldout").take(slice(0, 480, 120)).cut(65)
    sae = load("bundled/l3mlp-512-k16")
    ids = torch.as_tensor(windows.ids.astype(np.int64))

    def put(module, inputs, output):
        return torch.from_numpy(sae.reconstruct(output.flatten(0, 1).numpy())).float().view_as(output)

    hook = model.model.gpt_neox.layers[3].mlp.register_forward_hook(put)
    with torch.no_grad():
        logits = model.model(ids[:, :-1]).logits
    hook.remove()
    reference = float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
    assert health(sae, engine, windows).spliced_loss == pytest.approx(reference, rel=1e-4)


def test_neurons_cannot_be_spliced(engine):
    with pytest.raises(ValueError, match="cannot be spliced"):
        health(lossless(512, "l3 neurons"), engine, bundled_windows("heldout").take(slice(0, 2)))


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


# What ships ----------------------------------------------------------------------------------------------------------


def test_what_ships_is_what_the_recipes_say(model):
    cards = formats.shipped()
    assert list(cards) == sorted(f"bundled/{name}" for name, _, _ in making.SHIPPED)
    for name, site, recipe in making.SHIPPED:
        sae, card = load(f"bundled/{name}"), cards[f"bundled/{name}"]
        assert (sae.site, sae.features, sae.k) == (site, recipe.features, recipe.k)
        assert card["recipe"] == json.loads(json.dumps(vars(recipe))) and card["model_hash"] == model.hash
        torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(recipe.features), atol=2e-3, rtol=0)
    size = sum(file.stat().st_size for file in formats.FOLDER.rglob("*") if file.is_file())
    assert size < 4.2e6
    with pytest.raises(ValueError, match=r"no autoencoder 'bundled/l9': .*bundled/l3-1024-k16"):
        load("bundled/l9")


def test_the_card_has_the_health_of_the_file(engine):
    _, heldout = making.training_windows()
    sae = load("bundled/l3-512-k16")
    found, written = health(sae, engine, heldout).summary(), sae.card["health"]
    assert found["density_counts"] == pytest.approx(written["density_counts"], abs=3)
    for name in ("explained_variance", "loss", "spliced_loss", "recovered", "dead", "active"):
        assert found[name] == pytest.approx(written[name], rel=2e-3, abs=1e-3)
    assert found["explained_variance"] > 0.7 and found["recovered"] > 0.8 and found["dead"] < 0.05


def test_text_for_training_and_for_health_is_no_probe():
    text, heldout = making.training_windows()
    probes = {w.tobytes() for w in autoencoders.probe_windows(shipped.shipped_result()).ids}
    assert not probes & {w[:129].tobytes() for windows in (text, heldout) for w in windows.ids}
    assert not set(text.document) & set(heldout.document)


def test_making_them_again(tmp_path, monkeypatch, model, capsys):
    """The whole way, on little text."""
    windows = bundled_windows("sampling").take(slice(0, 16))
    monkeypatch.setattr(making, "training_windows", lambda: (windows, windows.take(slice(0, 2)).cut(33)))
    recipe = Recipe(features=32, k=4, passes=1, batch=512)
    small = (("a", "l1 attention", recipe), ("untrained-b", "l1 residual", recipe))
    monkeypatch.setattr(making, "SHIPPED", small)
    folder = making.remake(tmp_path / "made")
    for name, site, _ in small:
        sae = load(folder / name)
        assert sae.site == site and 0 < sae.card["health"]["explained_variance"] < 1
    assert "untrained-b: explained variance" in capsys.readouterr().out
    (folder / "a" / "layers.1.attention" / "card.json").unlink()
    making.remake(folder)
    assert capsys.readouterr().out.count("explained variance") == 1  # the other is there already
    assert (folder / "README.md").read_text() == (formats.FOLDER / "README.md").read_text()


def test_a_result_needs_no_more_than_its_coordinates():
    """Windows are found by tokens, so a part of a result will do."""
    pool = bundled_windows("heldout")
    values = lambda x: SimpleNamespace(values=np.asarray(x))  # noqa: E731
    few = {"sequence": values([4, 4]), "position": values([5, 9]), "token_id": values(pool.ids[7, [5, 9]])}
    assert (pool.ids[:, [5, 9]] == pool.ids[7, [5, 9]]).all(axis=1).argmax() == 7
    np.testing.assert_array_equal(autoencoders.probe_windows(few).ids, pool.ids[7:8, :10])
