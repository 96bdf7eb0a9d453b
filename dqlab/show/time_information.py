"""The explorers, question and tables of the notebook 1.4-time-information."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from dqlab.formats import Format
from dqlab.methods.unet_time_information.qvd import time_grids
from dqlab.phenomena.clock import NO_ERROR, Channels, grid_table, levels_of, mistaken
from dqlab.phenomena.ledger import Claim
from dqlab.reference import qvd
from dqlab.show import charts
from dqlab.show.bundle import Page, Picture, number, percent
from dqlab.show.combs import comb
from dqlab.show.deciders import decider
from dqlab.show.explorer import Control, Explorer
from dqlab.show.questions import Asked, asked
from dqlab.show.skylines import skyline
from dqlab.show.strips import image_grid
from dqlab.show.tables import judged, table

TRUE, NEAREST, LEARNED = "the true step", "rounded to nearest", "TIAR"
LOOKS = {TRUE: "full_precision", NEAREST: "rtn", LEARNED: "method"}

CLOCK = (
    "Only the time path is rounded, to 4 bits. Each of its features is compared with the "
    "full-precision ones of all 20 sampling steps. How many steps does a typical block take for "
    "another?",
    {
        "none": ("none", "Neighbouring steps lie 50 timesteps apart, which is far."),
        "few": ("1 to 5 of 20", "Rounding turns a vector a little, and neighbours look alike."),
        "more": ("more than 5", "Four bits are sixteen levels for each weight."),
    },
)


def question(correct: str) -> Asked:
    """How many steps are mistaken on the sampler's own grid."""
    return asked(CLOCK, correct)


def clock_face(tables: Mapping[str, pd.DataFrame], layer: str, words: str, **size) -> Picture:
    """Which step a block reads against the true one, from noise to picture.

    `tables`: {a name of `LOOKS`: `perceived_table`}.
    """
    parts = []
    for name, frame in tables.items():
        mine = frame[frame["layer"] == layer]
        parts.append(mine.assign(series=name))
    diagonal = parts[0].assign(series=TRUE, perceived=parts[0]["t"])
    return charts.lines(
        pd.concat([diagonal, *parts]), words, x="t", y="perceived", falling=True,
        axes=("true timestep t, from noise to picture", "timestep the block reads"),
        roles=LOOKS, **size,
    )  # fmt: skip


def clock_explorer(tables: Mapping[tuple[int, str], pd.DataFrame]) -> Explorer:
    """Any block, any bits, rounded to nearest and by TIAR; keys (bits, arm)."""
    layers = tuple(next(iter(tables.values()))["layer"].unique())
    widths = tuple(sorted({bits for bits, _ in tables}, reverse=True))

    def draw(data: dict) -> Picture:
        bits, layer = data["bits"], data["layer"]
        mine = {arm: tables[bits, arm] for arm in (NEAREST, LEARNED) if (bits, arm) in tables}
        shares = {arm: mistaken(f[f["layer"] == layer]) for arm, f in mine.items()}
        told = ", ".join(f"{arm} {percent(share)}" for arm, share in shares.items())
        words = f"{layer}, W{bits}: timesteps taken for another: {told}."
        return clock_face(mine, layer, words, width=600, height=320)

    return Explorer(
        "Which step does the network think it is?",
        [
            Control("bits", "weight bits", widths, widths[-1]),
            Control("layer", "block", layers, kind="choice"),
        ],
        lambda bits, layer: {"bits": bits, "layer": layer},
        draw,
        presets={f"W{bits}": {"bits": bits} for bits in widths},
    )


MEAN, MOST = "mean of all blocks", "the block that turns most"


def turn_map(frame: pd.DataFrame, words: str) -> Picture:
    """How far features turn at every step, from `cosine_table`: the mean block and the worst."""
    worst = frame.loc[frame["away"].idxmax(), "layer"]
    mean = frame.groupby(["step", "timestep"], as_index=False)["away"].mean()
    both = {MEAN: mean, MOST: frame[frame["layer"] == worst]}
    return charts.lines(
        pd.concat([part.assign(series=name) for name, part in both.items()]), words,
        x="step", y="away", steps=True, log=True, axes=("", "1 - cosine of features"),
        roles={MEAN: "rtn", MOST: "ablation_2"},
    )  # fmt: skip


ON_THE_WAY = {"W4, nearest": "rtn", "W4, TIAR": "method", "W2, nearest": "ablation_1",
              "W2A4, features kept": "ablation_2"}  # fmt: skip


def trajectory_chart(frame: pd.DataFrame, seeds: int) -> Picture:
    """How far samples turn with nothing but the clock rounded, from `trajectory_table`."""
    last = frame[frame["step"] == frame["step"].max()].set_index("series")["away"]
    told = ", ".join(f"{name} {away:.1e}" for name, away in last.items())
    words = (
        f"Clock alone rounded, latents of {seeds} seeds; at the last step 1 - cosine is {told}."
    )
    return charts.lines(
        frame, words, x="step", y="away", steps=True, log=True, axes=("", "1 - cosine of latents"),
        roles=ON_THE_WAY,
    )  # fmt: skip


