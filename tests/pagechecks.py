"""What can be wrong with a built page: each check returns the faults it finds, one readable line each."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"src", "data", "poster", "background"}  # attributes that make a browser fetch something
LOADING_LINKS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "preconnect", "dns-prefetch", "manifest"}


@dataclass
class Document(HTMLParser):
    """What a page names: anchors it has, places it links to, things it loads, pictures without a description."""

    path: Path
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    nameless: list[str] = field(default_factory=list)
    redirects: bool = False

    def __post_init__(self):
        super().__init__()
        text = self.path.read_text(encoding="utf-8")
        self.feed(text)
        self.loaded += styled(text)

    def handle_starttag(self, tag, attrs):
        values = {key: value or "" for key, value in attrs}
        self.anchors |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "meta" and values.get("http-equiv", "").lower() == "refresh":
            self.links.append(values["content"].partition("url=")[2])
            self.redirects = True
        if tag == "link" and set(values.get("rel", "").split()) & LOADING_LINKS:
            self.loaded.append(values.get("href", ""))
        self.loaded += [values[key] for key in LOADED & set(values)]
        self.loaded += [part.split()[0] for part in values.get("srcset", "").split(",") if part.strip()]
        if tag == "img" and (not values.get("alt", "").strip() or "_images/" in values["alt"]):
            self.nameless.append(values.get("src", "?"))


def styled(text: str) -> list[str]:
    """What a style sheet, or a page's styles, load."""
    return re.findall(r"""(?:\burl\(|@import)\s*["']?([^"')\s;]+)""", text)


def documents(html: Path) -> list[Document]:
    return [Document(path) for path in sorted(html.rglob("*.html")) if "_static" not in path.relative_to(html).parts]


def elsewhere(address: str) -> bool:
    """Whether an address leads to another host."""
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme in {"http", "https", "ftp", "ws", "wss"}


def loaded_from_elsewhere(html: Path) -> list[str]:
    """Scripts, styles, pictures and fonts that come from another host."""
    wanted = [(document.path, document.loaded) for document in documents(html)]
    wanted += [(path, styled(path.read_text(encoding="utf-8"))) for path in sorted(html.rglob("*.css"))]
    return [
        f"{path.relative_to(html)} loads {address}"
        for path, addresses in wanted
        for address in addresses
        if elsewhere(address)
    ]


def broken_links(html: Path) -> list[str]:
    """Links and loaded files, within the book, that lead to no file or to no anchor of it."""
    pages = {document.path.resolve(): document for document in documents(html)}
    faults = []
    for path, document in pages.items():
        for address in document.links + document.loaded:
            parts = urlsplit(address)
            if elsewhere(address) or parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.is_file():
                faults.append(f"{path.relative_to(html.resolve())} leads to {address}: no such file")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                faults.append(f"{path.relative_to(html.resolve())} leads to {address}: no such anchor")
    return faults


def pictures_without_description(html: Path) -> list[str]:
    return [
        f"{d.path.relative_to(html)} shows {source} without alt text" for d in documents(html) for source in d.nameless
    ]


RAW_TEX = r"""
(() => {
  const skip = 'code, pre, script, style, mjx-container, .painted-text';
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walk.nextNode())
    if (/\\[(\[]|\\begin\{/.test(walk.currentNode.data) && !walk.currentNode.parentElement.closest(skip))
      found.push(walk.currentNode.data.trim().slice(0, 60));
  return found;
})()
"""
UNSET_MATH = "[...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container[jax=SVG]')).length"
WRONG_MATH = (
    "[...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map(e => e.dataset.mjxError || e.textContent)"
)
FAINT = r"""
(() => {
  const channels = colour => {
    const [r, g, b, a = 1] = colour.match(/[\d.e-]+/g).map(Number), unit = colour.startsWith('color(') ? 1 : 255;
    return [r / unit, g / unit, b / unit, a];
  };
  const over = ([r, g, b, a], ground) => [r, g, b].map((c, i) => a * c + (1 - a) * ground[i]);
  const ground = element => {
    if (!element) return [1, 1, 1];
    const own = channels(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, ground(element.parentElement));
  };
  const luminance = colour => colour.map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const walk = document.createTreeWalker(document.querySelector('article') ?? document.body, NodeFilter.SHOW_TEXT);
  const skip = 'script, style, svg, mjx-container, .headerlink, .search-button__kbd-shortcut', found = [];
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement, text = walk.currentNode.data.trim();
    if (!text || !element.checkVisibility() || element.closest(skip)) continue;
    const behind = ground(element), ink = over(channels(getComputedStyle(element).color), behind);
    const [dark, light] = [luminance(behind), luminance(ink)].sort((a, b) => a - b);
    if ((light + 0.05) / (dark + 0.05) < 3) found.push(text.slice(0, 40));
  }
  return found;
})()
"""
"""Texts whose contrast with what is behind them is less than 3, the least that WCAG asks of large letters."""
OVERFLOW = "document.documentElement.scrollWidth - innerWidth"


def faults_in_browser(page) -> list[str]:
    """What went wrong while a browser without a network showed the page (a `browser.Page`)."""
    faults = [
        f"asks for {address}" for address in page.requests if urlsplit(address).scheme not in {"file", "data", "blob"}
    ]
    faults += [f"does not load: {reason}" for reason in page.failed]
    faults += [f"console: {error}" for error in page.errors]
    faults += [f"unset mathematics: {text}" for text in page.evaluate(RAW_TEX)]
    faults += [f"wrong mathematics: {text}" for text in page.evaluate(WRONG_MATH)]
    if unset := page.evaluate(UNSET_MATH):
        faults.append(f"{unset} formulas are not set")
    faults += [f"hardly legible: {text}" for text in page.evaluate(FAINT)]
    if (beyond := page.evaluate(OVERFLOW)) > 0:
        faults.append(f"is {beyond} pixels wider than a window of {page.evaluate('innerWidth')}")
    return faults
