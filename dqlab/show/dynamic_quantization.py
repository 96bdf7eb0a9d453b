"""The explorers, question and tables of the notebook 1.3-dynamic-quantization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pandas as pd
from torch import Tensor

from dqlab.phenomena import dynamic_quantization as measured
from dqlab.phenomena import timed_ranges as tr
from dqlab.phenomena import timed_verdicts as tv
from dqlab.phenomena.stored import Stored, to_pictures
from dqlab.phenomena.timed_ranges import Timed
from dqlab.show import charts, tables
from dqlab.show.bundle import Page, Picture, number, percent
from dqlab.show.combs import comb
from dqlab.show.curves import db_over_steps
from dqlab.show.deciders import decider
from dqlab.show.explorer import Control, Explorer
from dqlab.show.maps import layer_step_map
from dqlab.show.questions import Asked, asked
from dqlab.show.ridges import ridges
from dqlab.show.tables import judged, pair, table
from dqlab.show.timed_ranges import NAMES

BITS = (3, 4, 6, 8)
EDGES = 5000
"""Values of a histogram; more do not show."""

GAIN = (
    "At 4 bits, give every sampler step its own best scale, in place of one best for all steps. "
    "How much does a tensor gain, on average over sites?",
    {
        "little": (
            "less than 1 dB",
            "The best scale clips already; what is left is a misfit at both ends of the run.",
        ),
        "some": ("1 to 5 dB", "That is what a range that grows eightfold would gain."),
        "much": (
            "more than 5 dB",
            "Min-max loses that much; but then most of the loss is min-max.",
        ),
    },
)


def question(correct: str) -> Asked:
    """What a table gains on the best static step."""
    return asked(GAIN, correct)


def _times(seen: Timed) -> pd.DataFrame:
    return pd.DataFrame({"step": range(len(seen.t)), "timestep": seen.t.int().tolist()})


def _sites(seen: Timed, count: int = 6) -> dict[str, str]:
    """Sites by the name people know them by, the most drifting first."""
    drift = tr.time_table(seen).sort_values("R", ascending=False)
    return dict(drift[["layer", "site"]].head(count).itertuples(index=False))


def _at_bits(seen: Timed, site: str, bits: int) -> Timed:
    one = seen.of([site])
    return replace(one, grids=tuple(replace(grid, bits=bits) for grid in one.grids))


def ridges_of(
    seen: Timed, site: str, static: str, follow: bool | Tensor = False, bits: int = 4, **look
) -> Picture:
    """A site's histograms over time, one scale for all steps, and a scale for each.

    `static` is "min-max" or "static"; `follow` adds the ribbon of every step's own best scale, or
    of TDQ's scales `[T]` where those are given.
    """
    one = _at_bits(seen, site, bits)
    s = tr.step_sizes(one, static)
    low, *_, high = tr.levels_of(one.grids[0], s[0, 0]).tolist()
    parts = tr.clip_and_round(one, s)
    total = (parts["clipping"] + parts["rounding"]).to_numpy()
    worst = int(total.argmax())
    words = (
        f"{tr.name_of(site)}, {bits} bits, {NAMES[static]}: the error is worst at step {worst}, "
        f"{percent(total[worst])} of the power there, {percent(total.min())} at best"
    )
    ribbon = None
    own, name = None, "its own range"
    if isinstance(follow, Tensor):
        own, name = follow[None], "TDQ's range"
    elif follow:
        own = tr.step_sizes(one, "table")
    if own is not None:
        most = tr.clip_and_round(one, own)[["clipping", "rounding"]].sum(axis=1).max()
        words += f"; with {name} no step has more than {percent(most)}"
        levels = tr.levels_of(one.grids[0], own[0])
        ribbon = levels[:, 0].tolist(), levels[:, -1].tolist()
    ends = float(one.low.min()), float(one.high.max())
    span = ends[1] - ends[0]
    return ridges(
        one.flat[0], _times(one), words + ".", band=(low, high), ribbon=ribbon,
        limits=(ends[0] - 0.05 * span, ends[1] + 0.05 * span),
        unit="input of the layer" if site.endswith(".input") else "attention operand",
        band_name="one range", ribbon_name=name.removeprefix("its "), **look,
    )  # fmt: skip


def ridge_explorer(seen: Timed) -> Explorer:
    """Any drifting site: ridges, the band of one range, the ribbon of many."""
    sites = _sites(seen)
    first = next(iter(sites))

    def draw(data: dict) -> Picture:
        site, setting = sites[data["site"]], (data["static"], data["follow"], data["bits"])
        return charts.light(ridges_of(seen, site, *setting, size=(600, 300)))

    return Explorer(
        "A range that marches",
        [
            Control("site", "layer", tuple(sites), kind="choice"),
            Control("static", "one scale", ("min-max", "static"), kind="choice"),
            Control("follow", "a range per step", kind="switch"),
            Control("bits", "bits", BITS, 4),
        ],
        lambda **setting: setting,
        draw,
        presets={
            "min-max at 4 bits": {"site": first},
            "the best one": {"static": "static"},
            "a range per step": {"static": "static", "follow": True},
        },
        stops=("min-max at 4 bits", "a range per step"),
    )


def comb_explorer(seen: Timed) -> Explorer:
    """One step's values over the levels of one step size for all and of its own."""
    sites = _sites(seen)
    total = len(seen.t)

    @cache
    def steps_of(site: str, static: str, bits: int) -> tuple[Timed, Tensor, Tensor]:
        one = _at_bits(seen, sites[site], bits)
        return one, tr.step_sizes(one, static)[0], tr.step_sizes(one, "table")[0]

    def draw(data: dict) -> Picture:
        one, shared, own = steps_of(data["site"], data["static"], data["bits"])
        return charts.light(_comb_at(one, shared, own, **data))

    return Explorer(
        "Whose levels are these?",
        [
            Control("step", "sampler step", tuple(range(total)), 0),
            Control("static", "one scale", ("min-max", "static"), kind="choice"),
            Control("bits", "bits", BITS, 4),
            Control("site", "layer", tuple(sites), kind="choice"),
        ],
        lambda **setting: setting,
        draw,
        presets={
            "first step": {},
            "last step": {"step": total - 1},
            "last step, best static": {"step": total - 1, "static": "static"},
        },
        stops=("first step", "last step"),
    )


