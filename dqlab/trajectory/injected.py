"""A pipeline with injections: made on a copy, held against the original, never saved."""

import copy
from typing import Any, NoReturn

import torch

from dqlab import seeds
from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.layers import StepContext
from dqlab.layers.inject import Injection
from dqlab.models.families import Sampler, family_of
from dqlab.trajectory.states import States, record

TOLERANCE = 1e-4
"""Largest relative difference of an injected network's full-precision answer."""


def injected(
    pipe,
    *injections: Injection,
    sampler: Sampler | dict[str, Any] | None = None,
    states: States | None = None,
):
    """A pipeline that samples the same images as `pipe` and is harder to quantize.

    Pass it to `dqlab.quantize` like any other. It exists in memory alone: saving it, quantized or
    not, is refused, for a folder would keep the changed weights and lose what undoes the change.

    Args:
        pipe: a full-precision diffusers pipeline; left untouched.
        injections: of `dqlab.layers`: ShortcutImbalance, ChannelOutliers, TimestepDrift.
        sampler: whose steps TimestepDrift counts.
        states: full-precision states that the two networks are compared on; default: one
            calibration trajectory.

    Raises:
        NotApplicableError: if an injection cannot be undone in this network, or its answer
            differs by more than 1e-4 relative to the original's, in the largest row.
        InvalidInputError: for a factor that is no power of two, or a layer that is not there.

    """
    family, setting = family_of(pipe), Sampler.of(sampler)
    source = family.denoiser(pipe)
    if states is None:
        states, _ = record(pipe, seeds.CALIBRATION[:1], setting)
    model = copy.deepcopy(source).eval().requires_grad_(False)
    context = StepContext()
    context.bind(family.schedule(pipe, setting))
    context.attach(model)
    for injection in injections:
        injection.apply(model, lambda: states[:1].call(model), context)
    if (change := relative_change(source, model, states)) > TOLERANCE:
        raise NotApplicableError(
            f"With {', '.join(map(repr, injections))} the {family.component} answers "
            f"{change:.1e} (relative) away from the original, more than {TOLERANCE:g}: something "
            "else reads what was scaled, or a norm's eps is large beside its variance. Use a "
            "smaller factor or another place."
        )
    result = copy.copy(pipe)
    result.register_modules(
        **{family.component: model, "scheduler": copy.deepcopy(pipe.scheduler)}
    )
    result.save_pretrained = model.save_pretrained = refuse_saving
    return result


@torch.no_grad()
def relative_change(model: torch.nn.Module, other: torch.nn.Module, states: States) -> float:
    """Largest over rows of |other(x) - model(x)| / |model(x)|, Euclidean norms."""
    change = 0.0
    for part in states.batches(32):
        before, after = (part.call(m).double().flatten(1) for m in (model, other))
        change = max(change, float(((after - before).norm(dim=1) / before.norm(dim=1)).max()))
    return change


def refuse_saving(*_: Any, **__: Any) -> NoReturn:
    """Raise InvalidInputError: stands in for `save_pretrained` of an injected model."""
    raise InvalidInputError(
        "An injected model is for measuring and is not saved: a folder would keep its changed "
        "weights without the hooks that undo the change. Save the original, and inject again."
    )
