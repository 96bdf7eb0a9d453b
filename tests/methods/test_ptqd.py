import pytest
import torch
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
from dqlab.layers import quantizers
from dqlab.methods.corrected import prediction_correction
from dqlab.methods.unet_correction.ptqd import PredictionCorrection, Ptqd, PtqdCorrection, Sums
from dqlab.metrics import error_powers
from dqlab.models.families import DDPM_UNET
from dqlab.reference import ptqd as paper
from dqlab.trajectory import record


def tables(k=0.0, mu=0.0, s2=0.0) -> dict:
    return {
        "k": torch.full((STEPS,), k),
        "mu": torch.full((STEPS, 3), mu),
        "s2": torch.full((STEPS,), s2),
    }


def correction(direction: str = "original", **values) -> PtqdCorrection:
    return PtqdCorrection(tables(**values), sigma_in_direction=direction)


def fitted(pipe, replaced, **options):
    """The correction PTQD finds when `replaced` is what quantization made of `pipe`."""
    return Ptqd(**options).correct(job_of(pipe, replaced))


def test_streaming_sums_equal_two_passes() -> None:
    generator = torch.Generator().manual_seed(0)
    eps, n = torch.randn(2, 12, 3, 6, 6, generator=generator)
    D = 0.2 * eps + 0.1 * n + torch.tensor([0.3, 0.0, -0.2]).reshape(3, 1, 1)
    sums = Sums()
    for e, d in zip(eps.split(5), D.split(5), strict=True):
        sums.add(e, d)
    k, mu, s2 = sums.statistics()
    expected = paper.correlation_slope(D, eps)
    torch.testing.assert_close(k, expected, rtol=1e-5, atol=0)
    for mine, theirs in zip((mu, s2), paper.residual_statistics(D, eps, expected), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-9)
    assert sums.rows == 12


def test_planted_error_is_recovered_through_trajectories() -> None:
    """The slope is pooled over channels, so that only a bias they share is no part of it."""
    pipe, other = new_pipeline(), new_pipeline()
    tilted(other, slope=0.3, bias=(0.2, 0.2, 0.2), spread=0.05)
    found = fitted(pipe, other, samples=32).tables
    assert (found["k"] - 0.3).abs().max() < 0.01
    assert (found["mu"] - 0.2).abs().max() < 0.01
    assert (found["s2"].sqrt() - 0.05).abs().max() < 0.01


def test_a_planted_slope_and_bias_are_gone_on_held_out_trajectories() -> None:
    """Without a random part everything is taken out, so that only the fit's error is left."""
    pipe, other = new_pipeline(), new_pipeline()
    tilted(other, slope=0.3, bias=(0.2, 0.2, 0.2), spread=0.0)
    made = with_correction(other, fitted(pipe, other, samples=4))
    states, _ = record(pipe, seeds.HELD_OUT[:4], sampler())
    before = error_powers(states, other.unet)["noise"].sum()
    after = error_powers(states, other.unet, correct=prediction_correction(made))["noise"].sum()
    assert after < 1e-6 * before
    assert (images(made) - images(pipe)).abs().max() < 1e-3


@pytest.mark.parametrize(("signed", "slope"), [(False, 0.0), (True, -0.2)])
def test_negative_slopes_count_only_if_asked(signed, slope) -> None:
    pipe, other = new_pipeline(), new_pipeline()
    tilted(other, slope=-0.2, bias=(0.0, 0.0, 0.0), spread=0.0)
    found = fitted(pipe, other, samples=4, signed=signed).tables
    torch.testing.assert_close(found["k"], torch.full((STEPS,), slope), atol=1e-4, rtol=0)


