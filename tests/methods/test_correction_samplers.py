"""Which samplers a correction works around, and which it refuses before anything runs."""

import copy
import re

import pytest
import torch
from tiny_diffusion import count_calls
from tiny_pipelines import stable_diffusion, tiny

import dqlab
from dqlab.errors import NotApplicableError
from dqlab.models.families import Sampler, family_of


def stable_diffusion_with(scheduler: str, **config):
    """A pipeline that hands eta on, around any scheduler."""
    import diffusers

    pipe = copy.copy(tiny(stable_diffusion))
    cls = getattr(diffusers, scheduler)
    pipe.register_modules(scheduler=cls.from_config(pipe.scheduler.config, **config))
    return pipe


RANDOM = [
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "(sde-dpmsolver++)"),
    ("EulerAncestralDiscreteScheduler", {}, "A step of EulerAncestralDiscreteScheduler adds"),
    ("DDPMScheduler", {}, "A step of DDPMScheduler adds noise"),
]


@pytest.mark.parametrize(("scheduler", "config", "told"), RANDOM)
@pytest.mark.parametrize("slug", ["ptqd", "d2-dpm"])
def test_noise_that_cannot_be_lowered_is_refused_before_anything_runs(
    scheduler, config, told, slug
) -> None:
    """The variance part would do nothing and say nothing."""
    pipe = stable_diffusion_with(scheduler, **config)
    calls = count_calls(pipe.unet)
    with pytest.raises(NotApplicableError, match=re.escape(told)):
        dqlab.quantize(pipe, slug, 4, 8, sampler={"num_inference_steps": 3})
    assert not calls


def test_a_solver_without_noise_has_none_to_lower() -> None:
    pipe = stable_diffusion_with("DPMSolverMultistepScheduler", algorithm_type="dpmsolver++")
    setting = {"num_inference_steps": 3}
    q = dqlab.quantize(pipe, dqlab.recipe("ptqd", samples=2), 4, 8, sampler=setting)
    assert q.corrector.correction.kind == "ptqd"


@pytest.mark.parametrize(
    "chosen",
    [
        dqlab.recipe("ptqd", vsc=False, samples=16),
        dqlab.recipe("d2-dpm", variance=False, samples=16),
        dqlab.recipe("tac-diffusion", samples=16),
        dqlab.recipe("qncd", interval=2).only("correct"),
    ],
    ids=["ptqd", "d2-dpm", "tac-diffusion", "qncd"],
)
def test_what_leaves_the_noise_alone_works_around_a_random_solver(chosen) -> None:
    """Twice the same: the noise of a run is the seeds' own, not the correction's."""
    pipe = stable_diffusion_with("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++")
    bound = Sampler(num_inference_steps=3)
    q = dqlab.quantize(pipe, chosen, 4, 8, sampler=bound)
    first, again = (family_of(q).run(q, bound, range(16)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, family_of(pipe).run(pipe, bound, range(16)))


def test_unfit_samplers_are_refused_before_the_network_is_asked() -> None:
    for scheduler, slug in (("PNDMScheduler", "d2-dpm"), ("EulerDiscreteScheduler", "qncd")):
        pipe = stable_diffusion_with(scheduler)
        calls = count_calls(pipe.unet)
        with pytest.raises(NotApplicableError, match=scheduler):
            dqlab.quantize(pipe, slug, 4, 8, sampler={"num_inference_steps": 6})
        assert not calls
