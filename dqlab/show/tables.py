"""Tables as HTML, with the same rows as plain words beside them."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

import pandas as pd

from dqlab.phenomena.ledger import Claim
from dqlab.show.bundle import Page

LINK = re.compile(r"^\[(.*)\]$")
STYLE = 'style="text-align:left;vertical-align:top"'


def table(words: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Page:
    """A table under the caption `words`; a cell such as "[page.ipynb]" becomes a link.

    Its plain words are one line per row, which is what nbval compares.
    """
    top = "".join(f'<th scope="col" {STYLE}>{html.escape(h)}</th>' for h in heads)
    body = "".join(
        "<tr>" + "".join(f"<td {STYLE}>{_cell(c)}</td>" for c in row) + "</tr>" for row in rows
    )
    page = f"<table><caption>{html.escape(words)}</caption><tr>{top}</tr>{body}</table>"
    plain = [" | ".join(filter(None, row)) for row in rows]
    return Page(page, "\n".join([words, *plain]))


def judged(words: str, claims: Mapping[str, Claim]) -> Page:
    """Each claim beside our number, and what came of it."""
    heads = ("claim", "the paper's figure (quoted)", "measured here", "counts from", "outcome")
    return table(words, heads, [claim.row() for claim in claims.values()])


def pair(row: Mapping) -> str:
    """Such as W4A8, from `weights` and `activations`."""
    return f"W{row['weights']}A{row['activations']}"


def ledger_table(ledger: pd.DataFrame) -> Page:
    """Method by method: SQNR, paired error, what still reads the same, computed cost."""
    rows = [_ledger_row(row) for row in ledger.to_dict("records")]
    heads = (
        "bits", "method", "SQNR [dB]", "paired squared error, median", "garment / colour kept",
        "kB", "10⁹ bit-operations a call",
    )  # fmt: skip
    return table("The ledger: same seeds, same 8-bit exceptions, computed cost.", heads, rows)


def _ledger_row(row: Mapping) -> tuple[str, ...]:
    return (
        pair(row),
        row["method"],
        f"{row['db']:.1f} [{row['db_low']:.1f}, {row['db_high']:.1f}]",
        f"{row['mse']:.2e} [{row['mse_low']:.2e}, {row['mse_high']:.2e}]",
        f"{100 * row['garment']:.0f} % / {100 * row['colour']:.0f} %",
        f"{row['kilobytes']:.0f}",
        f"{row['gigabitops']:.1f}",
    )


def _cell(text: str) -> str:
    return LINK.sub(r'<a href="\1">\1</a>', html.escape(text))
