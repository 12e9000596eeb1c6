"""Text that stands in two places: documents given twice, and stretches of tokens that two sets of windows share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from .corpus import Document, content_hash

STRETCH = 16
"""Tokens in a row: two texts that have so many in common have them from one source, or from a form."""


class Remembered:
    """Documents as they pass by, with what they were called by their content."""

    def __init__(self, documents: Iterable[Document]):
        self.documents, self.names = documents, {}

    def __iter__(self) -> Iterator[Document]:
        for document in self.documents:
            self.names.setdefault(content_hash(document.text.strip()), document.name)
            yield document

    def also_in(self, other: Remembered) -> list[str]:
        """Names of the documents that passed by there too, whatever they were called."""
        return sorted(name for content, name in self.names.items() if content in other.names)


def shared_stretches(
    windows: Int[ndarray, "windows length"], *others: Int[ndarray, "others length"], stretch: int = STRETCH
) -> Bool[ndarray, " windows"]:
    """Which windows hold so many tokens in a row that stand in a row in one of the others.

    Shorter windows must hold all of another's. Stretches are compared by a hash of 64 bits.
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
