"""All cards of a run as one page that needs nothing else: search, families, order, groups, an anchor for each cluster.

The page is plain HTML that can be read without its script. It loads nothing from elsewhere: its content security
policy forbids that. Tokens are raw text from files, so everything that is shown is escaped, control and direction
characters too (`marks.visible`), and each piece of text keeps its own direction. Its address says what is sought and
shown, and can be shared: ``catalogue.html#cluster-12&search=return&family=names&order=loss&confident=1&group=2-7``.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ..checks.intervals import Estimate
from ..run.files import refusing, write_whole
from ..text.runningtext import FAMILIES
from .cards import MIXED, Card, Example
from .levels import Level, levels
from .marks import PALETTE, visible
from .rules import READABLE

COLOURS = dict(zip((*FAMILIES, MIXED), (*PALETTE, "#999999"), strict=True))
"""Colours of the families, here and in every legend."""
SHOWN = 5
"""Examples that show at once; the others unfold."""
ORDERS = {
    "size": "size",
    "precision": "precision",
    "recall": "recall",
    "share": "how often it came back",
    "loss": "loss",
    "length": "row length",
    "cost": "cost of removing a component, above others",
    "reliability": "reliability",
    "conductance": "conductance, sharpest first",
    "cluster": "number",
}
"""What cards can be put in the order of, and in which words."""


def anchor(cluster: int) -> str:
    """The fragment of a cluster's card: ``catalogue.html#cluster-12``."""
    return f"cluster-{cluster}"


def catalogue_page(
    cards: Iterable[Card],
    *,
    title: str = "Clusters",
    about: str = "",
    token_map: str = "",
    links: Mapping[str, str] | None = None,
) -> str:
    """The catalogue as HTML.

    Args:
        title: heading and title of the page.
        about: a sentence on what was clustered.
        token_map: address of the page of `tokenmap.map_page`, to which each card links then.
        links: other pages to name under the title, and their addresses.
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
    named = ({"Map of tokens": token_map} if token_map else {}) | dict(links or {})
    return _PAGE.format(
        title=_text(title),
        about=f"{_text(about)} {summary}".strip(),
        links=" ".join(f'<a href="{html.escape(address)}">{_text(name)}</a>' for name, address in named.items()),
        precision=f"{READABLE[0]:.0%}",
        recall=f"{READABLE[1]:.0%}",
        orders="".join(
            f'<option value="{key}">{words}</option>'
            for key, words in ORDERS.items()
            if not cards or any(_order(card)[key] for card in cards)
        ),
        legend=legend,
        levels=_levels(levels(cards)),
        cards="\n".join(_card(card, token_map) for card in cards),
        style=_STYLE,
        script=_SCRIPT,
        digest=base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode(),
    )


def write_catalogue(
    cards: Iterable[Card],
    folder: str | Path,
    *,
    title: str = "Clusters",
    about: str = "",
    token_map: str = "",
    links: Mapping[str, str] | None = None,
) -> Path:
    """Write catalogue.html, whole or not at all; arguments as in `catalogue_page`.

    Raises:
        ValueError: if the folder cannot be written.
    """
    file = Path(folder) / "catalogue.html"
    text = catalogue_page(cards, title=title, about=about, token_map=token_map, links=links)
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


def _span(estimate: Estimate, written: Callable[[float], str] = "{:.2f}".format) -> str:
    if math.isnan(estimate.value):
        return "unknown"
    value, low, high = map(written, estimate)
    return f"{value} <small>({low} to {high})</small>"


def _three_digits(value: float) -> str:
    """Three significant digits, never with an exponent: 0.52, 18,600."""
    return f"{float(f'{value:.3g}'):,.12g}"


def _levels(found: Sequence[Level]) -> str:
    """The tree of groups, closed: a group's name and size, its finer groups, and at last its clusters."""
    if not found:
        return ""
    return (
        '<details id="levels"><summary>From coarse to fine: groups of neighbouring clusters</summary><p>Clusters whose '
        "mean rows point alike, by average linkage, cut twice. A name says what most clusters of a group share and "
        f"others less, and how many do.</p>{_tree(found)}</details>"
    )


def _tree(found: Sequence[Level]) -> str:
    items = []
    for level in found:
        many = len(level.cards)
        said = f"{many} cluster{'s' if many > 1 else ''}, {level.size:,} tokens"
        group = "-".join(map(str, level.path))
        inside = _tree(level.parts) if len(level.parts) > 1 else f"<ul>{''.join(map(_leaf, level.cards))}</ul>"
        items.append(
            f'<li data-group="{group}"><details><summary>{_own(level.name)} <small>{said}</small></summary>'
            f'<button type="button" class="group" aria-pressed="false" hidden>Only these {many}</button>{inside}'
            "</details></li>"
            if many > 1
            else _leaf(level.cards[0])
        )
    return f"<ul>{''.join(items)}</ul>"


