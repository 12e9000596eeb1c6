"""The traces of trials as a page: one row for each trial, a small picture for each component."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from .tuning import Trial, best


def trace_page(trials: Sequence[Trial]) -> str:
    """The page, as HTML; the chosen trial is marked."""
    chosen, rows = best(trials), []
    for trial in trials:
        s, marks = trial.settings, " ← chosen" if trial is chosen else ""
        said = (
            f"γ {s.gamma:g}, nβ {s.nbeta:g}, ε {s.step_size:.2g}, {s.steps_between_draws} steps: {trial.verdict}{marks}"
        )
        pictures = "".join(
            f"<figure>{_picture(np.array(trace))}<figcaption>{html.escape(name)}</figcaption></figure>"
            for name, trace in (trial.traces or {}).items()
        )
        rows.append(f"<h2>{html.escape(said)}</h2><p>{html.escape(trial.why)}</p><div>{pictures}</div>")
    return _PAGE.format(rows="\n".join(rows))


def _picture(trace: Float[ndarray, "chains draws"], width: int = 180, height: int = 60) -> str:
    """Loss rise against draw, a line for each chain; the dotted line is w*."""
    low, high = min(0.0, float(trace.min())), max(1e-9, float(trace.max()))
    x = np.linspace(2, width - 2, trace.shape[1])
    y = 2 + (height - 4) * (high - np.append(trace.ravel(), 0.0)) / (high - low)
    lines = "".join(
        f'<polyline class="c{chain % 4}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, own, strict=True))}"/>'
        for chain, own in enumerate(y[:-1].reshape(trace.shape))
    )
    zero = f'<line x1="0" x2="{width}" y1="{y[-1]:.1f}" y2="{y[-1]:.1f}"/>'
    said = f'role="img" aria-label="0 to {high:.3g} nats"'
    return f'<svg viewBox="0 0 {width} {height}" {said}>{zero}{lines}</svg>{high:.2g} nats'


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Traces of the trials</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em }}
h2 {{ font-size: 1rem; margin: 1.6em 0 0 }} p {{ margin: 0.2em 0; opacity: 0.75 }}
div {{ display: flex; flex-wrap: wrap; gap: 0.6em }} figure {{ margin: 0; width: 11.5em; font-size: 0.8em }}
svg {{ display: block; width: 100%; border: 1px solid #8886 }} polyline {{ fill: none; stroke-width: 1 }}
line {{ stroke: #888; stroke-dasharray: 3 3 }} .c0 {{ stroke: #0072b2 }} .c1 {{ stroke: #d55e00 }}
.c2 {{ stroke: #009e73 }} .c3 {{ stroke: #cc79a7 }}
</style>
<h1>Traces of the trials</h1>
<p>Rise of the loss at each draw, one line for each chain. Dotted: the loss at w*.</p>
{rows}
</html>
"""
