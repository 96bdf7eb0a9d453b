import math

import pytest
import torch
from diffusers import DDPMPipeline, DPMSolverMultistepScheduler
from tiny_diffusion import (
    STEPS,
    count_calls,
    images,
    job_of,
    new_pipeline,
    sampler,
    tilted,
    with_correction,
)

import dqlab
from dqlab import recipe, seeds
from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.methods.corrected import prediction_correction
from dqlab.methods.unet_correction.d2_dpm import (
    D2Dpm,
    DeterministicCorrection,
    MeanCorrection,
    StochasticCorrection,
)
from dqlab.metrics import error_powers
from dqlab.models.families import DDPM_UNET
from dqlab.reference import d2_dpm as paper
from dqlab.trajectory import record

SHAPE = (64, 3, 16, 16)


def fitted(pipe, replaced, **options):
    """The correction D2-DPM finds when `replaced` is what quantization made of `pipe`."""
    return D2Dpm(**options).correct(job_of(pipe, replaced))


def tables(*v_c: float) -> dict:
    """No mean error; the conditional variances given, one or one per channel."""
    shape = (STEPS, *[len(v_c)] * (len(v_c) > 1))
    row = torch.tensor(v_c).expand(STEPS, -1).reshape(shape)
    return {**{n: torch.zeros(shape) for n in ("mu_q", "mu_D", "b")}, "v_c": row}


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_planted_line_is_gone_on_held_out_trajectories(granularity) -> None:
    """D = 0.3 E + 0.2 is a line in Eq too, so that it can be read off exactly."""
    pipe, other = new_pipeline(), new_pipeline()
    tilted(other, slope=0.3, bias=(0.2, 0.2, 0.2))
    found = fitted(pipe, other, samples=4, granularity=granularity, trim=None)
    assert found.tables["b"].shape == ((STEPS,) if granularity == "tensor" else (STEPS, 3))
    assert (found.tables["b"] - 0.3 / 1.3).abs().max() < 1e-4
    made = with_correction(other, found)
    states, _ = record(pipe, seeds.HELD_OUT[:4], sampler())
    before = error_powers(states, other.unet)["noise"].sum()
    after = error_powers(states, other.unet, correct=prediction_correction(made))["noise"].sum()
    assert after < 1e-6 * before
    assert (images(made) - images(pipe)).abs().max() < 1e-3


def test_channels_have_errors_of_their_own() -> None:
    """A bias per channel is invisible to one law for all of them."""
    pipe, other = new_pipeline(), new_pipeline()
    tilted(other, slope=0.0, bias=(0.3, 0.0, -0.3))
    found = fitted(pipe, other, samples=16, granularity="channel")
    means = found.tables["mu_D"]
    assert (means - torch.tensor([0.3, 0.0, -0.3])).abs().max() < 1e-4


def test_planted_variance_is_v_c_and_the_draw_costs_three_decibels() -> None:
    pipe, other = new_pipeline(), new_pipeline()
    tilted(other, slope=0.0, bias=(0.0, 0.0, 0.0), spread=0.05)
    states, _ = record(pipe, seeds.HELD_OUT[:32], sampler())
    left = {}
    for mode in ("deterministic", "stochastic"):
        found = fitted(pipe, other, samples=32, mode=mode)
        made = with_correction(other, found)
        powers = error_powers(states, other.unet, correct=prediction_correction(made))
        left[mode] = powers["noise"].sum()
    ratio = 10 * math.log10(left["stochastic"] / left["deterministic"])
    assert abs(ratio - 10 * math.log10(2)) < 0.3


def test_the_draw_is_reproducible_and_leaves_the_samplers_noise_alone() -> None:
    made = [
        with_correction(new_pipeline(), StochasticCorrection(tables(v)), 1.0)
        for v in (0.01, 0.01, 0.0)
    ]
    first, again, none = (images(pipe, 1.0) for pipe in made)
    assert torch.equal(first, again) and torch.equal(first, images(made[0], 1.0))
    assert not torch.equal(first, none)
    assert torch.equal(none, images(new_pipeline(), 1.0))


