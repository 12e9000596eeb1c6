"""All cards of a run as one page that needs nothing else: search, families, order, an anchor for each cluster.

The page is plain HTML that can be read without its script. It loads nothing from elsewhere: its content security
policy forbids that. Tokens are raw text from files, so everything that is shown is escaped, control and direction
characters too (`marks.visible`), and each piece of text keeps its own direction.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..checks.intervals import Estimate
from ..run.files import refusing, write_whole
from ..text.runningtext import FAMILIES
from .cards import MIXED, Card, Example
from .marks import PALETTE, visible
from .rules import READABLE

COLOURS = dict(zip((*FAMILIES, MIXED), (*PALETTE, "#999999"), strict=True))
"""Colours of the families, here and in every legend."""
SHOWN = 5
"""Examples that show at once; the others unfold."""


def anchor(cluster: int) -> str:
    """The fragment of a cluster's card: ``catalogue.html#cluster-12``."""
    return f"cluster-{cluster}"


def catalogue_page(cards: Iterable[Card], *, title: str = "Clusters", about: str = "", token_map: str = "") -> str:
    """The catalogue as HTML.

    Args:
        title: heading and title of the page.
        about: a sentence on what was clustered.
        token_map: address of the page of `tokenmap.map_page`, to which each card links then.
    """
    cards = list(cards)
    confident = sum(card.rule is not None and card.rule.confident for card in cards)
    families = Counter(card.family for card in cards)
    legend = "".join(
        f'<button type="button" class="family" aria-pressed="false" data-family="{name}">{_swatch(name)}{name} '
        f"({families[name]})</button>"
        for name in COLOURS
        if families[name]
    )
    summary = f"{len(cards)} clusters, {confident} with a confident rule."
    return _PAGE.format(
        title=_text(title),
        about=f"{_text(about)} {summary}".strip(),
        precision=f"{READABLE[0]:.0%}",
        recall=f"{READABLE[1]:.0%}",
        legend=legend,
        cards="\n".join(_card(card, token_map) for card in cards),
        style=_STYLE,
        script=_SCRIPT,
        digest=base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode(),
    )


def write_catalogue(
    cards: Iterable[Card], folder: str | Path, *, title: str = "Clusters", about: str = "", token_map: str = ""
) -> Path:
    """Write catalogue.html, whole or not at all; arguments as in `catalogue_page`.

    Raises:
        ValueError: if the folder cannot be written.
    """
    file = Path(folder) / "catalogue.html"
    text = catalogue_page(cards, title=title, about=about, token_map=token_map)
    with refusing(folder):
        write_whole(file, lambda part: part.write_text(text, encoding="utf-8"))
    return file


def _text(text: str) -> str:
    return html.escape(visible(text))


def _own(text: str) -> str:
    """Text with a direction of its own."""
    return f"<bdi>{_text(text)}</bdi>"


def _swatch(family: str) -> str:
    return f'<span class="swatch" style="background:{COLOURS.get(family, "#999999")}"></span>'


def _span(estimate: Estimate, form: str = ".2f") -> str:
    if math.isnan(estimate.value):
        return "unknown"
    return f"{estimate.value:{form}} <small>({estimate.low:{form}} to {estimate.high:{form}})</small>"


def _card(card: Card, token_map: str) -> str:
    rule = card.rule
    on_map = f'<a href="{html.escape(token_map)}#{anchor(card.cluster)}">On the map</a>' if token_map else ""
    order = {
        "size": card.size,
        "conductance": _sortable(card.conductance),
        "share": _sortable(card.share),
        "loss": _sortable(card.loss),
        "reliability": _sortable(card.reliability),
        "precision": _sortable(rule and rule.precision.value),
        "recall": _sortable(rule and rule.recall.value),
    }
    numbers = "".join(f' data-{name}="{value}"' for name, value in order.items())
    sure = str(bool(rule and rule.confident)).lower()
    shown, others = card.examples[:SHOWN], card.examples[SHOWN:]
    more = f"<details><summary>{len(others)} more</summary>{_examples(others)}</details>" if others else ""
    return (
        f'<article id="{anchor(card.cluster)}" tabindex="-1" data-cluster="{card.cluster}" data-confident="{sure}" '
        f'data-family="{html.escape(card.family)}"{numbers}>'
        f'<h2><a href="#{anchor(card.cluster)}" aria-label="Link to cluster {card.cluster}">{card.cluster}</a> '
        f"{_own(card.label)}</h2>{_facts(card, on_map)}{_rule(card)}{_done(card)}{_examples(shown)}"
        f"{more}<details><summary>What members share, components, neighbours</summary>{_tokens(card)}"
        f"{_shared(card)}{_responses(card)}{_nearest(card)}</details></article>"
    )


