"""The map of tokens: the layout keeps neighbours, the page keeps its tokens as text, in a real browser."""

import base64
import dataclasses
import json
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pagechecks
import pytest
import xarray as xr
from matplotlib.colors import to_rgba

from spectrobook import figures
from spectrolib import graph
from spectrolib.clustering import Clustering
from spectrolib.estimator import standardise
from spectrolib.reading import marks, tokenmap
from spectrolib.text.runningtext import FAMILIES

HOSTILE = [
    "</script><script>window.hurt = 1</script>",
    "<img src=x onerror='window.hurt = 2'>",
    "<!--<script>",
    "]]>",
    "\u2028\u2029",
    "\x00",
    "\u202eabc",
    "مرحبا",
    "{{DATA}}",
    "{{TITLE}}",
    "\\u003c",
    "`${window.hurt = 3}`",
    '" onmouseover="window.hurt=4',
    "\r\n\t",
    "�",
    "",
    "𝒳",
    "__proto__",
]
SHOWN = {"\x00": "\\u0000", "\u2028\u2029": "\\u2028\\u2029", "\u202eabc": "\\u202eabc", "\r\n\t": "↵→"}


def tokens(texts, *, sequence=None, position=None, domain="prose", document="a.txt") -> xr.Dataset:
    """A result of these tokens: one window unless told otherwise."""
    n = len(texts)
    coords = {
        "sequence": np.zeros(n, int) if sequence is None else sequence,
        "position": np.arange(1, n + 1) if position is None else position,
        "token_id": np.unique(texts, return_inverse=True)[1],
        "text": np.array([*texts, None], dtype=object)[:-1],
        "domain": np.array([domain] * n, dtype=object),
        "document": np.array([document] * n, dtype=object),
    }
    return xr.Dataset(coords={name: ("token", values) for name, values in coords.items()})


def clustering(labels) -> Clustering:
    labels = np.asarray(labels)
    sizes = np.bincount(labels[labels >= 0])
    some = np.arange(len(sizes))
    why = np.where(labels >= 0, "cluster", "main body")
    return Clustering(labels, np.linspace(0.01, 0.2, len(sizes)), some, sizes, some, why, len(sizes))


def card(cluster, size, title="", family=""):
    return SimpleNamespace(cluster=cluster, size=size, title=title, family=family)


def ring(n: int) -> np.ndarray:
    """n places, no two alike."""
    angle = 2 * np.pi * np.arange(n) / n
    return np.column_stack([np.cos(angle), np.sin(angle)])


def data(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def unpacked(text: str, n: int) -> np.ndarray:
    """n whole numbers of one, two or four bytes."""
    raw = base64.b64decode(text)
    return np.frombuffer(raw, dtype=f"<u{len(raw) // n}").astype(np.int64)


# The layout ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clouds() -> np.ndarray:
    """Three clouds far from each other, 60 vectors each."""
    rng = np.random.default_rng(0)
    return np.concatenate([20 * np.eye(8)[cloud] + rng.normal(size=(60, 8)) for cloud in range(3)])


@pytest.fixture(scope="module")
def laid_out(clouds) -> np.ndarray:
    return tokenmap.layout(clouds, k=15, seed=1)


def test_clouds_stay_apart_and_the_same_seed_gives_the_same_layout(clouds, laid_out):
    assert laid_out.shape == (180, 2) and laid_out.dtype == np.float32
    near = graph.nearest(laid_out, 10).indices
    assert (near // 60 == np.arange(180)[:, None] // 60).all()
    np.testing.assert_array_equal(tokenmap.layout(clouds, k=15, seed=1), laid_out)
    assert not np.array_equal(tokenmap.layout(clouds, k=15, seed=2), laid_out)


def test_umap_is_given_euclidean_distances_and_itself_as_first_neighbour(clouds, monkeypatch):
    import umap

    given = {}

    class Spy:
        def __init__(self, **options):
            given.update(options)

        def fit_transform(self, rows):
            return rows[:, :2]

    monkeypatch.setattr(umap, "UMAP", Spy)
    tokenmap.layout(clouds, k=15, seed=3)
    indices, distances = given["precomputed_knn"]
    assert (given["n_neighbors"], given["random_state"], indices.shape) == (15, 3, (180, 15))
    np.testing.assert_array_equal(indices[:, 0], np.arange(180))
    expected = np.linalg.norm(clouds[:, None] - clouds[indices], axis=2)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)
    every = np.linalg.norm(clouds[:, None] - clouds, axis=2)
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :15], rtol=1e-5)


def test_a_cache_is_used_for_the_same_vectors_alone(clouds, tmp_path, monkeypatch):
    calls = []

    def made(rows, k, seed):
        calls.append((k, seed))
        return rows[:, :2].astype(np.float32)

    monkeypatch.setattr(tokenmap, "_umap", made)
    cache = tmp_path / "layout.npz"
    first = tokenmap.layout(clouds, k=15, cache=cache)
    np.testing.assert_array_equal(tokenmap.layout(clouds.copy(), k=15, cache=cache), first)
    assert calls == [(15, 0)]
    other = clouds.copy()
    other[7, 3] += 1e-9
    for vectors, options in [(other, {}), (clouds[::-1], {}), (clouds, {"seed": 1}), (clouds, {"k": 16})]:
        calls.clear()
        np.testing.assert_array_equal(
            tokenmap.layout(vectors, **{"k": 15, **options}, cache=cache), vectors[:, :2].astype(np.float32)
        )
        assert len(calls) == 1
    cache.write_bytes(cache.read_bytes()[:100])
    calls.clear()
    tokenmap.layout(clouds, k=15, cache=cache)
    assert len(calls) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["layout.npz"]


