"""Pipelines that own a correction.

A corrected pipeline's class is a subclass of what it was (`CorrectedDDIMPipeline` is a
`DDIMPipeline`), and so is its scheduler's, whose `step` keeps its signature because pipelines
look at it. The pipeline refuses to run if its scheduler was replaced or rebuilt, which would drop
the correction, and any sampler setting but the one the correction was fitted for. It is saved
under its own class name, so that plain diffusers refuses it instead of dropping the correction.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.methods.correction import save_tables
from dqlab.methods.corrector import Corrector
from dqlab.models.families import Family, family_of
from dqlab.trajectory import States

PREFIX = "Corrected"


def _parameters(function: Any) -> Any:
    return inspect.signature(function).parameters


@functools.cache
def _scheduler_class(base: type) -> type:
    """`base` with a corrected step; it keeps its name, by which diffusers saves and loads it."""

    @functools.wraps(base.step)
    def step(self, *args: Any, **kwargs: Any) -> Any:
        call = dict(inspect.signature(base.step).bind(self, *args, **kwargs).arguments)
        output = self.corrector.around(self, base.step, call)
        return output if call.get("return_dict", True) else output.to_tuple()

    return type(base.__name__, (base,), {"step": step, "__module__": base.__module__})


@functools.cache
def _pipeline_class(base: type) -> type:
    """`base` that owns a correction."""

    @functools.wraps(base.__call__)
    def call(self, *args: Any, **kwargs: Any) -> Any:
        check_owned(self)
        _check_guidance(self, inspect.signature(base.__call__).bind(self, *args, **kwargs))
        with self.corrector.trajectory(family_of(self).denoiser(self), self.scheduler):
            return base.__call__(self, *args, **kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Also the correction's tables."""
        check_owned(self)
        base.save_pretrained(self, save_directory, *args, **kwargs)
        save_tables(self.corrector.correction, Path(save_directory))

    body = {"__call__": call, "save_pretrained": save_pretrained, "__module__": __name__}
    return type(PREFIX + base.__name__, (base,), body)


def check_owned(pipe: Any) -> None:
    """Raise InvalidInputError if the scheduler does not carry the pipeline's correction."""
    if getattr(pipe.scheduler, "corrector", None) is not pipe.corrector:
        raise InvalidInputError(
            f"The scheduler of this {type(pipe).__name__} was replaced or rebuilt, so the "
            f"{pipe.corrector.correction.kind} correction would be lost. Use the pipeline that "
            "`quantize` or `load` returned, or quantize again with the scheduler you want."
        )


def _check_guidance(pipe: Any, call: inspect.BoundArguments) -> None:
    call.apply_defaults()
    name, bound = family_of(pipe).guidance_argument, pipe.corrector.guidance
    chosen = call.arguments.get(name)
    if family_of(pipe).branches and chosen != bound:
        raise InvalidInputError(
            f"This correction was fitted for {name}={bound:g}, but the pipeline is called with "
            f"{chosen:g}. Call it with the same, or quantize again with sampler=dict(...)."
        )


def corrected(pipe: Any, corrector: Corrector) -> Any:
    """Make `pipe` own a correction, in place: its class and its scheduler's become subclasses.

    Raises:
        NotApplicableError: if the correction needs what the pipeline's scheduler or family lacks.

    """
    correction = corrector.correction
    if bool((corrector.schedule % 1 != 0).any()) or getattr(pipe, "scheduler", None) is None:
        raise NotApplicableError(
            f"{correction.kind} works around a scheduler that steps along integer timesteps; "
            f"{_without(pipe)}. Use the recipe .without('correct')."
        )
    if len(corrector.schedule.unique()) < len(corrector.schedule):
        raise NotApplicableError(
            f"{type(pipe.scheduler).__name__} visits some timesteps twice, and {correction.kind} "
            "tells the steps of a run apart by their timestep. Use DDIM or DPMSolverMultistep."
        )
    if correction.edits("sigma", "noise") and not family_of(pipe).has_eta:
        raise NotApplicableError(
            f"{correction.kind} edits the sampler's noise, which {type(pipe.scheduler).__name__} "
            "does not take from outside. Use a DDIM pipeline; with eta=1 it samples as DDPM."
        )
    pipe.scheduler.__class__ = _scheduler_class(type(pipe.scheduler))
    pipe.__class__ = _pipeline_class(type(pipe))
    pipe.corrector = pipe.scheduler.corrector = corrector
    return pipe


def _without(pipe: Any) -> str:
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None:
        return f"this {type(pipe).__name__} has none"
    return f"{type(scheduler).__name__} has fractions"


def _check_states(corrector: Corrector, family: Family, states: States) -> None:
    """Ten steps may lie on the timesteps of twenty, so these alone do not tell."""
    if states.sampler is None:
        return
    mine, theirs = (family.setting(one) for one in (corrector.sampler, states.sampler))
    if mine != theirs:
        raise InvalidInputError(
            f"{corrector.correction.kind} was fitted for {mine}, but these states were recorded "
            f"with {theirs}. Record them with the same, or quantize again with sampler=dict(...)."
        )


def prediction_correction(pipe: Any) -> Callable[[Tensor, States], Tensor] | None:
    """What the pipeline does to guided predictions on given states, for SQNR; None if nothing.

    What is returned raises InvalidInputError for states of another sampler setting than the one
    it was fitted for.

    Raises:
        NotApplicableError: if it depends on the run's own state.

    """
    corrector = getattr(pipe, "corrector", None)
    if corrector is None or not corrector.correction.edits("eps"):
        return None
    if corrector.correction.remembers:
        raise NotApplicableError(
            f"{corrector.correction.kind} corrects a whole run, not one given state. Compare "
            "final samples of the same seeds instead."
        )

    scheduler = copy.copy(pipe.scheduler)  # whatever the pipeline's own was last set to
    scheduler.set_timesteps(corrector.sampler.num_inference_steps)

    def correct(eps: Tensor, states: States) -> Tensor:
        _check_states(corrector, family_of(pipe), states)
        found = eps.clone()
        for t in states.t.unique().tolist():
            mine = states.t == t
            x, eta = states.x[mine], corrector.sampler.eta
            step = corrector.step_at(scheduler, int(t), x, eta)
            found[mine] = corrector.correction.eps(eps[mine], step)
        return found

    corrector.start()  # what draws at random draws the same whenever it is measured
    return correct
