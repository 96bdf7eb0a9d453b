"""The explorers, question, pictures and tables of the notebook 1.1-calibration-strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from dqlab.phenomena import calibration as cal
from dqlab.phenomena import calibration_checks as checks
from dqlab.phenomena import calibration_strategy as measured
from dqlab.phenomena import fine_grained as learned
from dqlab.phenomena.drift import short_name
from dqlab.phenomena.ledger import Claim
from dqlab.phenomena.stored import Stored, to_pictures
from dqlab.reference.ptq4dm import time_shares
from dqlab.show import charts
from dqlab.show.bundle import Page, Picture, number
from dqlab.show.deciders import decider
from dqlab.show.explorer import Control, Explorer
from dqlab.show.maps import layer_step_map
from dqlab.show.panel import Canvas
from dqlab.show.questions import Asked, asked
from dqlab.show.roles import role, style
from dqlab.show.tables import judged, table

LOOKS = {
    "pure noise": "ablation_1", "first steps": "ablation_2", "clean images": "rtn",
    "uniform": "full_precision", "ptq4dm": "method", "eda-dm": "method",
}  # fmt: skip
UNIT = "SQNR [dB], W8A8"

RUIN = (
    "Ranges are read on states of one source only. Which source ruins the picture at W8A8?",
    {
        "pure noise": (
            "pure noise, the first input of every run",
            "It is one step of twenty; but it reaches about as far as later states do.",
        ),
        "first steps": (
            "the first quarter of the steps",
            "More steps than pure noise alone, though all of them are noisy.",
        ),
        "clean images": (
            "finished pictures, shown as the last input",
            "Image classifiers are calibrated on pictures. Here most inputs are noise.",
        ),
        "none": (
            "none: 8 bits are enough for all",
            "Eight bits are plenty for a range that fits, not for one that cuts.",
        ),
    },
)


def question(correct: str) -> Asked:
    """Which single source ruins the picture."""
    return asked(RUIN, correct)


@style()
def rug(picked: pd.DataFrame, sentence: str, width: int = 760, height: int = 300) -> Picture:
    """One lane per source: a tooth for every picked state at its step, trajectories side by side.

    `picked`: columns source, step, timestep, seed.
    """
    canvas = Canvas(width, height)
    panel, names = canvas.panels[0], list(picked["source"].unique())
    seeds = {seed: i for i, seed in enumerate(sorted(picked["seed"].unique()))}
    for lane, name in enumerate(names):
        part = picked[picked["source"] == name]
        offset = part["seed"].map(seeds).to_numpy() / len(seeds) - 0.5
        at = np.sort(part["step"].to_numpy() + 0.8 * offset)
        panel.comb(at, -lane - 0.35, -lane + 0.35, role(LOOKS[name]), name)
    every = picked[["step", "timestep"]].drop_duplicates().sort_values("step")
    panel.time_axis(every["step"].tolist(), every["timestep"].tolist())
    panel.axes.set_yticks([-lane for lane in range(len(names))], names)
    panel.axes.tick_params(axis="y", length=0)
    return charts.light(canvas.picture(sentence))


@style()
def shares_and_strip(
    shares: Sequence[float], strips: pd.DataFrame, sentence: str, roles: Mapping[str, str],
    width: int = 560,
) -> Picture:  # fmt: skip
    """Share of the picks at each step over the SQNR there: columns series, step, timestep, db."""
    canvas = Canvas(width, 380, heights=(0.45, 1), sharex=True)
    top, main = canvas.panels
    edges = np.arange(len(shares) + 1) - 0.5
    top.bars(edges, np.asarray(shares), role("method").colour)
    top.axes.set(ylim=(0, 1), ylabel="share of picks")
    for name, part in strips.groupby("series", sort=False):
        main.line(part["step"].tolist(), part["db"].tolist(), role(roles[name]), name)
    every = strips[["step", "timestep"]].drop_duplicates().sort_values("step")
    main.time_axis(every["step"].tolist(), every["timestep"].tolist())
    main.axes.set(ylabel=UNIT, ylim=(0, 50))
    main.axes.grid(axis="y")
    return charts.light(canvas.picture(sentence))


def strips(results: Stored, names: Sequence[str], sentence: str) -> Picture:
    """SQNR per step of some sources, told apart by colour even where both are methods."""
    frame = cal.per_step(results.frames["powers"]).rename(columns={"source": "series"})
    chosen = frame[frame["series"].isin(names)]
    return charts.lines(
        chosen, sentence, x="step", y="db", axes=("", UNIT), steps=True, marks=True,
        roles={name: LOOKS[name] for name in names} | {"eda-dm": "ablation_2"},
    )  # fmt: skip


def source_explorer(results: Stored) -> Explorer:
    """Any source's picks and what its ranges do, beside uniform's."""
    table_ = cal.per_step(results.frames["powers"]).rename(columns={"source": "series"})
    picked = results.frames["picks"]
    T = int(table_["step"].max()) + 1
    means = table_.groupby("series")["db"].mean()

    def compute(source: str) -> dict:
        found = np.asarray(cal.counts(picked, source, T), dtype=float)
        worst = table_[table_["series"] == source].set_index("step")["db"].idxmin()
        words = (
            f"Ranges from {source}, W8A8: {means[source]:.1f} dB averaged over the steps, uniform "
            f"{means['uniform']:.1f} dB; worst at step {worst}."
        )
        chosen = table_[table_["series"].isin({source, "uniform"})]
        return {"shares": found / found.sum(), "strips": chosen, "words": words}

    def draw(data: dict) -> Picture:
        looks = {name: "rtn" for name in data["strips"]["series"]} | {"uniform": "full_precision"}
        return shares_and_strip(data["shares"], data["strips"], data["words"], looks)

    return Explorer(
        "Move the rug",
        [Control("source", "source", measured.SOURCES, "clean images", kind="choice")],
        compute,
        draw,
        presets={name: {"source": name} for name in ("clean images", "pure noise", "ptq4dm")},
        stops=("clean images", "ptq4dm"),
    )


def normal_explorer(results: Stored) -> Explorer:
    """PTQ4DM's distribution: its shares, and what ranges from its draws do."""
    frame = results.frames["normal"]
    T = int(frame["step"].max()) + 1
    means, spreads = (tuple(sorted(frame[name].unique())) for name in ("mu", "sigma"))

    def compute(mu: float, sigma: float) -> dict:
        part = frame[(frame["mu"] == mu) & (frame["sigma"] == sigma)].assign(series="drawn steps")
        words = (
            f"mu = {mu:g}, sigma = {sigma:g}: {part['db'].mean():.1f} dB averaged over the steps, "
            f"{part['db'].min():.1f} dB at the worst."
        )
        return {
            "shares": time_shares(T, mu, sigma).flip(0).tolist(),
            "strips": part,
            "words": words,
        }

    return Explorer(
        "Where to draw from",
        [
            Control("mu", "mean mu", means, 0.4),
            Control("sigma", "spread sigma", spreads, spreads[-1]),
        ],
        compute,
        lambda d: shares_and_strip(
            d["shares"], d["strips"], d["words"], {"drawn steps": "method"}
        ),
        presets={
            "the script's setting": {},
            "one step, the last": {"mu": means[0], "sigma": spreads[0]},
            "one step, the first": {"mu": means[-1], "sigma": spreads[0]},
        },
        stops=("the script's setting", "one step, the last"),
    )