def ablation_table(frame: pd.DataFrame) -> Page:
    """TFMQ-DM's two parts on and off, from `time_checks.ablation`."""
    names = {"nearest": "nearest", "tiar": "TIAR"}
    scopes = {"none": "one range", "tib": "by step on the path", "all": "by step everywhere"}
    rows = [
        (names[row["temporal"]], scopes[row["scope"]], f"{row['db']:.1f} dB",
         f"{row['gain']:+.2f} dB [{row['low']:+.2f}, {row['high']:+.2f}]")
        for row in frame.to_dict("records")
    ]  # fmt: skip
    heads = ("time path rounded", "ranges", "eps SQNR", "gain over the first row")
    return table("TFMQ-DM's parts in the whole network at W4A8.", heads, rows)


def ranges_chart(frame: pd.DataFrame, layer: str) -> Picture:
    """Lowest and highest value of one tensor of the time path by step, from `range_table`."""
    mine = frame[frame["layer"] == layer]
    low, high = mine["low"].min(), mine["high"].max()
    widths = (mine["high"] - mine["low"]).to_numpy()
    long = pd.concat([mine.assign(series=n, value=mine[n]) for n in ("low", "high")])
    words = (
        f"{layer}: one range for all steps is {number(high - low)} wide; steps need "
        f"{number(widths.min())} to {number(widths.max())}."
    )
    return charts.lines(
        long, words, x="step", y="value", steps=True, marks=True, axes=("", "value"),
        roles={"low": "ablation_1", "high": "method"},
    )  # fmt: skip


def grid_explorer(u: Tensor) -> Explorer:
    """Time features over the levels of any candidate of QVD."""
    bits = (3, 4, 6, 8)
    grids: dict[tuple[int, str], Format] = {}
    for b in bits:
        for grid in time_grids(b):
            grids[b, "uniform" if grid.kind == "affine" else grid.name.split("-")[0]] = grid
    kinds = tuple(dict.fromkeys(kind for _, kind in grids))
    scores = grid_table(u, bits).set_index("grid")["td_score"]

    def draw(data: dict) -> Picture:
        grid = grids[data["bits"], data["kind"]]
        words = (
            f"{grid.name}: TDScore {scores[grid.name]:.3f}; a channel keeps "
            f"{number(float(_codes(u, grid)))} different values over {len(u)} steps."
        )
        levels = {grid.name: levels_of(grid, u)}
        looks = {grid.name: "rtn" if data["kind"] == "uniform" else "method"}
        return charts.light(
            comb(u, levels, sentence=words, unit="time feature u", roles=looks, log=True,
                 width=600, height=250)
        )  # fmt: skip

    return Explorer(
        "Levels for time features",
        [Control("bits", "bits", bits, 4), Control("kind", "grid", kinds, kind="choice")],
        lambda bits, kind: {"bits": bits, "kind": kind},
        draw,
        presets={
            "uniform, 4 bits": {},
            "log2, 4 bits": {"kind": "log2"},
            "log2, 8 bits": {"kind": "log2", "bits": 8},
            "uniform, 8 bits": {"bits": 8},
        },
        stops=("uniform, 4 bits", "log2, 4 bits"),
    )


def _codes(u: Tensor, grid: Format) -> Tensor:
    u_hat = grid.fake_quant(u, grid.params(u.min(), u.max()))
    return qvd.distinct_codes(u_hat).double().mean()


ALPHA_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)


def channel_explorer(found: Channels, count: int = 6) -> Explorer:
    """Channel ranges of the layers with the least coverage, before and after SCRI."""
    worst = found.coverage().nsmallest(count, "kappa")["layer"]
    layers = tuple(worst)

    def draw(data: dict) -> Picture:
        seen, alpha = found.ranges[data["layer"]], data["alpha"]
        low, high = seen.low, seen.high
        if alpha != "none":
            delta, sigma = qvd.scri_factors(low, high, alpha)
            low, high = (low - delta) / sigma, (high - delta) / sigma
        reach = torch.maximum(low.abs(), high.abs())
        kappa = float(qvd.coverage(low, high).mean())
        words = f"{data['layer']}, alpha {alpha}: a channel covers {percent(kappa)} on average."
        return charts.light(
            skyline(reach, [len(reach)], ["input channels"], words, width=600, height=280)
        )

    return Explorer(
        "Scattered channels",
        [
            Control("alpha", "alpha", ("none", *ALPHA_STEPS), "none"),
            Control("layer", "layer", layers, kind="choice"),
        ],
        lambda alpha, layer: {"alpha": alpha, "layer": layer},
        draw,
        presets={"as it is": {}, "shift only": {"alpha": 0.0}, "alpha = 1": {"alpha": 1.0}},
    )