def _leaf(card: Card) -> str:
    return f'<li><a href="#{anchor(card.cluster)}">{card.cluster} {_own(card.title)}</a></li>'


def _card(card: Card, token_map: str) -> str:
    on_map = f'<a href="{html.escape(token_map)}#{anchor(card.cluster)}">On the map</a>' if token_map else ""
    numbers = "".join(f' data-{name}="{value}"' for name, value in _order(card).items())
    sure = str(bool(card.rule and card.rule.confident)).lower()
    shown, others = card.examples[:SHOWN], card.examples[SHOWN:]
    more = f"<details><summary>{len(others)} more</summary>{_examples(others)}</details>" if others else ""
    return (
        f'<article id="{anchor(card.cluster)}" tabindex="-1" data-confident="{sure}" '
        f'data-family="{html.escape(card.family)}" data-group="{"-".join(map(str, card.path))}"{numbers}>'
        f'<h2><a href="#{anchor(card.cluster)}" aria-label="Link to cluster {card.cluster}">{card.cluster}</a> '
        f"{_own(card.label)}</h2>{_facts(card, on_map)}"
        f'<details class="rest" open><summary>Rule and members</summary>{_rule(card)}{_done(card)}{_examples(shown)}'
        f"{more}<details><summary>What members share, components, neighbours</summary>{_tokens(card)}"
        f"{_shared(card)}{_responses(card)}{_nearest(card)}</details></details></article>"
    )


def _order(card: Card) -> dict[str, str]:
    """What a card can be ordered by, an empty text where it is not known."""
    rule = card.rule
    return {
        "cluster": str(card.cluster),
        "size": str(card.size),
        "conductance": _sortable(card.conductance),
        "share": _sortable(card.share),
        "loss": _sortable(card.loss),
        "length": _sortable(card.length),
        "cost": _sortable(card.costs[0].own.value - card.costs[0].others if card.costs else None),
        "reliability": _sortable(card.reliability),
        "precision": _sortable(rule and rule.precision.value),
        "recall": _sortable(rule and rule.recall.value),
    }


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
    if card.costs:
        worst = card.costs[0]
        facts.append(f"without {_own(worst.component)} {worst.own.value:+.2f} nats, others {worst.others:+.2f}")
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
    if card.costs and not math.isnan(card.costs[0].own.low):  # else the head says all that is known
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
        f"<td>{_span(s.lift, _three_digits)}</td></tr>"
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
<nav aria-label="Other pages">{links}</nav>
<details><summary>How to read a card</summary>
<p>A card shows members drawn at random, the token marked. Its heading is a rule of one or two conditions. To judge it,
a rule is found in the same way on either half of the documents, and picks tokens in the other. Precision is the share
of members among those, recall the share of the members that are picked, each with its 95 % interval. A rule is
confident if the intervals lie above {precision} and {recall}. Lift says how many times more often members meet a
condition than the rest do. Mean responses are of standardised susceptibilities: negative is expression (the component
supports the token), positive suppression.</p>
<p>In the head of a card: loss and row length are medians over members; a row of length 1 is as long as the root mean
square over all tokens. Where a component was removed, it says by how much the members' mean loss changes then, and that
of all other tokens.</p>
<p>Keys: <kbd>/</kbd> search, <kbd>j</kbd> and <kbd>k</kbd> next and previous card, <kbd>Esc</kbd> clear. The address of
the page keeps search, filters and order: share it, or go back.</p>
</details>
{levels}
</header>
<form id="tools" role="search" hidden>
<label>Search <input id="search" type="search" autocomplete="off" spellcheck="false"></label>
<label>Order <select id="order">{orders}</select></label>
<label><input id="confident" type="checkbox"> confident rules only</label>
<div id="families" role="group" aria-label="Only these families">{legend}</div>
<p id="count" role="status"></p>
<button id="leave" type="button" hidden></button>
</form>
<main>
{cards}
</main>
<section id="empty" aria-live="polite" hidden></section>
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
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: 0 0 .5rem; }
#tools { position: sticky; top: 0; background: var(--ground); border-bottom: 1px solid var(--line);
 margin: 0 -1rem; padding: .5rem 1rem; display: flex; flex-wrap: wrap; gap: .4rem 1rem;
 align-items: center; z-index: 1; }
