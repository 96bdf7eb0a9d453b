import pytest
import torch
from diffusers import DDPMPipeline, DPMSolverMultistepScheduler
from tiny_diffusion import (
    STEPS,
    count_calls,
    guided_pipeline,
    images,
    job_of,
    new_pipeline,
    sampler,
    schedule,
    tilted,
    with_correction,
)

import dqlab
from dqlab import recipe, seeds
from dqlab.errors import InvalidInputError
from dqlab.methods.unet_correction import tac_diffusion
from dqlab.methods.unet_correction.tac_diffusion import (
    InputBias,
    Reconstruction,
    TacCorrection,
    TacDiffusion,
)
from dqlab.models.families import family_of
from dqlab.reference import tac_diffusion as paper
from dqlab.trajectory import record


def fitted(pipe, replaced, eta: float = 0.0, **options):
    """The correction TAC finds when `replaced` is what quantization made of `pipe`."""
    return TacDiffusion(**options).correct(job_of(pipe, replaced, eta))


def drifting(pipe, shift: float, first_only: bool = True) -> None:
    """Add a constant to the network's answer, at the first step only."""
    top = int(schedule(pipe)[0])

    def hook(module, args, kwargs, output):
        t = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        if not first_only or int(torch.as_tensor(t).reshape(-1)[0]) == top:
            output.sample = output.sample + shift
        return output

    pipe.unet.register_forward_hook(hook, with_kwargs=True)


def finals(pipe, rows=4, eta: float = 0.0):
    """Unclipped last states are not at hand; pictures are, cut to [0, 1]."""
    from dqlab.models.families import Sampler

    return family_of(pipe).run(pipe, Sampler(STEPS, eta), seeds.HELD_OUT[:rows])


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_equal_networks_need_no_correction(eta) -> None:
    """At eta 1 too: both chains draw the same noise."""
    found = fitted(new_pipeline(), new_pipeline(), eta, samples=4)
    assert torch.equal(found.tables["B"], torch.zeros(STEPS, 3, 8, 8))
    assert torch.equal(found.tables["K"], torch.ones(STEPS, 3))
    made = with_correction(new_pipeline(), found, eta)
    assert torch.equal(images(made, eta), images(new_pipeline(), eta))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("granularity", ["element", "channel"])
def test_a_planted_drift_appears_as_bias_and_is_taken_out(granularity, eta) -> None:
    """A constant error at step 0 moves x_1 by C times it; after B the chains are one."""
    pipe, other = new_pipeline(), new_pipeline()
    drifting(other, 0.2)
    found = fitted(pipe, other, eta, samples=4, ner=False, granularity=granularity)
    states, _ = record(other, seeds.CALIBRATION[:4], sampler(eta))
    plain, _ = record(pipe, seeds.CALIBRATION[:4], sampler(eta))
    moved = (states.x - plain.x)[states.step == 1].mean()
    B = found.tables["B"]
    assert (B[0] == 0).all() and moved.abs() > 1e-3
    torch.testing.assert_close(B[1], moved.expand(B[1].shape), rtol=1e-4, atol=1e-6)
    assert B[2].abs().max() < 1e-5
    made = with_correction(other, found, eta)
    torch.testing.assert_close(finals(made, eta=eta), finals(pipe, eta=eta), rtol=0, atol=1e-5)


def test_a_planted_scale_is_taken_out_by_k() -> None:
    pipe, other = new_pipeline(), new_pipeline()
    tilted(other, slope=0.25, bias=(0.0, 0.0, 0.0))
    found = fitted(pipe, other, samples=4, ibc=False, lambda2=0.0)
    assert type(found) is Reconstruction
    torch.testing.assert_close(found.tables["K"], torch.full((STEPS, 3), 0.8))
    torch.testing.assert_close(finals(with_correction(other, found)), finals(pipe))


def test_each_step_is_fitted_on_what_the_earlier_ones_corrected() -> None:
    """On the fitting chain x, after B, is on average the full-precision one."""
    pipe, other = new_pipeline(), new_pipeline()
    drifting(other, 0.2, first_only=False)
    seen = []
    other.unet.conv_in.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    found = fitted(pipe, other, samples=4, ner=False)
    plain, _ = record(pipe, seeds.CALIBRATION[:4], sampler())
    assert len(seen) == STEPS
    for index, x in enumerate(seen):
        drift = (x - plain.x[plain.step == index]).mean(0)
        assert drift.abs().max() < 1e-5
    moved, _ = record(other, seeds.CALIBRATION[:4], sampler())
    late = moved.step == STEPS - 1
    apart = (moved.x - plain.x)[late].mean(0)
    assert (found.tables["B"][-1] - apart).abs().max() > 1e-3  # not what one pass would give


def test_squared_error_alone_cannot_grow_where_it_was_fitted() -> None:
    pipe = new_pipeline()
    made = recipe("tac-diffusion", lambda1=0.0, lambda2=0.0, ibc=False, samples=8)
    q = dqlab.quantize(pipe, made, 3, 4, sampler=sampler())
    states, _ = record(q, seeds.CALIBRATION[:8], sampler())
    K = q.corrector.correction.tables["K"][states.step][:, :, None, None]
    with torch.no_grad():
        r = states.call(pipe.unet)
    for index in range(STEPS):
        mine = states.step == index
        before = (states.output - r)[mine].square().mean((0, 2, 3))
        after = (K * states.output - r)[mine].square().mean((0, 2, 3))
        assert (after <= before * (1 + 1e-4)).all()