def test_a_slope_that_turns_the_prediction_over_is_refused() -> None:
    pipe, other = new_pipeline(), new_pipeline()
    tilted(other, slope=-1.5, bias=(0.0, 0.0, 0.0), spread=0.0)
    with pytest.raises(InvalidInputError, match=r"At step 0 the slope is -1\.5"):
        fitted(pipe, other, samples=2, signed=True)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_exact_network_is_sampled_bit_by_bit_as_before(eta) -> None:
    pipe = new_pipeline()
    found = fitted(pipe, new_pipeline(), samples=2).tables
    assert all(bool((t.abs() < 1e-6).all()) for t in found.values())
    made = with_correction(new_pipeline(), correction(), eta)
    assert torch.equal(images(made, eta), images(pipe, eta))


SHAPE = (64, 3, 16, 16)


def middle_step(pipe, eps, x_t=0.8):
    """x_p of a known x_t at eta 1, with the same noise every time."""
    t, generator = pipe.scheduler.timesteps[1], torch.Generator().manual_seed(2)
    x = torch.full(SHAPE, x_t)
    return pipe.scheduler.step(eps, t, x, eta=1.0, generator=generator).prev_sample


def test_the_variance_of_a_step_stays_the_samplers() -> None:
    """The residual's lambda^2 s^2 and the reduced noise add up to sigma^2, to 2 %."""
    s, k = 0.05, 0.2
    pipe = with_correction(new_pipeline(), correction(k=k, s2=s * s), eta=1.0)
    residual = s * torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))
    x_p = middle_step(pipe, 0.3 * (1 + k) + residual)
    bare = with_correction(new_pipeline(), PredictionCorrection(tables(k=k)), eta=1.0)
    without = middle_step(bare, 0.3 * (1 + k) + residual)
    plain = new_pipeline()
    plain.scheduler.set_timesteps(STEPS)
    exact = middle_step(plain, torch.full(SHAPE, 0.3))
    assert abs(x_p.var() / exact.var() - 1) < 0.02 < without.var() / exact.var() - 1
    assert abs(x_p.mean() - exact.mean()) < 0.02


@pytest.mark.parametrize("x_t", [4.0, 0.8], ids=["x0 is cut", "x0 is kept"])
def test_the_variance_adds_up_where_the_sampler_clips(x_t) -> None:
    """A cut x0 lets the residual in through the direction term alone."""
    s, k = 0.2, 0.1
    made = correction(k=k, s2=s * s)
    pipe = with_correction(new_pipeline(clip_sample=True), made, eta=1.0)
    residual = s * torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))
    x_p = middle_step(pipe, 0.3 * (1 + k) + residual, x_t)
    plain = new_pipeline(clip_sample=True)
    plain.scheduler.set_timesteps(STEPS)
    exact = middle_step(plain, torch.full(SHAPE, 0.3), x_t)
    assert abs(x_p.var() / exact.var() - 1) < 0.02


def test_updated_puts_the_smaller_sigma_into_the_direction_term() -> None:
    """Both noises are the same, so the samples differ by the direction terms alone."""
    s2, eps, cases = 0.0025, torch.full(SHAPE, 0.3), {}
    for name in ("original", "updated"):
        pipe = with_correction(new_pipeline(), correction(name, s2=s2), eta=1.0)
        cases[name] = middle_step(pipe, eps)
    scheduler = pipe.scheduler
    t = int(scheduler.timesteps[1])
    p = t - 1000 // STEPS
    a_t, a_p = scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[p]
    sigma = scheduler._get_variance(t, p).sqrt()
    calm = paper.ddim_sigma(a_t, a_p, sigma, torch.tensor(0.0), torch.tensor(s2))
    gap = 0.3 * ((1 - a_p - calm**2).sqrt() - (1 - a_p - sigma**2).sqrt())
    assert gap.abs() > 1e-3
    moved = cases["updated"] - cases["original"]
    torch.testing.assert_close(moved, torch.full_like(moved, float(gap)), rtol=0, atol=1e-5)


