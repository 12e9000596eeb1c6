"""Find the windows that a result was measured on, so that activations can be lined up with its rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from ..run.plan import text_windows
from ..run.profiles import PAPER
from ..text.corpus import Windows, bundled_windows, local_documents


def probe_windows(result, pool: Windows | None = None) -> Windows:
    """The windows that a result was measured on, one for each of its sequences.

    A result holds the predicted tokens. The first token of a window is only context; newer results hold it as the
    coordinate ``first_token``. For older ones, and for parts of windows, the window is looked up in a pool.

    Args:
        result: as from `spectrolib.measure`, with all or some of its tokens.
        pool: where to look, whatever the result holds. By default in the result itself, then among the held-out windows
            that come with the library.

    Raises:
        ValueError: if a sequence is not in the pool.
    """
    own = _whole_windows(result) if pool is None else None
    if own is not None:
        return own
    pool = bundled_windows("heldout") if pool is None else pool
    sequence, position, token = (np.asarray(result[name].values) for name in ("sequence", "position", "token_id"))
    document = np.asarray(result["document"].values) if "document" in result else None
    rows = []
    for s in np.unique(sequence):
        mine = sequence == s
        fits = position[mine].max() < pool.length and (pool.ids[:, position[mine]] == token[mine]).all(axis=1)
        if not np.any(fits):
            raise ValueError(f"sequence {s} of the result is in none of the {len(pool)} windows: give its own pool")
        if document is not None:  # two documents may share a passage
            own = fits & (pool.document == document[mine][0])
            fits = own if np.any(own) else fits
        rows.append(int(np.argmax(fits)))
    return pool.take(np.array(rows)).cut(int(position.max()) + 1)


def _whole_windows(result) -> Windows | None:
    """The windows as a result itself has them; None if it lacks their first tokens, or others.

    Shorter windows end in zeros, which no token before them sees.
    """
    if "first_token" not in result:
        return None
    names = ("sequence", "position", "token_id", "first_token", "domain", "document")
    sequence, position, token, first, domain, document = (np.asarray(result[name].values) for name in names)
    _, start, number, length = np.unique(sequence, return_index=True, return_inverse=True, return_counts=True)
    ids = np.zeros((len(start), int(position.max()) + 1), dtype=np.int64)
    ids[:, 0], ids[number, position] = first[start], token
    places = np.zeros(ids.shape, dtype=bool)
    places[number, position] = True
    whole = np.arange(1, ids.shape[1]) <= length[:, None]
    return Windows(ids, domain[start], document[start]) if np.array_equal(places[:, 1:], whole) else None


def measured_windows(result, model=None) -> Windows:
    """The windows that a whole result was measured on, and no others: from the result itself, or checked by their hash.

    For a result without first tokens they are rebuilt: from the windows that come with the library, or from the local
    text that its manifest names. Then they must have the hash that is in the manifest.

    Args:
        model: the measured `LanguageModel`, whose tokenizer cuts the text again.

    Raises:
        ValueError: if no windows with that hash are to be had.
    """
    own = _whole_windows(result)
    if own is not None:
        return own
    said = json.loads(result.attrs.get("manifest", "{}")).get("windows", {})
    probe = {"hash": "", "source": None} | said.get("probe", {})
    for found in _rebuilt(result, said, model):
        if found.hash == probe["hash"]:
            return found
    where = f", nor can they be cut from {probe['source']!r}" if probe["source"] else ""
    raise ValueError(
        "the result does not hold the first token of each window, as new ones do, and its windows (hash "
        f"{probe['hash'][:12] or 'unknown'}) are not among those that come with the library{where}: measure it again "
        "to compare it with features"
    )


def _rebuilt(result, said: Mapping, model) -> Iterator[Windows]:
    """Candidates for the windows of a result."""
    try:
        yield probe_windows(result, bundled_windows("heldout"))
    except ValueError:
        pass
    shapes = {role: windows.get("shape") for role, windows in said.items()}
    source = said.get("probe", {}).get("source")
    if source and Path(source).exists() and getattr(model, "tokens", None) and len(shapes) == 3:
        sizes = {f"{role}_windows": count for role, (count, _) in shapes.items()}
        profile = replace(PAPER, length=shapes["probe"][1], **sizes)
        try:
            yield text_windows(profile, model, local_documents(source), source)["probe"]
        except ValueError:  # the text is another now
            pass


def token_rows(result, windows: Windows, at: str) -> Int[ndarray, " tokens"]:
    """For each token of a result, the row of its activations in the flattened (windows, time) table.

    Args:
        windows: those of `probe_windows`.
        at: "predicted": the position of the token y itself, whose susceptibility was measured. "context": the one
            before it, where the model predicts y and has not seen it.

    Raises:
        ValueError: for another ``at``.
    """
    if at not in ("context", "predicted"):
        raise ValueError(f"at must be 'context' or 'predicted', got {at!r}")
    number = np.unique(result.sequence.values, return_inverse=True)[1]
    return number * windows.length + result.position.values - (at == "context")