def test_no_network_calls_are_added_and_the_rest_is_one_pass_over_the_latent() -> None:
    q = dqlab.quantize(
        new_pipeline(), recipe("tac-diffusion", samples=4), 3, 4, sampler=sampler(1.0)
    )
    calls = count_calls(q.unet)
    images(q, 1.0)
    assert len(calls) == STEPS
    assert {k: t.shape for k, t in q.corrector.correction.tables.items()} == {
        "K": (STEPS, 3),
        "B": (STEPS, 3, 8, 8),
    }


def test_fitting_asks_each_network_once_a_step() -> None:
    pipe, other = new_pipeline(), new_pipeline()
    quantized, full = count_calls(other.unet), count_calls(pipe.unet)
    fitted(pipe, other, samples=4)
    # the full-precision chain, one look at how its arguments are laid out, and its second opinion
    assert len(quantized) == STEPS and len(full) <= 2 * STEPS + 4


def test_guidance_comes_first(monkeypatch) -> None:
    pipe, other = guided_pipeline(monkeypatch), guided_pipeline(monkeypatch)
    tilted(other, slope=0.25, bias=(0.0, 0.0, 0.0))
    found = fitted(pipe, other, samples=4, lambda2=0.0)
    torch.testing.assert_close(found.tables["K"], torch.full((STEPS, 3), 0.8))
    assert found.tables["B"].abs().max() < 1e-5


@pytest.mark.parametrize(
    ("options", "more"),
    [({}, STEPS), ({"pairing": "trajectory"}, 0), ({"ner": False}, 0)],
    ids=["same input", "trajectory", "input bias alone"],
)
def test_full_precision_is_asked_again_only_where_its_answer_counts(
    options, more, monkeypatch
) -> None:
    pipe, other = new_pipeline(), new_pipeline()
    tilted(other, slope=0.25, bias=(0.5, 0.5, 0.5))
    asked = []
    monkeypatch.setattr(
        tac_diffusion.PairedCorrector,
        "full",
        lambda self, network, x, t: asked.append(int(t)) or network(x, t).sample,
    )
    with torch.no_grad():
        found = fitted(pipe, other, samples=4, **options)
    assert len(asked) == more and "B" in found.tables


def test_the_threshold_spares_small_elements() -> None:
    tables = {"K": torch.full((STEPS, 3), 0.5)}
    pipe = with_correction(new_pipeline(), Reconstruction(tables, apply_threshold=1.0))
    step = pipe.corrector.step_at(
        pipe.scheduler, int(schedule(pipe)[0]), torch.zeros(1, 3, 1, 3), 0
    )
    eps = torch.tensor([-4.0, 1.0, 1.0]).reshape(1, 1, 1, 3).expand(1, 3, 1, 3)
    found = pipe.corrector.correction.eps(eps, step)
    assert found[0, 0, 0].tolist() == [-2.0, 1.0, 1.0]  # by size, not by sign


def test_a_multistep_sampler_is_corrected_too() -> None:
    pipe = DDPMPipeline(new_pipeline().unet, DPMSolverMultistepScheduler())
    pipe.set_progress_bar_config(disable=True)
    made = recipe("tac-diffusion", samples=4)
    q = dqlab.quantize(pipe, made, 3, 4, sampler={"num_inference_steps": STEPS})
    setting = {"num_inference_steps": STEPS, "output_type": "np"}
    assert q(generator=torch.Generator().manual_seed(0), **setting).images.shape == (1, 8, 8, 3)


def test_another_picture_size_points_to_the_channel_form() -> None:
    made = InputBias({"B": torch.zeros(STEPS, 3, 8, 8)})
    pipe = with_correction(new_pipeline(), made)
    step = pipe.corrector.step_at(
        pipe.scheduler, int(schedule(pipe)[0]), torch.zeros(1, 3, 16, 16), 0
    )
    with pytest.raises(InvalidInputError, match="granularity='channel'"):
        made.before(step.x, step)


def test_a_broken_network_is_noticed() -> None:
    pipe, other = new_pipeline(), new_pipeline()
    tilted(other, slope=4.0, bias=(0.0, 0.0, 0.0))
    with pytest.warns(UserWarning, match="At step 0 a reconstruction coefficient is 0.2"):
        fitted(pipe, other, samples=2, lambda2=0.0)
    tilted(other, slope=float("nan"), bias=(0.0, 0.0, 0.0))
    with pytest.raises(InvalidInputError, match="step 0 is not finite"):
        fitted(pipe, other, samples=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairing": "none"}, "same_input or trajectory"),
        ({"granularity": "pixel"}, "element or channel"),
        ({"ner": False, "ibc": False}, "leave nothing to do"),
        ({"lambda1": 2.0}, "lambda1 lies in"),
        ({"tau": -1.0}, "none is negative"),
        ({"samples": 1}, "choose 2 to 512"),
    ],
)
def test_options_are_checked(options, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        recipe("tac-diffusion", **options)


def test_coefficients_are_the_closed_form() -> None:
    r, n = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    method, q = TacDiffusion(), 1.1 * r + 0.1 * n
    sums = paper.reconstruction_sums(q, r, paper.relative_mask(r))
    expected = paper.reconstruction_coefficient(sums).float()
    torch.testing.assert_close(method.coefficient(q, r, 0), expected)
    assert isinstance(TacCorrection({}), Reconstruction | InputBias)
