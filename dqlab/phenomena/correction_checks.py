"""Corrections' own numbers held against what they stand for, and PTQD's bits by step.

    python -m dqlab.phenomena.correction_checks

writes data/results/correction-checks: about three minutes on one core. What the notebook
1.5-error-correction tells of every correction as published is in `error_correction`.
"""

import torch
from torch import Tensor

from dqlab import seeds
from dqlab.layers import quantizers
from dqlab.methods import quantize, recipe
from dqlab.metrics import mean_sqnr_db
from dqlab.phenomena import stored
from dqlab.phenomena.attention_mass import softmax_only
from dqlab.phenomena.budget import predictions_on
from dqlab.phenomena.correction_bench import (
    Bench,
    Plan,
    Runs,
    bench,
    estimating,
    first,
    runs,
)
from dqlab.phenomena.correction_claims import ETA_0
from dqlab.phenomena.error_correction import Found
from dqlab.phenomena.ledger import gain_db
from dqlab.reference import ptqd as rule
from dqlab.reference.qncd import fires
from dqlab.trajectory import record, replay, tapped

NAME = "correction-checks"
COMMAND = "python -m dqlab.phenomena.correction_checks"
MODEL = "latent-unet"

PLAN = Plan(fitted=16, held_out=8)
INTERVAL = 10
ASKED = 64
"""Pictures whose means QNCD's estimate is judged by: 16,384 numbers."""
FEWEST = 4
"""Activation bits that PTQD may go down to at a step."""
LEAST_SOFTMAX = 4
COUNTS = (1, 2)
"""Trajectories behind softmax constants, beside the plan's."""


def measure(pipe, plan: Plan = PLAN, say: stored.Say = stored.silent) -> stored.Found:
    """All frames of the notebook's second set of results; no tensors.

    Args:
        pipe: the full-precision pipeline.
        plan: how much.
        say: told what has been done.

    Returns:
        Frames errors as in `error_correction`; own estimates (step, estimate, truth), mass (site,
        head, row_sum), attention (others, samples, before, db, gain, low, high), mixed (step,
        timestep, few, many, forward, bits: SNR^Q at few and many bits, SNR^F).

    """
    found = Found(say)
    r = runs(pipe, plan, ETA_0, plan.sampler)
    benches = [bench(r, "rtn", bits) for bits in plan.bits]
    _estimates(benches[0], found)
    _mixed(benches[0], benches[-1], found)
    _attention(r, found)
    return found.frames(), {}


def _estimates(b: Bench, found: Found) -> None:
    """QNCD's estimates beside the true bias on the states of the very same run."""
    asking = estimating(b.job, INTERVAL)
    chosen = seeds.GALLERY[:ASKED]
    states, _ = record(asking, chosen, b.runs.sampler, batch_size=len(chosen))
    fired = [i for i in range(b.fit.steps) if fires(i, b.fit.steps, INTERVAL)]
    for step, estimate in zip(fired, asking.corrector.state["estimates"], strict=True):
        here = states[states.step == step]
        eps, _ = here.guided(replay(b.runs.pipe.unet, here))
        truth = float((here.guided(here.output)[0] - eps).mean())
        found.add("own estimates", {"step": step, "estimate": float(estimate), "truth": truth})


def _mixed(b: Bench, rough: Bench, found: Found) -> None:
    """PTQD's choice of activation bits by step: the curves, the choice, and its pictures."""
    curves = [
        [float(rule.snr_quantized(eps, q - eps)) for _, eps, q in one.held] for one in (rough, b)
    ]
    at = [int(b.runs.held.t[b.runs.held.step == i][0]) for i in range(b.held.steps)]
    forward = rule.snr_forward(b.runs.pipe.scheduler.alphas_cumprod[at]).tolist()
    chosen = recipe("ptqd", fewest=FEWEST).only("place")
    setting = {"sampler": b.runs.sampler, "calibration": b.runs.calibration}
    q = quantize(b.runs.pipe, chosen, *b.bits, **setting)
    found.paint(b, "mixed bits", q)
    bits = q.unet.config.quantization_config["choices"]["step bits"]
    names = ("step", "timestep", "few", "many", "forward", "bits")
    rows = zip(range(len(at)), at, *curves, forward, bits, strict=True)
    found.add("mixed", *(dict(zip(names, row, strict=True)) for row in rows))


def _attention(r: Runs, found: Found) -> None:
    """Softmax outputs at few bits: rows on held-out states, few samples, other tensors rough."""
    setting = {"sampler": r.sampler, "softmax": LEAST_SOFTMAX}
    alone = {"policy": softmax_only(LEAST_SOFTMAX)}
    whole = r.plan.calibration
    for others, bits, count, more in (
        ("full precision", (8, 8), whole, alone),
        *(("full precision", (8, 8), count, alone) for count in COUNTS),
        ("W4A8", (4, 8), whole, {}),
    ):
        states = first(r.calibration, count)
        made = quantize(r.pipe, "softmax-bias-correction", *bits, calibration=states,
                        **setting | more)  # fmt: skip
        if count == whole and more:
            found.add("mass", *_row_sums(made, r))
        powers = predictions_on(r.held, made.unet).powers()
        for site, quantizer in quantizers(made.unet).items():
            if site.endswith(".p"):
                quantizer.zero_point.zero_()
        base = predictions_on(r.held, made.unet).powers()
        gain = dict(zip(("gain", "low", "high"), gain_db(base, powers), strict=True))
        row = {"others": others, "samples": count, "before": mean_sqnr_db(base)}
        found.add("attention", row | {"db": mean_sqnr_db(powers)} | gain)
        found.say(f"softmax {LEAST_SOFTMAX}, others {others}, {count}: {gain['gain']:.2f} dB")


def _row_sums(made, r: Runs) -> list[dict]:
    """Mean sum of a row after the correction, by attention and head, on held-out states."""
    found = {name: q for name, q in quantizers(made.unet).items() if name.endswith(".p")}
    sums: dict[str, list[Tensor]] = {name: [] for name in found}

    def see(site: str, P: Tensor) -> None:
        r_ = found[site].current(P)
        sums[site].append(found[site].format.fake_quant(P, r_).double().sum(-1).mean((0, 2)))

    with tapped(made.unet, list(found), see):
        replay(made.unet, r.held[::4])
    return [
        {"site": site, "head": head, "row_sum": total}
        for site, parts in sums.items()
        for head, total in enumerate(torch.stack(parts).mean(0).tolist())
    ]


def main() -> None:
    """Measure the shipped model and replace data/results/correction-checks."""
    stored.produce(NAME, COMMAND, MODEL, measure)


if __name__ == "__main__":
    main()
