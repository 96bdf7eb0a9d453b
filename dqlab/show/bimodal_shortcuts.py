"""The explorers, question and tables of the notebook 1.2-bimodal-shortcuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from dqlab.formats import Affine, Range
from dqlab.phenomena import bimodal_shortcuts as measured
from dqlab.phenomena import shortcut_claims as claimed
from dqlab.phenomena.ledger import Claim
from dqlab.phenomena.shortcuts import PARTS, Shortcut, levels_on, split_gains
from dqlab.phenomena.stored import Stored, to_pictures
from dqlab.show import charts
from dqlab.show.bundle import Page, Picture, number
from dqlab.show.combs import comb
from dqlab.show.deciders import decider
from dqlab.show.explorer import Control, Explorer
from dqlab.show.panel import Canvas
from dqlab.show.questions import Asked, asked
from dqlab.show.roles import role, style
from dqlab.show.skylines import skyline
from dqlab.show.tables import judged, pair, table

FACTORS = (1, 2, 4, 8, 16, 32, 64, 128)
SHARED, OWN = "one range for both", "a range of its own"
SAMPLE = 20_000

INJECTION = (
    "Multiply the skip part by 64 just before it is joined, and divide its weights by 64. What "
    "changes?",
    {
        "nothing": (
            "no output: it is the same function",
            "In full precision the factor cancels, to the last bits.",
        ),
        "quantized": (
            "the quantized output only",
            "A range that serves both parts must grow with the larger one.",
        ),
        "both sides": (
            "the full-precision output as well",
            "The norm also reads the skip; but it divides each group by its own spread.",
        ),
    },
)


def question(correct: str) -> Asked:
    """What the injection changes."""
    return asked(INJECTION, correct)


def _named(found: Sequence[Shortcut]) -> dict[str, Shortcut]:
    return {s.name: s for s in found}


def _how(factor: int) -> str:
    return "natural" if factor == 1 else f"injected, skip × {factor}"


def skyline_of(s: Shortcut, factor: int, bits: int = 8, **size: int) -> Picture:
    """The reach of each channel a shortcut reads, beside one step of the shared comb."""
    moved = s.scaled(factor)
    step = float(moved.input_range(Affine(bits)).scale)
    narrow = min(PARTS, key=moved.reach_of)
    left = levels_on(moved, narrow, bits)
    words = (
        f"{s.name}, {_how(factor)}: rho_X = {number(moved.rho_x, 3)}. One range for both leaves "
        f"the {narrow} part {left} of {2**bits} levels."
    )
    least = float(s.input_range(Affine(bits)).scale) / 2
    ends = least, float(s.reach.max()) * FACTORS[-1] * 1.5
    return skyline(
        moved.reach, s.sizes, PARTS, words, step=(step, f"one step at {bits} bits"), limits=ends,
        **size,
    )  # fmt: skip


def skyline_explorer(found: Sequence[Shortcut]) -> Explorer:
    """Channel by channel at any shortcut, the injection on a slider."""
    layers = _named(found)

    def draw(data: dict) -> Picture:
        return charts.light(skyline_of(layers[data["layer"]], data["factor"], width=600))

    return Explorer(
        "Two populations in one tensor",
        [
            Control("factor", "skip × c", FACTORS, 1),
            Control("layer", "shortcut", tuple(layers), kind="choice"),
        ],
        lambda factor, layer: {"factor": factor, "layer": layer},
        draw,
        presets={
            "natural": {},
            "injected, c = 16": {"factor": 16},
            "injected, c = 128": {"factor": 128},
        },
        stops=("natural", "injected, c = 128"),
    )


@style()
def layers_chart(drift: pd.DataFrame, width: int = 760, height: int = 300) -> Picture:
    """How far the input of every layer reaches, in the order they run; shortcuts stand out.

    `drift`: columns site, step, absmax.
    """
    inputs = drift[drift["site"].str.endswith(".input")]
    reach = inputs.groupby("site", sort=False)["absmax"].max()
    mine = reach.index.str.startswith("up_blocks") & reach.index.str.contains("conv_shortcut")
    table_ = claimed.beyond(drift)
    top = table_.loc[table_["ratio"].idxmax()]
    canvas = Canvas(width, height)
    panel, edges = canvas.panels[0], np.arange(len(reach) + 1) - 0.5
    panel.bars(edges, np.where(mine, 0, reach), role("rtn").colour)
    panel.bars(edges, np.where(mine, reach, 0), role("method").colour)
    panel.axes.set(xlabel="layers in the order they run", ylabel="largest absolute input")
    words = (
        f"Coloured: the shortcuts on the way up. At most, at {top['layer']}, one reaches "
        f"{top['ratio']:.1f} times as far as the 3×3 convolutions of its block (natural)."
    )
    return charts.light(canvas.picture(words))


def nearby(fmt: Affine, r: Range, values: Tensor) -> Tensor:
    """The levels of a comb that lie among the values, and the next one on each side."""
    levels, edge = fmt.levels(r), float(r.scale)
    return levels[(levels >= values.min() - edge) & (levels <= values.max() + edge)]


def combs_of(s: Shortcut, factor: int, part: str, bits: int, **size: int) -> Picture:
    """One part's values over the comb shared by both parts and over its own."""
    name, s = s.name, s.scaled(factor)
    fmt, values = Affine(bits), s.values(part)[:SAMPLE]
    ranges = {SHARED: s.input_range(fmt), OWN: s.input_range(fmt, part)}
    grids = {name: nearby(fmt, r, values) for name, r in ranges.items()}
    times = float(ranges[SHARED].scale / ranges[OWN].scale)
    finer = f"has steps {number(times)} times finer" if times >= 1.25 else "is hardly finer"
    words = (
        f"{name}, {_how(factor)}, {part} part, {bits} bits: {levels_on(s, part, bits)} of "
        f"{2**bits} shared levels lie within it; its own comb {finer}."
    )
    looks = {SHARED: "rtn", OWN: "method"}
    return comb(values, grids, sentence=words, unit="input of the shortcut", roles=looks, **size)