[hidden] { display: none !important; }
#families { display: flex; flex-wrap: wrap; gap: .3rem; } #count { margin: 0; color: var(--soft); }
input, select, button { font: inherit; color: inherit; background: var(--ground); border: 1px solid var(--soft);
 border-radius: .3rem; padding: .1rem .4rem; max-width: 100%; text-align: left; }
#order { max-width: 17rem; }
[aria-pressed=true] { background: var(--mark); }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .35em; border: 1px solid var(--soft);
 border-radius: 50%; }
#levels ul { list-style: none; margin: 0; padding: 0 0 .3rem 1.1rem; } #levels summary { padding: .1rem 0; }
#levels .group { margin: .1rem 0 .3rem 1.1rem; } #empty { padding: 1.5rem 0; } #empty li { margin: .4rem 0; }
:focus-visible, article:target, article[aria-current] { outline: 2px solid var(--link); outline-offset: 3px;
 border-radius: .2rem; }
article { border-bottom: 1px solid var(--line); padding: 1rem 0; scroll-margin-top: 9.5rem; }
h2 { font-size: 1.05rem; margin: 0; display: flex; gap: .8rem; align-items: baseline; } h2 a { min-width: 1.6em; }
h2 bdi, td bdi, th bdi, p bdi { white-space: pre-wrap; } .rest > summary { display: none; }
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
 article { scroll-margin-top: 1rem; } .rest > summary { display: list-item; padding: .3rem 0; } }
"""

_SCRIPT = r"""
"use strict";
const $ = id => document.getElementById(id), all = selector => [...document.querySelectorAll(selector)];
const main = document.querySelector("main"), tools = $("tools"), search = $("search"), order = $("order");
const confident = $("confident"), empty = $("empty"), leave = $("leave");
const families = all(".family"), groups = all("#levels .group"), cards = all("article");
const said = new Map(cards.map(card => [card, [card.dataset.family,
  ...[...card.querySelectorAll("bdi, code")].map(part => part.textContent)].join("\n").toLowerCase()]));
const rising = new Set(["conductance", "cluster"]);
const isPressed = button => button.getAttribute("aria-pressed") === "true";
const press = (button, on) => button.setAttribute("aria-pressed", String(on));
const groupOf = button => button.closest("li").dataset.group;
const pressedGroup = () => groups.find(isPressed);
const clusters = many => many + (many === 1 ? " cluster" : " clusters");
let current = null;

// What is sought: each filter says when it is on, what it lets through, its name, and how it is taken off.
const filters = [
  {on: () => search.value.trim(), name: () => "the search for \u201c" + search.value.trim() + "\u201d",
    fits: card => search.value.toLowerCase().split(/\s+/).every(word => said.get(card).includes(word)),
    off() { search.value = ""; }},
  {on: () => families.some(isPressed), name: () => families.filter(isPressed).map(f => f.dataset.family).join(" or "),
    fits: card => families.some(f => isPressed(f) && f.dataset.family === card.dataset.family),
    off() { families.forEach(f => press(f, false)); }},
  {on: () => confident.checked, name: () => "confident rules only", fits: card => card.dataset.confident === "true",
    off() { confident.checked = false; }},
  {on: pressedGroup, name: () => "the group \u201c" + pressedGroup().closest("li").querySelector("bdi").textContent
      + "\u201d",
    fits: card => (card.dataset.group + "-").startsWith(groupOf(pressedGroup()) + "-"),
    off() { groups.forEach(g => press(g, false)); }},
];