def _comb_at(one: Timed, shared: Tensor, own: Tensor, *, site: str, step: int, static: str,
             bits: int) -> Picture:  # fmt: skip
    grid, values = one.grids[0], one.flat[0, step, :EDGES]
    sizes = {NAMES[static]: shared[step], "this step's own best": own[step]}
    db = {name: float(tr.site_db(one.at([step]), s.reshape(1, 1))[0]) for name, s in sizes.items()}
    told = ", ".join(f"{name} {value:.1f} dB" for name, value in db.items())
    words = f"{site}, step {step} (t = {int(one.t[step])}), {bits} bits: {told}."
    edge = float(max(sizes.values()))
    grids = {}
    for name, s in sizes.items():
        levels = tr.levels_of(grid, s)
        grids[name] = levels[(levels >= values.min() - edge) & (levels <= values.max() + edge)]
    looks = dict(zip(grids, ("rtn", "method"), strict=True))
    return comb(values, grids, sentence=words, unit="input of the layer", roles=looks, width=640,
                height=250)  # fmt: skip


def table_map(results: Stored, count: int = 24) -> Picture:
    """The exported table of the most drifting sites: scales in shares of each one's largest."""
    sites, steps = results.frames["sites"]["site"].tolist(), results.tensors["table"]
    times = results.frames["powers"].drop_duplicates("step").sort_values("step")
    shares = 100 * steps / steps.amax(1, keepdim=True)
    gains = results.frames["gains"]
    gains = gains[gains["site"].str.endswith(".input")]
    chosen = set(gains.nlargest(count, "R")["site"])
    rows = [
        (tr.name_of(site), tr.branch_of(site), int(k), int(t), float(shares[sites.index(site), k]))
        for site in gains["site"]
        if site in chosen
        for k, t in times[["step", "t"]].itertuples(index=False)
    ]
    names = ["layer", "branch", "step", "timestep", "percent"]
    return layer_step_map(pd.DataFrame(rows, columns=names), value="percent",
                          unit="scale s [% of the site's largest]", width=820)  # fmt: skip


def decider_of(curve: pd.DataFrame, gains: pd.DataFrame, against: str, **size: int) -> Picture:
    """Gain of a table over one step size against R: a made-up site, and ours."""
    column = {"static": "gain", "min-max": "on_min_max"}[against]
    ours = pd.DataFrame({"ratio": gains["R"], "gain": gains["table"] - gains[against]})
    words = (
        f"In place of {NAMES[against]}, a scale per step gains {ours['gain'].mean():.2f} dB on "
        f"average over our sites and {ours['gain'].max():.1f} dB at most, at R of "
        f"{number(ours['ratio'].min(), 3)} to {number(ours['ratio'].max(), 3)}."
    )
    return decider(
        curve.assign(gain=curve[column]), {"ours": ours}, words,
        axes=("R, largest / smallest range over steps", "gain of a scale per step [dB], A4"),
        **size,
    )  # fmt: skip


