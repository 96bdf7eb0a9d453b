"""What corrections and step tables cost while sampling, counted; and samplers they refuse."""

from itertools import pairwise

import pytest
import torch
from diffusers import DDPMPipeline, EulerDiscreteScheduler, PNDMScheduler
from tiny_diffusion import count_calls, images, new_pipeline, sampler, with_correction
from torch.utils._python_dispatch import TorchDispatchMode

import dqlab
from dqlab import recipe
from dqlab.errors import NotApplicableError
from dqlab.layers import StepContext, quantizers
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


class Work(TorchDispatchMode):
    """Number of elements of whatever each operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.sizes += [made.numel()] if isinstance(made, torch.Tensor) else []
        return made


def work_of(q, rows: int) -> tuple[Work, int]:
    """All hooks of a correction at one step on so many samples, and the samples' size."""
    x = torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    corrector, counted = q.corrector, Work()
    q.scheduler.set_timesteps(STEPS)
    step = corrector.step_at(q.scheduler, int(q.scheduler.timesteps[2]), x, 0.0)
    correction = corrector.correction
    with counted:
        correction.before(x, step)
        correction.eps(x, step)
        correction.noise(x, step)
        correction.after(x, step)
    return counted, x.numel()


@quiet
@pytest.mark.parametrize("name", ["ptqd", "d2-dpm", "d2-dpm, stochastic", "tac-diffusion"])
def test_a_correction_works_in_proportion_to_the_latent(name: str) -> None:
    pipe = new_pipeline()
    states, _ = record(pipe, [0], sampler(steps=STEPS))
    chosen = COSTS[name][0]
    q = dqlab.quantize(pipe, chosen, 4, 8, sampler=sampler(steps=STEPS), calibration=states)
    (few, size), (many, _) = work_of(q, 2), work_of(q, 8)
    assert max(few.sizes) <= size
    assert size <= sum(few.sizes) and sum(many.sizes) <= 4 * sum(few.sizes)


@pytest.mark.parametrize(
    "chosen",
    [
        recipe("tdq", warm=2, updates=2),
        recipe("tfmq-dm", scope="all", temporal="nearest", reconstruct=False),
    ],
    ids=lambda made: made.slug,
)
def test_a_step_table_is_looked_up_once_per_quantizer(chosen, monkeypatch) -> None:
    pipe = new_pipeline()
    states, _ = record(pipe, [0, 1], sampler(steps=STEPS))
    q = dqlab.quantize(pipe, chosen, 8, 8, sampler=sampler(steps=STEPS), calibration=states)
    tables = [site for site, one in quantizers(q.unet).items() if one.per_step]
    looked: list[str] = []
    found = StepContext.steps_of

    def counted(self, rows, site):
        looked.append(site)
        return found(self, rows, site)

    monkeypatch.setattr(StepContext, "steps_of", counted)
    states[:1].call(q.unet)
    assert tables and sorted(looked) == sorted(tables)


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
