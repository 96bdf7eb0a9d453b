"""What corrections cost while sampling: network calls, counted; and samplers they refuse."""

from itertools import pairwise

import pytest
from diffusers import DDPMPipeline, EulerDiscreteScheduler, PNDMScheduler
from tiny_diffusion import count_calls, images, new_pipeline, sampler, with_correction

import dqlab
from dqlab import recipe
from dqlab.errors import NotApplicableError
from dqlab.methods.correction import Correction
from dqlab.reference.qncd import fires
from dqlab.trajectory import record

STEPS = 6
BASE = recipe("q-diffusion", search=False, reconstruct=False).without("calibrate")

# A recipe, and the calls it adds to one per step.
COSTS = {
    "ptqd": (recipe("ptqd", samples=2), 0),
    "d2-dpm": (recipe("d2-dpm", samples=2), 0),
    "d2-dpm, stochastic": (recipe("d2-dpm", samples=2, mode="stochastic"), 0),
    "tac-diffusion": (recipe("tac-diffusion", samples=2), 0),
    "softmax-bias-correction": (recipe("softmax-bias-correction"), 0),
    "qncd, smoothing": (recipe("qncd").only("reshape"), 0),
    "qncd, I = 3": (recipe("qncd", interval=3, offset=0), 2),
    "qncd, I = 2": (recipe("qncd", interval=2, offset=1), 2),
    "q-diffusion | ptqd": (BASE | recipe("ptqd", samples=2), 0),
    "q-diffusion | qncd": (BASE | recipe("qncd", interval=3, offset=0).only("correct"), 2),
    "softmax | ptqd": (recipe("softmax-bias-correction") | recipe("ptqd", samples=2), 0),
}
quiet = pytest.mark.filterwarnings("ignore:qncd estimates a bias:UserWarning")


@quiet
@pytest.mark.parametrize("name", COSTS)
def test_network_calls_of_a_run(name: str) -> None:
    chosen, extra = COSTS[name]
    pipe = new_pipeline()
    states, _ = record(pipe, [0], sampler(steps=STEPS))
    q = dqlab.quantize(pipe, chosen, 4, 8, sampler=sampler(steps=STEPS), calibration=states)
    calls = count_calls(q.unet)
    images(q, steps=STEPS)
    assert len(calls) == STEPS + extra


@pytest.mark.parametrize("interval", [1, 2, 5, 10])
def test_qncd_asks_once_in_every_interval(interval: int) -> None:
    """Exactly 1 in I; at the very last step never, where nothing is left to correct."""
    steps = 10 * interval
    asked = [i for i in range(steps) if fires(i, steps, interval)]
    assert len(asked) == 10 - (interval == 1)
    assert all(b - a == interval for a, b in pairwise(asked))


def ddpm(scheduler):
    pipe = DDPMPipeline(new_pipeline().unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_sampler_at_another_scale_is_refused_by_the_one_that_noises_samples_again() -> None:
    pipe = ddpm(EulerDiscreteScheduler(timestep_spacing="trailing"))
    with pytest.raises(NotApplicableError, match="EulerDiscreteScheduler keeps its samples"):
        dqlab.quantize(pipe, recipe("qncd").only("correct"), 8, 8, sampler=sampler())


class Silent(Correction):
    kind = "test-silent"


def test_a_sampler_that_comes_back_to_a_timestep_is_refused() -> None:
    pipe = ddpm(PNDMScheduler(skip_prk_steps=True))
    with pytest.raises(NotApplicableError, match="visits some timesteps twice"):
        with_correction(pipe, Silent({}))
