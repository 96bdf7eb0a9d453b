"""The pictures, explorers and question of the notebook 1.5-error-correction."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from torch import Tensor

from dqlab.metrics import median
from dqlab.phenomena.attention_mass import mass_facts, quantized
from dqlab.phenomena.budget import PARTS
from dqlab.phenomena.correction_claims import ETA_0, FIRST, errors_of
from dqlab.phenomena.error_correction import BUDGETED, LEDGER
from dqlab.phenomena.stored import Stored, to_pictures
from dqlab.reference.softmax_bias_correction import lost_mass
from dqlab.show import charts
from dqlab.show.bundle import Picture, number, percent
from dqlab.show.deciders import decider
from dqlab.show.explorer import Control, Explorer
from dqlab.show.panel import Canvas
from dqlab.show.questions import Asked, asked
from dqlab.show.roles import ROLES, label_of, role, style

LOOKS = {"bias": ("ablation_1", "//"), "slope": ("ablation_2", ".."), "rest": ("quoted", "")}
"""Role whose colour a part takes, and its hatch."""
NAMES = {"rtn": "none", "d2-dpm, channel": "d2-dpm,\nchannel", "tac-diffusion": "tac's K"}
WHOLE = "% of the error's power"
STEPS_AXIS = "signed mean error"

REPAIR = (
    "The prediction's error has a bias per channel, a slope over the true prediction, and a rest "
    "of its own for every picture. Which repair gains most at W4A8?",
    {
        "slope": (
            "dividing by 1 + k takes out the slope",
            "It is what PTQD is known for. But quantizing need not scale an answer.",
        ),
        "bias": (
            "subtracting what all pictures share",
            "Rounding weights once moves every answer the same way.",
        ),
        "equal": (
            "both alike",
            "Each is one number per step or channel, which says nothing about its size.",
        ),
        "none": (
            "neither: nearly all is rest",
            "The rest is mostly the larger part, yet it is nothing a table can hold.",
        ),
    },
)


def question(correct: str) -> Asked:
    """Which part of the error is worth repairing."""
    return asked(REPAIR, correct)


def shown(name: str) -> str:
    """A setting's name under a bar."""
    return NAMES.get(name, name)


@style()
def budget_bars(rows: pd.DataFrame, sentence: str, top: float = 0.0,
                unit: str = "mean squared error of the prediction", width: int = 640,
                height: int = 330) -> Picture:  # fmt: skip
    """One stacked bar per row: bias, slope and rest, which add up to the whole.

    `rows`: columns name, bias, slope, rest. `top` ends the axis, for pictures to be compared.
    """
    canvas = Canvas(width, height)
    panel, count = canvas.panels[0], len(rows)
    parts = rows[list(PARTS)].to_numpy()
    edges = np.sort(np.concatenate([np.arange(count) - 0.36, np.arange(count) + 0.36]))
    for i in reversed(range(len(PARTS))):  # the whole first, each smaller sum over it
        heights = np.zeros(2 * count - 1)
        heights[::2] = parts[:, : i + 1].sum(1)
        look, hatch = LOOKS[PARTS[i]]
        panel.bars(edges, heights, ROLES[look].colour, hatch)
    ends = np.cumsum(parts[-1]) - parts[-1] / 2
    panel.ends = [(PARTS[i], role(LOOKS[PARTS[i]][0]), count - 0.64, ends[i]) for i in range(3)]
    panel.axes.set_ylim(0, top or 1.08 * parts.sum(1).max())
    panel.axes.set_xticks(range(count), [shown(name) for name in rows["name"]])
    panel.axes.set_ylabel(unit)
    panel.axes.grid(axis="y")
    return charts.light(canvas.picture(sentence))


def budget_sentence(rows: pd.DataFrame, where: str) -> str:
    """The parts in per cent, and what each correction leaves of the whole."""
    parts = rows[list(PARTS)].to_numpy()
    whole = parts.sum(1)
    told = ", ".join(f"{n} {percent(p / whole[0])}" for n, p in zip(PARTS, parts[0], strict=True))
    left = ", ".join(
        f"{name} {percent(total / whole[0])}"
        for name, total in zip(rows["name"][1:], whole[1:], strict=True)
    )
    return f"{where}: {told} of {number(whole[0])}." + (f" Left after {left}." if left else "")


