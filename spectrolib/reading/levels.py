"""Levels above clusters: groups of neighbouring ones, named by what they share, to walk from coarse to fine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .cards import Card


@dataclass(frozen=True)
class Level:
    """A group of clusters whose mean rows point alike."""

    path: tuple[int, ...]
    """Its number at each cut of the tree, from coarse to fine (`cards.paths`)."""
    name: str
    """What most of its clusters share, and other clusters less."""
    cards: tuple[Card, ...]
    """Those of its clusters."""
    parts: tuple[Level, ...]
    """The finer groups; none at the finest level."""

    @property
    def size(self) -> int:
        """How many tokens are in its clusters."""
        return sum(card.size for card in self.cards)


def levels(cards: Iterable[Card]) -> tuple[Level, ...]:
    """The tree of groups, from its coarsest cut on; nothing for cards without a path."""
    every = tuple(card for card in cards if card.path)
    return _below((), every, every)


def _below(path: tuple[int, ...], own: Sequence[Card], every: Sequence[Card]) -> tuple[Level, ...]:
    depth = len(path)
    numbers = sorted({card.path[depth] for card in own if len(card.path) > depth})
    found = []
    for number in numbers:
        inside = tuple(card for card in own if card.path[depth] == number)
        further = (*path, number)
        found.append(Level(further, group_name(inside, every), inside, _below(further, inside, every)))
    return tuple(found)


def group_name(own: Sequence[Card], every: Sequence[Card]) -> str:
    """A group in words: the condition and the response that tell its clusters from others, of those that most of them
    share, and how many do. Without such a condition, what its two largest clusters share. A group of one cluster has
    that one's name."""
    if len(own) == 1:
        return own[0].title
    first = dict.fromkeys(next(iter(_conditions(card)), card.title) for card in own)
    said = _telling(own, every, _conditions) or f"such as {', '.join(list(first)[:2])}"
    return "; ".join(filter(None, [said, _telling(own, every, _responses)]))


def _telling(own: Sequence[Card], every: Sequence[Card], of: Callable[[Card], Iterable[str]]) -> str:
    """The property that is more frequent among these cards than among all, by the difference of the two shares."""
    here, anywhere = (Counter(name for card in some for name in of(card)) for some in (own, every))
    excess = {name: n / len(own) - anywhere[name] / len(every) for name, n in here.items() if 2 * n > len(own)}
    best = max(excess, key=excess.get, default="")  # of equals the one that is met first
    return f"{best} ({here[best]} of {len(own)})" if excess.get(best, 0) > 0 else ""


def _conditions(card: Card) -> dict[str, None]:
    return dict.fromkeys(shared.condition for shared in card.shared)


def _responses(card: Card) -> list[str]:
    return [f"{'expression' if r.mean < 0 else 'suppression'} in {r.component}" for r in card.responses]
