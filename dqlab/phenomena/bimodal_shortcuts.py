"""Measure what the notebook 1.2-bimodal-shortcuts shows but has no time to compute.

    python -m dqlab.phenomena.bimodal_shortcuts

writes data/results/bimodal-shortcuts: about twenty minutes on one core, most of it for
reconstruction.
"""

from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor

from dqlab import seeds
from dqlab.layers import ShortcutImbalance
from dqlab.methods import quantize, recipe
from dqlab.metrics import mean_sqnr_db
from dqlab.metrics.sampling import sample
from dqlab.models.families import Sampler
from dqlab.phenomena import stored
from dqlab.phenomena.ledger import claims_frame, gain_db, ledger_row, powers_of
from dqlab.phenomena.shortcut_claims import LAST, claims, learned_claims, of_sweep
from dqlab.phenomena.shortcuts import ratio_table, shortcuts, split_gains
from dqlab.phenomena.steps import chain_errors
from dqlab.phenomena.verdicts import Verdict
from dqlab.reference.q_diffusion import calibration_steps
from dqlab.trajectory import States, injected, record

NAME = "bimodal-shortcuts"
COMMAND = "python -m dqlab.phenomena.bimodal_shortcuts"
MODEL = "pixel-unet"
FACTORS = (1, 4, 16, 64, 128)
LAYER_BITS = ((8, 8), (4, 8), (4, 4))
STRONG = 64
"""The factor of the question and of the stored pictures that stand for the injection."""

RUNGS: dict[str, tuple[str, dict[str, bool]]] = {
    "rtn": ("rtn", {}),
    "min-max": ("q-diffusion", {"split": False, "search": False, "reconstruct": False}),
    "+ range search": ("q-diffusion", {"split": False, "search": True, "reconstruct": False}),
    "+ split": ("q-diffusion", {"split": True, "search": True, "reconstruct": False}),
    "+ reconstruction": ("q-diffusion", {"split": True, "search": True, "reconstruct": True}),
}
"""Recipe and its options, each rung with what the one before has and one thing more."""

LEARNED: dict[str, dict[str, bool]] = {
    "nearest, split": RUNGS["+ split"][1],
    "learned, one range": RUNGS[LAST][1] | {"split": False},
    "learned, split": RUNGS[LAST][1],
}
"""Options of Q-Diffusion: what learned rounding and the split are worth, each beside the other."""


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        trajectories, steps: Q-Diffusion's n and m; every rung is calibrated on these states.
        held_out: trajectories behind every SQNR.
        pictures: gallery seeds behind every paired error.
        kept: pictures stored of each setting.
        factors: of the injection, at 8 bits.
        bits: weight and activation bits of the ladder; `learned` also get its last rung.
        shown: bits whose rungs are painted, and stand in the ledger if among `judged`.
        sampler: the setting of everything.

    """

    trajectories: int = 16
    steps: int = 10
    held_out: int = 8
    pictures: int = 32
    kept: int = 3
    factors: tuple[int, ...] = FACTORS
    bits: tuple[tuple[int, int], ...] = ((4, 8), (4, 6), (4, 4))
    learned: tuple[tuple[int, int], ...] = ((4, 8), (4, 4))
    shown: tuple[tuple[int, int], ...] = ((4, 8), (4, 4))
    judged: tuple[str, ...] = ("rtn", "+ split", "+ reconstruction")
    sampler: Sampler = field(default_factory=Sampler)


def calibration_states(pipe, plan: Plan | None = None) -> States:
    """The states Q-Diffusion chooses: m evenly spread steps of n trajectories."""
    plan = plan or Plan()
    states, _ = record(pipe, seeds.CALIBRATION[: plan.trajectories], plan.sampler)
    steps = calibration_steps(plan.sampler.num_inference_steps, plan.steps)
    return states[torch.isin(states.step, torch.tensor(steps))]


def rung(pipe, name: str, weights: int, activations: int, calibration: States, plan=None):
    """One rung of the ladder: a quantized pipeline."""
    slug, options = RUNGS[name]
    return _quantized(pipe, recipe(slug, **options), (weights, activations), calibration, plan)


def imbalanced(pipe, factor: float, calibration: States, plan: Plan | None = None):
    """`pipe` with every skip times `factor` where its block reads it; itself for 1."""
    if factor == 1:
        return pipe
    some = calibration[calibration.seed == calibration.seed[0]]
    sampler = (plan or Plan()).sampler
    return injected(pipe, ShortcutImbalance(float(factor)), sampler=sampler, states=some)


def eight_bits(pipe, factor: float, split: bool, calibration: States, plan: Plan | None = None):
    """Min-max at W8A8, split or not, of the network with that injection."""
    options = RUNGS["min-max"][1] | {"split": split}
    harder = imbalanced(pipe, factor, calibration, plan)
    return _quantized(harder, recipe("q-diffusion", **options), (8, 8), calibration, plan)


def _quantized(pipe, chosen, bits: tuple[int, int], calibration: States, plan: Plan | None):
    """Weight and activation bits; the plan's sampler."""
    sampler = (plan or Plan()).sampler
    return quantize(pipe, chosen, *bits, sampler=sampler, calibration=calibration)


