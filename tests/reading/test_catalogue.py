"""The catalogue: text stays text, and search, families, order, keys and links work in a real browser."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import cardmaking
import numpy as np
import pytest

from spectrolib.checks.intervals import Estimate
from spectrolib.reading import cards, catalogue
from spectrolib.reading.conditions import describe
from spectrolib.reading.effects import RemovalCost
from spectrolib.text.runningtext import FAMILIES, running_text

HOSTILE = [
    "</script><script>window.hurt = 1</script>",
    "<img src=x onerror='window.hurt = 2'>",
    '" onmouseover="window.hurt=3',
    "</bdi></code></article><!--",
    "&lt;b&gt;",
    "\x00\u202eabc\u2066",
    "{style}",
    "مرحبا",
]
SHOWN = {"\x00\u202eabc\u2066": "\\u0000\\u202eabc\\u2066"}


@pytest.fixture(scope="module")
def made():
    """Cards of ' the', ' cat' and noise; families as a test needs them."""
    result = cardmaking.random_result(count=40, halves=True)
    words = result["text"].values
    labels = np.select([words == " the", words == " cat"], [0, 1], -1)
    labels[np.random.default_rng(0).choice(np.flatnonzero(labels < 0), 30, replace=False)] = 2
    values = result["susceptibility"].values
    found = cards.for_labels(
        describe(running_text(result)), labels, values, cardmaking.COMPONENTS, conductance=np.array([0.3, 0.2, 0.1])
    )
    return [dataclasses.replace(found[0], name=cards.Name("the article", "m", Estimate(0.9, 0.7, 0.97))), *found[1:]]


def hostile(card, i: int):
    text = HOSTILE[i]
    examples = tuple(e._replace(before=text, token=text, after=text, domain=text, document=text) for e in card.examples)
    return dataclasses.replace(
        card,
        cluster=i,
        label=text,
        tokens=((text, 3),),
        examples=examples,
        shared=tuple(s._replace(condition=text) for s in card.shared),
        responses=tuple(r._replace(component=text) for r in card.responses),
        rule=card.rule and dataclasses.replace(card.rule, conditions=(text, text)),
        name=cards.Name(text, text, Estimate(0.5, 0.3, 0.7)),
        costs=(RemovalCost(text, Estimate(0.5, 0.3, 0.7), 0.1), RemovalCost(text, Estimate(0.5, 0.3, 0.7), 0.1)),
    )


@pytest.fixture(scope="module")
def usual(made, tmp_path_factory):
    return catalogue.write_catalogue(made, tmp_path_factory.mktemp("page"), title="Clusters", token_map="map.html")


@pytest.fixture(scope="module")
def attacked(made, tmp_path_factory):
    some = [hostile(made[i % 3], i) for i in range(len(HOSTILE))]
    return catalogue.write_catalogue(some, tmp_path_factory.mktemp("hostile"), title=HOSTILE[0], about=HOSTILE[1])


def test_every_family_has_a_colour():
    assert list(catalogue.COLOURS) == [*FAMILIES, cards.MIXED]
    assert len(set(catalogue.COLOURS.values())) == len(catalogue.COLOURS)


def test_page_without_script_says_it_all(made):
    page = catalogue.catalogue_page(made)
    assert page.count("<article ") == 3 and "3 clusters, 2 with a confident rule." in page
    for card in made:
        assert f'id="{catalogue.anchor(card.cluster)}"' in page
        assert f"{card.size:,} tokens in {card.documents} documents" in page
    assert "http" not in re.sub(r'http-equiv="[^"]+"', "", page)
    assert "0 clusters" in catalogue.catalogue_page([])


def test_a_folder_that_is_not_there(made, tmp_path):
    with pytest.raises(ValueError, match="cannot be written: No such file or directory"):
        catalogue.write_catalogue(made, tmp_path / "nowhere")


PAGES = """
import functools, sys, types
import numpy as np
from spectrobook import shipped

sys.path.insert(0, sys.argv[1])
import spectrum_pages

result = shipped.result().isel(token=slice(0, 20 * 128))  # of 160 windows
shipped.result = lambda: result
shipped.layout = lambda: np.random.default_rng(0).normal(size=(len(shipped.vectors()), 2))
html = types.SimpleNamespace(format="html")
for folder in sys.argv[2:]:
    spectrum_pages.write_pages(types.SimpleNamespace(builder=html, outdir=folder), None)
    for name in ("vectors", "clusters", "features", "cards"):
        getattr(shipped, name).cache_clear()
