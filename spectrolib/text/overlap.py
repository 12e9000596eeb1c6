"""Text that occurs twice: documents given twice, and runs of tokens that two sets of windows share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from .corpus import Document, content_hash

STRETCH = 16
"""Length of a run, in tokens. Two texts share a run this long only if both copy it from one source or template."""


class Remembered:
    """Documents to iterate over, which remembers the name of each document that has passed, by a hash of its text."""

    def __init__(self, documents: Iterable[Document]):
        self.documents, self.names = documents, {}

    def __iter__(self) -> Iterator[Document]:
        for document in self.documents:
            self.names.setdefault(content_hash(document.text.strip()), document.name)
            yield document

    def also_in(self, other: Remembered) -> list[str]:
        """Names, here, of the documents whose text passed through the other one too, under whatever name."""
        return sorted(name for content, name in self.names.items() if content in other.names)


def shared_stretches(
    windows: Int[ndarray, "windows length"], *others: Int[ndarray, "others length"], stretch: int = STRETCH
) -> Bool[ndarray, " windows"]:
    """Which windows share a run of ``stretch`` tokens with a window of one of the ``others``.

    If windows are shorter than ``stretch``, the run is as long as the shortest windows. Runs are compared by a hash of
    64 bits.
    """
    stretch = min(stretch, windows.shape[1], *(other.shape[1] for other in others))
    known = np.concatenate([_hashes(other, stretch).ravel() for other in others])
    return np.isin(_hashes(windows, stretch), known).any(axis=1)


def _hashes(ids: Int[ndarray, "windows length"], stretch: int) -> ndarray:
    """One number for each stretch of each window."""
    factor, found = np.uint64(0x9E3779B97F4A7C15), np.zeros((len(ids), ids.shape[1] - stretch + 1), np.uint64)
    for place in range(stretch):
        found = (found ^ ids[:, place : place + found.shape[1]].astype(np.uint64)) * factor
        found ^= found >> np.uint64(29)
    return found