def measure(pipe, plan: Plan | None = None, say: stored.Say = stored.silent) -> stored.Found:
    """All frames and tensors of the notebook's stored results.

    Returns:
        Frames sweep (factor, split, step, t, seed, signal, noise), ladder (weights, activations,
        rung, ...), ledger (method, weights, activations and `ledger_row`'s columns), ratios,
        gains (`ratio_table`, `split_gains`), learned (setting, step, t, seed, signal, noise),
        run (`chain_errors` of the same settings), outcomes; tensors exact, sweep
        `[factors, 2, kept, ...]`, ladder `[shown, rungs, kept, ...]`.

    """
    plan = plan or Plan()
    calibration = calibration_states(pipe, plan)
    held_out, _ = record(pipe, seeds.HELD_OUT[: plan.held_out], plan.sampler)
    _, exact = record(pipe, seeds.GALLERY[: plan.pictures], plan.sampler)
    say("trajectories")
    sweep, swept = _sweep(pipe, plan, calibration, held_out, say)
    ladder, ledger, climbed = _ladder(pipe, plan, calibration, held_out, exact, say)
    found = shortcuts(pipe, calibration)
    frames = {"sweep": sweep, "ladder": ladder, "ledger": ledger}
    frames["learned"], frames["run"] = _learned(pipe, plan, calibration, held_out, say)
    frames |= {"ratios": ratio_table(found), "gains": split_gains(found, LAYER_BITS)}
    frames["outcomes"] = outcomes(frames)
    tensors = {"exact": stored.to_bytes(exact[: plan.kept]), "sweep": swept, "ladder": climbed}
    return frames, tensors


def _sweep(pipe, plan: Plan, calibration: States, held_out: States, say):
    """W8A8 at every factor, unsplit and split: error powers and first pictures."""
    powers, pictures = [], []
    for factor in plan.factors:
        for split in (False, True):
            q = eight_bits(pipe, factor, split, calibration, plan)
            powers.append(powers_of(q, held_out).assign(factor=factor, split=split))
            pictures.append(stored.to_bytes(_run(q, plan, plan.kept)))
            say(f"c = {factor}, split {split}: {mean_sqnr_db(powers[-1]):.2f} dB")
    shape = len(plan.factors), 2
    return pd.concat(powers, ignore_index=True), torch.stack(pictures).unflatten(0, shape)


def _ladder(pipe, plan: Plan, calibration: States, held_out: States, exact: Tensor, say):
    """Every rung at every pair of bits, and the ledger of some."""
    powers, rows, pictures = [], [], []
    for pair in plan.bits:
        for name in RUNGS:
            if name == LAST and pair not in plan.learned:
                continue
            q = rung(pipe, name, *pair, calibration, plan)
            setting = dict(zip(("weights", "activations"), pair, strict=True))
            powers.append(powers_of(q, held_out).assign(**setting, rung=name))
            if pair in plan.shown:
                many = name in plan.judged
                made = _run(q, plan, plan.pictures if many else plan.kept)
                pictures.append(stored.to_bytes(made[: plan.kept]))
                if many:
                    row = ledger_row(powers[-1], exact, made, q, held_out)
                    rows.append({"method": name, **setting, **row})
            say(f"W{pair[0]}A{pair[1]} {name}: {mean_sqnr_db(powers[-1]):.2f} dB")
    frames = pd.concat(powers, ignore_index=True), pd.DataFrame(rows)
    return *frames, torch.stack(pictures).unflatten(0, (len(plan.shown), -1))


def _learned(pipe, plan: Plan, calibration: States, held_out: States, say):
    """`LEARNED` at the ladder's first bits: error powers, and how far its own runs go astray."""
    powers, runs = [], {}
    for name, options in LEARNED.items():
        q = _quantized(pipe, recipe("q-diffusion", **options), plan.bits[0], calibration, plan)
        powers.append(powers_of(q, held_out).assign(setting=name))
        runs[name], _ = record(q, seeds.HELD_OUT[: plan.held_out], plan.sampler)
        say(f"{name}: {mean_sqnr_db(powers[-1]):.2f} dB")
    return pd.concat(powers, ignore_index=True), chain_errors(held_out, runs)


