"""Small results with tokens in running text, and clusters with a planted reason."""

import numpy as np
import xarray as xr

WORDS = [" the", " of", " a", " an", " one", " in", " cat", " dog", "s", ",", ".", "\n", "\n    ", "(", ")", " (", "'"]
WORDS += ["1", "2", "37", " 5", " =", "==", "_", " x", " y", " if", " for", "foo", "bar", " Rome", "é", "я"]
COMPONENTS = ["l0h0", "l0h1", "l0 mlp", "embed"]


def result(texts: list[list[str]], *, domains=None, documents=None, seed: int = 0, halves: bool = False) -> xr.Dataset:
    """A result of these windows of tokens, with random susceptibilities; a row for each token, positions from 1."""
    names = sorted({text for window in texts for text in window})
    tokens = [text for window in texts for text in window]
    sequence = np.repeat(np.arange(len(texts)), [len(window) for window in texts])
    domains = domains or ["prose"] * len(texts)
    documents = documents or [f"document {i}" for i in range(len(texts))]
    values = np.random.default_rng(seed).normal(size=(len(tokens), len(COMPONENTS)))
    said = {
        "sequence": sequence,
        "position": np.concatenate([np.arange(1, len(window) + 1) for window in texts]),
        "token_id": np.array([names.index(text) for text in tokens]),
        "text": np.array(tokens, dtype=object),
        "domain": np.array([domains[i] for i in sequence], dtype=object),
        "document": np.array([documents[i] for i in sequence], dtype=object),
    }
    data = {"susceptibility": (("token", "component"), values)}
    if halves:
        noise = np.random.default_rng(seed + 1).normal(size=(1, 2, 1, *values.shape))
        data["half_susceptibility"] = (("estimator", "half", "block", "token", "component"), values + 0.1 * noise)
    coords = {"component": COMPONENTS, "block": [8], "estimator": ["one_chain"]}
    attributes = {"estimator": "one_chain"}
    found = xr.Dataset(data, coords=coords | {name: ("token", value) for name, value in said.items()}, attrs=attributes)
    return found if halves else found.drop_vars(["block", "estimator"])


def windows(count: int = 80, length: int = 60, seed: int = 0) -> list[list[str]]:
    """Windows of random words, the first ones frequent."""
    rng = np.random.default_rng(seed)
    chance = 1 / np.arange(2, len(WORDS) + 2)
    drawn = rng.choice(len(WORDS), size=(count, length), p=chance / chance.sum())
    return [[WORDS[i] for i in row] for row in drawn]


def random_result(count: int = 80, length: int = 60, seed: int = 0, **options) -> xr.Dataset:
    """Random words: two windows to a document, four domains."""
    documents = [f"document {i // 2}" for i in range(count)]
    domains = [("prose", "licences", "readme", "docstrings")[i // 2 % 4] for i in range(count)]
    return result(windows(count, length, seed), domains=domains, documents=documents, seed=seed, **options)


def noisy(member: np.ndarray, kept: float, others: float, seed: int = 0) -> np.ndarray:
    """A planted set, of which a share is kept, and so many others for each member that is kept are added."""
    rng = np.random.default_rng([seed, 1])  # not the stream that drew the words
    found = member & (rng.random(len(member)) < kept)
    outside = np.flatnonzero(~member)
    found[rng.choice(outside, int(others * found.sum()), replace=False)] = True
    return found
