"""Figures: one style, one way to save, and the plots that several chapters share.

Colours are those of Okabe and Ito, told apart with any colour vision. Diverging quantities run from blue (negative)
through white (zero) to vermilion (positive). Figures have a solid white ground, so they read the same on light and
dark pages; painted text takes the page's own colours and keeps a contrast of at least 4.5 on both.
"""

import functools
import html
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure

from spectrolib.reading.marks import BLUE, PALETTE, VERMILION, visible

DIVERGING = LinearSegmentedColormap.from_list("spectro", [BLUE, "#FFFFFF", VERMILION])
DEEPEST = 0.6  # opacity of the strongest paint: deeper, and the text on it falls below a contrast of 4.5

STYLE = {
    "figure.figsize": (7.0, 3.6),
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "lines.linewidth": 1.4,
}


def use_style() -> None:
    """Set the book's style for every figure that follows."""
    sns.set_theme(style="ticks", palette=PALETTE, rc=STYLE)


# ---- saving


def root() -> Path:
    """The repository's root, wherever the caller runs; the working folder for an installed copy of the library."""
    above = Path(__file__).resolve().parents[2]
    return above if (above / "pyproject.toml").is_file() else Path.cwd()


@functools.cache
def _scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="spectro-figures-"))


def folder(profile: str) -> Path:
    """Where `save` writes: where SPECTRO_FIGURES says; else figures/ of the repository for the profile `book`, and
    a temporary folder for any other, so that a quick run never replaces a figure of the book."""
    if said := os.environ.get("SPECTRO_FIGURES"):
        return Path(said)
    return root() / "figures" if profile == "book" else _scratch()


def save(fig: Figure, name: str, data: Mapping[str, Any], *, profile: str, **settings: Any) -> Path:
    """Write a figure as NAME.svg and NAME.png, and the numbers it shows as NAME.json.

    The same figure gives the same bytes: no dates, no random identifiers.

    Args:
        name: lower-case letters, digits and hyphens.
        data: what is plotted: numbers, strings, arrays, or lists and mappings of them. Floats are kept to seven
            significant digits; a value that is not finite becomes null.
        profile: decides the folder, see `folder`.
        settings: what made the numbers (seed, draws, model, ...), kept in the JSON beside the versions.

    Returns:
        The path of the SVG.

    Raises:
        ValueError: a name that would not do as a file name; data that JSON cannot hold.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"figure name {name!r}: use lower-case letters, digits and hyphens, as in 'loss-traces'")
    record = {
        "figure": name,
        "settings": {"profile": profile, **settings},
        "versions": {package: version(package) for package in ("spectrolib", "torch", "numpy", "matplotlib")},
        "data": data,
    }
    text = json.dumps(_plain(record), indent=1, ensure_ascii=False, allow_nan=False)
    path = folder(profile) / f"{name}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        fig.savefig(path, bbox_inches="tight", metadata={"Date": None, "Creator": None})
    fig.savefig(path.with_suffix(".png"), bbox_inches="tight", dpi=150, metadata={"Software": None})
    path.with_suffix(".json").write_text(_compact(text) + "\n", encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    """`value` as JSON holds it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if hasattr(value, "tolist"):  # numpy, torch
        value = value.tolist()
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    raise ValueError(f"a figure's data holds numbers, strings, arrays, lists and mappings, not {type(value).__name__}")


