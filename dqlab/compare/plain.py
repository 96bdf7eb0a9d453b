"""Comparisons in a terminal: a rich table, or plain text where there is no terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dqlab.compare.comparison import BIT_OPS, FRECHET, SIZE

if TYPE_CHECKING:
    from rich.console import Group

    from dqlab.compare.comparison import Comparison
    from dqlab.compare.ranking import Ranking

BARS = "▁▂▃▄▅▆▇█"
LEVEL = "Brackets: 95 % intervals over the held-out trajectories."


def comparison_text(c: Comparison) -> str:
    """One line per measurement."""
    entries = c.entries()
    width = max(len(e.measure) for e in entries)
    lines = [f"{'method':{width}}  {c.label}"]
    for e in entries:
        tail = f"  {e.note}" if e.note else ""
        lines.append(f"{e.measure:{width}}  {e.text} {e.interval}".rstrip() + tail)
    return "\n".join([*lines, *([curve] if (curve := step_line(c)) else [])])


def ranking_text(ranking: Ranking) -> str:
    """The table with aligned columns, under its notices."""
    rows = ranking.rows()
    widths = {head: max(len(head), *(len(r[head]) for r in rows)) for head in rows[0]}

    def line(cells: dict[str, str]) -> str:
        return "  ".join(f"{cells[h]:{w}}" for h, w in widths.items()).rstrip()

    head = line({h: h for h in widths})
    return "\n".join([ranking.finding(), *footnotes(ranking), head, *map(line, rows)])


def comparison_table(c: Comparison) -> Group:
    """The sentence, all measurements, the curve."""
    table = _table("measure", "value", "95 % interval", "note")
    table.columns[1].justify = "right"
    for column in table.columns[:3]:
        column.no_wrap = True
    for e in c.entries():
        table.add_row(*map(_escaped, (e.measure, e.text, e.interval, e.note)))
    return _group(c.finding(), table, step_line(c))


def ranking_table(ranking: Ranking) -> Group:
    """The sentence, a row per pipeline, what to know about the order."""
    rows = ranking.rows()
    table = _table(*rows[0])
    for row in rows:
        table.add_row(*map(_escaped, row.values()))
    curves = [f"{c.label:28} {curve}" for c in ranking.comparisons if (curve := step_line(c))]
    return _group(ranking.finding(), table, *curves, *footnotes(ranking), LEVEL)


def step_line(c: Comparison) -> str:
    """SQNR over the steps as bars from the lowest to the highest; "" where there is none."""
    values = c.steps()["sqnr_db"]
    if not len(values) or values.isin([float("inf")]).any():
        return ""
    span = max(values.max() - values.min(), 1e-9)
    bars = "".join(BARS[int((v - values.min()) / span * (len(BARS) - 1) + 0.5)] for v in values)
    return f"SQNR per step, noise to picture: {bars} {values.min():.1f} to {values.max():.1f} dB"


def footnotes(ranking: Ranking) -> list[str]:
    """Notices that the finding has not told already, and what the columns mean."""
    notices = ranking.notices if ranking.ranked else ranking.notices[1:]
    told = [*notices, f"Size: {SIZE}. Bit-operations: {BIT_OPS}."]
    if any(c.frechet for c in ranking.comparisons):
        told.append(f"Frechet distance: {FRECHET}.")
    return told


def _table(*heads: str) -> Any:
    from rich import box
    from rich.table import Table

    return Table(*heads, box=box.SIMPLE_HEAD, pad_edge=False)


def _escaped(words: str) -> str:
    from rich.markup import escape

    return escape(words)


def _group(*parts: Any) -> Group:
    from rich.console import Group
    from rich.text import Text

    return Group(*(Text(p) if isinstance(p, str) else p for p in parts if p != ""))