def test_measuring_a_drawing_correction_twice_gives_the_same_numbers() -> None:
    pipe = with_correction(new_pipeline(), StochasticCorrection(tables(0.01)))
    states, _ = record(new_pipeline(), range(2), sampler())
    eps = states.output
    found = [prediction_correction(pipe)(eps, states) for _ in range(2)]
    assert torch.equal(*found)


def middle_step(pipe, eps):
    """x_p of a known x_t at eta 1, with the same noise every time."""
    t, generator = pipe.scheduler.timesteps[1], torch.Generator().manual_seed(2)
    x = torch.full(eps.shape, 0.8)
    return pipe.scheduler.step(eps, t, x, eta=1.0, generator=generator).prev_sample


def deterministic(direction: str, *v_c: float):
    made = DeterministicCorrection(tables(*v_c), sigma_in_direction=direction)
    return with_correction(new_pipeline(), made, eta=1.0)


def test_the_variance_of_a_step_stays_the_samplers() -> None:
    """What is left of the error and the lowered noise add up to sigma^2, to 2 %."""
    s = 0.05
    residual = s * torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))
    x_p = middle_step(deterministic("original", s * s), 0.3 + residual)
    exact = middle_step(deterministic("original", 0.0), torch.full(SHAPE, 0.3))
    without = middle_step(deterministic("original", 0.0), 0.3 + residual)
    assert abs(x_p.var() / exact.var() - 1) < 0.02 < without.var() / exact.var() - 1
    assert abs(x_p.mean() - exact.mean()) < 0.02


@pytest.mark.parametrize("direction", ["original", "updated"])
def test_every_channel_has_the_scalar_formulas_sigma(direction) -> None:
    """Also in the direction term, and whatever the batch."""
    v_c = (0.0005, 0.002, 0.004)
    eps = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    together = middle_step(deterministic(direction, *v_c), eps)
    for channel, v in enumerate(v_c):
        alone = middle_step(deterministic(direction, v), eps)
        torch.testing.assert_close(together[:, channel], alone[:, channel], rtol=0, atol=2e-6)
    pipe = deterministic(direction, *v_c)
    x, t = torch.zeros(5, 3, 8, 8), int(pipe.scheduler.timesteps[1])
    step = pipe.corrector.step_at(pipe.scheduler, t, x, 1.0)
    whole = pipe.corrector.correction.noise(eps, step)
    for rows in (1, 2):
        assert torch.equal(pipe.corrector.correction.noise(eps[:rows], step), whole[:rows])


@pytest.mark.parametrize("direction", ["original", "updated"])
def test_the_variance_adds_up_where_the_sampler_clips(direction) -> None:
    """A cut x0 lets the error in through the direction term alone, whatever the other term has."""
    s = 0.2
    made = DeterministicCorrection(tables(s * s), sigma_in_direction=direction)
    pipe = with_correction(new_pipeline(clip_sample=True), made, eta=1.0)
    t = int(pipe.scheduler.timesteps[1])
    step = pipe.corrector.step_at(pipe.scheduler, t, torch.full(SHAPE, 4.0), 1.0)
    step.eps = torch.full(SHAPE, 0.3)
    lowered = pipe.corrector.correction.noise(torch.ones(SHAPE), step)
    direct = 1 - step.alphas[1] - step.sigma**2
    expected = (step.sigma**2 - direct * s * s).sqrt() / step.sigma
    torch.testing.assert_close(lowered, torch.full(SHAPE, float(expected)), rtol=1e-5, atol=0)
    inside = pipe.corrector.correction.sigma(step.sigma, step)
    assert (inside.numel() > 1) == (direction == "updated")


