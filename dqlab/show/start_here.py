"""The explorers of the notebook 0-start-here: controls around measurements made beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from dqlab.formats import Affine, Range
from dqlab.methods.method import MOMENTS
from dqlab.methods.papers import categories, papers
from dqlab.metrics import median
from dqlab.paths import ROOT
from dqlab.phenomena import gallery as samples
from dqlab.phenomena import levels, schedule, stored, verdicts
from dqlab.ranges import min_max
from dqlab.show import charts
from dqlab.show.bundle import Page, Picture
from dqlab.show.combs import comb
from dqlab.show.curves import range_ribbon
from dqlab.show.explorer import Control, Explorer
from dqlab.show.tables import table
from dqlab.trajectory import States

SHOWN, STRIP = 3, 5
ROWS, COLUMNS = 24, 48  # of a weight matrix that are drawn
CLIPS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0, 4.5)


FLOOR = 1e-5
"""Error powers below it are drawn at it: a log axis has no zero."""


def bits_explorer(pictures: Mapping[tuple[int, int], Tensor], options: Sequence[int]) -> Explorer:
    """Pictures of the first seeds at any pair of bit-widths; (0, 0) holds full precision."""
    exact = pictures[0, 0]

    def draw(data: dict) -> Picture:
        rows = {"full_precision": exact[:SHOWN], "rtn": data["made"][:SHOWN]}
        heads = [f"seed {i}" for i in range(SHOWN)]
        return charts.picture_rows(rows, heads, data["words"], value_range=(0, 1))

    def compute(weights: int, activations: int) -> dict:
        made = pictures[weights, activations]
        middle = float(median((made - exact).square().flatten(1).mean(1)))
        words = f"W{weights}A{activations}: median squared error {middle:.2g} to full precision."
        return {"made": made, "words": words}

    return Explorer(
        "Fewer bits, same seeds",
        [Control("weights", "weights", options), Control("activations", "activations", options)],
        compute,
        draw,
        presets={
            "W8A8: looks fine": {"weights": 8, "activations": 8},
            "W4A8: coarse weights": {"weights": 4, "activations": 8},
            "W4A4: both coarse": {"weights": 4, "activations": 4},
        },
        stops=("W8A8: looks fine", "W4A4: both coarse"),
        start="W4A4: both coarse",
    )


def seed_explorer(states: States, scheduler, settled: pd.DataFrame) -> Explorer:
    """One trajectory as a film strip of the pictures its steps imply."""
    implied = schedule.implied_image(states, scheduler)
    total = int(states.step.max())
    picks = [round(i * total / (STRIP - 1)) for i in range(STRIP)]

    def compute(seed: int) -> dict:
        mine = states.seed == seed
        latest = settled[settled["seed"] == seed].set_index("attribute")["step"]
        words = ", ".join(f"{name} from step {step}" for name, step in latest.items())
        rows = {"implied picture": implied[mine][picks]}
        heads = [f"step {k}\nt = {int(states.t[mine][k])}" for k in picks]
        return {"rows": rows, "heads": heads, "words": f"Seed {seed} keeps its {words}."}

    def draw(data: dict) -> Picture:
        roles = {"implied picture": "full_precision"}
        return charts.picture_rows(data["rows"], data["heads"], data["words"], roles=roles)

    seeds = tuple(settled["seed"].unique().tolist())
    return Explorer(
        "From noise to garment",
        [Control("seed", "seed", seeds)],
        compute,
        draw,
        presets={f"seed {seed}": {"seed": seed} for seed in seeds[:2]},
    )


def levels_explorer(values: Tensor) -> Explorer:
    """A real tensor's histogram over the levels of any bits, scale and zero point."""
    low, high = float(values.min()), float(values.max())

    def compute(bits: int, scale: float, shift: int) -> dict:
        fmt = Affine(bits)
        r = levels.place(fmt, low, high, scale, shift)
        facts = levels.rounding_error(values, fmt, r)
        return {"name": f"{bits}-bit", "levels": fmt.levels(r), "facts": facts}

    def draw(data: dict) -> Picture:
        picture = comb(values, data["levels"], name=data["name"], width=600, height=280)
        return charts.light(picture)

    return Explorer(
        "Where the levels lie",
        [
            Control("bits", "bits b", (2, 3, 4, 6, 8), 4),
            Control("scale", "scale × s", (0.25, 0.5, 0.75, 1.0, 1.5), 1.0),
            Control("shift", "zero z +", (-4, -2, 0, 2, 4), 0),
        ],
        compute,
        draw,
        lambda data: verdicts.rounding(data["facts"]).words,
        presets={
            "4 bits, min-max": {},
            "4 bits, half the scale": {"scale": 0.5},
            "4 bits, zero moved": {"shift": 4},
        },
        stops=("4 bits, min-max", "4 bits, half the scale"),
    )