def test_no_network_calls_are_added() -> None:
    q = dqlab.quantize(new_pipeline(), recipe("ptqd", samples=2), 4, 4, sampler=sampler(1.0))
    calls = count_calls(q.unet)
    images(q, 1.0)
    assert len(calls) == STEPS


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_quantizing_and_its_original_in_one_call(eta) -> None:
    """The pooled squared error of the prediction can only shrink where it was fitted."""
    pipe = new_pipeline()
    q = dqlab.quantize(pipe, recipe("ptqd", samples=4), 3, 4, sampler=sampler(eta))
    states, _ = record(pipe, seeds.CALIBRATION[:4], sampler(eta))
    before = error_powers(states, q.unet)
    after = error_powers(states, q.unet, correct=prediction_correction(q))
    assert set(q.corrector.correction.tables) == {"k", "mu", "s2"}
    sums = [p.groupby("step")["noise"].sum() for p in (before, after)]
    assert (sums[1] <= sums[0] * (1 + 1e-6)).all()
    assert not torch.equal(images(q, eta), images(pipe, eta))


def test_a_constant_prediction_warns_and_has_no_slope() -> None:
    sums = Sums()
    sums.add(torch.full((2, 3, 4, 4), 0.7), torch.randn(2, 3, 4, 4))
    with pytest.warns(UserWarning, match="constant"):
        k, mu, s2 = sums.statistics()
    assert k == 0 and mu.isfinite().all() and s2 > 0


