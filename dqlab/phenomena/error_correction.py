"""Measure what the notebook 1.5-error-correction shows but has no time to compute.

    python -m dqlab.phenomena.error_correction

writes data/results/error-correction: about twenty minutes on one core.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pandas as pd
import torch
from torch import Tensor

from dqlab import seeds
from dqlab.errors import NotApplicableError
from dqlab.layers import quantizers
from dqlab.methods import load, quantize, recipe
from dqlab.methods.unet_correction.qncd import Qncd
from dqlab.metrics import mean_sqnr_db, sqnr_per_step
from dqlab.metrics.sampling import sample
from dqlab.phenomena import stored
from dqlab.phenomena.attention_mass import softmax_only
from dqlab.phenomena.budget import Predictions, budgets, predictions_on, shares
from dqlab.phenomena.correction_bench import (
    TABLES,
    Bench,
    Plan,
    Runs,
    behind,
    bench,
    bits_name,
    chain_errors,
    corrected_by,
    estimating,
    rescheduled,
    runs,
)
from dqlab.phenomena.correction_claims import ETA_0, ETA_1, MULTISTEP, outcomes
from dqlab.phenomena.ledger import gain_db, ledger_row
from dqlab.phenomena.smoothing import smoothing_gains
from dqlab.reference.ptqd import ddim_weight
from dqlab.trajectory import record

NAME = "error-correction"
COMMAND = "python -m dqlab.phenomena.error_correction"
MODEL, SCALE_SHIFT = "latent-unet", "pixel-unet"

BUDGETED = ("ptqd", "d2-dpm", "d2-dpm, channel")
LEDGER = ("rtn", "softmax-bias-correction", "qncd", "ptqd", "d2-dpm", "tac-diffusion")
VARIANTS = ("d2-dpm, channel", "d2-dpm, stochastic", "tac, input bias")
FOLLOWED = ("rtn", "ptqd", "tac-diffusion")
"""Whose chains are compared with full precision's, step by step."""
STOCHASTIC = ("ptqd", "ptqd, no variance", "d2-dpm", "tac-diffusion")
LINEAR = ("ptqd", "d2-dpm", "tac-diffusion")
"""Corrections measured with eta 1 and with a multistep sampler."""
BASE = ("q-diffusion", {"search": False, "reconstruct": False})
"""What a correction is put on top of: split shortcuts, ranges by min-max."""
GRANULARITIES = ("tensor", "head_timestep", "row")
CONTROLS = (*({"granularity": name} for name in GRANULARITIES), {"range": "max"})
"""Beside the constant per head on levels over [0, 1], at the fewest softmax bits."""
SMOOTHED_BITS, SMOOTHED_STATES = 6, 10
REDONE = 2
"""Held-out trajectories whose error powers are stored."""


@dataclass
class Found:
    """Rows of the frames and the tensors, as they come in."""

    say: stored.Say
    rows: dict[str, list] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def add(self, frame: str, *rows: Mapping) -> None:
        """Append rows to a frame."""
        self.rows.setdefault(frame, []).extend(rows)

    def gain(self, b: Bench, name: str, mine: Predictions, over: str, base: Predictions) -> None:
        """The SQNR of one setting and its gain over another."""
        powers, before = mine.powers(), base.powers()
        gain = dict(zip(("gain", "low", "high"), gain_db(before, powers), strict=True))
        named = {"sampler": b.runs.label, "bits": b.name, "name": name, "over": over}
        self.add("gains", named | {"db": mean_sqnr_db(powers)} | gain)
        self.add("steps", *(named | row for row in step_gains(before, powers)))

    def keep(self, name: str, powers: pd.DataFrame) -> None:
        """The error powers of the first trajectories, which the notebook measures again."""
        few = powers["seed"].isin(seeds.HELD_OUT[:REDONE])
        self.add("powers", *powers[few].assign(name=name).to_dict("records"))

    def paint(self, b: Bench, name: str, pipe) -> Tensor:
        """Pictures of the gallery seeds, and how far each is from full precision's."""
        made = sample(pipe, b.runs.gallery, sampler=b.runs.sampler)
        mse = (made - b.runs.exact).double().square().flatten(1).mean(1)
        named = {"sampler": b.runs.label, "bits": b.name, "name": name}
        rows = zip(b.runs.gallery, mse.tolist(), strict=True)
        self.add("errors", *(named | {"seed": seed, "mse": error} for seed, error in rows))
        self.say(f"{b.runs.label}, {b.name}, {name}: paired {float(mse.median()):.2e}")
        return made

    def frames(self) -> dict[str, pd.DataFrame]:
        """All frames."""
        return {name: pd.DataFrame(rows) for name, rows in self.rows.items()}


