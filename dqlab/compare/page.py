"""Comparisons in a notebook: pictures, the curve over steps, one table.

Static, so that it reads without a kernel, in both themes, and aloud.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from torch import Tensor

from dqlab.compare.comparison import BASELINE
from dqlab.compare.plain import LEVEL, footnotes
from dqlab.show import Picture, db_over_steps, image_grid
from dqlab.show.bundle import number

if TYPE_CHECKING:
    from dqlab.compare.comparison import Comparison
    from dqlab.compare.ranking import Ranking

PICTURES = 6
OTHERS = ("method", "ablation_1", "ablation_2")
"""Roles of up to three pipelines beside full precision and plain rounding."""
GAIN = 4.0
FULL = "full precision"
CELL = "text-align:left;padding:2px 10px;vertical-align:top"


def comparison_page(c: Comparison) -> str:
    """The page of one quantized pipeline."""
    shown = {BASELINE: c.baseline} if c.baseline else {}
    shown |= {c.label: c}
    rows = [(e.measure, e.text, e.interval, e.note) for e in c.entries()]
    table = _table(("measure", "value", "95 % interval", "note"), rows, "All measurements")
    looks = {BASELINE: "rtn", c.label: "method"}
    return _page(c.finding(), *_pictures(shown, looks), table, _provenance(c))


def ranking_page(ranking: Ranking) -> str:
    """The page of several; pictures and curves of as many as there are roles."""
    shown = _drawn(ranking.comparisons)
    rows = ranking.rows()
    order = "Ranked by the final pictures" if ranking.by_images else "Ranked by noise SQNR"
    caption = order if ranking.ranked else "Not ranked"
    table = _table(tuple(rows[0]), [tuple(r.values()) for r in rows], caption)
    notes = footnotes(ranking)
    if len(shown) < len(rows):
        notes.append(f"Drawn: {len(shown)} of {len(rows)}.")
    by_label = {c.label: c for c in ranking.comparisons if c.label in shown}
    words = "".join(f"<p>{html.escape(n)}</p>" for n in notes)
    last = _provenance(ranking.comparisons[0])
    return _page(ranking.finding(), *_pictures(by_label, shown), table, words, last)


def _drawn(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Label -> role of those that are drawn: the first plain rounding, the first three others."""
    plain = [c.label for c in comparisons if c.info["recipe"]["methods"] == ["rtn"]]
    others = [c.label for c in comparisons if c.label not in plain[:1]]
    return dict.fromkeys(plain[:1], "rtn") | dict(zip(others, OTHERS, strict=False))


def _pictures(shown: dict[str, Comparison], looks: dict[str, str]) -> list[str]:
    """Samples over their differences, and the curve over steps where there is one."""
    first = next(iter(shown.values()))
    count = min(PICTURES, len(first.seeds))
    errors = "; ".join(f"{name}: {number(c.paired.median)}" for name, c in shown.items())
    grid = image_grid(
        {FULL: _stills(first.reference[:count])}
        | {name: _stills(c.images[:count]) for name, c in shown.items()},
        first.seeds[:count],
        count=count,
        difference_gain=GAIN,
        roles=looks | {FULL: "full_precision"},
        value_range=(0, 1),
        sentence=f"Median squared difference to {FULL}. {errors}. Shown: the first {count} seeds.",
    )
    return [_figure(grid), *(_figure(p) for p in _curve(shown, looks))]


def _stills(images: Tensor) -> Tensor:
    """Pictures as they are, the middle frame of videos `[N, F, 3, H, W]`."""
    return images[:, images.shape[1] // 2] if images.ndim == 5 else images


def _curve(shown: dict[str, Comparison], looks: dict[str, str]) -> list[Picture]:
    """SQNR per step of all that have a finite one, as a list of one picture or none."""
    frames = [
        steps.assign(series=name)
        for name, c in shown.items()
        if len(steps := c.steps()) and np.isfinite(steps["sqnr_db"]).all()
    ]
    if not frames:
        return []
    frame = pd.concat(frames).rename(columns={"sqnr_db": "db"})
    frame["timestep"] = frame["t"].round().astype(int)
    drawn = {name: looks[name] for name in frame["series"].unique()}
    condition = f"{len(next(iter(shown.values())).seeds)} seeds, 95 % intervals"
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
    # Numbers stay on one line; words, which are longer, may be broken.
    others = "".join(
        f'<td style="{CELL}{"" if len(cell) > 40 else ";white-space:nowrap"}">{cell}</td>'
        for cell in rest
    )
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
