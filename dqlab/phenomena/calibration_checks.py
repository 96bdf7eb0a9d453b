"""What becomes of PTQ4DM's calibration with fewer bits, the code's pairing, another metric.

    python -m dqlab.phenomena.calibration_checks

writes data/results/calibration-checks: about three minutes on one core.
"""

from dataclasses import dataclass, field, replace

import pandas as pd
import torch
from torch import Tensor

from dqlab import seeds
from dqlab.methods import quantize, recipe
from dqlab.methods.centred import METRICS
from dqlab.metrics import mean_sqnr_db
from dqlab.phenomena import calibration as cal
from dqlab.phenomena import calibration_strategy as strategy
from dqlab.phenomena import stored
from dqlab.phenomena.bits import with_bits
from dqlab.phenomena.calibration_claims import of
from dqlab.phenomena.ledger import Claim, claims_frame, gain_db, powers_of
from dqlab.phenomena.verdicts import Verdict
from dqlab.trajectory import States, record

NAME = "calibration-checks"
COMMAND = "python -m dqlab.phenomena.calibration_checks"
MODEL = "pixel-unet"
TURNED, CHAINED = "turned round", "mse, chained"
NAMED = {"mse": "L2.4 error", "l1": "L1 error", "cosine": "cosine distance",
         "kl": "KL divergence", CHAINED: "L2.4 error, chained"}  # fmt: skip
QUOTED = {"l1": 100.52, "cosine": 34.81, "kl": 47.27}
"""PTQ4DM's FID by metric; 30.46 with L_2.4."""
CLEAR_DB = 0.3


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        bench: of the notebook's other results, for what is recorded and how much is picked.
        activations: bits at which sources are ranked.
        metrics: weights and activations at which range metrics are compared.

    """

    bench: strategy.Plan = field(default_factory=strategy.Plan)
    activations: tuple[int, ...] = (8, 6, 4)
    metrics: tuple[tuple[int, int], ...] = ((8, 8), (4, 4))


def measure(pipe, plan: Plan | None = None, say: stored.Say = stored.silent) -> stored.Found:
    """All frames of the stored results; there are no tensors.

    Returns:
        Frames of error powers (step, t, seed, signal, noise) with columns for the setting: fewer
        (source, activations), pairing (source), metrics (source: metric, or `CHAINED`; weights,
        activations); outcomes.

    """
    plan = plan or Plan()
    b = strategy.bench(pipe, plan.bench)
    held_out, _ = record(pipe, seeds.HELD_OUT[: plan.bench.held_out], plan.bench.sampler)
    drawn = cal.picks_of(pipe, recipe("ptq4dm", samples=plan.bench.samples), plan.bench.sampler)
    say("trajectories")
    frames: dict[str, list[pd.DataFrame]] = {"fewer": [], "pairing": [], "metrics": []}

    def see(frame: str, q, **setting) -> None:
        frames[frame].append(powers_of(q, held_out).assign(**setting))
        say(f"{frame} {setting}: {mean_sqnr_db(frames[frame][-1]):.2f} dB")

    for bits in plan.activations:
        for name, ranges in _ranges(b, drawn).items():
            see("fewer", with_bits(b.quantized, bits, ranges), source=name, activations=bits)
    for name, states in {"ptq4dm": drawn, TURNED: turned(b, drawn)}.items():
        see("pairing", b.with_ranges(strategy.ranges_on(b, states)), source=name)
    for weights, activations in plan.metrics:
        for name, options in _options().items():
            q = quantize(
                pipe, recipe("ptq4dm", **options), weights, activations,
                sampler=plan.bench.sampler, calibration=drawn,
            )  # fmt: skip
            see("metrics", q, source=name, weights=weights, activations=activations)
    found = {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}
    return found | {"outcomes": outcomes(found)}, {}


def _options() -> dict[str, dict]:
    return {name: {"metric": name} for name in METRICS} | {CHAINED: {"chained": True}}


def _ranges(b: strategy.Bench, drawn: States) -> dict[str, pd.DataFrame]:
    """Min-max by source, from what the bench has seen already."""
    steps = b.states.step
    T = int(steps.max()) + 1
    n = [b.plan.samples // T] * T
    even = strategy.rows_at(b.states, n, torch.Generator().manual_seed(0))
    return {
        "pure noise": b.reach.over(steps == 0),
        "uniform": b.reach.over(even),
        "ptq4dm": strategy.ranges_on(b, drawn),
        "last step": b.reach.over(steps == T - 1),
    }


def turned(b: strategy.Bench, drawn: States) -> States:
    """The states that PTQ4DM's code pairs with the times of `drawn`.

    Its counter starts at the noise, so a draw t keeps the outcome of step t, counted from there,
    which is the input of step t + 1 or, behind the last one, the finished picture.
    """
    T = int(b.states.step.max()) + 1
    pairs = zip(drawn.seed.tolist(), drawn.step.tolist(), strict=True)
    x = torch.stack([_outcome(b, seed, T - 1 - step) for seed, step in pairs])
    return replace(drawn, x=x)


def _outcome(b: strategy.Bench, seed: int, step: int) -> Tensor:
    mine = b.states.seed == seed
    after = b.states.x[mine & (b.states.step == step + 1)]
    place = b.states.seed.unique().tolist().index(seed)
    return after[0] if len(after) else b.images[place] * 2 - 1


def fewer_bits(fewer: pd.DataFrame) -> Verdict:
    """Whether ranges of pure noise, which are narrow, win against even ones with fewer bits."""
    gains = {
        bits: gain_db(of(part, "pure noise"), of(part, "uniform"))
        for bits, part in fewer.drop(columns="activations").groupby(
            fewer["activations"], sort=False
        )
    }
    told = ", ".join(
        f"A{b} {g:+.1f} dB [{low:+.1f}, {high:+.1f}]" for b, (g, low, high) in gains.items()
    )
    told = f"Uniform steps against pure noise alone, weights at 8 bits: {told}"
    lost = [f"A{bits}" for bits, (_, _, high) in gains.items() if high < -CLEAR_DB]
    if not lost:
        return Verdict("holds", f"{told}. Having seen all steps never hurts.")
    return Verdict("flips", f"{told}. At {', '.join(lost)} narrow ranges are worth more.")


def pairing(powers: pd.DataFrame) -> Verdict:
    """Whether the published code's pairing costs anything."""
    gain, low, high = gain_db(of(powers, "ptq4dm"), of(powers, TURNED))
    told = f"With the code's pairing W8A8 has {gain:+.2f} dB [{low:+.2f}, {high:+.2f}]"
    if high < -CLEAR_DB:
        return Verdict("matters", f"{told}: it costs.")
    return Verdict("hardly", f"{told}: it hardly matters here.")