def _sortable(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _facts(card: Card, on_map: str) -> str:
    share = f"{card.family_share:.0%} of members"
    facts = [
        f"{_swatch(card.family)}{html.escape(card.family)} "
        f"<small>({f'largest family: {share}' if card.family == MIXED else share})</small>",
        f"{card.size:,} tokens in {card.documents} document{'s' if card.documents > 1 else ''}",
    ]
    if card.conductance is not None:
        facts.append(f"conductance {card.conductance:.3f}")
    if card.share is not None:
        facts.append(f"came back in {card.share:.0%} of repetitions")
    if card.loss is not None:
        facts.append(f"loss {card.loss:.2f} nats")
    if card.length is not None:
        facts.append(f"row length {card.length:.2f}")
    if card.reliability is not None:
        facts.append(f"reliability {card.reliability:.2f}")
    if card.name:
        named = f"{_own(card.name.label)}, says {_text(card.name.model)}: accuracy {_span(card.name.accuracy)}"
        facts.append(named)
    if on_map:
        facts.append(on_map)
    return f'<ul class="facts">{"".join(f"<li>{fact}</li>" for fact in facts)}</ul>'


def _examples(examples: Sequence[Example]) -> str:
    lines = (
        f'<li><span class="where" title="{_text(e.document)}, position {e.position}">{_text(e.domain)}</span>'
        f"<code>{_own(e.before)}<mark>{_own(e.token)}</mark>{_own(e.after)}</code></li>"
        for e in examples
    )
    return f'<ul class="examples">{"".join(lines)}</ul>'


def _rule(card: Card) -> str:
    rule = card.rule
    if rule is None:
        said = "No rule: the members are in too few documents and windows to fit one here and judge it there."
        return f'<p class="rule">{said}</p>'
    picked, members = rule.tested
    best = "" if rule.confident else f"Best rule, not confident: {_own(rule.text)}<br>"
    alike = ("neither half alone leads", "one half alone leads", "either half alone leads")[rule.halves]
    how = (
        f"A rule found on either half of the {rule.split}s picks tokens in the other: {picked:,} in all, where there "
        f"are {members:,} members; {alike} to this very rule. Where it was fitted, on all: "
        f"precision {rule.fitted[0]:.2f}, recall {rule.fitted[1]:.2f}."
    )
    return (
        f'<p class="rule" title="{how}">{best}Precision {_span(rule.precision)}, recall {_span(rule.recall)} '
        f"<small>on {rule.split}s that were not fitted on</small></p>"
    )


def _done(card: Card) -> str:
    """What silencing its worst component, and steering towards it, did to it; nothing where neither was tried."""
    said = []
    if card.costs:
        worst, *others = card.costs
        further = ", ".join(f"{cost.component} {cost.own.value:.2f} nats" for cost in others)
        said.append(
            f"Removing {_own(worst.component)} costs this cluster {_span(worst.own)} nats, others "
            f"{worst.others:.2f}" + (f" <small>(next: {_own(further)})</small>" if further else "") + "."
        )
    if card.falls is not None:
        falls = card.falls
        said.append(
            f"Steered towards on half of the documents, its members in the other half fall by {_span(falls.own)} nats, "
            f"other tokens by {falls.rest:.2f}; a random set of its size by {falls.random:.2f}, the same tokens "
            f"outside it by {_span(falls.outside)}."
        )
    return f'<p class="done">{"<br>".join(said)}</p>' if said else ""


def _tokens(card: Card) -> str:
    return f'<p class="tokens">Tokens: {", ".join(f"{_own(name)} {count:,}" for name, count in card.tokens)}</p>'


def _shared(card: Card) -> str:
    rows = "".join(
        f"<tr><th scope=row>{_own(s.condition)}</th><td>{s.members:.0%}</td><td>{s.rest:.1%}</td>"
        f"<td>{_span(s.lift, '.3g')}</td></tr>"
        for s in card.shared
    )
    head = "<tr><th>members share</th><th>members</th><th>rest</th><th>lift (95 %)</th></tr>"
    return f"<table>{head}{rows}</table>" if rows else "<p>Members share nothing that the rest does not.</p>"


def _responses(card: Card) -> str:
    rows = "".join(
        f"<tr><th scope=row>{_own(r.component)}</th><td>{r.mean:+.2f}</td><td>{'expression' if r.mean < 0 else ''}"
        f"{'suppression' if r.mean > 0 else ''}</td><td>{r.agree:.0%}</td></tr>"
        for r in card.responses
    )
    head = "<tr><th>component</th><th>mean response</th><th></th><th>members of that sign</th></tr>"
    return f"<table>{head}{rows}</table>" if rows else ""


def _nearest(card: Card) -> str:
    near = ", ".join(f'<a href="#{anchor(n.cluster)}">{n.cluster}</a> ({n.distance:.2f})' for n in card.nearest)
    return f"<p>Nearest clusters (distance of means): {near}</p>" if near else ""


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}';
 base-uri 'none'; form-action 'none'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{about}</p>
