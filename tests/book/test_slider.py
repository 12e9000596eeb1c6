"""The figure that responds: its numbers are those of exact integration, in Python and in the page's own script."""

import re

import browser
import numpy as np
import pytest

from spectrobook import slider
from spectrolib.exact import enumerable, toys
from spectrolib.posterior import Settings

HEAD = toys.CopyingHead.random(seed=0)
PAIRS = [(0, 0), (5, 1), (40, 2)]
NAMES = ["a after aaaa", "<b> after $x$", "c"]


@pytest.fixture(scope="module")
def found():
    return slider.curves(HEAD, "direct", PAIRS)


def truth(pair, h, nbeta, gamma):
    """⟨g⟩_h, and -Cov(g, d) without the tilt, on the grid of `enumerable`."""
    settings = Settings(nbeta=nbeta, gamma=gamma, preconditioner="none")
    mean = enumerable.tilted_mean(HEAD, "direct", settings, *pair, h, delta=False)
    grid = enumerable.integrate(HEAD, "direct", settings)
    g, d = enumerable.rise_and_excess(HEAD, grid.losses)
    return mean, -(grid.mean(g * d[:, *pair]) - grid.mean(g) * grid.mean(d[:, *pair]))


@pytest.mark.parametrize("nbeta, gamma", [(0, 1), (20, 1), (100, 1), (20, 30), (100, 100)])
def test_the_grid_gives_what_exact_integration_gives(found, nbeta, gamma):
    for i, pair in enumerate(PAIRS):
        for h in (0, 0.1, 0.3):
            mean, chi = truth(pair, h, nbeta, gamma)
            assert found.response(i, h, nbeta, gamma).mean == pytest.approx(mean, rel=1e-6)
        assert found.response(i, 0, nbeta, gamma).susceptibility == pytest.approx(chi, rel=1e-5, abs=1e-10)


def test_the_tangent_is_the_susceptibility(found):
    step = 1e-5
    above, below = (found.response(1, h, 20, 1).mean for h in (step, -step))
    assert (above - below) / (2 * step) == pytest.approx(20 * found.response(1, 0, 20, 1).susceptibility, rel=1e-6)


def said(text: str) -> list[float]:
    """Mean, untilted mean, what the tangent says, susceptibility."""
    return [float(number) for number in re.findall(r"-?\d+\.\d+(?:e[+-]?\d+)?", text)]


def test_a_page_without_scripts_shows_the_first_state(found):
    page = slider.tilt_slider(found, NAMES, h=0.2, nbeta=50, gamma=3)
    mean, chi = truth(PAIRS[0], 0.2, 50, 3)
    untilted, _ = truth(PAIRS[0], 0, 50, 3)
    shown = said(re.search(r'aria-live="polite">(.*?)</p>', page)[1])
    assert shown == pytest.approx([mean, untilted, untilted + 50 * chi * 0.2, chi], abs=6e-5, rel=1e-3)
    assert page.count("<polyline") == 5 and 'points=""' not in page
    assert "&lt;b&gt; after $x$" in page and "mathjax_ignore" in page
    assert not re.search(r"https?:", page)


@pytest.mark.skipif(not browser.executable(), reason="no Chromium on this machine")
def test_the_script_says_the_same(found, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(f'<!doctype html><meta charset="utf-8">{slider.tilt_slider(found, NAMES)}', encoding="utf-8")
    read = "document.querySelector('.said').textContent"
    moved = "e.dispatchEvent(new Event('input', {bubbles: true}))"
    move = f"(e => {{ e.value = %s; {moved} }})(document.querySelector('%s'))"
    pick = f"(e => {{ e.checked = true; {moved} }})(document.querySelectorAll('[type=radio]')[%d])"
    points = "[...document.querySelectorAll('polyline')].slice(0, 4).map(e => e.getAttribute('points'))"
    written = re.findall(r'points="([^"]*)"', path.read_text(encoding="utf-8"))[:4]
    with browser.chromium() as chromium, chromium.open(path.as_uri(), width=400) as page:
        drawn = [[float(x) for x in re.split("[ ,]", line)] for line in page.evaluate(points)]
        for own, first in zip(drawn, written, strict=True):  # the script begins with what Python drew
            np.testing.assert_allclose(own, [float(x) for x in re.split("[ ,]", first)], atol=0.11)
        for token, h, nbeta, decades in ((1, 0.3, 0, 0), (2, 0.05, 100, 0.5), (0, 0.1, 40, 2)):
            page.evaluate(pick % token)
            for name, value in (("h", h), ("nbeta", nbeta), ("gamma", decades)):
                page.evaluate(move % (value, f"[name={name}]"))
            mean, chi = truth(PAIRS[token], h, nbeta, 10**decades)
            shown = said(page.evaluate(read))
            assert shown[0] == pytest.approx(mean, abs=6e-5)
            assert shown[3] == pytest.approx(chi, rel=1e-3)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert page.errors == []


def test_what_it_refuses(found):
    with pytest.raises(ValueError, match="'full' has 3"):
        slider.curves(HEAD, "full", PAIRS)
    with pytest.raises(ValueError, match="3 tokens need as many names, got 1"):
        slider.tilt_slider(found, NAMES[:1])
    with pytest.raises(ValueError, match=r"can't start at 0\.5"):
        slider.tilt_slider(found, NAMES, h=0.5)