function show() {
  const on = filters.filter(filter => filter.on());
  let shown = 0;
  for (const card of cards) {
    card.hidden = !on.every(filter => filter.fits(card));
    shown += !card.hidden;
  }
  $("count").textContent = shown + " of " + cards.length + " clusters";
  leave.hidden = !pressedGroup();
  leave.textContent = leave.hidden ? "" : "\u2715 " + filters[3].name();
  explain(on, shown);
}
function explain(on, shown) { // why there is nothing, and how much there would be without each filter
  empty.hidden = shown > 0 || !on.length;
  if (empty.hidden) return;
  const why = document.createElement("p"), list = document.createElement("ul");
  why.textContent = "No cluster fits " + (on.length > 1 ? "all of these. Take one off:" : "this. Take it off:");
  const way = (words, take) => {
    const button = document.createElement("button"), item = document.createElement("li");
    button.type = "button";
    button.textContent = words;
    button.addEventListener("click", () => { take(); show(); remember(true); search.focus(); });
    item.append(button);
    list.append(item);
  };
  for (const filter of on) {
    const alone = cards.filter(filter.fits).length;
    const others = cards.filter(card => on.every(other => other === filter || other.fits(card))).length;
    const without = on.length > 1 ? "; without it there are " + others : "";
    way(filter.name() + ": fits " + clusters(alone) + without, filter.off);
  }
  if (on.length > 1) way("all of them: " + clusters(cards.length), clear);
  empty.replaceChildren(why, list);
}
function sort() {
  const key = order.value, sign = rising.has(key) ? 1 : -1;
  const value = card => card.dataset[key] === "" ? Infinity : sign * Number(card.dataset[key]);
  cards.sort((a, b) => (value(a) - value(b) || 0) || a.dataset.cluster - b.dataset.cluster);
  main.append(...cards);
}
function clear() {
  filters.forEach(filter => filter.off());
  show();
}
function select(card) {
  current?.removeAttribute("aria-current");
  current = card;
  card.setAttribute("aria-current", "true");
  card.querySelector(".rest").open = true;
  card.focus({preventScroll: true});
  card.scrollIntoView();
}
function visit(card) {
  if (card.hidden) clear();
  select(card);
  remember(true);
}
function step(by) {
  const shown = cards.filter(card => !card.hidden);
  const here = shown.indexOf(document.activeElement.closest("article"));
  const next = shown[here < 0 ? 0 : Math.min(Math.max(here + by, 0), shown.length - 1)];
  if (next) { select(next); remember(false); }
}

// The address: #cluster-12, then what is sought and shown. Back takes back a step; letters of a search are none.
let written = null;
function address() {
  const words = new URLSearchParams();
  if (search.value.trim()) words.set("search", search.value.trim());
  if (families.some(isPressed)) words.set("family", families.filter(isPressed).map(f => f.dataset.family).join(","));
  if (order.value !== order.options[0].value) words.set("order", order.value);
  if (confident.checked) words.set("confident", "1");
  if (pressedGroup()) words.set("group", groupOf(pressedGroup()));
  return "#" + [current?.id, words.toString()].filter(Boolean).join("&");
}
function remember(asStep) {
  const now = address();
  if (written === null || now === (location.hash || "#")) return;
  written = now;
  asStep ? location.hash = now : location.replace(now);
}
function arrive() {
  const [what, ...others] = location.hash.slice(1).split("&");
  const card = [$(what), $("cluster-" + what)].find(named => said.has(named)); // #16 is #cluster-16
  const words = new URLSearchParams((card ? others : [what, ...others]).join("&"));
  const chosen = (words.get("family") || "").split(",");
  written = null; // what is read is not written again
  search.value = words.get("search") || "";
  families.forEach(f => press(f, chosen.includes(f.dataset.family)));
  confident.checked = words.get("confident") === "1";
  groups.forEach(g => press(g, groupOf(g) === words.get("group")));
  for (let level = pressedGroup()?.closest("details"); level; level = level.parentElement.closest("details")) {
    level.open = true;
  }
  order.value = words.get("order");
  if (order.selectedIndex < 0) order.selectedIndex = 0;
  sort();
  show();
  current?.removeAttribute("aria-current");
  current = null;
  if (card?.hidden) clear();
  if (card) select(card);
  written = location.hash || "#";
}

search.addEventListener("input", () => { show(); remember(false); });
confident.addEventListener("change", () => { show(); remember(true); });
order.addEventListener("change", () => { sort(); remember(true); });
tools.addEventListener("submit", event => event.preventDefault());
families.forEach(f => f.addEventListener("click", () => { press(f, !isPressed(f)); show(); remember(true); }));
groups.forEach(g => {
  g.hidden = false;
  g.addEventListener("click", () => {
    const on = !isPressed(g);
    filters[3].off();
    press(g, on);
    show();
    remember(true);
  });
});
leave.addEventListener("click", () => { filters[3].off(); show(); remember(true); search.focus(); });
addEventListener("click", event => {
  const link = event.target.closest("a[href^='#cluster-']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  visit($(link.hash.slice(1)));
});
addEventListener("hashchange", () => { if ((location.hash || "#") !== written) arrive(); });
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") { clear(); remember(true); return; }
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  if (event.key === "/") { event.preventDefault(); search.focus(); }
  if (event.key === "j") step(1);
  if (event.key === "k") step(-1);
});
const narrow = matchMedia("(max-width: 40rem)"); // there, cards are folded
const fold = () => all(".rest").forEach(rest => rest.open = !narrow.matches || rest.closest("article") === current);
narrow.addEventListener("change", fold);
tools.hidden = false;
fold();
arrive();
"""
