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

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.methods.correction import save_tables
from dqlab.methods.corrector import Corrector
from dqlab.models.families import Family, Sampler, family_of
from dqlab.models.families.family import fixed_random
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
    _check_scheduler(correction.kind, pipe, corrector.schedule, correction.edits("sigma", "noise"))
    pipe.scheduler.__class__ = _scheduler_class(type(pipe.scheduler))
    pipe.__class__ = _pipeline_class(type(pipe))
    pipe.corrector = pipe.scheduler.corrector = corrector
    return pipe


def check_sampler(name: str, pipe: Any, sampler: Sampler, *, noise: bool = False) -> None:
    """Refuse a pipeline whose sampler a correction cannot work around, before anything is fitted.

    Args:
        name: what corrects.
        pipe: the pipeline to be quantized.
        sampler: the setting it will be bound to.
        noise: whether it edits the sampler's own noise too.

    Raises:
        NotApplicableError: if the network predicts no noise, or the scheduler cannot be corrected.

    """
    family = family_of(pipe)
    if (kind := family.predicts(pipe)) != "epsilon":
        raise NotApplicableError(
            f"{name} corrects predicted noise, but this model predicts {kind!r}. Use a model "
            "whose scheduler has prediction_type='epsilon'."
        )
    _check_scheduler(name, pipe, family.schedule(pipe, sampler), noise)


def _check_scheduler(name: str, pipe: Any, schedule: Tensor, noise: bool) -> None:
    scheduler = getattr(pipe, "scheduler", None)
    if bool((schedule % 1 != 0).any()) or scheduler is None:
        raise NotApplicableError(
            f"{name} works around a scheduler that steps along integer timesteps; "
            f"{_without(pipe)}. Use the recipe .without('correct')."
        )
    kind = type(scheduler).__name__
    if len(schedule.unique()) < len(schedule):
        raise NotApplicableError(
            f"{kind} visits some timesteps twice, and {name} tells the steps of a run apart by "
            "their timestep. Use DDIM or DPMSolverMultistep."
        )
    if noise and not family_of(pipe).has_eta:
        raise NotApplicableError(
            f"{name} edits the sampler's noise, which {kind} does not take from outside. Use a "
            "DDIM pipeline; with eta=1 it samples as DDPM."
        )
    if noise and not _is_ddim(scheduler) and _draws_noise(scheduler, len(schedule)):
        named = "algorithm_type" in _parameters(type(scheduler))
        solver = scheduler.config.algorithm_type if named else ""
        raise NotApplicableError(
            f"A step of {kind}{f' ({solver})' if solver else ''} adds noise that {name} cannot "
            "lower, so its variance part would do nothing. Use recipe('ptqd', vsc=False), "
            "recipe('d2-dpm', variance=False), or a DDIMScheduler; with eta=1 it samples as DDPM."
        )


def _is_ddim(scheduler: Any) -> bool:
    from diffusers import DDIMParallelScheduler, DDIMScheduler

    return isinstance(scheduler, DDIMScheduler | DDIMParallelScheduler)


def _draws_noise(scheduler: Any, steps: int) -> bool:
    """Whether a step is random: two of them differ that differ in the random source alone."""
    taken, made = _parameters(scheduler.step), []
    for seed in range(2):
        trial, x = copy.deepcopy(scheduler), torch.zeros(1, 4, 2, 2)
        trial.set_timesteps(steps)
        source = {"generator": torch.Generator().manual_seed(seed)}
        with fixed_random(seed):  # some draw from torch's own generator
            step = trial.step(x, trial.timesteps[0], x, **(source if "generator" in taken else {}))
        made.append(step.prev_sample)
    return not torch.equal(*made)


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