def test_sigma_in_the_direction_term_moves_the_mean() -> None:
    eps = torch.full(SHAPE, 0.3)
    moved = middle_step(deterministic("updated", 0.0025), eps)
    pipe = deterministic("original", 0.0025)
    gap = moved - middle_step(pipe, eps)
    t = int(pipe.scheduler.timesteps[1])
    p = t - 1000 // STEPS
    a_t, a_p = pipe.scheduler.alphas_cumprod[t], pipe.scheduler.alphas_cumprod[p]
    sigma = pipe.scheduler._get_variance(t, p).sqrt()
    lowered = paper.ddim_sigma(a_t, a_p, sigma, torch.tensor(0.0025))
    expected = 0.3 * ((1 - a_p - lowered**2).sqrt() - (1 - a_p - sigma**2).sqrt())
    assert expected.abs() > 1e-3
    torch.testing.assert_close(gap, torch.full_like(gap, float(expected)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_no_error_changes_nothing(eta) -> None:
    made = DeterministicCorrection(tables(0.0), sigma_in_direction="updated")
    pipe = with_correction(new_pipeline(), made, eta)
    assert torch.equal(images(pipe, eta), images(new_pipeline(), eta))


@pytest.mark.parametrize("mode", ["deterministic", "stochastic"])
def test_quantizing_adds_no_network_calls_and_keeps_tables_small(mode) -> None:
    made = recipe("d2-dpm", mode=mode, granularity="channel", samples=16)
    q = dqlab.quantize(new_pipeline(), made, 3, 4, sampler=sampler(1.0))
    calls = count_calls(q.unet)
    images(q, 1.0)
    assert len(calls) == STEPS
    assert all(t.shape == (STEPS, 3) for t in q.corrector.correction.tables.values())


def test_a_multistep_sampler_takes_the_mean_alone() -> None:
    pipe = DDPMPipeline(new_pipeline().unet, DPMSolverMultistepScheduler())
    pipe.set_progress_bar_config(disable=True)
    made = recipe("d2-dpm", samples=2, variance=False)
    q = dqlab.quantize(pipe, made, 3, 4, sampler={"num_inference_steps": STEPS})
    assert type(q.corrector.correction) is MeanCorrection
    setting = {"num_inference_steps": STEPS, "output_type": "np"}
    assert q(generator=torch.Generator().manual_seed(0), **setting).images.shape == (1, 8, 8, 3)
    assert "variance=False" in D2Dpm().unfit(DDPM_UNET)
    with pytest.raises(NotApplicableError, match="does not apply"):
        dqlab.quantize(pipe, "d2-dpm", 3, 4)


def test_an_unknown_step_or_another_channel_count_is_refused() -> None:
    pipe = deterministic("updated", 0.1, 0.2)
    with pytest.raises(InvalidInputError, match=r"2 channels .* the sample has 3"):
        middle_step(pipe, torch.zeros(1, 3, 8, 8))
    with pytest.raises(InvalidInputError, match="fitted for 3 sampling steps"):
        images(deterministic("updated", 0.1), 1.0, steps=4)


def test_what_cannot_be_fitted_says_so() -> None:
    pipe, other = new_pipeline(), new_pipeline()
    tilted(other, slope=-1.0, bias=(0.5, 0.5, 0.5))
    with pytest.raises(InvalidInputError, match="constant at step 0"):
        fitted(pipe, other, samples=2)
    tilted(other, slope=float("nan"), bias=(0.0, 0.0, 0.0))
    with pytest.raises(InvalidInputError, match="step 0 is not finite"):
        fitted(pipe, other, samples=2)
    with pytest.warns(UserWarning, match="128 elements a step, fewer than 1000") as told:
        fitted(pipe, new_pipeline(), samples=2, granularity="channel")
    assert len(told) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "both"}, "deterministic, stochastic"),
        ({"granularity": "pixel"}, "tensor, channel"),
        ({"sigma_in_direction": "none"}, "updated, original"),
        ({"trim": 0.0}, "positive number of deviations"),
        ({"samples": 1}, "choose 2 to 512"),
    ],
)
def test_options_are_checked(options, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        recipe("d2-dpm", **options)