def test_nan_predictions_name_the_step() -> None:
    pipe, other = new_pipeline(), new_pipeline()
    tilted(other, slope=float("nan"), bias=(0.0, 0.0, 0.0), spread=0.0)
    with pytest.raises(InvalidInputError, match="not finite at step 0"):
        fitted(pipe, other, samples=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"samples": 1}, "choose 2 to 512"), ({"sigma_in_direction": "both"}, "'original' or")],
)
def test_options_are_checked(options, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        recipe("ptqd", **options)


def test_models_it_cannot_correct_are_refused() -> None:
    assert "vsc=False" in Ptqd().unfit(DDPM_UNET)
    assert Ptqd(vsc=False).unfit(DDPM_UNET) is None
    pipe = new_pipeline()
    pipe.scheduler.register_to_config(prediction_type="v_prediction")
    with pytest.raises(NotApplicableError, match="predicts 'v_prediction'"):
        fitted(pipe, new_pipeline(), samples=2)


def test_a_velocity_is_no_noise_though_its_scheduler_does_not_say_so() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipe = new_pipeline()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()  # whole timesteps at some step counts
    with pytest.raises(NotApplicableError, match="predicts 'flow'"):
        fitted(pipe, new_pipeline(), samples=2)


@pytest.mark.parametrize("index", [2, 10, 17])
def test_the_residuals_weight_where_x0_is_clipped(index) -> None:
    """The direction term alone; lambda is no bound of it in the middle of the chain."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=True)
    scheduler.set_timesteps(20)
    t = int(scheduler.timesteps[index])
    a_t, a_p = (scheduler.alphas_cumprod[i].double() for i in (t, t - 50))
    sigma = scheduler._get_variance(t, t - 50).double().sqrt()
    x, D = torch.full((1, 1, 1, 1), 9.0).double(), 1e-3
    ends = [
        scheduler.step(torch.full_like(x, e), t, x, eta=1.0, variance_noise=0 * x).prev_sample
        for e in (0.0, D)
    ]
    weight = float((ends[1] - ends[0]) / D)
    assert weight == pytest.approx(float((1 - a_p - sigma**2).sqrt()), rel=1e-3)
    unclipped = float(paper.ddim_weight(a_t, a_p, sigma, torch.tensor(0.0)).abs())
    assert (weight > unclipped) == (index == 10)


def test_an_ancestral_pipeline_takes_the_prediction_correction() -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    scheduler = DDPMScheduler(timestep_spacing="trailing")
    pipe = DDPMPipeline(new_pipeline().unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    made = recipe("ptqd", samples=2, vsc=False)
    q = dqlab.quantize(pipe, made, 3, 4, sampler={"num_inference_steps": STEPS})
    assert type(q).__name__ == "CorrectedDDPMPipeline"
    setting = {"num_inference_steps": STEPS, "output_type": "np"}
    assert q(generator=torch.Generator().manual_seed(0), **setting).images.shape == (1, 8, 8, 3)
    with pytest.raises(NotApplicableError, match="does not apply"):
        dqlab.quantize(pipe, "ptqd", 3, 4)


CHOOSING = recipe("ptqd", fewest=3, samples=2)


def forced(monkeypatch, bits: list[int]) -> None:
    monkeypatch.setattr(paper, "step_aware_bits", lambda snr_q, snr_f: bits)


def test_bits_of_steps_follow_the_rule() -> None:
    """The ratios are those of networks rounded at one bit-width throughout."""
    pipe = new_pipeline()
    states, _ = record(pipe, seeds.CALIBRATION[:4], sampler())
    setting = {"sampler": sampler(), "calibration": states}
    snr_q = {}
    for bits in (3, 8):
        q = dqlab.quantize(pipe, "rtn", 4, bits, **setting)
        powers = error_powers(states, q.unet).groupby("step").sum()
        snr_q[bits] = torch.tensor((powers["signal"] / powers["noise"]).to_numpy()).sqrt()
    pipe.scheduler.set_timesteps(STEPS)
    snr_f = paper.snr_forward(pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps])
    q = dqlab.quantize(pipe, CHOOSING, 4, 8, **setting)
    expected = paper.step_aware_bits(snr_q, snr_f)
    assert dqlab.describe(q)["choices"] == {"step bits": expected}
    assert type(q.corrector.correction) is PtqdCorrection


def test_every_bit_width_is_calibrated_on_its_own_steps(monkeypatch) -> None:
    forced(monkeypatch, [3, 8, 8])
    pipe = new_pipeline()
    states, _ = record(pipe, seeds.CALIBRATION[:4], sampler())
    q = dqlab.quantize(pipe, CHOOSING, 4, 8, sampler=sampler(), calibration=states)
    found = quantizers(q.unet)
    for bits, mine in ((3, states.step == 0), (8, states.step > 0)):
        plain = dqlab.quantize(pipe, "rtn", 4, bits, sampler=sampler(), calibration=states[mine])
        for site, one in quantizers(plain.unet).items():
            if found[site].per_step:
                row = 0 if bits == 3 else 1
                assert torch.equal(found[site].scale[row], one.scale)
                assert found[site].zero_point[row].tolist() == [one.zero_point, 2**bits - 1]
    fixed = {site for site, one in found.items() if not one.per_step}
    assert fixed >= {"conv_in.input", "conv_out.input", "mid_block.attentions.0.p"}
    assert all(site.startswith("conv_") or site.endswith((".weight", ".p")) for site in fixed)


def test_chosen_bits_come_back_and_add_to_other_methods(monkeypatch, tmp_path) -> None:
    forced(monkeypatch, [3, 8, 8])
    base = recipe("q-diffusion", reconstruct=False, samples=4)
    q = dqlab.quantize(new_pipeline(), base | CHOOSING, 4, 8, sampler=sampler())
    q.save_pretrained(tmp_path / "q")
    assert torch.equal(images(dqlab.load(tmp_path / "q")), images(q))
    described = dqlab.describe(q)["recipe"]["moments"]
    assert described["place"] == "q-diffusion + ptqd" and described["correct"] == "ptqd"


def test_bits_that_cannot_be_chosen_between_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="choose 2 to 7 bits"):
        recipe("ptqd", fewest=8)
    for activations in (3, None, "fp8"):
        with pytest.raises(InvalidInputError, match="Ask for more activation bits"):
            dqlab.quantize(new_pipeline(), CHOOSING, 4, activations, sampler=sampler())
    quick = recipe("tdq", warm=1, updates=1)
    with pytest.raises(NotApplicableError, match="Leave `fewest` out"):
        dqlab.quantize(new_pipeline(), quick | CHOOSING, 4, 8, sampler=sampler())