def clip_explorer(values: Tensor) -> Explorer:
    """Rounding and clipping error against the clip point, at any bits."""
    widest = float(values.abs().max())
    curves = {b: levels.clip_curve(values, b, (*CLIPS, widest)) for b in (3, 4, 6, 8)}

    def compute(bits: int, clip: float) -> dict:
        curve = curves[bits]
        here = curve[curve["clip"] == clip].iloc[0]
        mine = 10 * np.log10(here["total"] / curve["total"].min())
        words = (
            f"{bits} bits, clipped at {clip:g}: {mine:.1f} dB more error than at the best point."
        )
        verdict = verdicts.clipping(levels.min_max_loss(curve), bits)
        return {"curve": curve, "clip": clip, "title": words, "words": verdict.words}

    def draw(data: dict) -> Picture:
        long = data["curve"].melt("clip", var_name="series", value_name="power")
        return charts.lines(
            long.assign(power=long["power"].clip(lower=FLOOR)), data["title"],
            x="clip", y="power", log=True,
            axes=("clip point [standard deviations]", f"error power (floor {FLOOR:g})"),
            roles={"rounding": "ablation_1", "clipping": "ablation_2", "total": "rtn"},
            at=(data["clip"], f"clip at {data['clip']:g}"), width=600, height=290,
        )  # fmt: skip

    return Explorer(
        "Cut or keep",
        [Control("bits", "bits b", (3, 4, 6, 8), 4), Control("clip", "clip at", CLIPS, 2.5)],
        compute,
        draw,
        lambda data: f"{data['title']} {data['words']}",
        presets={
            "4 bits, best": {},
            "4 bits, cut hard": {"clip": 1.0},
            "8 bits, best": {"bits": 8, "clip": 4.0},
        },
        stops=("4 bits, cut hard", "8 bits, best"),
    )


def step_explorer(exact: Tensor, single: Tensor, errors: pd.DataFrame) -> Explorer:
    """Final pictures when one step alone is quantized: `single` is `[T, n, 3, H, W]`."""
    times = errors.drop_duplicates("step").set_index("step")["timestep"]
    means = errors.groupby("step")["error"].mean()

    def compute(step: int) -> dict:
        words = (
            f"Only step {step} (t = {times[step]}) quantized: mean squared error "
            f"{means[step]:.2g} in the final picture."
        )
        return {"made": single[step], "words": words}

    def draw(data: dict) -> Picture:
        count = min(SHOWN, len(data["made"]))
        rows = {"full_precision": exact[:count], "rtn": data["made"][:count]}
        heads = [f"seed {i}" for i in range(count)]
        return charts.picture_rows(rows, heads, data["words"], value_range=(0, 1))

    last = len(single) - 1
    return Explorer(
        "One rough step",
        [Control("step", "step k", range(len(single)))],
        compute,
        draw,
        presets={"first step": {"step": 0}, "last step": {"step": last}},
        stops=("first step", "last step"),
    )


def range_explorer(ranges: pd.DataFrame, sites: Sequence[str]) -> Explorer:
    """Ranges over the steps at one of `sites`, and a static range read at some of the steps."""
    last = int(ranges["step"].max())
    sources = {"all steps": range(last + 1), "first step": [0], "last step": [last]}

    def compute(site: str, source: str) -> dict:
        mine = ranges[ranges["site"] == site]
        read = mine[mine["step"].isin(sources[source])]
        return {"frame": mine, "static": (float(read["low"].min()), float(read["high"].max()))}

    def draw(data: dict) -> Picture:
        return charts.light(range_ribbon(data["frame"], data["static"], width=600, height=280))

    return Explorer(
        "One range for all steps",
        [
            Control("site", "site", sites, kind="choice"),
            Control("source", "read at", tuple(sources), kind="choice"),
        ],
        compute,
        draw,
        presets={
            "drifts most, read at all steps": {},
            "drifts most, read at the first": {"source": "first step"},
            "drifts least, read at the first": {"site": sites[-1], "source": "first step"},
        },
        stops=("drifts most, read at all steps", "drifts most, read at the first"),
    )


