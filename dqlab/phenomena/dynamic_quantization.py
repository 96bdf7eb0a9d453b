"""Measure what the notebook 1.3-dynamic-quantization shows but has no time to compute.

    python -m dqlab.phenomena.dynamic_quantization

writes data/results/dynamic-quantization: about six minutes on one core that it has to itself.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from dqlab import seeds
from dqlab.formats import Range
from dqlab.layers import quantizers
from dqlab.methods import describe, quantize, recipe
from dqlab.metrics import mean_sqnr_db
from dqlab.metrics.sampling import sample
from dqlab.models import fashion
from dqlab.models.families import Sampler, family_of
from dqlab.models.recipes.base import add_noise
from dqlab.models.tint import dress
from dqlab.phenomena import stored
from dqlab.phenomena.ledger import ledger_row, powers_of
from dqlab.phenomena.timed_ranges import ablations, gain_table, watch
from dqlab.phenomena.timed_verdicts import outcomes
from dqlab.trajectory import States, record

NAME = "dynamic-quantization"
COMMAND = "python -m dqlab.phenomena.dynamic_quantization"
MODEL = "pixel-unet"

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "rtn": ("rtn", {}),
    "min-max": ("tdq", {"steps": "min-max"}),
    "static": ("tdq", {"steps": "static"}),
    "table": ("tdq", {"steps": "table"}),
    "network": ("tdq", {}),
    "run time": ("rtn", {"dynamic": "sample"}),
    "run time, token": ("rtn", {"dynamic": "token"}),
}
"""Recipe and its options; "network" is TDQ. The middle four have the same grids."""
TRAINED = {"trained, static": "static", "trained, network": "network"}
"""The training form: LSQ's baseline and TDQ, by what gives activations their steps."""


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        calibration, held_out: trajectories that steps are set on, and behind every SQNR.
        pictures: gallery seeds behind every paired error; `kept`: pictures stored of each.
        bits: weight and activation bits at which all `SETTINGS` are measured and painted.
        more: bits at which `some` are measured, for the steps of their SQNR.
        warm, updates: optimiser steps of the networks' post-training fit.
        training, batch: optimiser steps and rows of the training form, at the last of `bits`.
        judged: held-out samples behind a training's final loss.
        data: clean samples to train and judge on; None for the shipped model's own.
        sampler: the setting of everything.

    """

    calibration: int = 6
    held_out: int = 6
    pictures: int = 32
    kept: int = 3
    bits: tuple[tuple[int, int], ...] = ((4, 8), (4, 4))
    more: tuple[int, int] = (8, 4)
    some: tuple[str, ...] = ("min-max", "static", "network")
    warm: int = 150
    updates: int = 100
    training: int = 80
    batch: int = 8
    judged: int = 12
    data: Tensor | None = None
    sampler: Sampler = field(default_factory=Sampler)


def calibration_states(pipe, plan: Plan | None = None) -> States:
    """Every step of a few trajectories."""
    plan = plan or Plan()
    return record(pipe, seeds.CALIBRATION[: plan.calibration], plan.sampler)[0]


def setting(pipe, name: str, weights: int, activations: int, calibration: States, plan=None):
    """One of `SETTINGS`: a quantized pipeline."""
    plan = plan or Plan()
    slug, options = SETTINGS[name]
    if name == "network":
        options = {"warm": plan.warm, "updates": plan.updates}
    return quantize(pipe, recipe(slug, **options), weights, activations, sampler=plan.sampler,
                    calibration=calibration)  # fmt: skip


def trained(pipe, name: str, weights: int, activations: int, calibration: States, plan=None):
    """One of `TRAINED`, a short run: same seed and data order, so only the steps differ."""
    plan = plan or Plan()
    chosen = recipe("tdq", form="training", steps=TRAINED[name], updates=plan.training,
                    batch=plan.batch)  # fmt: skip
    return quantize(pipe, chosen, weights, activations, sampler=plan.sampler,
                    calibration=calibration, data=plan.data)  # fmt: skip


def measure(pipe, plan: Plan | None = None, say: stored.Say = stored.silent) -> stored.Found:
    """All frames and tensors of the notebook's stored results.

    Returns:
        Frames powers (weights, activations, setting, step, t, seed, signal, noise), ledger
        (setting, weights, activations, pictures and `ledger_row`'s columns), gains (`gain_table`
        at 4 bits), ablations, sites (site, of the exported table), curve (setting, update, loss),
        losses (setting, sample, loss), outcomes; tensors exact, made `[bits, settings, kept,
        ...]`, trained `[2, kept, ...]`, table and static `[sites, T]`.

    """
    plan = plan or Plan()
    calibration = calibration_states(pipe, plan)
    held_out, _ = record(pipe, seeds.HELD_OUT[: plan.held_out], plan.sampler)
    _, exact = record(pipe, seeds.GALLERY[: plan.pictures], plan.sampler)
    say("trajectories")
    frames, tensors = _settings(pipe, plan, calibration, held_out, exact, say)
    fitted, judged = (watch(pipe, states) for states in (calibration, held_out))
    frames["gains"] = gain_table(fitted, judged, (plan.warm, plan.updates))
    frames["ablations"] = ablations(fitted, plan.warm + plan.updates)
    say("sites")
    learned, pictures = _training(pipe, plan, calibration, held_out, exact, say)
    for name, frame in learned.items():
        frames[name] = pd.concat([frames[name], frame]) if name in frames else frame
    frames["outcomes"] = outcomes(frames)
    tensors |= {"exact": stored.to_bytes(exact[: plan.kept]), "trained": pictures}
    return frames, tensors


def _settings(pipe, plan: Plan, calibration: States, held_out: States, exact: Tensor, say):
    """Every setting at every pair of bits: error powers, ledger, pictures, exported steps."""
    powers, rows, pictures, tensors = [], [], [], {}
    jobs = [(pair, name) for pair in plan.bits for name in SETTINGS]
    jobs += [(plan.more, name) for name in plan.some]
    for pair, name in jobs:
        q = setting(pipe, name, *pair, calibration, plan)
        bits = dict(zip(("weights", "activations"), pair, strict=True))
        powers.append(powers_of(q, held_out).assign(**bits, setting=name))
        if pair in plan.bits:
            made = _run(q, plan)
            pictures.append(stored.to_bytes(made[: plan.kept]))
            row = ledger_row(powers[-1], exact, made, q, held_out)
            rows.append({"setting": name, **bits, "pictures": plan.pictures, **row})
        if pair == plan.bits[-1] and name in ("static", "network"):
            tensors[{"static": "static", "network": "table"}[name]] = exported(q)
            sites = pd.DataFrame({"site": grid_sites(q)})
        say(f"W{pair[0]}A{pair[1]} {name}: {mean_sqnr_db(powers[-1]):.2f} dB")
    shape = len(plan.bits), len(SETTINGS)
    tensors["made"] = torch.stack(pictures).unflatten(0, shape)
    frames = {"powers": pd.concat(powers, ignore_index=True), "ledger": pd.DataFrame(rows)}
    return frames | {"sites": sites}, tensors


def grid_sites(q) -> list[str]:
    """Sites of a quantized pipeline on TDQ's grids, as its modules come."""
    found = quantizers(family_of(q).denoiser(q))
    return [s for s, quantizer in found.items() if getattr(quantizer.format, "kind", "") == "tdq"]


