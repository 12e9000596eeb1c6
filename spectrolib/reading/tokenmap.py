"""A map of tokens: the standardised vectors laid out in the plane, as one page to explore and as a picture.

The layout is UMAP with 45 neighbours [V]. Its distances, densities and axes mean nothing by themselves: it keeps who is
near whom. So clusters are found on the vectors, and only shown here.

The page loads nothing from other hosts. Tokens are raw text from files, some of it HTML and script: the page holds them
as JSON without a single ``<``, its script puts them in as text and never as markup, and its policy lets no other script
run. The text of a window is stored once; the context of a token is the tokens beside it. Rows are told in five levels.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from .. import graph
from ..clustering import Clustering
from ..estimator import standardise
from ..run.files import refusing, write_whole
from ..text.runningtext import FAMILIES, RunningText, running_text

if TYPE_CHECKING:
    from .cards import Card

COLOURS = len(FAMILIES)
"""Colours that are told apart with any colour vision. More groups than these share one grey."""
NEAREST = 2
"""Nearest tokens of each that a page is given."""
LEVEL = 1.6
"""A step of the picture of a row, in root mean squares of all values of all rows. There are two steps either way."""


# The layout ----------------------------------------------------------------------------------------------------------


def layout(
    vectors: Float[ndarray, "n d"], *, k: int = 45, seed: int = 0, cache: str | Path | None = None
) -> Float[ndarray, "n 2"]:
    """Lay vectors out in the plane with UMAP, from their exact nearest neighbours.

    Args:
        vectors: one row a token, as from `spectrolib.standardise`.
        k: UMAP's ``n_neighbors``, which counts each point as its own first neighbour; 45 in the paper [V]. All else is
            UMAP's default [I].
        seed: the same seed gives the same layout, on one machine and with the same versions.
        cache: a file (.npz) to keep the layout in. What it holds is returned if it was made of these vectors with this
            k and seed, and made anew otherwise.

    Returns:
        float32 positions, in no unit.

    Raises:
        ValueError: for vectors that are not finite or are all the same, k < 2 or k >= n, a cache that cannot be
            written.
    """
    rows = np.ascontiguousarray(vectors, dtype=np.float64)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError(f"vectors must be a table of finite numbers, one row a token, got shape {rows.shape}")
    if not 2 <= k < len(rows):
        raise ValueError(f"k must be from 2 to {len(rows) - 1}, fewer than the {len(rows)} vectors, got {k}")
    if (rows == rows[0]).all():
        raise ValueError("all vectors are the same: there is nothing to lay out")
    if cache is None:
        return _umap(rows, k, seed)
    key = _key(rows, k, seed)
    positions = held(cache, key)
    if positions is None:
        positions = _umap(rows, k, seed)
        keep(cache, key, positions)
    return positions


def _umap(rows: Float[ndarray, "n d"], k: int, seed: int) -> Float[ndarray, "n 2"]:
    import warnings

    near = graph.nearest(rows, k - 1, seed=seed)
    itself = np.arange(len(rows))[:, None]
    indices = np.hstack([itself, near.indices])
    distances = np.hstack([np.zeros((len(rows), 1)), near.distances]).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # UMAP misses the index that would place new points
        from umap import UMAP  # takes seconds

        mapper = UMAP(n_neighbors=k, precomputed_knn=(indices, distances), random_state=seed, n_jobs=1)
        return mapper.fit_transform(rows).astype(np.float32)


def _key(rows: ndarray, k: int, seed: int) -> str:
    """What a layout was made of."""
    said = json.dumps([rows.shape, k, seed, version("umap-learn")]).encode()
    return hashlib.sha256(said + rows.tobytes()).hexdigest()


def held(file: str | Path, key: str) -> Float[ndarray, "n 2"] | None:
    """The layout in a file, if it is whole and was kept under this key."""
    try:
        with np.load(file) as arrays:
            return arrays["positions"] if str(arrays["key"]) == key else None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def keep(file: str | Path, key: str, positions: Float[ndarray, "n 2"]) -> None:
    """Keep a layout in a file (.npz), whole or not at all.

    Raises:
        ValueError: if the file cannot be written.
    """
    file = Path(file)
    with refusing(file):
        write_whole(file, lambda part: np.savez_compressed(part, key=np.array(key), positions=positions))


# The page ------------------------------------------------------------------------------------------------------------


def map_page(
    result,
    clustering: Clustering,
    positions: Float[ndarray, "n 2"],
    *,
    near: Int[ndarray, "n k"] | None = None,
    cards: Iterable[Card] = (),
    tokenizer=None,
    title: str = "Map of tokens",
    about: str = "",
    catalogue: str = "catalogue.html",
    links: Mapping[str, str] | None = None,
) -> str:
    """The map as one HTML page: pan, zoom, hover for context, search, click a cluster to read its card.

    Args:
        result: of `measure`: coordinates sequence, position, token_id, text, domain and document for each token. Its
            loss and its susceptibilities (columns z-scored, rows centred) are shown too where it has them.
        clustering: the clusters of the same tokens.
        positions: the layout of the same tokens.
        near: the nearest tokens of each, as from `graph.nearest` of what was laid out; `NEAREST` of them keep the page
            small. Without, none are shown.
        cards: of the clusters, for their names and families.
        tokenizer: of the measured model, for characters cut into several tokens; see `runningtext.running_text`.
        title: of the page.
        about: what else there is to know of what it shows.
        catalogue: the page of the full cards; cluster 12 links to ``catalogue.html#cluster-12``. None if empty.
        links: other pages to name under the title, and their addresses.

    Returns:
        The page. Its address says what is chosen, sought and coloured, and can be shared: ``map.html#16`` and
        ``map.html#cluster-16`` show cluster 16, ``map.html#token-7&search=return&colour=loss`` token 7 of the result
        among the places of a word.

    Raises:
        ValueError: for coordinates that are not there, other numbers of tokens, positions that are not finite, or cards
            of other clusters.
    """
    text = running_text(result, tokenizer)
    positions = _positions(positions, len(text))
    if len(clustering.labels) != len(text):
        raise ValueError(f"{len(text)} tokens, but clusters of {len(clustering.labels)}: cluster this result")
    data = {
        "title": title,
        "about": about,
        "catalogue": catalogue,
        "links": dict(links or {}),
        "families": FAMILIES,
        "clusters": _clusters(clustering, positions, cards),
        **_tokens(text, clustering.labels, positions, _measured(result, near, len(text))),
    }
    template = (Path(__file__).parent / "tokenmap.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.S)[1]
    parts = {
        "TITLE": html.escape(title),
        "CLUSTERS": _listed(data["clusters"]["label"], catalogue),
        "SCRIPT": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "DATA": json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda match: parts[match[1]], template)  # one pass: values are not read again


def write_page(page: str, file: str | Path) -> int:
    """Write a page, whole or not at all.

    Returns:
        Its size in bytes.

    Raises:
        ValueError: if the file cannot be written.
    """
    file, content = Path(file), page.encode()
    with refusing(file):
        write_whole(file, lambda part: part.write_bytes(content))
    return len(content)


def write_html(
    path: str | Path,
    xy: Float[ndarray, "n 2"],
    labels: Int[ndarray, " n"],
    contexts: Sequence[str],
    names: Sequence[str] = (),
) -> int:
    """Write the map of any tokens, of which only their text is known. Of a whole result, `map_page` shows more.

    Args:
        path: of the page.
        xy: the layout of the tokens, as from `layout`.
        labels: cluster of each token, from 0 on; -1 for none.
        contexts: the text of each token, with as much around it as shall be read.
        names: of the clusters, an empty one where there is none; none at all by default.

    Returns:
        The size of the page in bytes.

    Raises:
        ValueError: for numbers that do not fit together, positions that are not finite, a cluster without a token, a
            path that cannot be written.
    """
    import xarray as xr

    n, labels = len(contexts), np.asarray(labels)
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=-1) < -1:
        raise ValueError(f"labels must be whole numbers from -1 on, one for each of the {n} contexts")
    sizes = np.bincount(labels[labels >= 0])
    if not sizes.all():
        raise ValueError(f"cluster {sizes.argmin()} has no token: number clusters from 0 on, without gaps")
    if len(names) not in (0, len(sizes)):
        raise ValueError(f"{len(sizes)} clusters need as many names, got {len(names)}")
    texts, token = _numbered(contexts)
    coords = {"sequence": np.arange(n), "position": np.ones(n, dtype=np.int64), "token_id": token}
    coords |= {"text": np.array(texts, dtype=object)[token]} | dict.fromkeys(
        ("domain", "document"), np.full(n, "", object)
    )
    result = xr.Dataset(coords={name: ("token", values) for name, values in coords.items()})
    some, why = np.arange(len(sizes)), np.where(labels >= 0, "cluster", "main body")
    found = Clustering(labels, np.full(len(sizes), np.nan), some, sizes, some, why, len(sizes))
    cards = [SimpleNamespace(cluster=i, size=sizes[i], title=name, family="") for i, name in enumerate(names)]
    return write_page(map_page(result, found, xy, cards=cards, catalogue=""), path)


def _positions(positions: ndarray, n: int) -> Float[ndarray, "n 2"]:
    positions = np.asarray(positions, dtype=np.float64)
    if positions.shape != (n, 2) or not np.isfinite(positions).all():
        raise ValueError(f"positions must be finite and of shape ({n}, 2), one row a token, got {positions.shape}")
    return positions


class _Measured(NamedTuple):
    """What is shown of each token besides its text; None where it is not known."""

    loss: Float[ndarray, " n"] | None
    rows: Float[ndarray, "n components"] | None
    components: list[str]
    near: Int[ndarray, "n k"] | None


def _measured(result, near: ndarray | None, n: int) -> _Measured:
    if near is not None and (np.ndim(near) != 2 or len(near) != n or np.min(near) < 0 or np.max(near) >= n):
        raise ValueError(f"near must have a row of token numbers, 0 to {n - 1}, for each token, got {np.shape(near)}")
    loss = result["loss"].values if "loss" in result else None
    if "susceptibility" not in result:
        return _Measured(loss, None, [], near)
    return _Measured(loss, standardise(result["susceptibility"].values), result["component"].values.tolist(), near)


def _tokens(text: RunningText, labels: ndarray, positions: ndarray, measured: _Measured) -> dict:
    """Every token, in the order of its text. A run is a stretch of neighbours; nothing is context across its ends."""
    order = np.lexsort((text.position, text.sequence))
    sequence, position = text.sequence[order], text.position[order]
    follows = (np.diff(sequence) == 0) & (np.diff(position) == 1)
    starts = np.flatnonzero(np.r_[True, ~follows])
    pieces, piece = _numbered([text.pieces[row].decode("latin-1") for row in order])  # bytes, one a character
    domains, domain = _numbered(text.domain[order][starts])
    documents, document = _numbered(text.document[order][starts])
    x, y = _quantised(positions[order]).T
    return {
        "tokens": len(order),
        "row": "" if (order == np.arange(len(order))).all() else _packed(order),  # a token's number, as `near` takes it
        "pieces": pieces,
        "domains": domains,
        "documents": documents,
        "starts": starts.tolist(),
        "domain": domain.tolist(),
        "document": document.tolist(),
        "x": _packed(x),
        "y": _packed(y),
        "piece": _packed(piece),
        "label": _packed(labels[order] + 1),  # 0: in no cluster
        "family": _packed(np.array([FAMILIES.index(family) for family in text.families()[order]])),
        **_shown(measured, order),
    }


def _shown(measured: _Measured, order: Int[ndarray, " n"]) -> dict:
    """Losses in tenths of a nat, rows in five levels, nearest tokens: what is known."""
    found = {}
    if measured.loss is not None:
        tenths = np.rint(10 * np.clip(np.nan_to_num(measured.loss[order]), 0, 25.5))
        found["loss"] = _packed(tenths.astype(np.int64))
    if measured.rows is not None:
        rows = measured.rows[order]
        step = LEVEL * (float(np.sqrt((rows**2).mean())) or 1.0)
        found |= {"components": measured.components, "step": float(f"{step:.3g}"), "levels": _levels(rows, step)}
    if measured.near is not None:
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        found["near"] = [_packed(other) for other in place[measured.near[order]].T]
    return found


def _levels(rows: Float[ndarray, "n components"], step: float) -> str:
    """Levels of -2 to 2 steps, three components to a byte, all tokens of the first three before those of the next."""
    levels = np.clip(np.rint(rows / step), -2, 2).astype(np.int64) + 2
    levels = np.pad(levels, ((0, 0), (0, -levels.shape[1] % 3)))
    threes = levels[:, ::3] + 5 * levels[:, 1::3] + 25 * levels[:, 2::3]
    return _packed(threes.T.ravel())


def _clusters(clustering: Clustering, positions: ndarray, cards: Iterable[Card]) -> dict:
    sizes = clustering.sizes
    label, family = [""] * len(sizes), [""] * len(sizes)
    for card in cards:
        if not 0 <= card.cluster < len(sizes) or card.size != sizes[card.cluster]:
            raise ValueError(
                f"the card of cluster {card.cluster} ({card.size} tokens) is of other clusters: make cards anew"
            )
        label[card.cluster] = card.title
        family[card.cluster] = card.family
    return {
        "conductance": [None if np.isnan(value) else float(f"{value:.4g}") for value in clustering.conductance],
        "colour": _separating(_middles(positions, clustering.labels, len(sizes))).tolist(),
        "label": label,
        "family": family,
        **({} if clustering.share is None else {"share": [float(f"{value:.4g}") for value in clustering.share]}),
    }


def _listed(labels: Sequence[str], catalogue: str) -> str:
    """The clusters for a browser without JavaScript; for others, the anchors that addresses of clusters lead to."""
    from .marks import visible

    items = []
    for cluster, label in enumerate(labels):
        name = f"<bdi>{html.escape(visible(label))}</bdi>" if label else "a cluster"
        link = f'<a href="{html.escape(catalogue)}#cluster-{cluster}">{name}</a>' if catalogue else name
        items.append(f'<li id="cluster-{cluster}">{link}</li>')
    return "".join(items)


def _numbered(values: Iterable) -> tuple[list[str], Int[ndarray, " n"]]:
    """Each text once, and which of them each value is."""
    place: dict[str, int] = {}
    which = np.array([place.setdefault(str(value), len(place)) for value in values], dtype=np.int64)
    return list(place), which


def _quantised(positions: Float[ndarray, "n 2"]) -> Int[ndarray, "n 2"]:
    """Positions in steps of 1/65535 of the wider side; both axes on one scale, each centred."""
    low, high = positions.min(axis=0), positions.max(axis=0)
    wide = (high - low).max() or 1.0
    return np.rint(((positions - (low + high) / 2) / wide + 0.5) * 65535).astype(np.int64)


def _packed(values: Int[ndarray, " n"]) -> str:
    """Whole numbers as base64 of one, two or four bytes each, as few as do; the page sees which by the length."""
    kind = next(kind for kind in ("<u1", "<u2", "<u4") if values.max(initial=0) <= np.iinfo(kind).max)
    return base64.b64encode(values.astype(kind).tobytes()).decode()


def _middles(positions: ndarray, labels: ndarray, count: int) -> Float[ndarray, "clusters 2"]:
    """The member of each cluster that is nearest to the median of all: a cluster in two pieces is named inside one."""
    middles = np.zeros((count, 2))
    for cluster in range(count):
        members = positions[labels == cluster]
        middles[cluster] = members[((members - np.median(members, axis=0)) ** 2).sum(axis=1).argmin()]
    return middles


def _separating(middles: Float[ndarray, "clusters 2"], colours: int = COLOURS) -> Int[ndarray, " clusters"]:
    """A colour for each cluster, only so that neighbours differ: that whose nearest bearer so far is the farthest."""
    chosen = np.zeros(len(middles), dtype=np.int64)
    nearest = np.full((colours, len(middles)), np.inf)  # from each place to the nearest cluster of each colour
    for cluster, middle in enumerate(middles):
        chosen[cluster] = nearest[:, cluster].argmax()
        distance = np.hypot(*(middles - middle).T)
        nearest[chosen[cluster]] = np.minimum(nearest[chosen[cluster]], distance)
    return chosen


# The picture ---------------------------------------------------------------------------------------------------------


def picture(
    ax,
    positions: Float[ndarray, "n 2"],
    labels: Int[ndarray, " n"],
    *,
    families: Sequence[str] | None = None,
    numbered: int = 15,
):
    """The same layout as a still picture: tokens in no cluster grey, clusters in colour, the largest with their number.

    Args:
        ax: the axes to draw on.
        labels: cluster of each token, -1 for none.
        families: the family of each cluster, for colours and a legend: those of `runningtext.FAMILIES` have the colours
            that they have everywhere, any other is dark grey. Without, colours only tell neighbours apart.
        numbered: so many clusters are named, the largest first.

    Returns:
        The axes.

    Raises:
        ValueError: for positions that are not finite, or another number of families than clusters.
    """
    from .marks import PALETTE

    labels = np.asarray(labels)
    positions = _positions(positions, len(labels))
    count = int(labels.max(initial=-1)) + 1
    if families is not None and len(families) != count:
        raise ValueError(f"{count} clusters need as many families, got {len(families)}")
    middles = _middles(positions, labels, count)
    if families is None:
        of_cluster = [PALETTE[colour] for colour in _separating(middles)]
    else:
        of_family = dict(zip(FAMILIES, PALETTE, strict=True))
        of_cluster = [of_family.get(family, "0.4") for family in families]
        for family in sorted(set(families), key=[*of_family, *families].index):
            name = family.replace("$", r"\$") or "no family"
            ax.scatter([], [], s=25, color=of_family.get(family, "0.4"), label=name)
    ax.scatter(*positions[labels < 0].T, s=1.5, color="0.8", linewidths=0, rasterized=True)
    members = labels >= 0
    colours = [of_cluster[label] for label in labels[members]]
    ax.scatter(*positions[members].T, s=2.5, color=colours, linewidths=0, rasterized=True)  # in no order of colours
    if families is not None and count:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    for cluster, middle in enumerate(middles[:numbered]):
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        ax.annotate(str(cluster), middle, ha="center", va="center", fontsize=7, bbox=box)
    ax.set(xlabel="UMAP 1 (no unit)", ylabel="UMAP 2 (no unit)", xticks=[], yticks=[], aspect="equal")
    return ax
