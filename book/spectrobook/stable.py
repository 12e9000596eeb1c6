"""The bundled model's clusters that come back: what chapters, catalogue and map show of them.

They were found on rows to first order of all shipped probe windows (`python -m spectrobook resolved`). The rows are too
large to ship. What ships are clusters, cards, each token's place on the map and its nearest tokens.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from spectrolib.clustering import Clustering
from spectrolib.reading.cards import open_cards

from . import DATA

if TYPE_CHECKING:
    from spectrolib.reading.cards import Card

FILE = DATA / "resolved.npz"


@functools.cache
def arrays() -> dict[str, ndarray]:
    """Everything that ships of them, by name."""
    with np.load(FILE) as stored:
        return {name: stored[name] for name in stored.files}


@functools.cache
def clusters() -> Clustering:
    """The clusters, each with its share of repetitions."""
    known = arrays()
    fields = {name: known[name] for name in Clustering.__dataclass_fields__ if name in known}
    return Clustering(**fields, seeds_tried=len(known["seeds"]))


@functools.cache
def cards() -> tuple[Card, ...]:
    """The card of each cluster, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cards.json").write_bytes(arrays()["cards"].tobytes())
        return tuple(open_cards(folder))


def layout() -> Float[ndarray, "tokens 2"]:
    """The place of each token on the map."""
    return arrays()["layout"].astype(np.float64)


def nearest() -> Int[ndarray, "tokens k"]:
    """The nearest tokens of each by its row, the nearest first."""
    return arrays()["near"].astype(np.int64)