def budget_explorer(results: Stored) -> Explorer:
    """The budget of any step before and after each correction of predictions."""
    frame = results.frames["budgets"]
    steps = tuple(int(s) for s in sorted(frame["step"].unique()))
    bits = tuple(frame["bits"].unique())

    def compute(step: int, bits: str) -> dict:
        rows = frame[(frame["step"] == step) & (frame["bits"] == bits)]
        where = f"{bits}, step {step} (t = {rows['timestep'].iloc[0]})"
        percents = rows.copy()
        percents[list(PARTS)] *= 100 / rows[list(PARTS)].iloc[0].sum()
        return {"rows": percents, "words": budget_sentence(rows, where)}

    middle, last = steps[len(steps) // 2], steps[-1]
    return Explorer(
        "The budget of one step",
        [
            Control("step", "step", steps, middle),
            Control("bits", "bits", bits, FIRST if FIRST in bits else bits[0], kind="choice"),
        ],
        compute,
        lambda data: budget_bars(data["rows"], data["words"], 110, WHOLE, 600, 270),
        presets={
            "half-way": {},
            "the first step": {"step": steps[0]},
            "W4A4, the last step": {"step": last, "bits": bits[-1]},
        },
        stops=("half-way", "W4A4, the last step"),
    )


def means_of(rows: pd.DataFrame) -> dict[str, list[float]]:
    """The signed mean error of every channel over the steps, from `budgets`' columns."""
    columns = sorted(c for c in rows if c.startswith("mean_"))
    ordered = rows.sort_values("step")
    return {f"channel {c[5:]}": ordered[c].tolist() for c in columns if ordered[c].notna().all()}


@style()
def signed_means(panels: Mapping[str, pd.DataFrame], sentence: str, limit: float,
                 width: int = 700, height: int = 330) -> Picture:  # fmt: skip
    """The mean error of each channel over the steps, a panel per setting, on one scale.

    `panels`: {name: `budgets` of one setting}, at most three. `limit`: end of the axis, both ways.
    """
    canvas = Canvas(width, height, widths=(1,) * len(panels))
    looks = [ROLES[n] for n in ("full_precision", "rtn", "method", "ablation_1", "ablation_2")]
    for i, (panel, (name, rows)) in enumerate(zip(canvas.panels, panels.items(), strict=True)):
        times = rows.sort_values("step")
        for look, (channel, values) in zip(looks, means_of(rows).items(), strict=False):
            label = channel if i == len(panels) - 1 else ""
            panel.line(times["step"].tolist(), values, look, label, marks=False)
        panel.axes.set_ylim(-limit, limit)
        panel.time_axis(times["step"].tolist(), times["timestep"].tolist(), ticks=4)
        panel.remark(0, name)
        panel.axes.grid(axis="y")
    canvas.panels[0].axes.set_ylabel(STEPS_AXIS)
    return charts.light(canvas.picture(sentence))


def largest_mean(rows: pd.DataFrame) -> float:
    """The largest signed mean in size."""
    return max(abs(v) for values in means_of(rows).values() for v in values)


def means_explorer(results: Stored) -> Explorer:
    """The signed mean error per channel before and after any correction."""
    frame = results.frames["budgets"]
    bits, names = tuple(frame["bits"].unique()), BUDGETED

    def compute(bits: str, name: str) -> dict:
        mine = frame[frame["bits"] == bits]
        pair = {"before": mine[mine["name"] == "rtn"], f"after {name}": mine[mine["name"] == name]}
        before, after = (largest_mean(rows) for rows in pair.values())
        words = (
            f"{bits}, held-out states: the largest mean error of a channel is {number(before)}, "
            f"after {name} {number(after)}."
        )
        return {"pair": pair, "words": words, "limit": 1.15 * largest_mean(mine)}

    return Explorer(
        "A mean that all pictures share",
        [
            Control("bits", "bits", bits, FIRST if FIRST in bits else bits[0], kind="choice"),
            Control("name", "correction", names, "ptqd", kind="choice"),
        ],
        compute,
        lambda data: signed_means(data["pair"], data["words"], data["limit"], 620, 250),
        presets={
            "W4A8, ptqd": {},
            f"{bits[-1]}, ptqd": {"bits": bits[-1]},
            "W4A8, per channel": {"name": names[-1]},
        },
        stops=("W4A8, ptqd", f"{bits[-1]}, ptqd"),
    )


def run_explorer(results: Stored) -> Explorer:
    """Pictures of plain rounding and any method, at the ledger's bits."""
    exact, made = (to_pictures(results.tensors[name]) for name in ("exact", "made"))
    errors, pairs = results.frames["errors"], list(results.frames["ledger"]["bits"].unique())
    heads = [f"seed {i}" for i in range(len(exact))]

    def compute(bits: str, name: str) -> dict:
        here, plain = (float(median(errors_of(errors, n, bits, ETA_0))) for n in (name, "rtn"))
        words = (
            f"{bits}, {name}: median paired error {number(here)}, plain rounding {number(plain)}."
        )
        rows = [made[pairs.index(bits), LEDGER.index(n)] for n in ("rtn", name)]
        return {"rows": rows, "name": name, "words": words}

    def draw(data: dict) -> Picture:
        rows = {"full_precision": exact, "rtn": data["rows"][0], data["name"]: data["rows"][1]}
        looks = {data["name"]: "method"}
        return charts.picture_rows(rows, heads, data["words"], roles=looks, value_range=(0, 1))

    return Explorer(
        "Whose picture is closest?",
        [
            Control("bits", "bits", tuple(pairs), kind="choice"),
            Control("name", "method", LEDGER[1:], "tac-diffusion", kind="choice"),
        ],
        compute,
        draw,
        presets={
            f"{pairs[0]}, tac-diffusion": {},
            f"{pairs[0]}, ptqd": {"name": "ptqd"},
            f"{pairs[-1]}, tac-diffusion": {"bits": pairs[-1]},
        },
        stops=(f"{pairs[0]}, tac-diffusion", f"{pairs[-1]}, tac-diffusion"),
    )


@style()
def row_sums(P: Tensor, bits: int, sentence: str, width: int = 560,
             height: int = 240) -> Picture:  # fmt: skip
    """Row sums of quantized probabilities `[rows, N]`, as they are and with the mass given back.

    The constant is the mean over the even rows; drawn are the odd ones.
    """
    seen, new = quantized(P[::2], bits), quantized(P[1::2], bits).sum(-1)
    corrected = new + lost_mass(seen)
    canvas = Canvas(width, height)
    panel = canvas.panels[0]
    edges = np.linspace(0, 2, 81)
    for sums, name, hatch in ((new, "rtn", ""), (corrected, "method", "//")):
        heights, _ = np.histogram(sums.clamp(0, 2).numpy(), edges)
        panel.bars(edges, heights / len(new), role(name).colour, hatch)
        top = int(heights.argmax())
        label = "as rounded" if name == "rtn" else "with the constant"
        panel.text(edges[top] + 0.03, heights[top] / len(new), label, role(name).colour,
                   plate=True, ha="left", va="bottom")  # fmt: skip
    panel.axes.axvline(1.0, color=ROLES["full_precision"].colour, linewidth=1)
    panel.axes.set(xlim=(0, 2), xlabel="sum of a row of probabilities (exactly 1 before rounding)",
                   ylabel="share of rows")  # fmt: skip
    panel.axes.margins(y=0.15)
    return charts.light(canvas.picture(sentence))


def mass_explorer(found: Mapping[str, Tensor]) -> Explorer:
    """Row sums at any attention and bits, before and after."""
    layers = {f"{_attention(site)}, {P.shape[-1]} keys": P for site, P in found.items()}
    widest = max(layers, key=lambda name: layers[name].shape[-1])

    def draw(data: dict) -> Picture:
        P, bits = layers[data["layer"]], data["bits"]
        facts = mass_facts(P, bits)
        words = (
            f"{data['layer']}, {bits} bits: {percent(facts['zeros'])} of the probabilities "
            f"become 0, rows sum to {facts['row_sum']:.2f}; {number(P.shape[-1] / 2**bits)} keys "
            "per level."
        )
        return row_sums(P, bits, words)

    return Explorer(
        "Where did the mass go?",
        [
            Control("bits", "bits", (8, 7, 6, 5, 4, 3), 4),
            Control("layer", "attention", tuple(layers), widest, kind="choice"),
        ],
        lambda bits, layer: {"bits": bits, "layer": layer},
        draw,
        presets={"4 bits": {}, "6 bits": {"bits": 6}, "8 bits": {"bits": 8}},
        stops=("4 bits", "8 bits"),
    )


def _attention(site: str) -> str:
    path = site.split(".")
    kind = "self" if "attn1" in path else "cross"
    number_ = f" {path[path.index('attentions') + 1]}" if "attentions" in path else ""
    block = path[0].removesuffix("_blocks").removesuffix("_block")
    return f"{block} {path[1] if path[1].isdigit() else ''}{number_} {kind}".replace("  ", " ")


def bias_decider(curve: pd.DataFrame, budgets: pd.DataFrame) -> Picture:
    """The bias's share of the error at every step against what PTQD gains there."""
    ours = {}
    for bits, part in budgets.groupby("bits", sort=False):
        before, after = (part[part["name"] == n].set_index("step") for n in ("rtn", "ptqd"))
        totals = [rows[list(PARTS)].sum(axis=1) for rows in (before, after)]
        gain = 10 * np.log10(totals[0] / totals[1])
        ours[f"{bits}, a point per step"] = pd.DataFrame(
            {"ratio": 100 * before["bias"] / totals[0], "gain": gain}
        )
    first = next(iter(ours.values()))
    words = (
        f"At {next(iter(ours))[:4]} the bias holds {number(first['ratio'].min())} % to "
        f"{number(first['ratio'].max())} % of a step's error and PTQD gains "
        f"{number(first['gain'].min())} to {number(first['gain'].max())} dB there (natural)."
    )
    return decider(
        curve.assign(ratio=100 * curve["ratio"]), ours, words, curve_name="made-up error",
        axes=("share of the error's power that is bias [%]", "gain of the step's prediction [dB]"),
    )  # fmt: skip


def mass_decider(curve: pd.DataFrame, softmax: pd.DataFrame, keys: int = 64) -> Picture:
    """Keys per level against the gain of the constant: made-up attention, ours, the paper's."""
    head = softmax[softmax["granularity"] == "head"]
    ours = pd.DataFrame({"ratio": keys / 2.0 ** head["bits"], "gain": head["gain"]})
    words = (
        f"{keys} keys at 8 bits are {number(keys / 256)} per level, where the constant gains "
        f"{head.set_index('bits')['gain'][8]:.1f} dB; at 4 bits {number(keys / 16)}, and it gains "
        f"{head.set_index('bits')['gain'][4]:.1f} dB."
    )
    return decider(
        curve, {"ours: 8, 6, 4 bits": ours}, words, curve_name="made-up attention",
        axes=("keys per level, N / 2^b", "gain of the correction [dB]"),
        quoted={"paper: 4096 keys, 8 bits": 16.0},
    )  # fmt: skip


def smoothing_decider(curve: pd.DataFrame, smoothing: pd.DataFrame) -> Picture:
    """The stretch of a block's factors against the gain of smoothing, two networks."""
    groups = {
        model: smoothing[smoothing["model"] == model][["ratio", "gain"]]
        for model in ("pixel-unet", "latent-unet")
    }
    middle = [f"{number(part['gain'].median())} dB" for part in groups.values()]
    words = (
        f"Where the embedding scales (pixel-unet), smoothing gains {middle[0]} in the median "
        f"block; where it adds (latent-unet), {middle[1]}. Inputs at 6 bits, natural."
    )
    return decider(
        curve, groups, words, curve_name="made-up block",
        axes=("largest / median smoothing factor of the block", "gain at its convolution [dB]"),
    )  # fmt: skip


def estimates(frame: pd.DataFrame) -> Picture:
    """What QNCD estimates at every step beside the true mean of the error."""
    long = frame.melt(["step", "timestep"], ["truth", "estimate"], "series", "mean")
    worst = frame.loc[(frame["estimate"] - frame["truth"]).abs().idxmax()]
    words = (
        f"QNCD's estimate is furthest from the true mean at step {worst['step']:.0f}: "
        f"{worst['estimate']:.3f} instead of {worst['truth']:.3f}."
    )
    looks = {"truth": "full_precision", "estimate": "method"}
    return charts.lines(
        long, words, x="step", y="mean", axes=("", "mean error of the prediction, W4A8"),
        steps=True, marks=True, roles=looks, width=620,
    )  # fmt: skip


def drift(frame: pd.DataFrame) -> Picture:
    """How far each chain's mean moves from full precision's, over the steps."""
    rms = frame.assign(square=frame["mean"] ** 2).groupby(["name", "step", "timestep"])
    table = rms["square"].mean().pow(0.5).rename("drift").reset_index()
    table = table[table["step"] > 0].rename(columns={"name": "series"})
    last = table[table["step"] == table["step"].max()].set_index("series")["drift"]
    words = "Mean deviation of the chain at the last step, W4A8: " + ", ".join(
        f"{label_of(name)} {number(last[name])}" for name in frame["name"].unique()
    )
    looks = {"rtn": "rtn", "ptqd": "ablation_1", "tac-diffusion": "method"}
    return charts.lines(
        table, words + ".", x="step", y="drift", steps=True, roles=looks, width=680,
        axes=("", "signed mean of xq - x,\nroot mean square over channels"),
    )  # fmt: skip
