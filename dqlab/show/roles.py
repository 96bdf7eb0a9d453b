"""Roles and their looks: one colour, line style and marker per role, in every figure.

Colours are those of Okabe and Ito, "Color Universal Design" (2008). Figures have a transparent
background and must be read on white and on JupyterLab's dark #111111. No single colour reaches a
contrast of 4.5 on both (the best possible is 4.34), so ink is near-black and carries its own
paper: text sits on a white plate, the near-black line has a white casing. Both vanish on white.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.colors import to_rgb

from dqlab.errors import UnknownNameError

INK, PAPER, RULE = "#1A1A1A", "#FFFFFF", "#7A7A7A"
BACKGROUNDS = {"light": "#FFFFFF", "dark": "#111111"}
MAX_WIDTH, FONT, TITLE_FONT = 960, 12, 15

MAGNITUDE_MAP, SIGNED_MAP = "viridis", "PuOr"


@dataclass(frozen=True)
class Role:
    """How one role looks: colour, matplotlib dash pattern and its plotly name, marker."""

    name: str
    colour: str
    line: Any
    dash: str
    marker: str
    symbol: str
    hollow: bool = False


ROLES: dict[str, Role] = {
    r.name: r
    for r in (
        Role("full_precision", INK, "-", "solid", "o", "circle"),
        Role("rtn", "#D55E00", (0, (5, 2)), "dash", "s", "square"),
        Role("method", "#0072B2", (0, (10, 1.5)), "longdash", "^", "triangle-up"),
        Role("ablation_1", "#009E73", (0, (5, 2, 1, 2)), "dashdot", "D", "diamond"),
        Role("ablation_2", "#CC79A7", (0, (1.2, 1.5)), "dot", "v", "triangle-down"),
        Role("quoted", "#646464", (0, (1, 3)), "longdashdot", "o", "circle-open", hollow=True),
    )
}


def role(name: str) -> Role:
    """The role called `name`; raises UnknownNameError with the list of roles."""
    try:
        return ROLES[name]
    except KeyError:
        known = ", ".join(ROLES)
        raise UnknownNameError(f"There is no role {name!r}. Use one of: {known}.") from None


def assign_roles(labels: list[str], roles: dict[str, str] | None = None) -> dict[str, Role]:
    """A role per label: as given in `roles`, else a label that is a role's name, else in order."""
    given = {label: role(name) for label, name in (roles or {}).items()}
    given |= {label: ROLES[label] for label in labels if label in ROLES and label not in given}
    free = iter([r for r in ROLES.values() if r not in given.values() and not r.hollow])
    found = {label: given.get(label) or next(free, None) for label in labels}
    if None in found.values():
        raise UnknownNameError(
            f"{len(labels)} labels need a role and there are {len(ROLES)}: show fewer at once, "
            f"or pass roles={{label: role}} for {', '.join(labels)}."
        )
    return found


def label_of(name: str) -> str:
    """The words a reader sees for a role or series name."""
    return {"rtn": "plain rounding"}.get(name, name.replace("_", " "))


def luminance(colour: str | tuple) -> float:
    """Relative luminance in [0, 1] (WCAG 2.1) of a colour name, hex string or RGB triple."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(a: str | tuple, b: str | tuple) -> float:
    """Contrast ratio in [1, 21] between two colours (WCAG 2.1)."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def readable_ink(background: str | tuple) -> str:
    """Near-black or white, whichever is easier to read on `background`."""
    return max((INK, PAPER), key=lambda ink: contrast(ink, background))


STYLE: dict[str, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "savefig.transparent": True,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=[r.colour for r in ROLES.values()]),
    "axes.labelsize": FONT,
    "axes.titlesize": FONT + 1,
    "font.family": "DejaVu Sans",
    "font.size": FONT,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,
    "hatch.linewidth": 0.8,
    "grid.color": RULE,
    "grid.alpha": 0.25,
    "lines.linewidth": 2.2,
    "lines.markersize": 6,
}

_OUTLINE = ", ".join(f"{x}px {y}px 0 #fff" for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y)
PLOTLY_LAYOUT: dict[str, Any] = {
    "template": None,
    "font": {"family": "DejaVu Sans, sans-serif", "size": FONT, "color": INK, "shadow": _OUTLINE},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "colorway": [r.colour for r in ROLES.values()],
    "showlegend": False,
    "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
    "hoverlabel": {"bgcolor": PAPER, "font": {"color": INK, "size": FONT, "shadow": "none"}},
}


def style() -> AbstractContextManager:
    """Matplotlib settings of this library, as a context manager or a decorator."""
    return matplotlib.rc_context(STYLE)
