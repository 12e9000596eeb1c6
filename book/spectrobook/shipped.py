"""What the book shows of the measurement that ships with the library: rows of one number a component.

One place, so that all chapters speak of the same rows and clusters. Everything is made when it is first asked for, and
once. The clusters that come back are in `stable`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from jaxtyping import Float
from numpy import ndarray

from spectrolib import clustering, graph
from spectrolib.clustering import Clustering
from spectrolib.estimator import standardise, with_estimator
from spectrolib.reading.conditions import Features, describe
from spectrolib.run import store
from spectrolib.text.corpus import BUNDLED
from spectrolib.text.runningtext import running_text

from . import DATA

if TYPE_CHECKING:
    import xarray as xr


SHIPPED = {"book": "measurement", "zero": "measurement-zero", "untrained": "measurement-untrained"}
"""Measurements that ship with the library, and their files."""


def shipped_result(name: str = "book"):
    """A measurement that ships with the library.

    Args:
        name: ``book``: profile `book` on the bundled model. ``zero``: the same at nβ = 0. ``untrained``: the same for
            the same weights, shuffled within each tensor. The last two have every other window of the first and
            half of its chains; ``python -m spectrobook controls`` makes them.

    Raises:
        ValueError: for another name.
    """
    if name not in SHIPPED:
        raise ValueError(f"no measurement {name!r} ships with the library: there are {', '.join(SHIPPED)}")
    return store.open_packed(DATA / f"{SHIPPED[name]}.zarr.zip")


ESTIMATOR = "one_chain"
"""Whose rows the book clusters. The two-chain value, which is the paper's, hardly clusters on this model: the chapter
on clusters shows both."""
K = 45
"""Neighbours of a token in the graph; the paper's number [S]."""


@functools.cache
def result() -> xr.Dataset:
    """The measurement, from `shipped.shipped_result`, by `ESTIMATOR`. Shared: do not change it."""
    return with_estimator(shipped_result(), ESTIMATOR)


@functools.cache
def vectors() -> Float[ndarray, "tokens components"]:
    """Its susceptibilities, standardised: columns z-scored, rows centred."""
    return standardise(result()["susceptibility"].values)


@functools.cache
def clusters() -> Clustering:
    """Its clusters: the mutual graph of 45 neighbours, cut by conductance with the library's defaults, seed 0."""
    return clustering.conductance_clusters(graph.knn_graph(vectors(), k=K, symmetrise="mutual")).complete()


@functools.cache
def features() -> Features:
    """What can be said of each of its tokens from the text alone; ``features().text`` is the running text."""
    return describe(running_text(result(), tokenizer()))


@functools.cache
def tokenizer():
    """The bundled model's tokenizer (a `tokenizers.Tokenizer`)."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
