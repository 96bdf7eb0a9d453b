"""Quoted, simulated, measured: three kinds of number that must never look alike."""

from __future__ import annotations

import html
from typing import Any

from dqlab.errors import InvalidInputError, UnknownNameError
from dqlab.show.roles import INK, PAPER, ROLES, Role

KINDS = ("measured", "simulated", "quoted")
_NEEDS = {
    "quoted": "the paper and its table or figure",
    "measured": "the machine kind (for a time) or the model and seeds",
}


def mark(value: object, kind: str, source: str = "") -> str:
    """A value with its kind in words: "6.2 (quoted: PTQD, table 3)".

    A quoted value needs its citation and a measured one what it was measured on in `source`;
    raises InvalidInputError without.
    """
    _check(kind, source)
    return f"{value} ({kind}: {source})" if source else f"{value} ({kind})"


def badge(kind: str, source: str = "") -> str:
    """An HTML badge: solid for measured, dashed for simulated, hollow for quoted."""
    _check(kind, source)
    border = {"measured": "solid", "simulated": "dashed", "quoted": "solid"}[kind]
    ground, ink = (INK, PAPER) if kind == "measured" else (PAPER, INK)
    words = html.escape(f"{kind}: {source}" if source else kind)
    return (
        f'<span style="border:1px {border} {ROLES["quoted"].colour};border-radius:3px;'
        f'padding:0 4px;font-size:12px;background:{ground};color:{ink}">{words}</span>'
    )


def marker(kind: str, look: Role) -> dict[str, Any]:
    """Matplotlib marker settings: solid measured, half-filled simulated, hollow grey quoted."""
    if kind not in KINDS:
        raise UnknownNameError(f"There is no mark {kind!r}. Use one of: {', '.join(KINDS)}.")
    colour = ROLES["quoted"].colour if kind == "quoted" else look.colour
    fill = {"measured": "full", "simulated": "left", "quoted": "full"}[kind]
    return {
        "marker": look.marker, "fillstyle": fill, "color": colour, "linestyle": "",
        "markerfacecolor": PAPER if kind == "quoted" else colour, "markeredgecolor": colour,
        "markerfacecoloralt": PAPER, "markersize": 9,
    }  # fmt: skip


def _check(kind: str, source: str) -> None:
    if kind not in KINDS:
        raise UnknownNameError(f"There is no mark {kind!r}. Use one of: {', '.join(KINDS)}.")
    if kind in _NEEDS and not source:
        raise InvalidInputError(f"A {kind} value needs a source: name {_NEEDS[kind]}.")
