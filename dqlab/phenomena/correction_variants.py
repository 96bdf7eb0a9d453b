"""What becomes of corrections when a part, a sample size, a pairing or a setting changes.

    python -m dqlab.phenomena.correction_variants

writes data/results/correction-variants: about fifteen minutes on one core. What the notebook
1.5-error-correction tells of every correction as published is in `error_correction`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from dqlab import seeds
from dqlab.methods.correction import Correction
from dqlab.methods.unet_correction.d2_dpm import D2Dpm
from dqlab.methods.unet_correction.ptqd import Ptqd
from dqlab.methods.unet_correction.tac_diffusion import Reconstruction, TacDiffusion
from dqlab.metrics import mean_sqnr_db
from dqlab.phenomena import slopes, stored
from dqlab.phenomena.budget import Predictions, predictions_on
from dqlab.phenomena.correction_bench import (
    Bench,
    Plan,
    behind,
    bench,
    corrected_by,
    estimating,
    runs,
)
from dqlab.phenomena.correction_claims import ETA_0
from dqlab.phenomena.error_correction import Found
from dqlab.phenomena.ledger import gain_db
from dqlab.reference import tac_diffusion as tac
from dqlab.trajectory import record

NAME = "correction-variants"
COMMAND = "python -m dqlab.phenomena.correction_variants"
MODEL = "latent-unet"

BETWEEN, EIGHT = (4, 6), (8, 8)
"""Bits beside those of the ledger."""
PAINTED = ("ptqd", "tac, input bias", "tac-diffusion")
FITTED = ("ptqd", "d2-dpm", "d2-dpm, channel")
COUNTS = (4, 8, 16, 32, 128, 256)
"""Trajectories behind PTQD's and D2-DPM's tables, beside the plan's."""
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
FEW = 8
CHAINS: Mapping[str, Mapping] = {
    "tac, K alone": {"ibc": False},
    "tac, K alone, own trajectory": {"ibc": False, "pairing": "trajectory"},
    "tac, own trajectory": {"pairing": "trajectory"},
    "tac, bias per channel": {"ner": False, "granularity": "channel"},
    "tac, bias from 8 runs": {"ner": False, "samples": FEW},
    "tac, bias per channel from 8 runs": {
        "ner": False,
        "granularity": "channel",
        "samples": FEW,
    },
}
"""Options of TAC, part by part."""
INTERVALS = (5, 2)
"""Of QNCD's estimate, between those of the ledger."""


def measure(pipe, plan: Plan | None = None, say: stored.Say = stored.silent) -> stored.Found:
    """All frames of the notebook's second set of results; no tensors.

    Args:
        pipe: the full-precision pipeline.
        plan: how much; default: what ships. Tables are taken apart at the first of its `bits`.
        say: told what has been done.

    Returns:
        Frames errors, gains and steps as in `error_correction`; ablations (bits, method, option,
        db, gain, low, high: over plain rounding), misplaced (method, option, gain, low, high: of
        the right tables over the misplaced), lost (runs, count, step, lost), slopes and shapes as
        `dqlab.phenomena.slopes` has them.

    """
    plan, found = plan or Plan(), Found(say)
    r = runs(pipe, plan, ETA_0, plan.sampler)
    say("trajectories")
    benches = [bench(r, "rtn", bits) for bits in plan.bits]
    for b in benches:
        found.add("slopes", *slopes.slopes(b, plan.calibration).assign(bits=b.name)
                  .to_dict("records"))  # fmt: skip
        found.add("shapes", *slopes.shapes(b.held).assign(bits=b.name).to_dict("records"))
        say(f"{b.name}: slopes")
    for bits in (BETWEEN, EIGHT):
        _more_bits(bench(r, "rtn", bits), found)
    _apart(benches[0], found)
    for name, options in CHAINS.items():
        _chain(benches[0], name, options, found)
    _chain(benches[-1], "tac, K alone", CHAINS["tac, K alone"], found)
    for interval in INTERVALS:
        found.paint(benches[0], f"qncd, I = {interval}", estimating(benches[0].job, interval))
    return found.frames(), {}


def _more_bits(b: Bench, found: Found) -> None:
    """Corrections at bits between those of the ledger, and at 8."""
    for name in FITTED:
        found.gain(b, name, b.held.after(behind(b, name)), "rtn", b.held)
    if b.bits == BETWEEN:
        found.paint(b, "rtn", b.rough)
        for name in PAINTED:
            found.paint(b, name, behind(b, name))


def _chain(b: Bench, name: str, options: Mapping, found: Found) -> None:
    """Pictures of one form of TAC."""
    method = TacDiffusion(**{"samples": b.runs.plan.fitted, **options})
    found.paint(b, name, corrected_by(b.job, method.correct(b.job)))