def step_gains(before: pd.DataFrame, after: pd.DataFrame) -> list[dict]:
    """The gain in dB at every step, from `error_powers` of two settings: step, gain."""
    ours, theirs = (sqnr_per_step(powers)["sqnr_db"] for powers in (after, before))
    return [{"step": i, "gain": gain} for i, gain in enumerate((ours - theirs).tolist())]


def measure(
    pipe,
    plan: Plan | None = None,
    say: stored.Say = stored.silent,
    scale_shift=None,
) -> stored.Found:
    """All frames and tensors of the notebook's stored results.

    Args:
        pipe: the full-precision pipeline.
        plan: how much; default: what ships.
        say: told what has been done.
        scale_shift: a pipeline whose embedding scales, for QNCD; default the shipped pixel-unet.

    Returns:
        Frames budgets (bits, name, `budgets`), shares (bits, `shares`), gains (sampler, bits,
        name, over, db, gain, low, high), steps (sampler, bits, name, over,
        step, gain), spread (step, lost, drawn), errors (sampler, bits, name, seed, mse), ledger,
        powers
        (name, `error_powers`), drift (name, step, timestep, channel, mean), estimates (step,
        timestep, estimate, truth), softmax, smoothing (model, `smoothing_gains`), variance (step,
        timestep, share), outcomes; tensors exact `[kept, ...]`, made `[bits, methods, kept, ...]`
        and the fitted tables.

    """
    plan, found = plan or Plan(), Found(say)
    ddim = runs(pipe, plan, ETA_0, plan.sampler)
    say("trajectories")
    for bits in plan.bits:
        b = bench(ddim, "rtn", bits)
        _budgets(b, found)
        pipes = _ledger(b, found)
        for name in VARIANTS:
            found.paint(b, name, behind(b, name))
        if bits == plan.bits[0]:
            _parts(b, pipes, found)
    _softmax(ddim, found)
    _on_top(ddim, found)
    _stochastic(pipe, plan, found)
    _multistep(pipe, plan, found)
    _smoothing(ddim, scale_shift or load(SCALE_SHIFT), found)
    frames = found.frames()
    frames["outcomes"] = outcomes(frames)
    made = [found.tensors.pop(f"made {bits_name(bits)}") for bits in plan.bits]
    pictures = {"exact": stored.to_bytes(ddim.exact[: plan.kept]), "made": torch.stack(made)}
    return frames, found.tensors | pictures


def _budgets(b: Bench, found: Found) -> None:
    """The error's parts, before and after what is fitted to predictions."""
    after = {"rtn": b.held}
    after |= {name: b.held.after(behind(b, name)) for name in BUDGETED}
    for name, left in after.items():
        table = budgets(left).assign(bits=b.name, name=name)
        found.add("budgets", *table.to_dict("records"))
        found.gain(b, name, left, "rtn", b.held)
    found.gain(b, "d2-dpm", after["d2-dpm"], "ptqd", after["ptqd"])
    found.gain(b, "d2-dpm, channel", after["d2-dpm, channel"], "ptqd", after["ptqd"])
    found.add("shares", *shares(b.held).assign(bits=b.name).to_dict("records"))
    found.say(f"{b.name}: budgets")


def _ledger(b: Bench, found: Found) -> dict[str, object]:
    """Every method behind plain rounding: the pipelines, by name."""
    pipes, pictures = {}, []
    for name in LEDGER:
        here, pipe = _member(b, name)
        made = found.paint(b, name, pipe)
        found.add("ledger", {"method": name, "bits": b.name, **_row(here, pipe, made)})
        pictures.append(stored.to_bytes(made[: b.runs.plan.kept]))
        if name in LINEAR:
            tables = pipe.corrector.correction.tables
            found.tensors |= {f"{b.name} {name} {key}": table for key, table in tables.items()}
        if name == "qncd":
            found.gain(b, "qncd, smoothing", here.held, "rtn", b.held)
        if name == "tac-diffusion":  # what its coefficient does on full-precision states
            after = b.held.after(pipe)
            table = budgets(after).assign(bits=b.name, name=name)
            found.add("budgets", *table.to_dict("records"))
            found.gain(b, name, after, "rtn", b.held)
        pipes[name] = pipe
    found.tensors[f"made {b.name}"] = torch.stack(pictures)
    return pipes


def _member(b: Bench, name: str) -> tuple[Bench, object]:
    """A row's quantized network and the pipeline around it."""
    if name == "rtn":
        return b, b.rough
    if name in LINEAR:
        return b, behind(b, name)
    if name == "qncd":
        here = bench(b.runs, recipe("qncd").only("reshape"), b.bits)
        return here, corrected_by(here.job, Qncd().correct(here.job))
    here = bench(b.runs, name, b.bits)
    return here, here.rough