def step_curves(powers: pd.DataFrame, weights: int = 8, activations: int = 4) -> Picture:
    """SQNR of the answer step by step: min-max, the best static step, TDQ."""
    names = {"min-max": NAMES["min-max"], "static": NAMES["static"], "network": NAMES["network"]}
    looks = {NAMES["min-max"]: "rtn", NAMES["static"]: "ablation_1", NAMES["network"]: "method"}
    return db_over_steps(
        tv.over_steps(powers, names, weights, activations), roles=looks, spread="none",
        condition=f"W{weights}A{activations}, {powers['seed'].nunique()} seeds",
    )  # fmt: skip


def picture_explorer(results: Stored) -> Explorer:
    """Pictures of every setting at both pairs of bits."""
    exact, made = (to_pictures(results.tensors[name]) for name in ("exact", "made"))
    ledger = results.frames["ledger"]
    pairs = list(dict.fromkeys(pair(row) for row in ledger.to_dict("records")))
    settings = {NAMES[k]: i for i, k in enumerate(measured.SETTINGS)}
    heads = [f"seed {i}" for i in range(len(exact))]

    def compute(bits: str, steps: str) -> dict:
        row = next(r for r in ledger.to_dict("records")
                   if (pair(r), NAMES[r["setting"]]) == (bits, steps))  # fmt: skip
        words = f"{bits}, {steps}: {row['db']:.1f} dB, median paired error {row['mse']:.2e}."
        return {"words": words, "made": made[pairs.index(bits), settings[steps]]}

    def draw(data: dict) -> Picture:
        rows = {"full_precision": exact, "quantized": data["made"]}
        looks = {"quantized": "method"}
        return charts.picture_rows(rows, heads, data["words"], roles=looks, value_range=(0, 1))

    return Explorer(
        "Who chose the scale?",
        [
            Control("bits", "bits", tuple(pairs), kind="choice"),
            Control("steps", "scales", tuple(settings), kind="choice"),
        ],
        compute,
        draw,
        presets={
            f"{pairs[-1]}, min-max": {"bits": pairs[-1], "steps": NAMES["min-max"]},
            f"{pairs[-1]}, best static": {"bits": pairs[-1], "steps": NAMES["static"]},
            f"{pairs[-1]}, TDQ": {"bits": pairs[-1], "steps": NAMES["network"]},
        },
        stops=(f"{pairs[-1]}, min-max", f"{pairs[-1]}, TDQ"),
    )


def ledger_table(ledger: pd.DataFrame) -> Page:
    """The series' ledger, with names for people."""
    return tables.ledger_table(ledger.assign(method=ledger["setting"].map(NAMES)))


def cost_rows(work: pd.DataFrame, ledger: pd.DataFrame, exported: Tensor) -> Page:
    """Accuracy beside what a scheme adds to every call, counted.

    A range per row of a linear layer can be found while the row is made, so only other tensors
    are read once more for it.

    Args:
        work: `timed_ranges.cost_table`.
        ledger: rows setting, weights, activations, db.
        exported: TDQ's table `[sites, T]`.

    """
    steps, whole = exported.shape[1], work["rows"] == 0
    by_tensor = f"{work['values'].sum()}", f"{len(work) * steps}", "0"
    by_row = f"{work['values'][whole].sum()}", f"{(whole + work['rows']).sum() * steps}", "0"
    one, many = f"{len(work)}", f"{len(work) - len(exported) + exported.numel()}"
    extra = {
        "min-max": ("0", "0", one), "static": ("0", "0", one), "table": ("0", "0", many),
        "network": ("0", "0", many), "run time": by_tensor, "run time, token": by_row,
    }  # fmt: skip
    db = {(r["setting"], pair(r)): r["db"] for r in ledger.to_dict("records")}
    pairs = list(dict.fromkeys(p for _, p in db))
    rows = [(NAMES[k], *(f"{db[k, p]:.1f}" for p in pairs), *told) for k, told in extra.items()]
    heads = ("scales", *(f"{p} [dB]" for p in pairs), "values read once more, a call",
             "reductions, a picture", "scales stored")  # fmt: skip
    return table("Accuracy beside the cost of finding ranges, counted and not timed.", heads, rows)


def claims_table(found: Mapping) -> Page:
    """TDQ's claims beside our numbers."""
    return judged("TDQ's claims, and what they rest on, on this network.", found)


def ablation_table(frame: pd.DataFrame) -> Page:
    """How well networks of other shapes follow the best steps."""
    rows = [
        # Adding zero makes +0.0 of a small negative number that rounds to -0.0.
        (
            row["shape"],
            f"{row['error']:.3f}",
            *(f"{round(row[k], 2) + 0.0:.2f}" for k in ("seen_db", "held_out_db")),
        )
        for row in frame.to_dict("records")
    ]
    heads = ("network", "error of log s, all steps fitted", "loss at fitted steps [dB]",
             "loss at steps in between [dB]")  # fmt: skip
    return table("Against every step's own best; losses from a fit on even steps.", heads, rows)
