"""What is left of clusters when channels, observable, loss, training or model are taken away (chapter Controls).

The numbers ship: ``python -m spectrobook resolved`` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from . import panels
from .figures import BLUE, VERMILION

PAPER = "the paper's: covariance with the mean loss"
RANDOM = "a random combination of each component's draws"
GROUPS = {
    "No channels (4 chains of 100 draws)": {
        "every draw kept": ("protocol", "all draws"),
        "two-chain value": ("protocol", "the two-chain value"),
        "its covariance": ("protocol", "the covariance alone"),
    },
    "No observable (one number a component)": {
        "as the paper has it": ("ladder", PAPER),
        "a random combination": ("ladder", RANDOM),
    },
    "No loss (8 draws a component)": {
        "nβ = 10": ("ladder", "8 draws"),
        "nβ = 0": ("ladder", "nβ = 0, 8 draws"),
    },
    "No training (gradients)": {
        "measured again": ("controls", "another sketch of the same"),
        "weights shuffled": ("controls", "weights shuffled"),
        "weights drawn anew": ("controls", "weights drawn anew"),
    },
    "No components (gradients)": {
        "gradient at the output": ("controls", "gradient at the final state"),
        "the token alone": ("controls", "token identity"),
        "covariance alone": ("controls", "normal, of the same covariance"),
    },
}
"""What is taken away, and the lines of each; the first of a group is the level to compare with, save in the last."""
PANELS = {
    "come back": "clusters\nthat survive",
    "neighbours": "neighbours\nkept",
    "within tokens": "agreement within\none token",
}


def line(measured: Mapping, group: str, name: str) -> dict:
    """The numbers of one line, by panel; those of chance by construction are left out."""
    part, rows = GROUPS[group][name]
    found = next(row for row in measured[part] if row["rows"] == rows)
    return {what: found[what] for what in PANELS if what in found} | {"clusters": found["clusters"]}


def figure(measured: Mapping) -> Figure:
    """All lines, in their groups: blue what is measured, vermilion what is left when something is taken away."""
    lines, colours = {}, {}
    for group, names in GROUPS.items():
        lines[group], colours[group] = {}, "black"
        for place, name in enumerate(names):
            lines[name] = line(measured, group, name)
            full = place == 0 and group != "No components (gradients)"
            colours[name] = BLUE if full else VERMILION
    fig = panels.dot_plot(lines, PANELS, colours=colours, size=(6.6, 6.1), limits=(-0.1, 1.0))
    for label in fig.axes[0].get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in GROUPS else "normal")
    return fig