def _apart(b: Bench, found: Found) -> None:
    """Tables taken apart: which part, from how many trajectories, of which setting."""
    counted = list(_counted(b))
    made = {
        "ptqd": dict(_ptqd(b)) | {f"from {n} runs": Ptqd().fitted(s, b.fit.steps)
                                  for n, s in counted},
        "d2-dpm": dict(_d2_dpm(b)) | {
            f"per channel, from {n} runs": D2Dpm(granularity="channel").fitted(s, b.fit.steps)
            for n, s in counted
        },
        "tac's K": dict(_coefficients(b)),
    }  # fmt: skip
    base = b.held.powers()
    for method, options in made.items():
        for option, correction in options.items():
            powers = b.held.after(corrected_by(b.job, correction)).powers()
            row = {"bits": b.name, "method": method, "option": option}
            found.add("ablations", row | {"db": mean_sqnr_db(powers)} | _gain(base, powers))
    for runs_, fitted, asked in (
        ("the fitted themselves", list(b.fit), b.fit),
        *(("held out", some, b.held) for _, some in counted),
    ):
        lost = slopes.variance_lost(fitted, asked, trim=None)
        found.add("lost", *lost.assign(runs=runs_, count=len(fitted[0][1])).to_dict("records"))
    _misplace(b, found)
    found.say(f"{b.name}: taken apart")


def _gain(before, after) -> dict[str, float]:
    return dict(zip(("gain", "low", "high"), gain_db(before, after), strict=True))


def _counted(b: Bench) -> Iterator[tuple[int, list]]:
    """(step, eps, eps_q) of so many trajectories, those of the fit first."""
    most, plan = max(COUNTS), b.runs.plan
    more = seeds.CALIBRATION[plan.fitted : most]
    states = record(b.runs.pipe, more, b.runs.sampler, batch_size=len(more))[0]
    beyond = predictions_on(states, b.job.denoiser)
    whole = [
        (step, torch.cat([eps, e]), torch.cat([eps_q, q]))
        for (step, eps, eps_q), (_, e, q) in zip(b.fit, beyond, strict=True)
    ]
    for count in COUNTS:
        yield count, [(step, eps[:count], eps_q[:count]) for step, eps, eps_q in whole]


def _elsewhere(b: Bench, **setting) -> Predictions:
    """Both networks at another sampler setting."""
    sampler = replace(b.runs.sampler, **setting)
    chosen = seeds.CALIBRATION[: b.runs.plan.fitted]
    states, _ = record(b.runs.pipe, chosen, sampler, batch_size=len(chosen))
    return predictions_on(states, b.job.denoiser)


def _ptqd(b: Bench) -> list[tuple[str, Correction]]:
    method, steps = Ptqd(), b.fit.steps
    whole = method.fitted(b.fit, steps)
    signed = Ptqd(signed=True).fitted(b.fit, steps)
    mean = whole.tables["mu"].mean(1, keepdim=True).expand_as(whole.tables["mu"])
    none = torch.zeros_like(whole.tables["mu"])
    return [
        ("slope and bias", whole),
        ("slope alone", _with(whole, mu=none)),
        ("bias alone", _with(whole, k=torch.zeros_like(whole.tables["k"]))),
        ("slopes of either sign", signed),
        ("one bias for all channels", _with(whole, mu=mean)),
    ]


def _misplace(b: Bench, found: Found) -> None:
    """Tables of other guidance, and of fewer steps with each row used twice, against the right."""
    count = b.fit.steps // 2
    guided = _elsewhere(b, guidance_scale=GUIDANCE)
    fewer = _elsewhere(b, num_inference_steps=count)
    rows = torch.arange(b.fit.steps).div(2, rounding_mode="floor").clamp(max=count - 1)
    for name, method in (("ptqd", Ptqd()), ("d2-dpm", D2Dpm(granularity="channel"))):
        short = method.fitted(fewer, fewer.steps)
        twice = _with(short, **{name: table[rows] for name, table in short.tables.items()})
        right = method.fitted(b.fit, b.fit.steps)
        best = b.held.after(corrected_by(b.job, right)).powers()
        for option, correction in (
            (f"guidance {GUIDANCE:g}", method.fitted(guided, guided.steps)),
            (f"{count} steps", twice),
        ):
            powers = b.held.after(corrected_by(b.job, correction)).powers()
            found.add("misplaced", {"method": name, "option": option} | _gain(powers, best))


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
    return [(name, D2Dpm(**v).fitted(b.fit, b.fit.steps)) for name, v in variants.items()]


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


def main() -> None:
    """Measure the shipped model and replace data/results/correction-variants."""
    stored.produce(NAME, COMMAND, MODEL, measure)


if __name__ == "__main__":
    main()