def decider_chart(points: Mapping[str, pd.DataFrame]) -> Picture:
    """Share of steps mistaken against the decider ratio, block by block.

    `points`: {words: `separation`}; the curve is a made-up clock.
    """
    curve = made_up_clock()
    ours = {
        name: pd.DataFrame({"ratio": frame["ratio"], "gain": 100 * frame["mistaken"]})
        for name, frame in points.items()
    }
    first = next(iter(points))
    median = float(points[first]["ratio"].median())
    words = (
        f"{first}: a feature's error is {number(median)} times the distance to the next step "
        f"(median block); {percent(float(points[first]['mistaken'].mean()))} of steps are nearer "
        "to another."
    )
    return decider(
        curve, ours, words,
        axes=("error of a feature / distance to the next step", "steps mistaken [%]"),
        curve_name="made-up clock",
    )  # fmt: skip


def made_up_clock(steps: int = 200, width: int = 64) -> pd.DataFrame:
    """A point that walks in a straight line, and noise on it: columns ratio, gain (% mistaken)."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(width, generator=generator).double()
    E = torch.arange(float(steps)).double()[:, None] * direction / direction.norm()
    rows = []
    for ratio in [2.0**k for k in range(-4, 7)]:
        noise = torch.randn(steps, width, generator=generator).double()
        noise = ratio * noise / noise.norm(dim=1, keepdim=True)
        wrong = torch.cdist(E + noise, E).argmin(1) != torch.arange(steps)
        rows.append((ratio, 100 * float(wrong.double().mean())))
    return pd.DataFrame(rows, columns=["ratio", "gain"])


def grids_table(frame: pd.DataFrame) -> Page:
    """Each width's uniform grid, its best log grids, and a grid for each step."""
    rows = []
    for bits, part in frame.groupby("bits"):
        logtau = part[part["grid"].str.startswith("logtau")]
        keep = part[~part["grid"].str.startswith("logtau")]
        if len(logtau):
            keep = pd.concat([keep, logtau.nlargest(1, "td_score")])
        for row in keep.to_dict("records"):
            rows.append((f"{bits}", row["grid"], f"{row['td_score']:.3f}",
                         f"{row['codes']:.2f}", f"{row['db']:.1f} dB"))  # fmt: skip
    heads = ("bits", "grid", "TDScore", "distinct codes", "SQNR of u")
    return table("Grids for time features; of logtau the reach with the best score.", heads, rows)


def alphas_table(frames: Mapping[str, pd.DataFrame]) -> Page:
    """What SCRI is worth at a layer's output, by alpha."""
    rows = [
        (bits, row["alpha"], f"{row['db']:.1f} dB", f"{row['gain']:+.1f} dB",
         percent(row["improved"]))
        for bits, frame in frames.items() for row in frame.to_dict("records")
    ]  # fmt: skip
    heads = ("bits", "alpha", "SQNR, mean over layers", "gain over none", "layers improved")
    return table("SCRI layer by layer, on inputs that nothing was fitted to.", heads, rows)


def clips(videos: Tensor, seeds: Sequence[int], picks: Sequence[int] = (0, 3, 7)) -> Picture:
    """A few frames of generated clips `[N, F, 3, H, W]` in [0, 1], a clip in each column."""
    rows = {f"frame {k}": videos[:, k] for k in picks}
    moved = float((videos[:, -1] - videos[:, 0]).square().mean().sqrt())
    words = (
        f"{len(videos)} clips of {videos.shape[1]} frames; from the first frame to the last "
        f"values change by {number(moved)} (root mean square)."
    )
    looks = dict.fromkeys(rows, "full_precision")
    return image_grid(rows, seeds, roles=looks, value_range=(0.0, 1.0), sentence=words)


def headroom_table(frame: pd.DataFrame, count: int = 6) -> Page:
    """The layers that lose most to clipping at each channel's own range, from `headroom`."""
    wide = frame.pivot(index="layer", columns="reach", values="db")
    rows = [
        (name, _clipped(row["channel"]), _clipped(row["tensor"]))
        for name, row in wide.nsmallest(count, "channel").iterrows()
    ]
    heads = ("layer", "clipped to its channels' ranges", "clipped to the tensor's range")
    median = wide["channel"].median()
    words = (
        "SQNR of layers' outputs when inputs of a caption not seen before are only clipped, not "
        f"rounded. Median layer {_clipped(median)} by channel; the worst:"
    )
    return table(words, heads, rows)


def _clipped(db: float) -> str:
    return "nothing clipped" if db >= NO_ERROR else f"{db:.1f} dB"


def claims_table(words: str, claims: Mapping[str, Claim]) -> Page:
    """Each claim beside our number, and what came of it."""
    return judged(words, claims)
