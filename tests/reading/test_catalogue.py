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
import sys, types
from spectrobook import stable

sys.path.insert(0, sys.argv[1])
import spectrum_pages

html = types.SimpleNamespace(format="html")
for folder in sys.argv[2:]:
    spectrum_pages.write_pages(types.SimpleNamespace(builder=html, outdir=folder), None)
    for one in (stable.arrays, stable.clusters, stable.cards):
        one.cache_clear()
"""


def test_the_pages_of_the_book_are_the_same_bytes_every_time(tmp_path):
    """The catalogue and the map of the clusters that come back: twice in a process, and in one whose sets and
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
    for name in ("catalogue.html", "map.html", "real-catalogue.html", "real-map.html"):
        first, *others = ((folder / name).read_bytes() for folder in folders)
        assert len(first) > 50_000 and all(other == first for other in others), name
    whole, real = (
        (folders[0] / name).read_text(encoding="utf-8") for name in ("catalogue.html", "real-catalogue.html")
    )
    assert whole.count("<article ") > 300 and "nats, others" in whole
    assert 'href="real-map.html"' in real and 'href="book/real-model.html"' in real
    assert real.count("<article ") > 100 and len(set(re.findall('data-group="([0-9]+-[0-9]+)"', real))) > 20


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


def went(page) -> str:
    page.evaluate("new Promise(done => setTimeout(done, 150))")
    return page.evaluate("location.hash")


def test_other_pages_and_what_is_known_of_a_cluster_stand_in_its_head(made):
    known = dataclasses.replace(made[0], loss=1.234, length=0.5, share=0.9, costs=costs("l0 mlp", 0.52, 0.03))
    links = {"<Book>": "index.html", "Chapter": "book/clusters.html"}
    page = catalogue.catalogue_page([known], token_map="map.html", links=links)
    head = re.search(r'<nav aria-label="Other pages">(.*?)</nav>', page)[1]
    assert head == (
        '<a href="map.html">Map of tokens</a> <a href="index.html">&lt;Book&gt;</a> '
        '<a href="book/clusters.html">Chapter</a>'
    )
    facts = re.search(r'<ul class="facts">(.*?)</ul>', page)[1]
    for said in ("loss 1.23 nats", "row length 0.50", "came back in 90% of repetitions"):
        assert f"<li>{said}</li>" in facts
    assert "costs this cluster 0.52 <small>(0.42 to 0.62)</small> nats" in page
    unknown = (RemovalCost("embed", Estimate(0.5, np.nan, np.nan), 0.1),)  # without an interval the head says it all
    bare = catalogue.catalogue_page([dataclasses.replace(known, costs=unknown)])
    assert "costs this cluster" not in bare and "<li>without <bdi>embed</bdi> +0.50 nats, others +0.10</li>" in bare
    assert "<li>without <bdi>l0 mlp</bdi> +0.52 nats, others +0.03</li>" in facts
    assert "without" not in re.search(r'<ul class="facts">(.*?)</ul>', catalogue.catalogue_page(made))[1]


def costs(component: str, own: float, others: float) -> tuple[RemovalCost, ...]:
    return (RemovalCost(component, Estimate(own, own - 0.1, own + 0.1), others),)


def test_only_what_some_card_has_is_an_order(made):
    keys = lambda page: re.findall(r'<option value="(\w+)">', page)  # noqa: E731
    bare = [dataclasses.replace(card, loss=None, length=None, share=None, reliability=None) for card in made]
    assert keys(catalogue.catalogue_page(bare)) == ["size", "precision", "recall", "conductance", "cluster"]
    one = dataclasses.replace(bare[1], share=0.5, costs=costs("l0", 1, 0))
    assert {"share", "cost"} <= set(keys(catalogue.catalogue_page([bare[0], one])))


def test_the_address_follows_and_back_goes_back(chromium, usual, made):
    families = [card.family for card in made]
    with chromium.open(usual.as_uri() + "#order=cluster") as page:
        assert page.evaluate(SEEN) == [0, 1, 2]
        page.evaluate("document.getElementById('confident').click()")
        assert went(page) == "#order=cluster&confident=1"
        page.evaluate(f"document.querySelector('[data-family=\"{families[0]}\"]').click()")
        family = families[0].replace(" ", "+")
        assert went(page) == f"#family={family}&order=cluster&confident=1"
        page.evaluate("document.querySelector('#cluster-0 h2 a').click()")  # a link of the page keeps what is sought
        assert went(page) == f"#cluster-0&family={family}&order=cluster&confident=1"
        press(page, "/")
        page.browser.call("Input.insertText", {"text": "the article"}, page)
        assert "search=the+article" in went(page) and page.evaluate(SEEN) == [0]
        for _ in range(2):
            page.evaluate("history.back()")
            went(page)
        assert page.evaluate("location.hash") == "#order=cluster&confident=1"
        assert sorted(page.evaluate(SEEN)) == [0, 1]
        assert page.evaluate("document.getElementById('search').value") == ""
        page.evaluate("history.back()")
        assert went(page) == "#order=cluster" and page.evaluate(SEEN) == [0, 1, 2]
        assert page.errors == []
    with chromium.open(usual.as_uri() + "#cluster-2&search=article&order=nothing&group=9&family=x") as page:
        assert page.evaluate("document.activeElement.id") == "cluster-2"  # it is named, so it is shown
        assert len(page.evaluate(SEEN)) == 3 and page.errors == []