<details><summary>How to read a card</summary>
<p>A card shows members drawn at random, the token marked. Its heading is a rule of one or two conditions. To judge it,
a rule is found in the same way on either half of the documents, and picks tokens in the other. Precision is the share
of members among those, recall the share of the members that are picked, each with its 95 % interval. A rule is
confident if the intervals lie above {precision} and {recall}. Lift says how many times more often members meet a
condition than the rest do. Mean responses are of standardised susceptibilities: negative is expression (the component
supports the token), positive suppression.</p>
<p>Keys: <kbd>/</kbd> search, <kbd>j</kbd> and <kbd>k</kbd> next and previous card, <kbd>Esc</kbd> clear.</p>
</details>
</header>
<form id="tools" role="search" hidden>
<label>Search <input id="search" type="search" autocomplete="off" spellcheck="false"></label>
<label>Order <select id="order">
<option value="size">size</option><option value="precision">precision</option><option value="recall">recall</option>
<option value="share">how often it came back</option><option value="loss">loss</option>
<option value="reliability">reliability</option><option value="conductance">conductance, sharpest first</option>
<option value="cluster">number</option>
</select></label>
<label><input id="confident" type="checkbox"> confident rules only</label>
<div id="families" role="group" aria-label="Only these families">{legend}</div>
<p id="count" role="status"></p>
</form>
<main>
{cards}
</main>
<script>{script}</script>
</body>
</html>
"""

_STYLE = """
:root { --ground: #fff; --ink: #1a1a1a; --soft: #5a5a5a; --line: #d5d5d5; --mark: #ffe08a; --link: #00598c; }
@media (prefers-color-scheme: dark) {
 :root { --ground: #16181c; --ink: #e8e8e8; --soft: #a9adb3; --line: #3a3f47; --mark: #6b5200; --link: #7cc4f2; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 0 1rem 4rem; background: var(--ground); color: var(--ink);
 font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
a { color: var(--link); } h1 { margin: 1rem 0 .3rem; } small, .where { color: var(--soft); }
#tools { position: sticky; top: 0; background: var(--ground); border-bottom: 1px solid var(--line);
 margin: 0 -1rem; padding: .5rem 1rem; display: flex; flex-wrap: wrap; gap: .4rem 1rem;
 align-items: center; z-index: 1; }
#tools[hidden], article[hidden] { display: none; }
#families { display: flex; flex-wrap: wrap; gap: .3rem; } #count { margin: 0; color: var(--soft); }
input, select, button { font: inherit; color: inherit; background: var(--ground); border: 1px solid var(--soft);
 border-radius: .3rem; padding: .1rem .4rem; }
.family[aria-pressed=true] { background: var(--mark); }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .35em; border: 1px solid var(--soft);
 border-radius: 50%; }
:focus-visible, article:target { outline: 2px solid var(--link); outline-offset: 3px; border-radius: .2rem; }
article { border-bottom: 1px solid var(--line); padding: 1rem 0; scroll-margin-top: 9.5rem; }
h2 { font-size: 1.05rem; margin: 0; display: flex; gap: .8rem; align-items: baseline; } h2 a { min-width: 1.6em; }
h2 bdi, td bdi, th bdi, p bdi { white-space: pre-wrap; }
article[data-confident=false] h2 bdi { font-weight: 400; font-style: italic; } .rule { margin: .1rem 0 .4rem; }
.facts { list-style: none; margin: .2rem 0; padding: 0; display: flex; flex-wrap: wrap; gap: 0 1.2rem; }
.examples { list-style: none; margin: .3rem 0; padding: 0; }
.examples li { display: grid; grid-template-columns: 7rem 1fr; gap: .6rem;
 align-items: baseline; }
code { font: .85rem/1.6 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; }
mark { background: var(--mark); color: inherit; border-radius: .15rem; padding: .1rem 0; }
table { border-collapse: collapse; margin: .5rem 0; font-size: .9rem; }
th, td { text-align: left; padding: .1rem 1rem .1rem 0; font-weight: normal; vertical-align: top; }
tr:first-child th { color: var(--soft); }
@media (max-width: 40rem) { .examples li { grid-template-columns: 1fr; gap: 0; } #tools { position: static; }
 article { scroll-margin-top: 1rem; } }
"""

_SCRIPT = r"""
"use strict";
const main = document.querySelector("main"), tools = document.getElementById("tools");
const search = document.getElementById("search"), order = document.getElementById("order");
const confident = document.getElementById("confident"), count = document.getElementById("count");
const families = [...document.querySelectorAll(".family")];
const cards = [...document.querySelectorAll("article")];
const said = new Map(cards.map(card => [card, [card.dataset.family,
  ...[...card.querySelectorAll("bdi, code")].map(part => part.textContent)].join("\n").toLowerCase()]));
const rising = new Set(["conductance", "cluster"]);

function show() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = new Set(families.filter(f => f.getAttribute("aria-pressed") === "true").map(f => f.dataset.family));
  let shown = 0;
  for (const card of cards) {
    card.hidden = !((!chosen.size || chosen.has(card.dataset.family))
      && words.every(word => said.get(card).includes(word))
      && (!confident.checked || card.dataset.confident === "true"));
    shown += !card.hidden;
  }
  count.textContent = shown + " of " + cards.length + " clusters";
}
function sort() {
  const key = order.value, sign = rising.has(key) ? 1 : -1;
  const value = card => card.dataset[key] === "" ? Infinity : sign * Number(card.dataset[key]);
  cards.sort((a, b) => (value(a) - value(b) || 0) || a.dataset.cluster - b.dataset.cluster);
  main.append(...cards);
}
function clear() {
  search.value = "";
  confident.checked = false;
  families.forEach(f => f.setAttribute("aria-pressed", "false"));
  show();
}
function arrive() {
  const card = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!card || !said.has(card)) return;
  if (card.hidden) clear();
  card.focus({preventScroll: true});
  card.scrollIntoView();
}
function step(by) {
  const shown = cards.filter(card => !card.hidden);
  const here = shown.indexOf(document.activeElement.closest("article"));
  const next = shown[here < 0 ? 0 : Math.min(Math.max(here + by, 0), shown.length - 1)];
  if (next) { next.focus({preventScroll: true}); next.scrollIntoView(); }
}
search.addEventListener("input", show);
confident.addEventListener("change", show);
order.addEventListener("change", sort);
tools.addEventListener("submit", event => event.preventDefault());
families.forEach(f => f.addEventListener("click", () => {
  f.setAttribute("aria-pressed", String(f.getAttribute("aria-pressed") !== "true"));
  show();
}));
addEventListener("hashchange", arrive);
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") { clear(); return; }
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  if (event.key === "/") { event.preventDefault(); search.focus(); }
  if (event.key === "j") step(1);
  if (event.key === "k") step(-1);
});
tools.hidden = false;
sort();
show();
arrive();
"""
