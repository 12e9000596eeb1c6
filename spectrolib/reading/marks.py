"""How tokens are made visible on a page: signs for what has no shape, and colours that any eye tells apart."""

from __future__ import annotations

import unicodedata

BLUE, VERMILION = "#0072B2", "#D55E00"
PALETTE = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Colours of Okabe and Ito, told apart with any colour vision."""


def visible(token: str) -> str:
    """A token as it can be shown: line ends and tabs as arrows, other control and direction characters as escapes."""
    shown = token.replace("\r\n", "↵").replace("\n", "↵").replace("\t", "→")
    return "".join(
        c if unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} else f"\\u{ord(c):04x}"
        for c in shown
    )