def _row(b: Bench, pipe, made: Tensor) -> dict[str, float]:
    """`ledger_row`, and what the correction costs: extra calls of a run, kB of tables."""
    correction = getattr(getattr(pipe, "corrector", None), "correction", None)
    try:
        left, told = b.held.after(pipe), {}
    except NotApplicableError:  # corrects a run, so there is no SQNR on given states
        left, told = b.held, dict.fromkeys(("db", "db_low", "db_high"), float("nan"))
    row = ledger_row(left.powers(), b.runs.exact, made, pipe, b.runs.held) | told
    numbers = sum(t.numel() for t in correction.tables.values()) if correction else 0
    return row | {"calls": correction.calls if correction else 0, "table": 4 * numbers / 1e3}


def _parts(b: Bench, pipes: Mapping[str, object], found: Found) -> None:
    """Parts of methods one by one, chains step by step, QNCD's intervals, and one small fit."""
    drawn, mean = (b.held.after(behind(b, n)) for n in ("d2-dpm, stochastic", "d2-dpm"))
    found.gain(b, "d2-dpm, stochastic", drawn, "d2-dpm", mean)
    found.add("spread", *_spread(mean, drawn, pipes["d2-dpm"].corrector.correction.tables["v_c"]))
    for interval in b.runs.plan.intervals:
        asking = estimating(b.job, interval)
        found.paint(b, f"qncd, I = {interval}", asking)
    _estimates(b, asking, found)
    for name in FOLLOWED:
        found.add("drift", *_drift(b, pipes[name], name))
    _refit(b, pipes, found)


def _spread(mean: Predictions, drawn: Predictions, v_c: Tensor) -> list[dict]:
    """Per step: variance lost by subtracting the mean, over v_c; spread after a draw, less 1."""
    rows = []
    for (step, eps, e), (_, _, draw) in zip(mean, drawn, strict=True):
        lost = float((eps.var() - e.var()) / v_c[step])
        rows.append({"step": step, "lost": lost, "drawn": float(draw.std() / eps.std()) - 1})
    return rows


def _estimates(b: Bench, asking, found: Found) -> None:
    """What QNCD's last run estimated, beside the true bias on full-precision states."""
    guesses = asking.corrector.state["estimates"]
    for (step, eps, eps_q), guess in zip(b.held, guesses, strict=False):
        t = int(asking.corrector.schedule[step])
        truth = float((eps_q - eps).mean())
        found.add("estimates", {"step": step, "timestep": t, "estimate": float(guess),
                                "truth": truth})  # fmt: skip


def _drift(b: Bench, pipe, name: str) -> list[dict]:
    """How far a chain's state is from full precision's, signed, per step and channel."""
    exact = b.runs.held
    made, _ = record(pipe, exact.seed.unique().tolist(), b.runs.sampler)
    rows = []
    for step, gap in enumerate(chain_errors(exact, made)[0]):
        t = int(exact.t[exact.step == step][0])
        means = gap.transpose(0, 1).flatten(1).mean(1).tolist()
        named = {"name": name, "step": step, "timestep": t}
        rows += [named | {"channel": c, "mean": mean} for c, mean in enumerate(means)]
    return rows


def _refit(b: Bench, pipes: Mapping[str, object], found: Found) -> None:
    """PTQD from few trajectories, which the notebook fits again."""
    few = b.runs.plan.refitted
    pairs = ((step, eps[:few], eps_q[:few]) for step, eps, eps_q in b.fit)
    correction = TABLES["ptqd"].fitted(pairs, b.fit.steps)
    found.tensors |= {f"refit {key}": table for key, table in correction.tables.items()}
    after = b.held.after(corrected_by(b.job, correction))
    found.keep("refit", after.powers())
    found.keep("rtn", b.held.powers())
    for name in LINEAR:
        found.keep(name, b.held.after(pipes[name]).powers())


def _softmax(r: Runs, found: Found) -> None:
    """Softmax outputs alone in bits: corrected, and the same levels uncorrected."""
    least = min(r.plan.softmax)
    for bits in r.plan.softmax:
        base = None
        for option in ({}, *(CONTROLS if bits == least else ())):
            q = _softmax_only(r, recipe("softmax-bias-correction", **option), bits)
            b, label = Bench(r, (8, 8), q), ", ".join(option.values()) or "head"
            powers = predictions_on(r.held, q.unet).powers()
            if base is None:
                found.keep(f"softmax {bits}", powers)
                base = _uncorrected(b, bits, found, paint=bits == least)
            elif "range" in option:  # other levels, which help by themselves
                base = _uncorrected(b, bits, found, paint=False)
            named = {"sampler": r.label, "bits": f"softmax {bits}", "name": label, "over": "none"}
            found.add("steps", *(named | step for step in step_gains(base, powers)))
            gain = dict(zip(("gain", "low", "high"), gain_db(base, powers), strict=True))
            row = {"bits": bits, "granularity": label, "db": mean_sqnr_db(powers)}
            found.add("softmax", row | {"before": mean_sqnr_db(base)} | gain)
            found.say(f"softmax {bits}, {label}: {row['db']:.2f} dB")