def granularity_explorer(weight: Tensor, bits: int) -> Explorer:
    """Rounding error of one weight matrix with one scale, or with one per output channel."""
    flat, fmt = weight.flatten(1), Affine(bits)
    found = {axis: min_max(flat, fmt, axis=axis) for axis in (None, 0)}
    errors = {axis: fmt.fake_quant(flat, r) - flat for axis, r in found.items()}
    limit, top = float(errors[None].abs().max()), float(found[None].scale) * 1.05

    def compute(per_channel: bool) -> dict:
        axis = 0 if per_channel else None
        r: Range = found[axis]
        power = errors[axis].square().mean()
        sqnr = float(10 * (flat.square().mean() / power).log10())
        name = "One scale per output channel" if per_channel else "One scale for the whole tensor"
        words = f"{name}: SQNR {sqnr:.1f} dB at {bits} bits. First {ROWS} rows:"
        scales = r.scale.expand(len(flat), 1).flatten()[:ROWS]
        return {"error": errors[axis][:ROWS, :COLUMNS], "scales": scales, "words": words}

    def draw(data: dict) -> Picture:
        return charts.weight_error(
            data["error"],
            data["scales"],
            data["words"],
            limit=limit,
            top=top,
            width=640,
            height=300,
        )

    return Explorer(
        "One comb for whom?",
        [Control("per_channel", "a scale per output channel", kind="switch", default=False)],
        compute,
        draw,
        presets={"per tensor": {}, "per channel": {"per_channel": True}},
    )


def gallery(results: stored.Stored) -> Picture:
    """A row of pictures per shipped model."""
    rows = {
        name: stored.to_pictures(results.tensors[name]) for name in results.frames["models"].model
    }
    looks = dict.fromkeys(rows, "full_precision")
    words = f"What {len(rows)} models make of the data set, in full precision, first seeds."
    heads = [f"{i + 1}" for i in range(samples.SHOWN)]
    return charts.picture_rows(rows, heads, words, value_range=(0, 1), roles=looks)


def gallery_table(results: stored.Stored) -> Page:
    """What each shipped model is, stands for, and was measured to be worth."""
    rows = [
        (
            row.model,
            f"{row.pipeline}, {row.network}",
            samples.STANDS_FOR[row.model],
            f"{row.parameters / 1e6:.1f} M",
            samples.quality(row.model),
        )
        for row in results.frames["models"].itertuples()
    ]
    heads = ("model", "pipeline, network", "stands for", "parameters", "measured")
    return table("The shipped models.", heads, rows)


def categories_table() -> Page:
    """The ten categories: their question, their papers, and the notebook if it is there."""
    rows = []
    for row in categories():
        mine = [p for p in papers() if p["category"] == row["number"]]
        names = ", ".join(p["name"] for p in mine)
        acts = ", ".join(m for m in MOMENTS if any(m in p["moments"] for p in mine))
        rows.append((row["number"], row["name"], row["question"], acts, names, _notebook(row)))
    heads = ("", "category", "its question", "moments", "papers", "notebook")
    return table("Ten categories and the moments they act at.", heads, rows)


def papers_table() -> Page:
    """The 27 papers: title, venue, moments, idea."""
    rows = [
        (
            p["category"],
            p["name"],
            f"{p['title']} ({_where(p)})",
            p["idea"],
            ", ".join(p["moments"]),
        )
        for p in papers()
    ]
    heads = ("", "method", "paper", "idea", "moments")
    return table(f"{len(rows)} papers and the moments they act at.", heads, rows)


def _notebook(row: Mapping[str, str]) -> str:
    name = f"{row['notebook']}.ipynb"
    return f"[{name}]" if (ROOT / "notebooks" / name).is_file() else "to come"


def _where(paper: Mapping[str, str]) -> str:
    number = paper["arxiv"] and f"arXiv {paper['arxiv']}"
    return ", ".join(part for part in (paper["venue"], number) if part)