@pytest.mark.parametrize(
    ("vectors", "k", "message"),
    [
        (np.ones((50, 3)), 10, "all vectors are the same"),
        (np.full((50, 3), np.nan), 10, "finite"),
        (np.arange(50.0), 10, "one row a token"),
        (np.random.default_rng(0).normal(size=(50, 3)), 50, "from 2 to 49"),
        (np.random.default_rng(0).normal(size=(50, 3)), 1, "from 2 to 49"),
    ],
)
def test_bad_vectors(vectors, k, message):
    with pytest.raises(ValueError, match=message):
        tokenmap.layout(vectors, k=k)


# What the page holds -------------------------------------------------------------------------------------------------


def test_positions_come_back_within_half_a_step():
    positions = np.random.default_rng(0).normal(size=(500, 2)) * [30, 2] + [1000, -7]
    held = data(tokenmap.map_page(tokens(["a"] * 500), clustering([0] * 500), positions))
    found = np.column_stack([unpacked(held["x"], 500), unpacked(held["y"], 500)]) / 65535
    wide = np.ptp(positions[:, 0])
    back = (found - 0.5) * wide + (positions.min(axis=0) + positions.max(axis=0)) / 2
    np.testing.assert_allclose(back, positions, atol=0.51 * wide / 65535)
    assert (unpacked(held["x"], 500).min(), unpacked(held["x"], 500).max()) == (0, 65535)


def test_context_runs_along_positions_whatever_the_order_of_rows():
    result = tokens(list("bdcaxy"), sequence=[4, 4, 4, 4, 1, 1], position=[2, 6, 5, 1, 1, 2])
    held = data(tokenmap.map_page(result, clustering([0, 1, -1, 0, 1, 1]), ring(6)))
    pieces = held["pieces"]
    text = [pieces[i] for i in unpacked(held["piece"], 6)]
    ends = [*held["starts"][1:], 6]
    assert ["".join(text[a:b]) for a, b in zip(held["starts"], ends, strict=True)] == ["xy", "ab", "cd"]
    np.testing.assert_array_equal(unpacked(held["label"], 6), [2, 2, 1, 1, 0, 2])
    np.testing.assert_array_equal(unpacked(held["row"], 6), [4, 5, 3, 0, 2, 1])


def test_numbers_take_as_few_bytes_as_the_largest_needs():
    many = np.random.default_rng(0).permutation(70_000)
    for largest, width in ((2**16, 4), (2**16 - 1, 2), (256, 2), (255, 1), (0, 1)):
        values = np.minimum(many, largest)
        packed = tokenmap._packed(values)
        assert len(base64.b64decode(packed)) == width * len(values)
        np.testing.assert_array_equal(unpacked(packed, len(values)), values)


def test_each_token_has_its_family():
    result = tokens(["12", "return", "\n", " +"], position=[1, 2, 3, 4], domain="python", document="a.py")
    order = [2, 0, 3, 1]
    held = data(tokenmap.map_page(result.isel(token=order), clustering([0] * 4), ring(4)))
    assert held["families"] == list(FAMILIES)
    found = [held["families"][i] for i in unpacked(held["family"], 4)]
    assert found == ["numbers", "code structure", "formatting", "code structure"]