def matrix(results: Stored) -> Picture:
    """Ranges from one step (down) used at every step (across)."""
    frame = results.frames["matrix"]
    named = frame.assign(layer="ranges of step " + frame["ranges_from"].astype(str))
    return layer_step_map(named, value="db", unit=UNIT, width=720, height=420)


@style()
def path(results: Stored, width: int = 640, height: int = 420) -> Picture:
    """All states' middle features on two directions, step by step, with EDA-DM's counts."""
    eda = results.frames["eda"].set_index("step")["count"]
    mean = results.frames["path"].groupby("step")[["x", "y"]].mean()
    canvas = Canvas(width, height)
    panel = canvas.panels[0]
    panel.line(mean["x"].tolist(), mean["y"].tolist(), role("method"), "")
    for step, row in mean.iterrows():
        panel.text(row["x"], row["y"], f"{eda[step]}", plate=True, ha="left", va="bottom")
    panel.axes.set(xlabel="first direction of the features", ylabel="second direction")
    most, least = eda.idxmax(), eda.idxmin()
    words = (
        f"EDA-DM takes {eda[most]} states of step {most} and {eda[least]} of step {least}; the "
        "line joins the mean features of consecutive steps."
    )
    return charts.light(canvas.picture(words))


def decider_of(drift: pd.DataFrame) -> Picture:
    """R of each site against what pure noise's range misses there, in dB."""
    top = measured.absmax_of(drift)
    ratio = top.amax(1) / top.amin(1)
    missed = 20 * (top.amax(1) / top[:, 0]).log10()
    axis = np.geomspace(1, max(8.0, float(ratio.max())), 30)
    curve = pd.DataFrame({"ratio": axis, "gain": 20 * np.log10(axis)})
    ours = pd.DataFrame({"ratio": ratio.tolist(), "gain": missed.tolist()})
    words = (
        f"R lies between {number(float(ratio.min()), 3)} and {number(float(ratio.max()), 3)}; "
        f"pure noise's range misses up to {number(float(missed.max()), 2)} dB of reach (natural)."
    )
    return decider(
        curve, {"ours, natural": ours}, words, curve_name="noise is the narrowest step",
        axes=("R = max / min over steps of a site's reach", "reach that step 0 misses [dB]"),
        quoted={"paper: 2 (quoted)": 2.0},
    )  # fmt: skip


