"""What becomes of corrections when a part, a sample size or a setting changes.

    python -m dqlab.phenomena.correction_checks

writes data/results/correction-checks: about ten minutes on one core. What the notebook
1.5-error-correction tells of every correction as published is in `error_correction`.
"""

from dataclasses import replace

import torch
from torch import Tensor

from dqlab import seeds
from dqlab.layers import quantizers
from dqlab.methods import quantize, recipe
from dqlab.methods.correction import Correction
from dqlab.methods.unet_correction.d2_dpm import D2Dpm
from dqlab.methods.unet_correction.ptqd import Ptqd
from dqlab.methods.unet_correction.tac_diffusion import Reconstruction
from dqlab.metrics import mean_sqnr_db
from dqlab.phenomena import stored
from dqlab.phenomena.attention_mass import softmax_only
from dqlab.phenomena.budget import Predictions, predictions_on
from dqlab.phenomena.correction_bench import (
    Bench,
    Plan,
    Runs,
    behind,
    bench,
    corrected_by,
    estimating,
    runs,
)
from dqlab.phenomena.correction_claims import ETA_0
from dqlab.phenomena.error_correction import Found
from dqlab.phenomena.ledger import gain_db
from dqlab.reference import ptqd as rule
from dqlab.reference import tac_diffusion as tac
from dqlab.reference.qncd import fires
from dqlab.trajectory import record, replay, tapped

NAME = "correction-checks"
COMMAND = "python -m dqlab.phenomena.correction_checks"
MODEL = "latent-unet"

PLAN = Plan(fitted=16, held_out=8)
BITS = ((4, 6), (8, 8))
"""Beside those of the ledger."""
PAINTED = ("ptqd", "tac, input bias")
FITTED = ("ptqd", "d2-dpm", "d2-dpm, channel")
FEW = 8
GUIDANCE = 4.0
"""Where tables are fitted to be misplaced."""
COEFFICIENTS = (
    (0.0, 0.0, 1.0),
    (0.5, 0.1, 0.1),
    (0.5, 0.1, 0.5),
    (0.5, 0.1, 1.0),
    (0.8, 0.1, 1.0),
)
"""lambda1, lambda2 and tau of TAC's coefficient."""
INTERVAL = 10
ASKED = 64
"""Pictures whose means QNCD's estimate is judged by: 16,384 numbers."""
FEWEST = 4
"""Activation bits that PTQD may go down to at a step."""
LEAST_SOFTMAX = 4


def measure(pipe, plan: Plan = PLAN, say: stored.Say = stored.silent) -> stored.Found:
    """All frames of the notebook's second set of results; no tensors.

    Args:
        pipe: the full-precision pipeline.
        plan: how much; `bits` are those whose tables are taken apart.
        say: told what has been done.

    Returns:
        Frames errors, gains and steps as in `error_correction`; ablations (bits, method, option,
        db, gain, low, high), own estimates (step, estimate, truth), mass (site, head, row_sum),
        attention (others, samples, before, db, gain, low, high), mixed (step, timestep, few, many,
        forward, bits: SNR^Q at few and many bits, SNR^F).

    """
    found = Found(say)
    r = runs(pipe, plan, ETA_0, plan.sampler)
    for bits in BITS:
        _more_bits(bench(r, "rtn", bits), found)
    benches = [bench(r, "rtn", bits) for bits in plan.bits]
    _apart(benches[0], found)
    _estimates(benches[0], found)
    _mixed(benches[0], benches[-1], found)
    _attention(r, found)
    return found.frames(), {}


def _more_bits(b: Bench, found: Found) -> None:
    """Corrections at bits between those of the ledger, and at 8."""
    for name in FITTED:
        found.gain(b, name, b.held.after(behind(b, name)), "rtn", b.held)
    if b.bits == BITS[0]:
        found.paint(b, "rtn", b.rough)
        for name in PAINTED:
            found.paint(b, name, behind(b, name))


def _apart(b: Bench, found: Found) -> None:
    """Tables taken apart: which part, from how many trajectories, of which setting."""
    made = {"ptqd": dict(_ptqd(b)), "d2-dpm": dict(_d2_dpm(b)), "tac's K": dict(_coefficients(b))}
    base = b.held.powers()
    for method, options in made.items():
        for option, correction in options.items():
            powers = b.held.after(corrected_by(b.job, correction)).powers()
            gain = dict(zip(("gain", "low", "high"), gain_db(base, powers), strict=True))
            row = {"bits": b.name, "method": method, "option": option}
            found.add("ablations", row | {"db": mean_sqnr_db(powers)} | gain)
    found.say(f"{b.name}: taken apart")