def comb_explorer(found: Sequence[Shortcut]) -> Explorer:
    """Levels under either part, shared and of its own, at any factor and bits."""
    layers = _named(found)

    def draw(data: dict) -> Picture:
        s, setting = layers[data["layer"]], (data["factor"], data["part"], data["bits"])
        return charts.light(combs_of(s, *setting, width=600, height=250))

    return Explorer(
        "Whose levels are these?",
        [
            Control("factor", "skip × c", FACTORS, 64),
            Control("part", "values of", PARTS, kind="choice"),
            Control("bits", "bits", (4, 6, 8), 8),
            Control("layer", "shortcut", tuple(layers), kind="choice"),
        ],
        lambda **setting: setting,
        draw,
        presets={
            "injected, hidden part": {},
            "injected, skip part": {"part": "skip"},
            "natural, 4 bits": {"factor": 1, "bits": 4},
        },
        stops=("injected, hidden part", "natural, 4 bits"),
    )


def decider_of(
    curve: pd.DataFrame, found: Sequence[Shortcut], factor: int, **size: int
) -> Picture:
    """Gain of splitting against the ratio of ranges: a made-up layer and ours."""
    settings = [(None, 8)]
    groups = {"ours, natural": list(found)}
    if factor != 1:
        groups[f"ours, injected × {factor}"] = [s.scaled(factor) for s in found]
    points = {}
    for label, group in groups.items():
        gains = split_gains(group, settings)["gain"]
        points[label] = pd.DataFrame({"ratio": [1 / s.rho_x for s in group], "gain": gains})
    last = points[list(points)[-1]]
    words = (
        f"Our shortcuts gain {number(last['gain'].min())} to {number(last['gain'].max())} dB from "
        f"a split at skip-to-hidden ratios of {number(last['ratio'].min())} to "
        f"{number(last['ratio'].max())}" + (" (injected)." if factor != 1 else " (natural).")
    )
    return decider(
        curve, points, words,
        axes=("range of skip / range of hidden, 1 / rho_X", "gain of splitting [dB], A8"), **size,
    )  # fmt: skip


def decider_explorer(curve: pd.DataFrame, found: Sequence[Shortcut]) -> Explorer:
    """The decider axis with the injection sliding along."""
    return Explorer(
        "What decides whether splitting pays",
        [Control("factor", "skip × c", FACTORS, 64)],
        lambda factor: factor,
        lambda factor: decider_of(curve, found, factor, width=640, height=320),
        presets={"natural": {"factor": 1}, "injected, c = 64": {"factor": 64}},
        stops=("natural", "injected, c = 64"),
    )