def exported(q) -> Tensor:
    """The step sizes `[sites, T]` in the order of `grid_sites`: what inference looks up."""
    model = family_of(q).denoiser(q)
    found, steps = quantizers(model), len(model.step_context.schedule)
    return torch.stack([found[s].scale.expand(steps) for s in grid_sites(q)])


def with_steps(q, steps: Tensor):
    """The same pipeline, its `grid_sites` now using these step sizes `[sites, T]`.

    It is changed in place: a table is all that inference needs of TDQ.
    """
    found = quantizers(family_of(q).denoiser(q))
    for site, own in zip(grid_sites(q), steps, strict=True):
        found[site].set_range(Range(own, torch.zeros_like(own)), per_step=True)
    return q


def _training(pipe, plan: Plan, calibration: States, held_out: States, exact: Tensor, say):
    """Both short runs and where they started: powers, ledger, curves, final losses, pictures."""
    pair = plan.bits[-1]
    bits = dict(zip(("weights", "activations"), pair, strict=True))
    judge = partial(diffusion_loss, clean=held_out_garments(plan), pipe=pipe, plan=plan)
    start = setting(pipe, "static", *pair, calibration, plan)
    losses = [judge(start).assign(setting="before")]
    powers, rows, curves, pictures = [], [], [], []
    for name in TRAINED:
        q = trained(pipe, name, *pair, calibration, plan)
        curve = describe(q)["choices"]["loss curve"]
        curves.append(pd.DataFrame(curve, columns=["update", "loss"]).assign(setting=name))
        losses.append(judge(q).assign(setting=name))
        powers.append(powers_of(q, held_out).assign(**bits, setting=name))
        made = _run(q, plan)
        row = ledger_row(powers[-1], exact, made, q, held_out)
        rows.append({"setting": name, **bits, "pictures": plan.pictures, **row})
        pictures.append(stored.to_bytes(made[: plan.kept]))
        say(f"{name}: {losses[-1]['loss'].mean():.5f}, before {losses[0]['loss'].mean():.5f}")
    frames = {"powers": pd.concat(powers), "ledger": pd.DataFrame(rows)}
    frames |= {"curve": pd.concat(curves), "losses": pd.concat(losses, ignore_index=True)}
    return frames, torch.stack(pictures)


def _run(q, plan: Plan) -> Tensor:
    return sample(q, seeds.GALLERY[: plan.pictures], batch_size=16, sampler=plan.sampler)


def held_out_garments(plan: Plan | None = None) -> Tensor:
    """Clean samples that nothing was trained on; the plan's own data where it has some."""
    plan = plan or Plan()
    if plan.data is not None:
        return plan.data[: plan.judged]
    grey, labels = fashion.load_held_out()
    generator = torch.Generator().manual_seed(seeds.TINT)
    return dress(grey[: plan.judged], labels[: plan.judged], generator)[0]


@torch.no_grad()
def diffusion_loss(q, clean: Tensor, pipe, plan: Plan | None = None) -> pd.DataFrame:
    """Squared error of the predicted noise on clean samples, mean over the sampler's steps.

    The same noise for every network asked; `pipe` is the full-precision pipeline.

    Returns:
        Columns sample, loss.

    """
    family, model = family_of(q), family_of(q).denoiser(q)
    abar, total = pipe.scheduler.alphas_cumprod, torch.zeros(len(clean))
    generator = torch.Generator().manual_seed(seeds.HELD_OUT[0])
    schedule = family.schedule(pipe, (plan or Plan()).sampler).long()
    for t in schedule.tolist():
        noise = torch.randn(clean.shape, generator=generator)
        at = torch.full((len(clean),), t)
        answer = model(add_noise(abar, clean, noise, at), at).sample
        total += (answer - noise).square().flatten(1).mean(1)
    return pd.DataFrame({"sample": range(len(clean)), "loss": (total / len(schedule)).tolist()})


def main() -> None:
    """Measure the shipped model and replace data/results/dynamic-quantization."""
    stored.produce(NAME, COMMAND, MODEL, measure)


if __name__ == "__main__":
    main()