def chaining(metrics: pd.DataFrame) -> list[Verdict]:
    """What it changes to set ranges on predecessors that are quantized already, by bits."""
    found = []
    for (weights, activations), part in _by_bits(metrics):
        gain, low, high = gain_db(of(part, "mse"), of(part, CHAINED))
        told = f"W{weights}A{activations}, chained: {gain:+.2f} dB [{low:+.2f}, {high:+.2f}]"
        if max(abs(low), abs(high)) <= CLEAR_DB:
            found.append(Verdict("alike", f"{told}, alike."))
        else:
            found.append(Verdict("differs", f"{told}."))
    return found


def _by_bits(metrics: pd.DataFrame):
    bits = [metrics["weights"], metrics["activations"]]
    return metrics.drop(columns=["weights", "activations"]).groupby(bits, sort=False)


def claims(metrics: pd.DataFrame) -> dict[str, Claim]:
    """PTQ4DM's study of metrics: least L_2.4 against the three others, W8A8."""
    part = next(part for bits, part in _by_bits(metrics) if bits == (8, 8))
    return {
        f"against {name}": Claim(
            f"least L2.4 error beats least {NAMED[name]} (PTQ4DM, eps, W8A8)",
            f"FID 30.46 against {quoted}", *gain_db(of(part, name), of(part, "mse")), "dB",
            CLEAR_DB,
        )
        for name, quoted in QUOTED.items()
    }  # fmt: skip


def outcomes(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """What came of every claim and question, from the other frames."""
    told = claims_frame(claims(frames["metrics"]))
    least = frames["fewer"][frames["fewer"]["activations"] == frames["fewer"]["activations"].min()]
    asked = {
        "fewer": (of(least, "pure noise"), of(least, "uniform"), fewer_bits(frames["fewer"])),
        "pairing": (
            of(frames["pairing"], "ptq4dm"), of(frames["pairing"], TURNED),
            pairing(frames["pairing"]),
        ),
    }  # fmt: skip
    for name, (before, after, verdict) in asked.items():
        told.loc[len(told)] = [name, *gain_db(before, after), verdict.key]
    return told


def main() -> None:
    """Measure the shipped model and replace data/results/calibration-checks."""
    stored.produce(NAME, COMMAND, MODEL, measure)


if __name__ == "__main__":
    main()