def sweep_explorer(results: Stored) -> Explorer:
    """W8A8 pictures of the network unsplit and split, at every factor that was measured."""
    exact, made = (to_pictures(results.tensors[name]) for name in ("exact", "sweep"))
    means = measured.sweep_table(results.frames["sweep"])
    factors = tuple(int(c) for c in means["factor"])
    heads = [f"seed {i}" for i in range(len(exact))]

    def compute(factor: int) -> dict:
        row = means[means["factor"] == factor].iloc[0]
        words = (
            f"W8A8, {_how(factor)}: unsplit {row['unsplit']:.1f} dB, split {row['split']:.1f} dB."
        )
        unsplit, split = made[factors.index(factor)]
        return {"words": words, "unsplit": unsplit, "split": split}

    def draw(data: dict) -> Picture:
        rows = {"full_precision": exact, "unsplit": data["unsplit"], "split": data["split"]}
        looks = {"unsplit": "rtn", "split": "method"}
        return charts.picture_rows(rows, heads, data["words"], roles=looks, value_range=(0, 1))

    strong = factors[-2]
    return Explorer(
        "The same function, two quantizers",
        [Control("factor", "skip × c", factors, strong)],
        compute,
        draw,
        presets={
            f"injected, c = {strong}": {},
            "natural": {"factor": 1},
            f"injected, c = {factors[-1]}": {"factor": factors[-1]},
        },
        stops=("natural", f"injected, c = {strong}"),
        start=f"injected, c = {strong}",
    )


def ladder_explorer(results: Stored) -> Explorer:
    """Pictures of any rung at the bits where all rungs were measured."""
    exact, made = (to_pictures(results.tensors[name]) for name in ("exact", "ladder"))
    gains = measured.ladder_gains(results.frames["ladder"])
    pairs = list(dict.fromkeys(pair(row) for row in results.frames["ledger"].to_dict("records")))
    rungs = tuple(dict.fromkeys(gains["rung"]))
    heads = [f"seed {i}" for i in range(len(exact))]

    def compute(bits: str, rung: str) -> dict:
        row = next(r for r in gains.to_dict("records") if (pair(r), r["rung"]) == (bits, rung))
        return {
            "made": made[pairs.index(bits), rungs.index(rung)],
            "words": f"{bits}, {rung}: {row['db']:.1f} dB.",
        }

    def draw(data: dict) -> Picture:
        rows = {"full_precision": exact, "quantized": data["made"]}
        looks = {"quantized": "method"}
        return charts.picture_rows(rows, heads, data["words"], roles=looks, value_range=(0, 1))

    return Explorer(
        "Climb the ladder",
        [
            Control("bits", "bits", tuple(pairs), kind="choice"),
            Control("rung", "rung", rungs, kind="choice"),
        ],
        compute,
        draw,
        presets={
            f"{pairs[-1]}, min-max": {"bits": pairs[-1], "rung": "min-max"},
            f"{pairs[-1]}, all rungs": {"bits": pairs[-1], "rung": rungs[-1]},
        },
    )


ANSWERS = {"helps": "yes", "nothing": "no clear gain", "hurts": "no, it hurts"}


def ladder_table(gains: pd.DataFrame) -> Page:
    """What each rung is worth, in dB, with the interval over seeds and whether it helps."""
    rows = []
    for _, row in gains.iterrows():
        verdict = ANSWERS[measured.rung_verdict(row).key] if row["rung"] != "rtn" else ""
        # Adding zero makes -0.0 of a small negative number +0.0, whose sign depends on nothing.
        gain, low, high = (round(row[name], 1) + 0.0 for name in ("gain", "low", "high"))
        told = f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]" if verdict else ""
        rows.append((pair(row), row["rung"], f"{row['db']:.1f}", told, verdict))
    heads = ("bits", "rung", "SQNR [dB]", "gain on the rung before [dB]", "it helps?")
    words = "SQNR of the answer, mean over steps; 95 % intervals over seeds."
    pairs = dict.fromkeys(row[0] for row in rows)
    missing = [p for p in pairs if (p, measured.LAST) not in {row[:2] for row in rows}]
    if missing:
        words += f" Not measured: {measured.LAST} at {', '.join(missing)}."
    return table(words, heads, rows)


def claims_table(claims: Mapping[str, Claim]) -> Page:
    """Each claim beside our number, and what came of it."""
    return judged("Q-Diffusion's claims on these networks, nothing injected.", claims)