def _compact(text: str) -> str:
    """Lists of numbers on one line each: a difference between two runs is then a line, not a page."""
    return re.sub(r"\[\s+([^][{}\"]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)


# ---- plots


def _axes(ax: Axes | None, **size: Any) -> Axes:
    return plt.subplots(**size)[1] if ax is None else ax


def traces(
    losses: Float[np.ndarray, "chains draws"],
    *,
    reference: float | None = None,
    burn_in: int = 0,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """The loss along each chain, in nats per token.

    Args:
        reference: L(w*), drawn as a dashed line.
        burn_in: draws at the start that no estimate uses, shaded.
    """
    losses = np.atleast_2d(losses)
    ax = _axes(ax)
    for chain, loss in enumerate(losses):
        ax.plot(loss, color=PALETTE[chain % len(PALETTE)], alpha=0.85, label=f"chain {chain}")
    if reference is not None:
        ax.axhline(reference, color="0.3", linestyle="--", linewidth=1, label="$L(w^*)$")
    if burn_in:
        ax.axvspan(0, burn_in, color="0.92", zorder=0, label="burn-in")
    ax.set(xlabel="draw", ylabel="loss (nats per token)", title=title)
    ax.margins(x=0)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


# ---- tokens painted in running text


class PaintedText(str):
    """HTML that a notebook shows as such."""

    def _repr_html_(self) -> str:
        return str(self)


def _limit(values: np.ndarray, limit: float | None = None) -> float:
    """The value painted deepest: by default the largest absolute value."""
    finite = np.abs(values[np.isfinite(values)])
    return limit or (float(finite.max()) if finite.size and finite.max() > 0 else 1.0)


def _paint(value: float, limit: float) -> tuple[str, float]:
    """Colour and opacity of a value; none for a value that is not finite."""
    depth = DEEPEST * min(abs(value) / limit, 1) if math.isfinite(value) else 0.0
    return (BLUE if value < 0 else VERMILION), depth


def _rgba(colour: str, opacity: float) -> str:
    red, green, blue = (round(255 * part) for part in to_rgb(colour))
    return f"rgba({red},{green},{blue},{opacity:.2f})"


def _same_length(tokens: Sequence[str], values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.shape != (len(tokens),):
        raise ValueError(f"{len(tokens)} tokens need as many values, got an array of shape {values.shape}")
    return values


def painted_text(
    tokens: Sequence[str], values: Float[np.ndarray, " tokens"], *, limit: float | None = None, caption: str = ""
) -> PaintedText:
    """Running text with each token painted by its value, for a notebook or a page.

    Blue is negative, vermilion positive, depth is size; the value shows when the pointer rests on a token. Text is
    escaped: a token can neither become markup nor be read as mathematics.

    Args:
        limit: the absolute value painted deepest; the largest present when None.
        caption: a line under the text.

    Raises:
        ValueError: another number of values than tokens.
    """
    values = _same_length(tokens, values)
    limit = _limit(values, limit)
    spans = []
    for token, value in zip(tokens, values, strict=True):
        colour, depth = _paint(value, limit)
        text = html.escape(visible(token)) + "\n" * token.count("\n")
        spans.append(f'<span style="background:{_rgba(colour, depth)}" title="{value:+.3g}">{text}</span>')
    scale = f"blue −{limit:.2g} · no paint 0 · vermilion +{limit:.2g}"
    foot = html.escape(f"{caption} ({scale})" if caption else scale)
    return PaintedText(
        '<div class="painted-text mathjax_ignore tex2jax_ignore" style="margin:1em 0">'
        '<div style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.7;'
        'font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.9em">'
        f'{"".join(spans)}</div><div style="font-size:.85em;margin-top:.4em">{foot}</div></div>'
    )


def painted_figure(
    tokens: Sequence[str],
    values: Float[np.ndarray, " tokens"],
    *,
    limit: float | None = None,
    columns: int = 88,
) -> Figure:
    """The same as a picture, for places that show no HTML: fixed-width text, broken after `columns` characters.

    Raises:
        ValueError: another number of values than tokens.
    """
    values = _same_length(tokens, values)
    limit = _limit(values, limit)
    cells, row, column = [], 0, 0  # (row, column, text, value); a token never breaks across lines
    for token, value in zip(tokens, values, strict=True):
        text = visible(token)
        if column and column + len(text) > columns:
            row, column = row + 1, 0
        cells.append((row, column, text, value))
        column += len(text)
        if "\n" in token:
            row, column = row + 1, 0
    rows = cells[-1][0] + 1 if cells else 1

    width = 7.0 / columns  # inches; DejaVu Sans Mono is 0.602 em wide, and an em is 72 points to the inch
    size = 72 * width / 0.602
    fig = plt.figure(figsize=(7.0, 1.8 * size * rows / 72))
    fig.set_layout_engine("none")  # as an argument it would be forgotten when the figure is saved
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, columns), ylim=(rows, 0))
    ax.axis("off")
    for row, column, text, value in cells:
        colour, depth = _paint(value, limit)
        ax.add_patch(plt.Rectangle((column, row + 0.08), len(text), 0.84, color=colour, alpha=depth, linewidth=0))
        ax.text(column, row + 0.52, text, family="DejaVu Sans Mono", size=size, va="center_baseline", parse_math=False)
    return fig