def test_rows_losses_and_near_tokens_are_kept_in_few_bytes():
    """Rows of 32 components, losses and nearest tokens in 25 bytes a token; what comes back is what was measured."""
    result, labels, positions = big(windows=20)
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(len(labels), 32))
    losses = rng.exponential(3, len(labels)).astype(np.float32)
    losses[5] = 40
    measured = xr.Dataset({"susceptibility": (("token", "component"), rows), "loss": ("token", losses)})
    measured = measured.assign_coords(component=[f"l{i}" for i in range(32)]).merge(result)
    order = rng.permutation(len(labels))  # rows of the result in no order of the text
    given = measured.isel(token=order), clustering(labels[order]), positions[order]
    vectors = 10 * positions[order] + rng.normal(size=(len(labels), 2))  # near on the map are near
    page = tokenmap.map_page(*given, near=graph.nearest(vectors, tokenmap.NEAREST).indices)
    assert len(page) - len(tokenmap.map_page(result, *given[1:])) < 25 * len(labels)
    held, n = data(page), len(labels)
    back = unpacked(held["row"], n)
    np.testing.assert_array_equal(order[back], np.arange(n))
    np.testing.assert_allclose(unpacked(held["loss"], n) / 10, np.minimum(losses, 25.5), atol=0.051)
    standard = standardise(rows)
    threes = unpacked(held["levels"], 11 * n).reshape(11, n)
    levels = np.stack([threes // 5**i % 5 - 2 for i in range(3)], axis=1).reshape(33, n).T[:, :32]
    assert held["components"] == [f"l{i}" for i in range(32)] and held["step"] == pytest.approx(
        tokenmap.LEVEL * np.sqrt((standard**2).mean()), rel=0.005
    )
    sure = np.abs(np.abs(standard / held["step"]) % 1 - 0.5) > 0.02  # the step is told in three digits
    np.testing.assert_array_equal(levels[sure], np.clip(np.rint(standard / held["step"]), -2, 2)[sure])
    near = graph.nearest(vectors[back], tokenmap.NEAREST).indices
    np.testing.assert_array_equal(np.column_stack([unpacked(own, n) for own in held["near"]]), near)


def test_what_was_not_measured_is_not_there():
    held = data(tokenmap.map_page(tokens(["a"] * 6), clustering([0] * 6), ring(6)))
    assert not {"loss", "levels", "components", "near"} & set(held)


def test_twenty_thousand_tokens_are_under_half_a_megabyte():
    assert len(big_page().encode()) < 0.5e6


def big_page() -> str:
    return tokenmap.map_page(big()[0], clustering(big()[1]), big()[2])


def big(windows: int = 160) -> tuple[xr.Dataset, np.ndarray, np.ndarray]:
    """Windows of 128 tokens out of 4096, 100 clusters."""
    rng = np.random.default_rng(0)
    words = [f" w{i}x{i % 97}" for i in range(4096)]
    n = windows * 128
    places = {"sequence": np.repeat(np.arange(windows), 128), "position": np.tile(np.arange(128), windows)}
    result = tokens(rng.choice(words, n), **places)
    return result, rng.integers(-1, 100, n), rng.normal(size=(n, 2))


def test_colours_tell_neighbours_apart():
    middles = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0)), -1).reshape(-1, 2)
    colours = tokenmap._separating(middles)
    distance = np.linalg.norm(middles[:, None] - middles, axis=2)
    touching = (distance > 0) & (distance <= 1)
    same = colours[:, None] == colours
    assert set(colours) <= set(range(tokenmap.COLOURS))
    assert (touching & same).sum() <= 0.02 * touching.sum()  # 8 colours for 4 neighbours each; a lottery has 1/8


def test_the_page_asks_nothing_of_others():
    page = tokenmap.map_page(tokens(["a"] * 6), clustering([0] * 6), ring(6))
    assert re.findall(r"(?:https?:)?//\w[^\s\"']*\.\w+", page.split('id="data"')[0]) == []
    assert not re.search(r"<(?:link|img|script|iframe)[^>]+(?:src|href)=[\"'](?!data:)", page)
    assert "default-src 'none'; script-src 'sha256-" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": ring(5)}, r"of shape \(6, 2\)"),
        ({"positions": np.full((6, 2), np.inf)}, "must be finite"),
        ({"clustering": clustering([0] * 5)}, "6 tokens, but clusters of 5"),
        ({"result": tokens(["a"] * 6).drop_vars("domain")}, "no coordinate domain"),
        ({"cards": [card(1, 6)]}, "of other clusters"),
        ({"cards": [card(0, 5)]}, "of other clusters"),
        ({"near": np.zeros((5, 2), int)}, r"near must have a row of token numbers, 0 to 5, .* got \(5, 2\)"),
        ({"near": np.full((6, 2), 6)}, "near must have a row of token numbers, 0 to 5"),
    ],
)
def test_what_does_not_fit_together(changes, message):
    given = {"result": tokens(["a"] * 6), "clustering": clustering([0] * 6), "positions": ring(6)} | changes
    with pytest.raises(ValueError, match=message):
        tokenmap.map_page(**given)


def test_a_map_of_nothing_but_texts(tmp_path):
    contexts, labels = [*HOSTILE, "a cat", "a dog"], np.r_[np.full(len(HOSTILE), -1), 0, 1]
    size = tokenmap.write_html(tmp_path / "map.html", ring(len(labels)), labels, contexts, ["<b>cats", ""])
    page = (tmp_path / "map.html").read_text(encoding="utf-8")
    held = data(page)
    assert size == (tmp_path / "map.html").stat().st_size
    pieces = held["pieces"]
    assert [pieces[i].encode("latin-1").decode() for i in unpacked(held["piece"], len(labels))] == contexts
    assert unpacked(held["label"], len(labels)).tolist() == [*labels + 1]
    assert held["clusters"]["label"] == ["<b>cats", ""] and held["clusters"]["conductance"] == [None, None]
    assert page.count("<b>") == 0 and page.count("</script>") == 2
    assert tokenmap.write_html(tmp_path / "bare.html", ring(len(labels)), labels, contexts) < size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.array([0, -1])}, "one for each of the 3 contexts"),
        ({"labels": np.array([0.0, 1, -1])}, "whole numbers"),
        ({"labels": np.array([0, 2, -1])}, "cluster 1 has no token"),
        ({"names": ["one"]}, "2 clusters need as many names, got 1"),
        ({"xy": np.zeros((2, 2))}, "positions must be finite"),
    ],
)
def test_texts_that_do_not_fit_their_map(tmp_path, changes, message):
    given = {"xy": ring(3), "labels": np.array([0, 1, -1]), "contexts": ["a", "b", "c"], "names": ["x", "y"]}
    with pytest.raises(ValueError, match=message):
        tokenmap.write_html(tmp_path / "map.html", **given | changes)
    assert not (tmp_path / "map.html").exists()