def test_an_empty_filter_explains_itself(chromium, usual):
    with chromium.open(usual.as_uri() + "#search=no+confident&confident=1") as page:
        assert page.evaluate(SEEN) == []
        lines = page.evaluate("[...document.querySelectorAll('#empty p, #empty li')].map(e => e.textContent)")
        assert lines == [
            "No cluster fits all of these. Take one off:",
            "the search for “no confident”: fits 1 cluster; without it there are 2",
            "confident rules only: fits 2 clusters; without it there are 1",
            "all of them: 3 clusters",
        ]
        page.evaluate("document.querySelectorAll('#empty button')[1].click()")
        assert page.evaluate(SEEN) == [2] and page.evaluate("document.getElementById('empty').hidden")
        assert went(page) == "#search=no+confident"


@pytest.fixture(scope="module")
def grouped(made, tmp_path_factory):
    """Six clusters in two groups: the first of two parts, the second of one."""
    paths = [(0, 0), (0, 0), (0, 1), (0, 1), (1, 2), (1, 2)]
    some = [dataclasses.replace(made[i % 3], cluster=i, path=path) for i, path in enumerate(paths)]
    return catalogue.write_catalogue(some, tmp_path_factory.mktemp("grouped"))


def test_groups_lead_from_coarse_to_fine(chromium, grouped):
    with chromium.open(grouped.as_uri()) as page:
        names = "[...document.querySelectorAll('#levels li[data-group]')].map(li => li.dataset.group)"
        assert page.evaluate(names) == ["0", "0-0", "0-1", "1"]  # a single part is no level of its own
        leaves = "[...document.querySelectorAll('#levels a')].map(a => a.hash)"
        assert page.evaluate(leaves) == [f"#cluster-{i}" for i in range(6)]
        page.evaluate("document.querySelector('[data-group=\"0\"] .group').click()")
        assert sorted(page.evaluate(SEEN)) == [0, 1, 2, 3] and went(page) == "#group=0"
        page.evaluate("document.querySelector('[data-group=\"0-1\"] .group').click()")
        assert sorted(page.evaluate(SEEN)) == [2, 3] and went(page) == "#group=0-1"
        assert "group" in page.evaluate("document.getElementById('leave').textContent")
        page.evaluate("document.getElementById('leave').click()")
        assert len(page.evaluate(SEEN)) == 6 and page.evaluate("document.getElementById('leave').hidden")
        page.evaluate("document.querySelector('#levels a[href=\"#cluster-5\"]').click()")
        assert page.evaluate("document.activeElement.id") == "cluster-5" and went(page) == "#cluster-5"
        assert page.errors == []
    with chromium.open(grouped.as_uri() + "#4") as page:  # a number is a cluster
        assert page.evaluate("document.activeElement.id") == "cluster-4"
    with chromium.open(grouped.as_uri() + "#group=0-1") as page:
        assert sorted(page.evaluate(SEEN)) == [2, 3]
        assert page.evaluate("document.querySelector('[data-group=\"0-1\"] .group').checkVisibility()")  # unfolded


def test_cards_without_groups_have_no_levels(made):
    assert 'id="levels"' not in catalogue.catalogue_page(made)


def test_cards_fold_on_a_phone_alone(chromium, usual):
    folded = "[...document.querySelectorAll('.rest')].map(rest => !rest.open)"
    with chromium.open(usual.as_uri(), width=1000) as page:
        assert page.evaluate(folded) == [False] * 3
        assert not page.evaluate("document.querySelector('.rest > summary').checkVisibility()")
    with chromium.open(usual.as_uri() + "#cluster-1", width=400) as page:
        opened = page.evaluate("[...document.querySelectorAll('.rest[open]')].map(r => r.closest('article').id)")
        assert opened == ["cluster-1"]  # the one that is asked for
        assert not page.evaluate("document.querySelector('#cluster-0 mark').checkVisibility()")
        page.evaluate("document.querySelector('#cluster-0 .rest > summary').click()")
        assert page.evaluate("document.querySelector('#cluster-0 mark').checkVisibility()")


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


@pytest.mark.parametrize(
    ("value", "said"), [(0.5234, "0.523"), (2, "2"), (18634.2, "18,600"), (3.04e5, "304,000"), (np.inf, "inf")]
)
def test_ratios_are_written_without_exponents(value, said):
    assert catalogue._three_digits(value) == said
