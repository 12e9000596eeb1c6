"""Rates and their chance on labels and features that are made up, so that both are known."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from spectrobook import matched
from spectrolib.dictionaries.matching import match
from spectrolib.text.corpus import Windows


@pytest.fixture(scope="module")
def planted():
    """Four clusters of tokens 0 to 3: features know the token, and of two clusters half of the occurrences besides."""
    token = np.repeat(np.arange(8), 50)
    labels = np.where(token < 4, token, -1)
    labels[(token < 2) & (np.arange(400) % 2 == 0)] = -1
    active = np.zeros((400, 10))
    active[np.arange(400), token] = 1.0
    active[np.flatnonzero(labels == 0), 8] = 1.0
    active[np.flatnonzero(labels == 1), 9] = 1.0
    return token, labels, csr_array(active)


def test_a_rate_is_read_beside_its_chance(planted):
    token, labels, active = planted
    loose, strict = (match(labels, active, keep=keep, permutations=39) for keep in (None, token))
    own = matched.rate(loose, 0.5)
    assert own.share.value == 1 and own.clusters == 4
    assert own.chance < 0.1 and own.p == pytest.approx(1 / 40)
    kept = matched.rate(strict, 0.9)
    assert kept.share.value == 1 and kept.chance == pytest.approx(0.5), "two clusters are whole tokens"
    assert matched.beyond(strict).value == 0.5, "of the others a feature knows more"
    tokens = match(np.where(token < 4, token, -1), active, keep=token, permutations=9)
    assert matched.rate(tokens, 0.9).p == 1, "whole tokens: every shuffle does as well"


def test_figures_show_the_rates(planted):
    token, labels, active = planted
    found = {
        name: match(labels, active, keep=keep, permutations=9)
        for name, keep in (("any token", None), ("same token", token))
    }
    fig = matched.curve_figure({"one": found}, points=11)
    measured = fig.axes[0].lines[0]
    assert measured.get_ydata()[5] == matched.rate(found["any token"], 0.5).share.value
    fig = matched.ladder_figure({"Heading": {"ours": found["same token"]}})
    (bars,) = fig.axes[1].containers
    assert bars.lines[0].get_xydata().tolist() == [[0.5, 1.0]]
    assert fig.axes[0].get_yticklabels()[0].get_fontweight() == "bold"


def test_dictionaries_that_nobody_trained(bundled):
    ids = np.random.default_rng(0).integers(1, 500, size=(2, 9))
    windows = Windows(ids, np.array(["a", "a"]), np.array(["b", "c"]), {}, 4096)
    made = matched.baselines(bundled, windows, k=3, features=40, site="l3 residual")
    assert {name: table.shape[0] for name, table in made.items()} == dict.fromkeys(made, 18)
    assert made["random directions"].shape[1] == 40
    assert all(np.diff(table.indptr).max() <= 3 and (table.data > 0).all() for table in made.values())
    assert (made["the tokens themselves"].argmax(axis=1) == ids.ravel()).all()


def test_principal_directions_are_those_around_the_mean(bundled):
    """With all values kept, a direction and its opposite give the projections: of mean 0, and uncorrelated."""
    ids = np.random.default_rng(1).integers(1, 500, size=(2, 9))
    windows = Windows(ids, np.array(["a", "a"]), np.array(["b", "c"]), {}, 4096)
    width = bundled.shape.width
    table = matched.baselines(bundled, windows, k=2 * width, features=4, site="l3 residual")["principal directions"]
    there, back = np.split(table.toarray(), 2, axis=1)
    products = (there - back).T @ (there - back)
    scale = np.diag(products).max()
    assert np.abs((there - back).sum(axis=0)).max() < 1e-3 * np.sqrt(scale)
    assert np.abs(products - np.diag(np.diag(products))).max() < 1e-3 * scale


class Text:
    def context(self, row, before, after):
        return "x" * before, f"t{row}", "y" * after


def test_a_pair_stands_side_by_side():
    page = matched.side_by_side(Text(), np.array([1, 2, 3]), np.array([3, 4]), np.random.default_rng(0))
    for word in ("in both: 1", "in the cluster only: 2", "feature only: 1", "t3", "t4"):
        assert word in page
    assert "none" in matched.side_by_side(Text(), np.array([1]), np.array([1]), np.random.default_rng(0))