def pictures(results: Stored) -> Picture:
    """Full precision and every source, same seeds."""
    exact, made = (to_pictures(results.tensors[name]) for name in ("exact", "made"))
    medians = results.frames["pictures"].groupby("source")["mse"].median()
    shown = ("uniform", "pure noise", "clean images")
    rows = {"full_precision": exact}
    rows |= {name: made[measured.SOURCES.index(name)] for name in shown}
    words = "Median paired squared error at W8A8: " + ", ".join(
        f"{name} {medians[name]:.2e}" for name in shown
    )
    heads = [f"seed {i}" for i in range(len(exact))]
    looks = {name: LOOKS[name] for name in shown} | {"uniform": "method"}
    return charts.picture_rows(rows, heads, words + ".", roles=looks, value_range=(0, 1))


def block_table(block: pd.DataFrame) -> Page:
    """Every block's errors by fit, its own and its inner layers'."""
    rows = []
    for (path, fit), part in block.groupby(["block", "fit"], sort=False):
        told = part.set_index("layer")
        numbers = [told.loc["block", "fitted"], *told["error"]]
        rows.append((short_name(path), fit, *(f"{value:.3f}" for value in numbers)))
    words = (
        "Squared error, weights at 3 bits, inputs in full precision: of the block on the states "
        "it was fitted to, then of it and of its inner layers on others."
    )
    return table(words, ("block", "fit", "fitted", *block["layer"].unique()), rows)


def fits_table(units: pd.DataFrame, seconds: pd.DataFrame) -> Page:
    """How the units of each learned network fared, and what the fit cost."""
    spent = seconds.set_index("method")["processor"]
    rows = [
        (
            row["method"], f"{row['change']:.2f} ×", f"{row['worse']} of {row['units']}",
            f"{row['hardening']:.2f} ×", f"{spent[row['method']]:.0f}",
        )
        for row in learned.fits(units).to_dict("records")
    ]  # fmt: skip
    heads = (
        "method", "error of a unit, against nearest rounding (median)", "units above it",
        "cost of deciding (median)", "processor seconds",
    )  # fmt: skip
    return table("All units learned, W4A8, on calibration states.", heads, rows)


def metrics_table(metrics: pd.DataFrame) -> Page:
    """What each range metric of PTQ4DM is worth, from `calibration_checks`' frame."""
    rows = []
    for (weights, activations), part in metrics.groupby(["weights", "activations"], sort=False):
        best = cal.mean_by_source(part)
        for source, db in best.items():
            bits = f"W{weights}A{activations}"
            rows.append(
                (
                    bits,
                    checks.NAMED[source],
                    f"{db:.1f}",
                    f"{round(db - best['mse'], 1) + 0.0:+.1f}",
                )
            )
    heads = ("bits", "range of least", "SQNR [dB]", "against L2.4 [dB]")
    return table("The same states and candidates; nothing learned.", heads, rows)


def claims_table(claims: Mapping[str, Claim]) -> Page:
    """Each claim beside our number, and what came of it."""
    return judged("Claims of PTQ4DM and EDA-DM on this network.", claims)
