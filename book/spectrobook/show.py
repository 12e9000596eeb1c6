"""What chapters show in more than one place: tables, tokens in their context, painted windows, numbers with intervals.

Everything that becomes part of a page is `Markup`: text that is HTML already. Whatever is not is escaped, so no token,
name or rule can become markup; and a page reads none of it as mathematics. Colours are the page's own, so all of it is
legible on light and on dark ground.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Number
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from spectrolib.checks.intervals import Estimate
from spectrolib.reading.marks import visible

from . import figures
from .figures import PaintedText

# HTML ----------------------------------------------------------------------------------------------------------------


class Markup(str):
    """Text that is HTML already. A notebook shows it as such; `table` and `lines` leave it as it stands."""

    def _repr_html_(self) -> str:
        return str(self)


def escaped(value: Any) -> Markup:
    """A value as HTML: `Markup` as it stands, anything else as the text that it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value), quote=False))


def lines(parts: Iterable[Any]) -> Markup:
    """Parts of a cell or a paragraph, each on a line of its own."""
    return Markup("<br>".join(map(escaped, parts)))


def block(*parts: Any, style: str = "") -> Markup:
    """Parts of a page one after the other. Nothing in them is read as mathematics."""
    opening = f' style="{html.escape(style)}"' if style else ""
    return Markup(f'<div class="mathjax_ignore tex2jax_ignore"{opening}>{"".join(map(escaped, parts))}</div>')


def table(
    rows: pd.DataFrame | Iterable[Mapping[str, Any]], form: str = ".3g", *, missing: str = "", index: bool = False
) -> Markup:
    """A table, as wide as it needs: what does not fit on the page is scrolled to.

    Args:
        rows: a mapping from column to cell for each row, or a data frame.
        form: how numbers with a fraction are written, as `format` has it: three significant digits by default.
        missing: what stands where a value is NaN, or a row has no such column.
        index: also the names of a data frame's rows, in a first column.
    """
    if isinstance(rows, pd.DataFrame):
        frame = rows.copy()
        for i, kind in enumerate(frame.dtypes):
            if not pd.api.types.is_numeric_dtype(kind):
                frame.isetitem(i, frame.iloc[:, i].astype(object).map(_cell))
        frame = frame.rename(index=_cell, columns=_cell)
    else:
        frame = pd.DataFrame([{_cell(name): _cell(value) for name, value in row.items()} for row in rows])
    style = dict(index=index, escape=False, border=0, justify="left", na_rep=missing, classes="table")
    return block(Markup(frame.to_html(float_format=lambda x: format(x, form), **style)), style="overflow-x:auto")


def turned(rows: Iterable[Mapping[str, Any]], by: str) -> list[dict[str, Any]]:
    """The rows of a wide table as columns, named by what stands in column `by`; its other columns become rows."""
    rows = list(rows)
    return [{"": name} | {row[by]: row.get(name) for row in rows} for name in rows[0] if name != by]


def _cell(value: Any) -> Any:
    """A number, or nothing, for pandas to write; anything else as HTML."""
    return value if value is None or isinstance(value, Number | np.bool_) else str(escaped(value))


# Text ----------------------------------------------------------------------------------------------------------------


def in_context(before: str, token: str, after: str = "") -> Markup:
    """A token, bold and underlined, between what stands before and after it; line ends and the like made visible."""
    before, token, after = (html.escape(visible(part)) for part in (before, token, after))
    style = "white-space:pre-wrap;overflow-wrap:anywhere"
    return Markup(f'<code style="{style}">{before}<b><u>{token}</u></b>{after}</code>')


def paint(
    tokens: Sequence[str],
    values: Float[ndarray, " tokens"],
    name: str,
    /,
    *,
    component: str,
    document: str,
    limit: float,
    caption: str,
    note: str,
    profile: str,
    **settings: Any,
) -> PaintedText:
    """A text painted token by token, for the page; and the same saved as a figure, for places that show no HTML.

    Args:
        name: the figure's, as in `figures.save`; so are `profile` and `settings`.
        component: whose values they are, and
        document: where the text is from: kept with the figure's numbers.
        limit: the absolute value painted deepest.
        caption: what the page says under the text, before the document.
        note: what the figure says under it, before the limits and the document.

    Raises:
        ValueError: another number of values than tokens, or what `figures.save` refuses.
    """
    cut = [token.splitlines(keepends=True) for token in tokens]  # a token may hold several line ends
    pieces = [piece for parts in cut for piece in parts]
    painted = np.array([value for parts, value in zip(cut, values, strict=True) for _ in parts], dtype=float)
    fig = figures.painted_figure(pieces, painted, limit=limit)
    note = f"{note}, painted from −{limit:.2g} to {limit:.2g}\n{document}"
    fig.text(0.5, -0.03, note, fontsize=7, color="0.4", va="top", ha="center")
    data = {"component": component, "document": document, "tokens": list(tokens), "values": values}
    figures.save(fig, name, data, profile=profile, **settings)
    plt.close(fig)
    return figures.painted_text(pieces, painted, limit=limit, caption=f"{caption}. {document}")


# Numbers -------------------------------------------------------------------------------------------------------------


def interval(estimate: Sequence[float], form: str | Callable[[float], str] = ".2f") -> str:
    """A number with its interval, ``0.50 (0.41 to 0.59)``; nothing where the number is unknown.

    Args:
        estimate: value, low, high; an `Estimate`, or anything that begins with these three.
        form: how each is written: as `format` has it, or a function.
    """
    value, low, high = estimate[:3]
    write = form if callable(form) else lambda x: format(x, form)
    return "" if math.isnan(value) else f"{write(value)} ({write(low)} to {write(high)})"


def percent(share: Sequence[float]) -> str:
    """A share with its interval, ``50% (41% to 59%)``; a small one below zero is 0%, not -0%."""
    return interval(share, "z.0%")


def counted(number: int, noun: str) -> str:
    """A number and what it counts, ``3 documents``; of one, ``1 document``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def verdict(difference: Estimate, more: str, neither: str, less: str) -> str:
    """One of three words for a difference: what its interval allows to say."""
    return more if difference.low > 0 else less if difference.high < 0 else neither


def compared(one: Estimate, other: Estimate, more: str, neither: str, less: str) -> str:
    """One of three words for two numbers: `neither` where their intervals overlap."""
    return more if one.low > other.high else less if one.high < other.low else neither