def _run(pipe, plan: Plan, count: int) -> Tensor:
    return sample(pipe, seeds.GALLERY[:count], batch_size=32, sampler=plan.sampler)


def sweep_table(powers: pd.DataFrame) -> pd.DataFrame:
    """Mean SQNR by factor: columns factor, unsplit, split, in dB."""
    rows = [
        (c, *(mean_sqnr_db(of_sweep(powers, c, split)) for split in (False, True)))
        for c in powers["factor"].unique()
    ]
    return pd.DataFrame(rows, columns=["factor", "unsplit", "split"])


def ladder_gains(powers: pd.DataFrame) -> pd.DataFrame:
    """What each rung gains on the one before it.

    Returns:
        Columns weights, activations, rung, db, gain, low, high (95 %, paired over seeds); the
        first rung of each pair has gain 0.

    """
    rows = []
    for pair, part in powers.groupby(["weights", "activations"], sort=False):
        before = None
        for name in part["rung"].unique():
            mine = part[part["rung"] == name]
            gain = (0.0, 0.0, 0.0) if before is None else gain_db(before, mine)
            rows.append((*pair, name, mean_sqnr_db(mine), *gain))
            before = mine
    names = ["weights", "activations", "rung", "db", "gain", "low", "high"]
    return pd.DataFrame(rows, columns=names)


CLEAR_DB = 0.3
"""A rung whose gain's interval does not reach beyond this helps or hurts too little to say so."""


def rung_verdict(row: pd.Series) -> Verdict:
    """One row of `ladder_gains`: whether the rung helps, in words."""
    name = row["rung"].removeprefix("+ ")
    told = (
        f"W{row['weights']}A{row['activations']}, {name}: {row['gain']:+.1f} dB "
        f"[{row['low']:+.1f}, {row['high']:+.1f}]"
    )
    if row["low"] > CLEAR_DB:
        return Verdict("helps", f"{told}, it helps.")
    if row["high"] < -CLEAR_DB:
        return Verdict("hurts", f"{told}, it hurts.")
    return Verdict("nothing", f"{told}, no clear gain.")


def imbalance(table: pd.DataFrame) -> Verdict:
    """The phenomenon, from `ratio_table`: how far apart the two parts reach."""
    wide = table["rho_x"].where(table["rho_x"] >= 1, 1 / table["rho_x"])
    top = table.loc[wide.idxmax()]
    told = f"rho_X lies between {table['rho_x'].min():.2f} and {table['rho_x'].max():.2f}"
    if wide.max() >= 10:
        return Verdict("holds", f"{told}: at {top['layer']} one part dwarfs the other.")
    if wide.max() >= 2:
        return Verdict(
            "weaker", f"{told}: the largest step is at {top['layer']}, and it is small."
        )
    return Verdict("absent", f"{told}: both parts reach about equally far.")


def injection(table: pd.DataFrame, factor: int) -> Verdict:
    """The question: what skip x c, weights / c changes, from `sweep_table`."""
    rows = table.set_index("factor")
    lost = rows["unsplit"][1] - rows["unsplit"][factor]
    moved = rows["split"][1] - rows["split"][factor]
    told = (
        f"At W8A8, skip × {factor} costs the unsplit network {lost:.1f} dB "
        f"({rows['unsplit'][1]:.1f} to {rows['unsplit'][factor]:.1f}) and moves the split one by "
        f"{abs(moved):.1f} dB"
    )
    if lost < 1:
        return Verdict("nothing", f"{told}: nobody notices.")
    if abs(moved) <= 0.5:
        return Verdict("quantized", f"{told}: a range for each part takes the factor up.")
    return Verdict("both sides", f"{told}: splitting does not take all of it up.")


def outcomes(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """What came of every claim, and of the injection, from the other frames.

    Returns:
        Columns name, measured, low, high, outcome; the injection's number is what it costs the
        unsplit network in dB, its ends what it costs the split one.

    """
    table = sweep_table(frames["sweep"])
    rows = table.set_index("factor")
    strong = STRONG if STRONG in rows.index else rows.index[-1]
    lost, moved = (rows[name][1] - rows[name][strong] for name in ("unsplit", "split"))
    found = claims(*(frames[k] for k in ("ratios", "gains", "ladder", "ledger")))
    told = claims_frame(found | learned_claims(frames["learned"], frames["run"]))
    told.loc[len(told)] = ["injection", lost, moved, moved, injection(table, strong).key]
    return told


def main() -> None:
    """Measure the shipped model and replace data/results/bimodal-shortcuts."""
    stored.produce(NAME, COMMAND, MODEL, measure)


if __name__ == "__main__":
    main()