# In a browser --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Every hostile text as a token, a domain, a document, a label, a family and the title."""
    file = tmp_path_factory.mktemp("map") / "map.html"
    n = len(HOSTILE)
    result = tokens(HOSTILE, sequence=np.arange(n) // 2, position=np.arange(n) % 2)
    named = np.array([HOSTILE[i // 2] + "!" for i in range(n)], dtype=object)  # of windows, two tokens each
    result = result.assign_coords(domain=("token", named), document=("token", named))
    labels = np.arange(n) % 9
    cards = [card(c, 2, title=HOSTILE[c], family=HOSTILE[c]) for c in range(9)]
    tokenmap.write_page(tokenmap.map_page(result, clustering(labels), ring(n), cards=cards, title=HOSTILE[0]), file)
    return file


def press(page, key: str, code: str = "") -> None:
    text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
    for kind in ("keyDown", "keyUp"):
        page.browser.call("Input.dispatchKeyEvent", {"type": kind, "key": key, **text, "code": code or key}, page)


def mouse(page, kind: str, x: float, y: float, **more) -> None:
    page.browser.call("Input.dispatchMouseEvent", {"type": kind, "x": x, "y": y, **more}, page)


def click(page, x: float, y: float) -> None:
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        more = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        mouse(page, kind, x, y, **more)


def settle(page) -> None:
    page.evaluate("new Promise(done => setTimeout(done, 450))")


def test_hostile_tokens_are_text(chromium, hostile):
    with chromium.open(hostile.as_uri()) as page:
        assert page.evaluate("tokenMap.size") == len(HOSTILE)
        assert page.evaluate("[document.title, document.querySelector('h1').textContent]") == [HOSTILE[0]] * 2
        before = page.evaluate("document.querySelectorAll('script, img, iframe, style').length")
        for i, text in enumerate(HOSTILE):
            shown = SHOWN.get(text, text)
            page.evaluate(f"tokenMap.choose({i})")
            assert page.evaluate("document.querySelector('#card h2 .token').textContent") == shown
            marked = page.evaluate("document.querySelector('#card mark').textContent")
            assert marked == shown.replace("↵", "↵\n")
            named = SHOWN.get(HOSTILE[i // 2], HOSTILE[i // 2]) + "!"
            assert page.evaluate("document.querySelector('#card .soft').textContent") == f"{named} · {named}"
            pair = "".join(SHOWN.get(t, t) for t in HOSTILE[i - i % 2 :][:2])
            context = page.evaluate("document.querySelector('#card .context').textContent")
            assert context == pair.replace("↵", "↵\n")
            x, y = page.evaluate(f"tokenMap.screen({i})")
            mouse(page, "mouseMoved", x, y)
            assert page.evaluate("document.querySelector('#tip mark').textContent") == shown
        for cluster in range(9):
            page.evaluate(f"tokenMap.openCluster({cluster})")
            label = SHOWN.get(HOSTILE[cluster], HOSTILE[cluster])
            assert page.evaluate("document.querySelector('#card h2').textContent") == f"Cluster {cluster}: {label}"
            assert page.evaluate("document.querySelector('#card dd').textContent") == label  # its family
        for way in ("cluster", "domain"):
            page.evaluate(f"document.querySelector('input[value={way}]').click()")
            names = page.evaluate("[...document.querySelectorAll('#groups .name')].map(e => e.textContent).join('\\n')")
            assert HOSTILE[1] in names and "\\u0000" in names
        assert page.evaluate("document.querySelectorAll('script, img, iframe, style').length") == before
        assert page.evaluate("typeof window.hurt") == "undefined"
        assert (page.errors, page.failed) == ([], [])
        assert page.requests[1:] in ([], ["data:,"])


def test_the_policy_stops_scripts_that_are_not_the_page_s_own(chromium, hostile):
    with chromium.open(hostile.as_uri()) as page:
        page.evaluate("document.body.insertAdjacentHTML('beforeend', `<img src=x onerror='window.hurt = 1'>`)")
        settle(page)
        assert page.evaluate("typeof window.hurt") == "undefined"


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """Two windows, two families, one token without a cluster."""
    file = tmp_path_factory.mktemp("map") / "map.html"
    result = tokens(
        ["one", " two", " three", "\n", " four", "x", "y", "z", " two"],
        sequence=[0] * 5 + [1] * 4,
        position=[1, 2, 3, 4, 5, 1, 2, 3, 4],
    )
    cards = [card(0, 5, "after one", "grammar"), card(1, 3, "letters", "names")]
    page = tokenmap.map_page(result, clustering([0, 0, 0, 0, 0, 1, 1, 1, -1]), ring(9), cards=cards)
    tokenmap.write_page(page, file)
    return file


def card_text(page) -> str:
    return page.evaluate("document.querySelector('#card').innerText")


def test_mouse_hover_click_drag_wheel(chromium, usual):
    with chromium.open(usual.as_uri()) as page:
        x, y = page.evaluate("tokenMap.screen(2)")
        mouse(page, "mouseMoved", x + 3, y)
        tip = page.evaluate("document.querySelector('#tip').innerText")
        assert "one two three↵ four" in tip and "Cluster 0: after one" in tip and "x" not in tip.split("\n")[0]
        assert page.evaluate("document.querySelector('#tip mark').textContent") == " three"
        click(page, x, y)
        said = card_text(page)
        assert "number 2" in said  # as `spectro near` takes it
        assert "Cluster 0: after one" in said and "5 tokens" in said and "0.01" in said and "grammar" in said
        link = "document.querySelector('#card a').getAttribute('href')"
        assert page.evaluate(link) == "catalogue.html#cluster-0"
        x, y = page.evaluate("tokenMap.screen(8)")
        click(page, x, y)
        assert "in no cluster" in card_text(page)

        was = page.evaluate("({...tokenMap.view})")
        mouse(page, "mouseWheel", x, y, deltaX=0, deltaY=-120)
        settle(page)
        now = page.evaluate("({...tokenMap.view})")
        assert now["scale"] == pytest.approx(was["scale"] * np.exp(0.3))
        np.testing.assert_allclose(page.evaluate("tokenMap.screen(8)"), [x, y], atol=0.5)  # what is under it stays
        mouse(page, "mouseMoved", 400, 300)
        mouse(page, "mousePressed", 400, 300, button="left", clickCount=1)
        mouse(page, "mouseMoved", 450, 320, button="left")
        mouse(page, "mouseReleased", 450, 320, button="left", clickCount=1)
        np.testing.assert_allclose(page.evaluate("tokenMap.screen(8)"), [x + 50, y + 20], atol=0.5)
        assert page.errors == []


def test_two_fingers_zoom_and_one_tap_reads(chromium, usual):
    with chromium.open(usual.as_uri(), width=400) as page:

        def touch(kind, *points):
            points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
            page.browser.call("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points}, page)

        x, y = page.evaluate("tokenMap.screen(6)")
        touch("touchStart", (x + 9, y))
        touch("touchEnd")
        assert "Cluster 1: letters" in card_text(page)
        was = page.evaluate("tokenMap.view.scale")
        touch("touchStart", (150, 200), (250, 200))
        touch("touchMove", (100, 200), (300, 200))
        touch("touchEnd")
        assert page.evaluate("tokenMap.view.scale") == pytest.approx(2 * was, rel=0.05)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_keys(chromium, usual):
    with chromium.open(usual.as_uri()) as page:
        press(page, "Tab")
        assert page.evaluate("document.activeElement.tagName") == "CANVAS"
        x, y = page.evaluate("tokenMap.screen(0)")
        press(page, "ArrowRight")
        assert page.evaluate("tokenMap.screen(0)")[0] < x
        was = page.evaluate("tokenMap.view.scale")
        press(page, "+")
        assert page.evaluate("tokenMap.view.scale") == pytest.approx(1.3 * was)
        press(page, "0")
        settle(page)
        np.testing.assert_allclose(page.evaluate("tokenMap.screen(0)"), [x, y], atol=1e-6)
        page.evaluate("tokenMap.choose(1)")
        press(page, "]")
        settle(page)
        assert page.evaluate("document.querySelector('#card mark').textContent") == " three"
        middle = page.evaluate("(box => [box.clientWidth / 2, box.clientHeight / 2])(document.querySelector('canvas'))")
        np.testing.assert_allclose(page.evaluate("tokenMap.screen(2)"), middle, atol=1e-6)
        press(page, "Escape")
        assert card_text(page).strip() == ""
        press(page, "Enter")
        assert page.evaluate("document.querySelector('#card mark').textContent") == " three"
        seen = []
        for _ in range(12):  # everything can be reached: buttons, search, colours, legend
            press(page, "Tab")
            seen.append(page.evaluate("(e => e.id || e.value || e.textContent.trim())(document.activeElement)"))
        assert {"Whole map", "query", "cluster", "Keys and gestures"} <= set(seen)
        assert any(name.startswith("0  after one") for name in seen)


def test_search(chromium, usual):
    with chromium.open(usual.as_uri()) as page:

        def ask(text):
            page.evaluate("document.querySelector('#query').value = ''")
            page.evaluate("document.querySelector('#query').focus()")
            page.browser.call("Input.insertText", {"text": text}, page)
            return page.evaluate("document.querySelector('#found').textContent")

        assert ask("TWO") == "2 places, in 1 cluster"
        press(page, "Enter")
        assert page.evaluate("document.querySelector('#found').textContent") == "place 1 of 2"
        assert page.evaluate("document.querySelector('#card mark').textContent") == " two"
        press(page, "Enter")
        settle(page)
        assert "in no cluster" in card_text(page)
        assert ask('"two"') == "no such token"
        assert ask('" two"') == "2 places, in 1 cluster"
        assert ask("↵") == "1 place, in 1 cluster"
        assert ask("E TWO THR") == "1 place, in 1 cluster"  # across tokens; Enter shows the last of them
        press(page, "Enter")
        assert page.evaluate("document.querySelector('#card mark').textContent") == " three"
        assert ask("yz tw") == "1 place, in 0 clusters" and ask("fourx") == "nowhere in the text"  # of two windows
        assert ask("#1") == "cluster 1" and "letters" in card_text(page)
        assert ask("#2") == "there are clusters 0 to 1"


def test_colour_by_and_links(chromium, usual):
    with chromium.open(usual.as_uri() + "#cluster-1") as page:
        assert "Cluster 1: letters" in card_text(page)
        groups = "[...document.querySelectorAll('#groups li')].map(e => e.innerText.replace(/\\s+/g, ' '))"
        assert page.evaluate(groups) == ["0 after one 5", "1 letters 3"]  # by cluster at first
        page.evaluate("document.querySelector('input[value=family]').click()")
        assert page.evaluate(groups) == ["grammar 8", "formatting 1"]
        page.evaluate("document.querySelector('input[value=cluster]').click()")
        page.evaluate("document.querySelector('#groups button').click()")
        assert "Cluster 0" in card_text(page)
        page.evaluate("document.querySelector('input[value=domain]').click()")
        assert page.evaluate(groups) == ["prose 9"]
        assert page.errors == []


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Nine tokens, of which the rows, the losses and the nearest ones are known."""
    names = ["l0h0", "l0 mlp", "<b>"]
    rows = np.zeros((9, 3))
    rows[:, 0] = np.linspace(-1, 1, 9)
    rows[4] = [0, -8, 8]
    result = xr.Dataset({"susceptibility": (("token", "component"), rows), "loss": ("token", np.linspace(0, 4, 9))})
    words = ["one", " two", " three", "\n", " four", "x", "y", "z", " two"]
    result = result.assign_coords(component=np.array(names, dtype=object)).merge(tokens(words))
    found = dataclasses.replace(clustering([0, 0, 0, 0, 0, 1, 1, 1, -1]), share=np.array([1.0, 0.5]))
    near = np.array([[1, 2], [0, 2], *([i - 1, i - 2] for i in range(2, 9))])
    file = tmp_path_factory.mktemp("map") / "map.html"
    cards = [card(0, 5, "often after one"), card(1, 3, "letters")]
    tokenmap.write_page(tokenmap.map_page(result, found, ring(9), near=near, cards=cards), file)
    return file


def test_rows_losses_and_nearest_tokens_are_shown(chromium, measured):
    bars = "[...document.querySelectorAll('{} svg rect')].map(r => [r.textContent, r.getAttribute('class')])"
    with chromium.open(measured.as_uri()) as page:
        for i, near in ((4, [3, 2]), (0, [1, 2]), (8, [7, 6])):
            x, y = page.evaluate(f"tokenMap.screen({i})")
            mouse(page, "mouseMoved", x, y)
            assert page.evaluate(f"tokenMap.nearOf({i})") == near
            words = ["one", " two", " three", "↵", " four", "x", "y", "z", " two"]
            shown = page.evaluate("[...document.querySelectorAll('#tip mark')].map(m => m.textContent)")
            assert shown == [words[j] for j in (i, *near)]
            assert f"loss {i / 2:.1f} nats" in page.evaluate("document.querySelector('#tip').innerText")
        x, y = page.evaluate("tokenMap.screen(4)")
        click(page, x, y)
        assert page.evaluate(bars.format("#card")) == [["l0 mlp: expression", "less"], ["<b>: suppression", "more"]]
        picture = page.evaluate("document.querySelector('#card svg').getAttribute('aria-label')")
        assert picture == "Row: strong expression in l0 mlp, strong suppression in <b>"
        page.evaluate("document.querySelector('#card .near button').click()")  # it goes there
        assert page.evaluate("document.querySelector('#card mark').textContent") == "↵\n"
        assert page.evaluate("document.querySelectorAll('b').length") == 0 and page.errors == []


def test_colours_by_component_and_by_loss(chromium, measured):
    groups = "[...document.querySelectorAll('#groups li')].map(e => e.innerText.replace(/\\s+/g, ' '))"
    with chromium.open(measured.as_uri()) as page:
        ways = page.evaluate("[...document.querySelectorAll('fieldset input')].map(e => e.value)")
        assert ways == ["cluster", "component", "loss", "how often it came back", "family", "domain"]
        assert page.evaluate("document.querySelector('#component').hidden")
        page.evaluate("document.querySelector('input[value=component]').click()")
        assert not page.evaluate("document.querySelector('#component').hidden")
        page.evaluate("document.querySelector('select').value = 'l0 mlp'")
        page.evaluate("document.querySelector('select').dispatchEvent(new Event('change'))")
        names = page.evaluate(groups)
        assert names[0].startswith("expression, beyond −") and names[0].endswith(" 1")
        assert sum(int(name.split()[-1]) for name in names) == 9
        page.evaluate("document.querySelector('input[value=loss]').click()")
        assert page.evaluate(groups) == ["up to 0.1 nats 1", "up to 0.5 1", "up to 1 1", "up to 2 2", "up to 4 4"]
        assert page.errors == []


def test_the_address_follows_and_back_goes_back(chromium, measured):
    def went(page):
        settle(page)
        return page.evaluate("location.hash"), card_text(page)

    with chromium.open(measured.as_uri() + "#1") as page:  # a number is a cluster
        assert "Cluster 1: letters" in card_text(page)
        page.evaluate("document.querySelector('input[value=loss]').click()")
        assert went(page)[0] == "#cluster-1&colour=loss"
        page.evaluate("tokenMap.choose(3)")
        assert went(page)[0] == "#token-3&colour=loss"
        page.evaluate("document.querySelector('#query').focus()")
        page.browser.call("Input.insertText", {"text": "e t"}, page)
        hash, said = went(page)
        assert hash == "#token-3&search=e+t&colour=loss" and "number 3" in said
        page.evaluate("history.back()")
        hash, said = went(page)
        assert hash == "#cluster-1&colour=loss" and "letters" in said and "number" not in said
        assert page.evaluate("document.querySelector('#query').value") == ""
        page.evaluate("history.back()")
        assert went(page)[0] == "#1"
        assert page.evaluate("document.querySelector('input:checked').value") == "cluster"
        page.evaluate("history.forward()")
        assert went(page)[0] == "#cluster-1&colour=loss"
        assert page.evaluate("document.querySelector('input:checked').value") == "loss"
        assert page.errors == []
    shared = "#token-8&search=%22+two%22&colour=component+%3Cb%3E"
    with chromium.open(measured.as_uri() + shared) as page:
        assert "in no cluster" in card_text(page)
        assert page.evaluate("document.querySelector('#found').textContent") == "2 places, in 1 cluster"
        assert page.evaluate("document.querySelector('input:checked').value") == "component"
        assert page.evaluate("document.querySelector('select').value") == "<b>"
        assert page.evaluate("location.hash") == shared
    for odd in ("#token-99", "#77", "#&colour=nothing", "#__proto__", "#&colour=component", "#%"):
        with chromium.open(measured.as_uri() + odd) as page:
            assert page.evaluate("document.querySelector('input:checked').value") == "cluster"
            assert "Point at a token" in card_text(page) and page.errors == []


def test_how_often_a_cluster_came_back_is_a_colour_and_is_said(chromium, tmp_path):
    texts, labels = list("abcdefgh"), np.array([0, 0, 0, 1, 1, 2, 2, -1])
    found = dataclasses.replace(clustering(labels), share=np.array([1.0, 0.9, 0.5]))
    tokenmap.write_page(tokenmap.map_page(tokens(texts), found, ring(8)), tmp_path / "map.html")
    with chromium.open((tmp_path / "map.html").as_uri()) as page:
        groups = "[...document.querySelectorAll('#groups li')].map(e => e.innerText.replace(/\\s+/g, ' '))"
        page.evaluate("document.querySelector('input[value=\"how often it came back\"]').click()")
        assert page.evaluate(groups) == ["in all repetitions 3", "in 90 % of them or more 2", "in fewer 2"]
        x, y = page.evaluate("tokenMap.screen(3)")
        mouse(page, "mouseMoved", x, y)
        tip = "document.querySelector('#tip').innerText.replace(/\\s+/g, ' ')"
        assert "Cluster 1, came back in 90 % of repetitions" in page.evaluate(tip)
        click(page, x, y)
        assert "came back in 90 % of repetitions" in card_text(page).replace("\n", " ").replace("\u00a0", " ")
        assert page.errors == []
    assert "share" not in data(tokenmap.map_page(tokens(texts), clustering(labels), ring(8)))["clusters"]


def test_pieces_of_a_character_are_shown_as_the_whole_one(chromium, tmp_path, monkeypatch):
    pieces = (b"a", b"\xd0", b"\xb4", b"\xd0\xb0", b"\xff")
    text = tokenmap.running_text(tokens(list("abcde")))
    monkeypatch.setattr(tokenmap, "running_text", lambda *_: dataclasses.replace(text, pieces=pieces))
    tokenmap.write_page(tokenmap.map_page(tokens(list("abcde")), clustering([0] * 5), ring(5)), tmp_path / "map.html")
    with chromium.open((tmp_path / "map.html").as_uri()) as page:
        for i, shown in enumerate([("a", "a"), ("bytes d0", "д"), ("bytes b4", "д"), ("а", "а"), ("bytes ff", "�")]):
            page.evaluate(f"tokenMap.choose({i})")
            parts = "['h2 .token', 'mark', '.context'].map(e => document.querySelector('#card ' + e).textContent)"
            assert page.evaluate(parts) == [*shown, "aда�"]


def test_a_token_is_called_by_its_row_whatever_the_order(chromium, tmp_path):
    result = tokens(list("bdcaxy"), sequence=[4, 4, 4, 4, 1, 1], position=[2, 6, 5, 1, 1, 2])
    tokenmap.write_page(tokenmap.map_page(result, clustering([0] * 6), ring(6)), tmp_path / "map.html")
    with chromium.open((tmp_path / "map.html").as_uri()) as page:
        for i, row in enumerate([4, 5, 3, 0, 2, 1]):
            page.evaluate(f"tokenMap.choose({i})")
            assert f"number {row}" in card_text(page)


def test_reduced_motion_and_dark(chromium, usual):
    painted = "[...document.querySelector('canvas').getContext('2d').getImageData(2, 2, 1, 1).data].slice(0, 3)"
    for scheme, light in (("light", True), ("dark", False)):
        with chromium.open(usual.as_uri(), scheme=scheme) as page:
            assert (min(page.evaluate(painted)) > 200) == light
            features = [
                {"name": "prefers-reduced-motion", "value": "reduce"},
                {"name": "prefers-color-scheme", "value": scheme},
            ]
            page.browser.call("Emulation.setEmulatedMedia", {"features": features}, page)
            page.evaluate("tokenMap.openCluster(1)")
            was = page.evaluate("tokenMap.view.scale")
            jumped = "(document.querySelector('#card button').click(), tokenMap.view.scale)"  # no frame in between
            assert page.evaluate(jumped) > was


def test_twenty_thousand_tokens_are_drawn_before_the_page_has_loaded(chromium, tmp_path):
    tokenmap.write_page(big_page(), tmp_path / "map.html")
    with chromium.open((tmp_path / "map.html").as_uri()) as page:
        drawn = page.evaluate("performance.getEntriesByName('drawn')[0].startTime")
        assert drawn < page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventStart")
        assert page.evaluate("tokenMap.size") == 160 * 128


def test_a_cluster_is_brought_into_view_without_its_stragglers(chromium, tmp_path):
    positions = np.concatenate([ring(100), 0.05 * ring(100) + 0.3, [[1.0, -1.0]]])
    labels = [-1] * 100 + [0] * 101
    tokenmap.write_page(tokenmap.map_page(tokens(["a"] * 201), clustering(labels), positions), tmp_path / "map.html")
    with chromium.open((tmp_path / "map.html").as_uri() + "#cluster-0") as page:
        settle(page)
        width, height = page.evaluate("(c => [c.clientWidth, c.clientHeight])(document.querySelector('canvas'))")
        places = np.array(page.evaluate("[...Array(201).keys()].map(tokenMap.screen)"))
        inside = ((places > 0) & (places < [width, height])).all(axis=1)
        assert inside[100:200].all() and not inside[200]
        assert np.ptp(places[100:200], axis=0).max() > 0.4 * min(width, height)


def test_without_javascript_the_clusters_are_listed_and_every_cluster_has_an_anchor(tmp_path):
    cards = [card(0, 3, HOSTILE[0]), card(1, 2)]
    given = {"cards": cards, "catalogue": "all.html"}
    page = tokenmap.map_page(tokens(["a"] * 6), clustering([0, 0, 0, 1, 1, -1]), ring(6), **given)
    (tmp_path / "map.html").write_text(page)
    document = pagechecks.Document(tmp_path / "map.html")
    assert {"cluster-0", "cluster-1"} <= document.anchors and "cluster-2" not in document.anchors
    assert [link for link in document.links if "cluster" in link] == ["all.html#cluster-0", "all.html#cluster-1"]
    listed = re.search("<noscript>(.*?)</noscript>", page, re.S)[1]
    assert "&lt;/script&gt;&lt;script&gt;window.hurt = 1" in listed and "<script" not in listed


def test_other_pages_are_named_in_the_header(chromium, tmp_path):
    links = {"<b>Book</b>": "index.html", "Catalogue": "catalogue.html"}
    tokenmap.write_page(
        tokenmap.map_page(tokens(["a"] * 6), clustering([0] * 6), ring(6), links=links, about="<i>Rows</i>"),
        tmp_path / "map.html",
    )
    with chromium.open((tmp_path / "map.html").as_uri()) as page:
        found = page.evaluate(
            "[...document.querySelectorAll('nav a')].map(a => [a.textContent, a.getAttribute('href')])"
        )
        assert dict(found) == links
        assert page.evaluate("document.querySelector('#about').textContent") == "<i>Rows</i>"


# The picture ---------------------------------------------------------------------------------------------------------


def test_picture():
    labels = np.array([0, 0, 0, 1, 1, -1, -1, 2])
    families = ["markup", "mixed", "grammar"]
    with plt.rc_context():
        figures.use_style()
        fig, ax = plt.subplots()
        assert tokenmap.picture(ax, ring(8), labels, families=families, numbered=2) is ax
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["grammar", "markup", "mixed"]
        assert [text.get_text() for text in ax.texts] == ["0", "1"]
        drawn = [points for points in ax.collections if len(points.get_offsets())]
        assert [len(points.get_offsets()) for points in drawn] == [2, 6]
        markup = marks.PALETTE[FAMILIES.index("markup")]
        np.testing.assert_allclose(drawn[1].get_facecolors()[0], to_rgba(markup))
        ax.clear()
        tokenmap.picture(ax, ring(8), labels)
        colours = ax.collections[1].get_facecolors()
        assert len({tuple(colour) for colour in colours}) == 3
        assert ax.get_legend() is None
        fig.canvas.draw()
        with pytest.raises(ValueError, match="3 clusters need as many families, got 2"):
            tokenmap.picture(ax, ring(8), labels, families=["markup", "grammar"])
        plt.close(fig)