def _some(pairs: Predictions, count: int):
    """(step, eps, eps_q) of the first trajectories."""
    return ((step, eps[:count], eps_q[:count]) for step, eps, eps_q in pairs)


def _elsewhere(b: Bench, **setting) -> Predictions:
    """Both networks at another sampler setting."""
    sampler = replace(b.runs.sampler, **setting)
    chosen = seeds.CALIBRATION[: b.runs.plan.fitted]
    states, _ = record(b.runs.pipe, chosen, sampler, batch_size=len(chosen))
    return predictions_on(states, b.rough.unet)


def _ptqd(b: Bench) -> list[tuple[str, Correction]]:
    method, steps = Ptqd(), b.fit.steps
    whole = method.fitted(b.fit, steps)
    signed = Ptqd(signed=True).fitted(b.fit, steps)
    mean = whole.tables["mu"].mean(1, keepdim=True).expand_as(whole.tables["mu"])
    none = torch.zeros_like(whole.tables["mu"])
    made = [
        ("slope and bias", whole),
        ("slope alone", _with(whole, mu=none)),
        ("bias alone", _with(whole, k=torch.zeros_like(whole.tables["k"]))),
        ("slopes of either sign", signed),
        ("one bias for all channels", _with(whole, mu=mean)),
    ]
    counts = [n for n in (FEW // 2, FEW, 2 * FEW) if n < b.runs.plan.fitted]
    made += [(f"from {n} runs", method.fitted(_some(b.fit, n), steps)) for n in counts]
    return made + _misplaced(b, method)


def _misplaced(b: Bench, method: Ptqd | D2Dpm) -> list[tuple[str, Correction]]:
    """The method's tables of other guidance, and of fewer steps, each row used twice."""
    other = _elsewhere(b, guidance_scale=GUIDANCE)
    made = [(f"fitted at guidance {GUIDANCE:g}", method.fitted(other, other.steps))]
    count = b.fit.steps // 2
    other = _elsewhere(b, num_inference_steps=count)
    fewer = method.fitted(other, other.steps)
    rows = torch.arange(b.fit.steps).div(2, rounding_mode="floor").clamp(max=count - 1)
    twice = _with(fewer, **{name: table[rows] for name, table in fewer.tables.items()})
    return [*made, (f"fitted at {count} steps", twice)]


def _with(correction: Correction, **tables: Tensor) -> Correction:
    return type(correction)(correction.tables | tables, **correction.settings)


def _d2_dpm(b: Bench) -> list[tuple[str, Correction]]:
    variants = {
        "as published": {},
        "per channel": {"granularity": "channel"},
        "trimmed at 3": {"trim": 3.0},
        "nothing trimmed": {"trim": None},
        "a draw": {"mode": "stochastic"},
        "a draw, nothing trimmed": {"mode": "stochastic", "trim": None},
    }
    made = [(name, D2Dpm(**v).fitted(b.fit, b.fit.steps)) for name, v in variants.items()]
    return made + _misplaced(b, D2Dpm(granularity="channel"))


def _coefficients(b: Bench) -> list[tuple[str, Correction]]:
    """TAC's coefficient by its weights, on full-precision states."""
    made = []
    for l1, l2, tau in COEFFICIENTS:
        K = torch.stack([
            tac.reconstruction_coefficient(
                tac.reconstruction_sums(q, r, tac.relative_mask(r, tau)), l1, l2
            ).float()
            for _, r, q in b.fit
        ])  # fmt: skip
        named = f"lambda1 {l1:g}, lambda2 {l2:g}, tau {tau:g}"
        made.append((named, Reconstruction({"K": K}, apply_threshold=0.0)))
    return made


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
    for others, bits, count, more in (
        ("full precision", (8, 8), r.plan.calibration, alone),
        ("W4A8", (4, 8), r.plan.calibration, {}),
    ):
        states = r.calibration[torch.isin(r.calibration.seed, r.calibration.seed.unique()[:count])]
        made = quantize(r.pipe, "softmax-bias-correction", *bits, calibration=states,
                        **setting | more)  # fmt: skip
        if count > 1 and more:
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
