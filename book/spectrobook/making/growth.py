"""How many clusters come back from how much text: 102,400 held-out tokens to first order, and nested parts of them.

The windows are those that come with the bundled model, at their full length of 257 tokens; a part is every second,
fourth or eighth of them. A run goes on where it was stopped, and each clustering is kept when it is made.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from spectrolib.clustering import Clustering
from spectrolib.model.loading import load_model
from spectrolib.run import profiles
from spectrolib.run.files import write_whole
from spectrolib.run.measure import measure
from spectrolib.run.plan import Plan, profile_windows
from spectrolib.run.resolved import rows_of
from spectrolib.run.store import open_clusters, open_result, save_clusters

from .. import robustness
from .resolved import MIN_SIZE, REPEATS, K, stable

EVERY = (8, 4, 2, 1)
"""Parts of the text, the smallest first: one of so many windows."""
LENGTH, WINDOWS = 257, 400
"""Tokens of a window, the first of which is predicted by none; and windows."""
SETTINGS = {"k": K, "min_size": MIN_SIZE, "repeats": REPEATS, "seed": 0}
"""Of the clusters."""


def plan() -> Plan:
    """The run: the bundled model to first order, all components."""
    model = load_model("bundled", device="cpu")
    profile = replace(profiles.get("book"), length=LENGTH, probe_windows=WINDOWS)
    windows = profile_windows(profile, model)
    return Plan(model=model, **windows, settings=profile.settings, channels=2048, first_order=True)


def part(result, step: int) -> Int[ndarray, " tokens"]:
    """The tokens in every window of so many, by their places in the result."""
    _, window = np.unique(result["sequence"].values, return_inverse=True)
    return np.flatnonzero(window % step == 0)


def clustered(folder: Path, result, step: int, report: Callable[[str], None] = print) -> Clustering:
    """The clusters of a part that come back, from the folder if they are there."""
    place = folder / f"every{step}"
    if not (place / "clusters.npz").exists():
        rows = rows_of(result)[part(result, step)]
        report(f"clusters of {len(rows):,} tokens")
        found = stable(rows)
        place.mkdir(parents=True, exist_ok=True)
        save_clusters(found, place, {"settings": SETTINGS})
    return open_clusters(place)


def described(found: Clustering, token_id: Int[ndarray, " tokens"]) -> dict:
    """The numbers of a clustering that the chapter shows; ``mixed``: clusters with no token in more than half."""
    groups = [token_id[found.labels == label] for label in range(len(found.sizes))]
    most = np.array([np.unique(group, return_counts=True)[1].max() for group in groups])
    return {
        "tokens": len(found.labels),
        "clusters": len(found.sizes),
        "in every repetition": int((found.share == 1).sum()),
        "share": float(found.share.mean()),
        "coverage": found.coverage,
        "sizes": np.percentile(found.sizes, [10, 50, 90]).tolist(),
        "mixed": int((2 * most <= found.sizes).sum()),
    }


def against_whole(part_labels: Int[ndarray, " m"], whole_labels: Int[ndarray, " m"], clusters: int) -> dict:
    """What became of the clusters of a part in those of all the text, both on the tokens of the part.

    Args:
        clusters: how many all the text has.

    Returns:
        ``found again``: the share of the part's clusters that all the text has too, with its 95 % interval (Wilson).
        ``too few``: clusters of all the text with fewer tokens in the part than a cluster needs.
    """
    counts = np.bincount(whole_labels[whole_labels >= 0], minlength=clusters)
    again = robustness.survival(part_labels, whole_labels).share
    return {"found again": list(again), "too few": int((counts < MIN_SIZE).sum())}


def table(folder: Path, result, report: Callable[[str], None] = print) -> list[dict]:
    """A row for each part of the text, the smallest first."""
    found = {step: clustered(folder, result, step, report) for step in EVERY}
    whole, rows = found[EVERY[-1]], []
    for step, own in found.items():
        tokens = part(result, step)
        again = against_whole(own.labels, whole.labels[tokens], len(whole.sizes))
        rows.append(described(own, result["token_id"].values[tokens]) | again)
    return rows


def run(folder: Path, report: Callable[[str], None] = print) -> None:
    """Measure, cluster, and write ``made/growth.json``."""
    measure(plan(), folder / "first")
    result = open_result(folder / "first")
    said = {
        "settings": SETTINGS,
        "manifest": json.loads(result.attrs["manifest"]),
        "parts": table(folder, result, report),
    }
    (folder / "made").mkdir(exist_ok=True)
    text = json.dumps(said, indent=1) + "\n"
    write_whole(folder / "made" / "growth.json", lambda file: file.write_text(text, encoding="utf-8"))
