"""The autoencoders that ship: what their recipes say, made again."""

import json

import pytest
import torch

from spectrobook import shipped
from spectrobook.making import autoencoders as making
from spectrolib.dictionaries import autoencoders, formats
from spectrolib.dictionaries.autoencoders import Recipe, health
from spectrolib.dictionaries.formats import load
from spectrolib.text.corpus import bundled_windows


def test_what_ships_is_what_the_recipes_say(bundled):
    cards = formats.shipped()
    assert list(cards) == sorted(f"bundled/{name}" for name, _, _ in making.SHIPPED)
    for name, site, recipe in making.SHIPPED:
        sae, card = load(f"bundled/{name}"), cards[f"bundled/{name}"]
        assert (sae.site, sae.features, sae.k) == (site, recipe.features, recipe.k)
        assert card["recipe"] == json.loads(json.dumps(vars(recipe))) and card["model_hash"] == bundled.hash
        torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(recipe.features), atol=2e-3, rtol=0)
    size = sum(file.stat().st_size for file in formats.FOLDER.rglob("*") if file.is_file())
    assert size < 4.2e6
    with pytest.raises(ValueError, match=r"no autoencoder 'bundled/l9': .*bundled/l3-1024-k16"):
        load("bundled/l9")


def test_the_card_has_the_health_of_the_file(bundled_engine):
    _, heldout = making.training_windows()
    sae = load("bundled/l3-512-k16")
    found, written = health(sae, bundled_engine, heldout).summary(), sae.card["health"]
    assert found["density_counts"] == pytest.approx(written["density_counts"], abs=3)
    for name in ("explained_variance", "loss", "spliced_loss", "recovered", "dead", "active"):
        assert found[name] == pytest.approx(written[name], rel=2e-3, abs=1e-3)
    assert found["explained_variance"] > 0.7 and found["recovered"] > 0.8 and found["dead"] < 0.05


def test_text_for_training_and_for_health_is_no_probe():
    text, heldout = making.training_windows()
    probes = {w.tobytes() for w in autoencoders.probe_windows(shipped.shipped_result()).ids}
    assert not probes & {w[:129].tobytes() for windows in (text, heldout) for w in windows.ids}
    assert not set(text.document) & set(heldout.document)


def test_making_them_again(tmp_path, monkeypatch, bundled, capsys):
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
