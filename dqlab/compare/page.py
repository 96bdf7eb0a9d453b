"""Comparisons in a notebook: pictures, the curve over steps, one table.

Static, so that it reads without a kernel, in both themes, and aloud.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dqlab.compare.plain import LEVEL
from dqlab.show import Picture, db_over_steps, image_grid

if TYPE_CHECKING:
    from dqlab.compare.comparison import Comparison
    from dqlab.compare.ranking import Ranking

PICTURES = 6
SERIES = 4
"""Pipelines drawn at once: as many as there are roles beside full precision and quoted."""
GAIN = 4.0
FULL = "full precision"
CELL = "text-align:left;padding:2px 10px;vertical-align:top"


def comparison_page(c: Comparison) -> str:
    """The page of one quantized pipeline."""
    shown = ([("plain rounding", c.baseline)] if c.baseline else []) + [(c.label, c)]
    rows = [(e.measure, e.text, e.interval, e.note) for e in c.entries()]
    table = _table(("measure", "value", "95 % interval", "note"), rows, "All measurements")
    return _page(c.finding(), *_pictures(shown, {c.label: "method"}), table, _provenance(c))


def ranking_page(ranking: Ranking) -> str:
    """The page of several; pictures and curves of the first four."""
    first = ranking.comparisons[:SERIES]
    rows = ranking.rows()
    order = "Ranked by the final pictures" if ranking.by_images else "Ranked by noise SQNR"
    caption = order if ranking.ranked else "Not ranked"
    table = _table(tuple(rows[0]), [tuple(r.values()) for r in rows], caption)
    notes = [*(ranking.notices if ranking.ranked else ranking.notices[1:])]
    if len(ranking.comparisons) > SERIES:
        notes.append(f"Drawn: the first {SERIES} of {len(ranking.comparisons)}.")
    shown = [(c.label, c) for c in first]
    words = "".join(f"<p>{html.escape(n)}</p>" for n in notes)
    return _page(ranking.finding(), *_pictures(shown, {}), table, words, _provenance(first[0]))


def _pictures(shown: list[tuple[str, Comparison]], roles: dict[str, str]) -> list[str]:
    """Samples over their differences, and the curve over steps where there is one."""
    first = shown[0][1]
    plain = {n: "rtn" for n, c in shown if c.info["recipe"]["methods"] == ["rtn"]}
    looks = {FULL: "full_precision"} | _one_each(plain | roles)
    rows = {FULL: first.reference[:PICTURES]}
    rows |= {name: c.images[:PICTURES] for name, c in shown}
    grid = image_grid(
        rows, first.seeds[:PICTURES], count=PICTURES, difference_gain=GAIN, roles=looks,
        value_range=(0, 1),
    )  # fmt: skip
    return [_figure(grid), *(_figure(p) for p in _curve(shown, looks))]


def _one_each(roles: dict[str, str]) -> dict[str, str]:
    """The same without a second label in one role."""
    return {label: r for label, r in roles.items() if list(roles.values()).count(r) == 1}


def _curve(shown: list[tuple[str, Comparison]], looks: dict[str, str]) -> list[Picture]:
    """SQNR per step of all that have a finite one, as a list of one picture or none."""
    frames = [
        c.steps().assign(series=name) for name, c in shown
        if c.powers is not None and np.isfinite(c.steps()["sqnr_db"]).all()
    ]  # fmt: skip
    if not frames:
        return []
    frame = pd.concat(frames).rename(columns={"sqnr_db": "db"})
    frame["timestep"] = frame["t"].round().astype(int)
    drawn = {name: r for name, r in looks.items() if name in set(frame["series"])}
    condition = f"{len(shown[0][1].seeds)} seeds, 95 % intervals"
    return [db_over_steps(frame, roles=drawn, spread="given", condition=condition)]


def _figure(picture: Picture) -> str:
    """A figure without a visible caption: its title is the sentence already."""
    return f'<figure style="margin:0 0 12px 0">{picture.img()}</figure>'


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]], caption: str) -> str:
    """A table whose first column names its rows."""
    head = "".join(f'<th scope="col" style="{CELL}">{html.escape(h)}</th>' for h in heads)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    return (
        f'<table style="border-collapse:collapse"><caption style="{CELL}">'
        f"{html.escape(caption)}. {LEVEL}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cells(row: tuple[str, ...]) -> str:
    first, *rest = map(html.escape, row)
    others = "".join(f'<td style="{CELL}">{cell}</td>' for cell in rest)
    return f'<th scope="row" style="{CELL}">{first}</th>{others}'


def _provenance(c: Comparison) -> str:
    """Which trajectories and sampler all of it was measured on."""
    steps, eta = c.sampler.num_inference_steps, c.sampler.eta
    return (
        f"<p>Held-out seeds {c.seeds[0]} to {c.seeds[-1]}, {steps} steps, eta {eta:g}, policy "
        f"{html.escape(c.info['policy']['name'])}.</p>"
    )


def _page(finding: str, *parts: str) -> str:
    words = f"<p><strong>{html.escape(finding)}</strong></p>"
    return f'<div style="max-width:960px">{words}{"".join(parts)}</div>'