def _softmax_only(r: Runs, chosen, bits: int):
    setting = {"policy": softmax_only(bits), "calibration": r.calibration, "sampler": r.sampler}
    return quantize(r.pipe, chosen, 8, 8, **setting)


def _uncorrected(b: Bench, bits: int, found: Found, paint: bool) -> pd.DataFrame:
    """Error powers on the same levels with nothing given back; the network is spent afterwards."""
    if paint:
        found.paint(b, f"softmax {bits}, corrected", b.rough)
    for site, quantizer in quantizers(b.rough.unet).items():
        if site.endswith(".p"):
            quantizer.zero_point.zero_()
    if paint:
        found.paint(b, f"softmax {bits}, uncorrected", b.rough)
    return predictions_on(b.runs.held, b.rough.unet).powers()


def _on_top(r: Runs, found: Found) -> None:
    """A correction behind a method that chose its own states and searched its ranges."""
    slug, options = BASE
    b = bench(r, recipe(slug, **options), r.plan.bits[0])
    found.paint(b, slug, b.rough)
    pipe = behind(b, "ptqd")
    found.paint(b, f"{slug} | ptqd", pipe)
    found.gain(b, f"{slug} | ptqd", b.held.after(pipe), slug, b.held)


def _stochastic(pipe, plan: Plan, found: Found) -> None:
    """Eta 1: the sampler adds noise of its own, part of which may be the quantizer's."""
    r = runs(pipe, plan, ETA_1, replace(plan.sampler, eta=1.0))
    b = _behind_all(r, STOCHASTIC, found)
    found.add("variance", *variance_shares(b, pipe).to_dict("records"))


def variance_shares(b: Bench, pipe) -> pd.DataFrame:
    """What PTQD's residual brings in at every step, over the variance of the sampler's own noise.

    Returns:
        Columns step, timestep, share; without steps where the sampler adds no noise.

    """
    corrector, rows = behind(b, "ptqd").corrector, []
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(b.runs.sampler.num_inference_steps)
    k, s2 = (corrector.correction.tables[name] for name in ("k", "s2"))
    for i, t in enumerate(corrector.schedule.int().tolist()):
        step = corrector.step_at(scheduler, t, b.runs.held.x, eta=b.runs.sampler.eta)
        if step.sigma > 0:
            taken = ddim_weight(*step.alphas, step.sigma, k[i]) ** 2 * s2[i] / step.sigma**2
            rows.append({"step": i, "timestep": t, "share": float(taken)})
    return pd.DataFrame(rows)


def _multistep(pipe, plan: Plan, found: Found) -> None:
    """A second-order solver that remembers its last prediction."""
    sampler = replace(plan.sampler, num_inference_steps=plan.multistep)
    _behind_all(runs(rescheduled(pipe), plan, MULTISTEP, sampler), LINEAR, found)


def _behind_all(r: Runs, names: tuple[str, ...], found: Found) -> Bench:
    b = bench(r, "rtn", r.plan.bits[0])
    found.paint(b, "rtn", b.rough)
    for name in names:
        pipe = behind(b, name)
        found.paint(b, name, pipe)
        if name in TABLES:
            found.gain(b, name, b.held.after(pipe), "rtn", b.held)
    interval = r.plan.intervals[0]
    found.paint(b, f"qncd, I = {interval}", estimating(b.job, interval))
    return b


def _smoothing(r: Runs, scale_shift, found: Found) -> None:
    """QNCD's smoothing, block by block, where the embedding adds and where it scales."""
    few = record(scale_shift, seeds.HELD_OUT[:1], r.plan.sampler)[0]
    for model, pipe, states in ((MODEL, r.pipe, r.held), (SCALE_SHIFT, scale_shift, few)):
        some = states[:: max(1, len(states) // SMOOTHED_STATES)]
        table = smoothing_gains(pipe, some, SMOOTHED_BITS, sampler=r.plan.sampler)
        found.add("smoothing", *table.assign(model=model).to_dict("records"))


def main() -> None:
    """Measure the shipped model and replace data/results/error-correction."""
    stored.produce(NAME, COMMAND, MODEL, measure)


if __name__ == "__main__":
    main()