"""


def test_the_pages_of_the_book_are_the_same_bytes_every_time(tmp_path):
    """The catalogue and the map of a part of the shipped measurement: twice in a process, and in one whose sets and
    dictionaries of strings have another order."""
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
    extension = Path(__file__).resolve().parents[2] / "book" / "_ext"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PAGES, str(extension), *map(str, mine)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed, mine in (("1", folders[:2]), ("2", folders[2:]))
    ]
    for process in running:
        _, error = process.communicate()
        assert process.returncode == 0, error
    for name in ("catalogue.html", "map.html"):
        first, *others = ((folder / name).read_bytes() for folder in folders)
        assert len(first) > 50_000 and all(other == first for other in others), name
    assert (folders[0] / "catalogue.html").read_text(encoding="utf-8").count("<article ") > 3


def test_hostile_text_is_text(chromium, attacked):
    with chromium.open(attacked.as_uri()) as page:
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate("[document.title, document.querySelector('h1').textContent]") == [HOSTILE[0]] * 2
        assert page.evaluate("document.querySelectorAll('script, style').length") == 2
        assert page.evaluate("document.querySelectorAll('article').length") == len(HOSTILE)
        assert page.evaluate("document.querySelectorAll('main article').length") == len(HOSTILE)
        assert page.evaluate("document.querySelectorAll('img, iframe, b').length") == 0
        for i, text in enumerate(HOSTILE):
            shown = SHOWN.get(text, text)
            card = f"document.getElementById('cluster-{i}')"
            for part in ("h2 bdi", "mark", ".where", "code bdi", ".tokens bdi", "td bdi, th bdi", ".facts bdi"):
                assert page.evaluate(f"{card}.querySelector('{part}').textContent") == shown, part
            title = page.evaluate(f"{card}.querySelector('.where').title")
            assert title.startswith(f"{shown}, position ")
        assert page.evaluate("typeof window.hurt") == "undefined"
        assert (page.errors, page.failed) == ([], [])
        assert page.requests[1:] in ([], ["data:,"])


def test_the_policy_stops_other_scripts(chromium, usual):
    with chromium.open(usual.as_uri()) as page:
        page.evaluate("document.body.insertAdjacentHTML('beforeend', `<img src=x onerror='window.hurt = 1'>`)")
        page.evaluate("new Promise(done => setTimeout(done, 100))")
        assert page.evaluate("typeof window.hurt") == "undefined"


SEEN = "[...document.querySelectorAll('article')].filter(a => !a.hidden).map(a => Number(a.dataset.cluster))"


def press(page, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        more = {"text": key} if len(key) == 1 else {}
        page.browser.call("Input.dispatchKeyEvent", {"type": kind, "key": key, **more}, page)


def test_search_family_and_confident(chromium, usual, made):
    with chromium.open(usual.as_uri()) as page:

        def ask(text):
            page.evaluate("document.getElementById('search').select()")
            page.browser.call("Input.insertText", {"text": text}, page)
            return page.evaluate(SEEN)

        press(page, "/")
        assert page.evaluate("document.activeElement.id") == "search"
        assert page.evaluate("document.getElementById('search').value") == ""
        assert ask("THE ARTICLE") == [0]
        assert page.evaluate("document.getElementById('count').textContent") == "1 of 3 clusters"
        assert ask("no confident") == [2]
        assert ask("nothing of the kind") == []
        press(page, "Escape")
        assert len(page.evaluate(SEEN)) == 3
        page.evaluate("document.getElementById('confident').click()")
        assert sorted(page.evaluate(SEEN)) == [0, 1]
        press(page, "Escape")
        families = page.evaluate("[...document.querySelectorAll('.family')].map(f => f.dataset.family)")
        assert families == [name for name in catalogue.COLOURS if any(card.family == name for card in made)]
        for name in families:
            page.evaluate(f"document.querySelector('[data-family=\"{name}\"]').click()")
            assert sorted(page.evaluate(SEEN)) == [card.cluster for card in made if card.family == name]
            page.evaluate(f"document.querySelector('[data-family=\"{name}\"]').click()")


def test_order(chromium, usual, made):
    with chromium.open(usual.as_uri()) as page:
        keys = {
            "size": lambda card: -card.size,
            "conductance": lambda card: card.conductance,
            "recall": lambda card: -card.rule.recall.value,
            "cluster": lambda card: card.cluster,
        }
        for name, key in keys.items():
            page.evaluate(f"document.getElementById('order').value = '{name}'")
            page.evaluate("document.getElementById('order').dispatchEvent(new Event('change'))")
            assert page.evaluate(SEEN) == [card.cluster for card in sorted(made, key=lambda c: (key(c), c.cluster))]


def test_keys_and_links(chromium, usual):
    with chromium.open(usual.as_uri() + "#cluster-1") as page:
        here = "document.activeElement.id"
        assert page.evaluate(here) == "cluster-1"
        order = page.evaluate(SEEN)
        press(page, "k")
        press(page, "k")
        press(page, "k")
        assert page.evaluate(here) == f"cluster-{order[0]}"
        press(page, "j")
        assert page.evaluate(here) == f"cluster-{order[1]}"
        page.evaluate("document.getElementById('confident').click()")
        page.evaluate("location.hash = '#cluster-2'")  # hidden now: a link shows it again
        page.evaluate("new Promise(done => setTimeout(done, 50))")
        assert page.evaluate(here) == "cluster-2" and len(page.evaluate(SEEN)) == 3
        assert (
            page.evaluate("document.querySelector('#cluster-1 .facts a').getAttribute('href')") == "map.html#cluster-1"
        )
        near = page.evaluate("document.querySelector('#cluster-1 details:last-of-type p:last-child a').hash")
        assert near in ("#cluster-0", "#cluster-2")
        assert page.errors == []


CONTRAST = """(() => {
  const parts = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => parts(c).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor, p = parts(c);
      if (p.length < 4 || p[3] > 0) return c;
    }
  };
  const least = {};
  document.querySelectorAll('details').forEach(d => d.open = true);
  document.querySelector('.family').click();
  for (const e of document.querySelectorAll('p, small, bdi, a, h1, h2, td, th, mark, button, .where, code, li')) {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    const name = e.tagName;
    least[name] = Math.min(least[name] ?? 99, (a + 0.05) / (b + 0.05));
  }
  return least;
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(chromium, usual, scheme):
    with chromium.open(usual.as_uri(), scheme=scheme) as page:
        bright = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert bright == (scheme == "light")
        least = page.evaluate(CONTRAST)
        assert len(least) > 8 and min(least.values()) >= 4.5, least


@pytest.mark.parametrize("name", ["usual", "attacked"])
def test_narrow_screens_need_no_sideways_scrolling(chromium, name, request):
    with chromium.open(request.getfixturevalue(name).as_uri(), width=400) as page:
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
