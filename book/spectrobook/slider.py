"""A figure that responds: the exact posterior of one weight under a tilt of the data, with sliders for h, nβ and γ.

The page holds the losses of an enumerable model on a grid of the weight, so it integrates the posterior anew at every
touch, in a few lines of its own script. Nothing is fetched. The first state is drawn here: a page without scripts, or a
printed one, shows that.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from string import Template
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from spectrolib.exact.enumerable import Enumerable, rise_and_excess
from spectrolib.reading.marks import BLUE, VERMILION

from .show import Markup, escaped

REACH = 6.0
"""The grid ends at so far from w*: where the weakest pull, γ = 1, has left exp(-18) of the density."""
NODES = 241
MOST_NBETA = 100
MOST_GAMMA = 100
STEEPEST_TILT = 0.3
"""Largest h."""
SIDE, HIGH, MARGIN = 300, 200, 14
"""Of a panel, in units of its own."""


class Response(NamedTuple):
    """What a posterior on the grid says at one tilt."""

    density: Float[ndarray, " nodes"]
    """Probabilities of the nodes: they sum to 1."""
    mean: float
    """⟨g⟩_h, nats."""
    susceptibility: float
    """-Cov(g, d) of this posterior, nats²."""


@dataclass(frozen=True)
class Curves:
    """The losses of a model along one of its weights."""

    weight: Float[ndarray, " nodes"]
    """Its distance from w*."""
    rise: Float[ndarray, " nodes"]
    """g, nats."""
    excess: Float[ndarray, "tokens nodes"]
    """d of some tokens, less its value at w*, nats."""

    def response(self, token: int, h: float, nbeta: float, gamma: float) -> Response:
        """The posterior that the data tilted towards a token by h drive."""
        exponent = -nbeta * (self.rise + h * self.excess[token]) - gamma / 2 * self.weight**2
        density = np.exp(exponent - exponent.max())
        density /= density.sum()
        mean = float(density @ self.rise)
        return Response(density, mean, -float(density @ ((self.rise - mean) * self.excess[token])))


def curves(model: Enumerable, block: str, pairs: list[tuple[int, int]]) -> Curves:
    """The losses of some (context, token) pairs along a block of a single weight.

    Raises:
        ValueError: if the block has more weights than one.
    """
    if (d := len(model.BLOCKS[block])) != 1:
        raise ValueError(f"a slider moves one weight, and {block!r} has {d}: choose another block")
    weight = np.linspace(-REACH, REACH, NODES)
    losses = model.losses(model.place(block, torch.as_tensor(weight[:, None]))).numpy()
    rise, excess = rise_and_excess(model, losses)
    chosen = excess[:, *np.array(pairs).T].T
    return Curves(weight, rise, chosen - chosen[:, [NODES // 2]])


def tilt_slider(found: Curves, tokens: list[str], *, h: float = 0.1, nbeta: float = 20, gamma: float = 1) -> Markup:
    """The figure, as a part of a page.

    Args:
        tokens: what each is called.
        h, nbeta, gamma: where the sliders stand at first.

    Raises:
        ValueError: for another number of names than tokens, or a start beyond the sliders' ends.
    """
    if len(tokens) != len(found.excess):
        raise ValueError(f"{len(found.excess)} tokens need as many names, got {len(tokens)}")
    if not (0 <= h <= STEEPEST_TILT and 0 <= nbeta <= MOST_NBETA and 1 <= gamma <= MOST_GAMMA):
        raise ValueError(
            f"the sliders go to h = {STEEPEST_TILT}, nβ = {MOST_NBETA} and γ from 1 to {MOST_GAMMA}: "
            f"they can't start at {h}, {nbeta} and {gamma}"
        )
    choices = "".join(
        f'<label><input type="radio" value="{i}"{" checked" if not i else ""}> <code>{escaped(name)}</code></label> '
        for i, name in enumerate(tokens)
    )
    data = {"weight": found.weight.round(4), "rise": _short(found.rise), "excess": [_short(d) for d in found.excess]}
    numbers = {"data": json.dumps({name: np.asarray(values).tolist() for name, values in data.items()})}
    numbers |= {"tilt": STEEPEST_TILT, "most_nbeta": MOST_NBETA, "most_decades": math.log10(MOST_GAMMA)}
    numbers |= {"h": h, "nbeta": nbeta, "gamma": gamma, "decades": round(math.log10(gamma), 4)}
    first = _first_state(found, h, nbeta, gamma)
    size = {"side": SIDE, "high": HIGH, "margin": MARGIN, "low": HIGH - 3, "blue": BLUE, "vermilion": VERMILION}
    return Markup(PAGE.substitute(first | numbers | size, choices=choices))


def _short(values: ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _first_state(found: Curves, h: float, nbeta: float, gamma: float) -> dict[str, object]:
    """Paths, ticks and words as the script writes them."""
    still, now = (found.response(0, tilt, nbeta, gamma) for tilt in (0.0, h))
    tilts = np.linspace(0, STEEPEST_TILT, 31)
    means = np.array([found.response(0, tilt, nbeta, gamma).mean for tilt in tilts])
    slope = nbeta * still.susceptibility
    line = still.mean + slope * tilts
    reach = max(0.1 * still.mean, np.abs(means - still.mean).max(), abs(slope) * STEEPEST_TILT)
    low, high = still.mean - reach, still.mean + reach
    peak = max(still.density.max(), now.density.max())
    return {
        "still": _path(found.weight, still.density, (-4, 4), (0, peak)),
        "now": _path(found.weight, now.density, (-4, 4), (0, peak)),
        "curve": _path(tilts, means, (0, STEEPEST_TILT), (low, high)),
        "tangent": _path(tilts[[0, -1]], line[[0, -1]], (0, STEEPEST_TILT), (low, high)),
        "dot": _path(np.array([h]), np.array([now.mean]), (0, STEEPEST_TILT), (low, high)),
        "top": f"{high:.4f}",
        "bottom": f"{low:.4f}",
        "said": (
            f"⟨g⟩ = {now.mean:.4f} nats, {still.mean:.4f} untilted; "
            f"the tangent says {still.mean + slope * h:.4f}. χ = {still.susceptibility:.3e}"
        ),
    }


def _path(x: ndarray, y: ndarray, across: tuple[float, float], up: tuple[float, float]) -> str:
    """Points of a polyline in a panel."""
    right = MARGIN + (x - across[0]) / (across[1] - across[0]) * (SIDE - 2 * MARGIN)
    down = HIGH - MARGIN - (y - up[0]) / (up[1] - up[0]) * (HIGH - 2 * MARGIN)
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(right, down, strict=True))


PAGE = Template("""<div class="tilt-slider mathjax_ignore tex2jax_ignore">
<style>
.tilt-slider {margin: 1em 0; font-size: .9rem}
.tilt-slider .controls {display: flex; flex-wrap: wrap; gap: .3em 1.2em; align-items: center}
.tilt-slider .controls label {display: inline-flex; align-items: center; gap: .4em; white-space: nowrap}
.tilt-slider input[type=range] {width: 8rem; accent-color: $blue}
.tilt-slider output {min-width: 3em; font-variant-numeric: tabular-nums}
.tilt-slider .panels {display: flex; flex-wrap: wrap; gap: .5em}
.tilt-slider figure {flex: 1 1 260px; margin: 0}
.tilt-slider svg {width: 100%; display: block; color: inherit}
.tilt-slider text {fill: currentColor; font-size: 11px}
.tilt-slider polyline {fill: none; stroke-width: 2}
.tilt-slider .still {fill: currentColor; fill-opacity: .15; stroke: none}
.tilt-slider .tangent {stroke: currentColor; stroke-width: 1; stroke-dasharray: 5 4}
.tilt-slider .said {margin: .3em 0 0; font-variant-numeric: tabular-nums}
@media print {.tilt-slider .controls {display: none}}
</style>
<div class="controls" hidden>
<span role="radiogroup" aria-label="the token that the text is tilted towards">$choices</span>
<label>tilt h <input type="range" name="h" min="0" max="$tilt" step="0.01" value="$h"><output></output></label>
<label>nβ <input type="range" name="nbeta" min="0" max="$most_nbeta" step="1" value="$nbeta"><output></output></label>
<label>γ <input type="range" name="gamma" min="0" max="$most_decades" step="any" value="$decades"><output></output>
</label>
</div>
<p class="start">At h = $h, nβ = $nbeta, γ = $gamma, for the first token:</p>
<div class="panels">
<figure><svg viewBox="0 0 $side $high" role="img" aria-label="Density of the weight, without and with the tilt">
<polyline class="still" points="$still"/><polyline class="now" stroke="$vermilion" points="$now"/>
<text x="$margin" y="12">density of the weight</text>
<text x="50%" y="$low" text-anchor="middle">w − w*, from −4 to 4</text></svg></figure>
<figure><svg viewBox="0 0 $side $high" role="img" aria-label="Mean rise of the loss against the tilt, with its tangent">
<polyline class="tangent" points="$tangent"/><polyline class="curve" stroke="$blue" points="$curve"/>
<polyline class="dot" stroke="$vermilion" style="stroke-linecap:round;stroke-width:9" points="$dot $dot"/>
<text x="$margin" y="12">⟨g⟩ (nats), up to <tspan class="top">$top</tspan></text>
<text x="$margin" y="$low">from <tspan class="bottom">$bottom</tspan></text>
<text x="98%" y="$low" text-anchor="end">h, from 0 to $tilt</text></svg></figure>
</div>
<p class="said" aria-live="polite">$said</p>
<script>
(() => {
  const root = document.currentScript.closest(".tilt-slider"), data = $data;
  const one = (name) => root.querySelector(name);
  const radios = [...root.querySelectorAll("[type=radio]")], tilts = [...Array(31).keys()].map(i => i * $tilt / 30);
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  function response(d, h, nbeta, gamma) {
    const up = data.weight.map((w, i) => -nbeta * (data.rise[i] + h * d[i]) - gamma / 2 * w * w);
    const most = Math.max(...up), raw = up.map(u => Math.exp(u - most)), all = sum(raw);
    const density = raw.map(p => p / all);
    const mean = sum(density.map((p, i) => p * data.rise[i]));
    return {density, mean, chi: -sum(density.map((p, i) => p * (data.rise[i] - mean) * d[i]))};
  }
  function draw(name, x, y, across, up) {
    const right = (v) => $margin + (v - across[0]) / (across[1] - across[0]) * ($side - 2 * $margin);
    const down = (v) => $high - $margin - (v - up[0]) / (up[1] - up[0]) * ($high - 2 * $margin);
    one(name).setAttribute("points", x.map((v, i) => right(v).toFixed(1) + "," + down(y[i]).toFixed(1)).join(" "));
  }
  function show() {
    const d = data.excess[radios.findIndex(radio => radio.checked)];
    const h = +one("[name=h]").value, nbeta = +one("[name=nbeta]").value, gamma = 10 ** one("[name=gamma]").value;
    [h.toFixed(2), nbeta, gamma.toFixed(1)].forEach((v, i) => { root.querySelectorAll("output")[i].value = v; });
    const still = response(d, 0, nbeta, gamma), now = response(d, h, nbeta, gamma);
    const means = tilts.map(tilt => response(d, tilt, nbeta, gamma).mean), slope = nbeta * still.chi;
    const reach = Math.max(.1 * still.mean, Math.abs(slope) * $tilt, ...means.map(m => Math.abs(m - still.mean)));
    const up = [still.mean - reach, still.mean + reach], peak = [0, Math.max(...still.density, ...now.density)];
    draw(".still", data.weight, still.density, [-4, 4], peak);
    draw(".now", data.weight, now.density, [-4, 4], peak);
    draw(".curve", tilts, means, [0, $tilt], up);
    draw(".tangent", [0, $tilt], [still.mean, still.mean + slope * $tilt], [0, $tilt], up);
    draw(".dot", [h, h], [now.mean, now.mean], [0, $tilt], up);
    one(".top").textContent = up[1].toFixed(4);
    one(".bottom").textContent = up[0].toFixed(4);
    one(".said").textContent = `⟨g⟩ = $${now.mean.toFixed(4)} nats, $${still.mean.toFixed(4)} untilted; ` +
      `the tangent says $${(still.mean + slope * h).toFixed(4)}. χ = $${still.chi.toExponential(3)}`;
  }
  const group = "token" + Math.random();
  radios.forEach(radio => { radio.name = group; });
  one(".controls").hidden = false;
  one(".start").hidden = true;
  root.addEventListener("input", show);
  show();
})();
</script>
</div>""")
