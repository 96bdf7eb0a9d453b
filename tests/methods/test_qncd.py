import math
import warnings

import pytest
import torch
from diffusers import DDPMPipeline, DPMSolverMultistepScheduler
from diffusers.models.resnet import ResnetBlock2D
from tiny_diffusion import (
    count_calls,
    guided_pipeline,
    images,
    new_pipeline,
    sampler,
    schedule,
    with_correction,
)

import dqlab
from dqlab import recipe
from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.formats import Affine
from dqlab.layers import StepContext, quantizers, smooth_layer
from dqlab.layers.wrap import wrap_layer
from dqlab.methods import run
from dqlab.methods.corrected import prediction_correction
from dqlab.methods.correction import Correction
from dqlab.methods.unet_correction.qncd import Qncd, RunningBias, timed_blocks
from dqlab.ranges import min_max
from dqlab.reference import qncd as paper
from dqlab.reference.tac_diffusion import ddim_coefficients

BOTH = pytest.mark.parametrize("norm", ["default", "scale_shift"])


def smoothed(norm: str, **options):
    """A full-precision pipeline and its smoothed twin."""
    pipe = new_pipeline(resnet_time_scale_shift=norm)
    chosen = recipe("qncd", **options).only("reshape")
    q = dqlab.quantize(pipe, chosen, 8, None, sampler=sampler())
    return pipe, q


def test_moments() -> None:
    assert Qncd.moments() == ("reshape", "correct")


@BOTH
@pytest.mark.parametrize("variant", ["paper", "code"])
def test_smoothing_keeps_the_function(norm, variant, monkeypatch) -> None:
    """Every block, before anything is quantized."""
    pipe, seen = new_pipeline(resnet_time_scale_shift=norm), []
    monkeypatch.setattr(run, "_place", lambda job: seen.append(job) or _none(job))
    dqlab.quantize(pipe, recipe("qncd", variant=variant, floor=0.1), 8, 8, sampler=sampler())
    x, t = torch.randn(2, 3, 8, 8), torch.tensor(500)
    with torch.no_grad():
        difference = seen[0].denoiser(x, t).sample - pipe.unet(x, t).sample
    assert difference.abs().max() < 1e-5


def _none(job) -> None:
    for quantizer in quantizers(job.denoiser).values():
        quantizer.format = None


@BOTH
def test_every_block_is_smoothed_by_its_embeddings_factor(norm) -> None:
    pipe, q = smoothed(norm, floor=0.05)
    for path, block in timed_blocks(pipe.unet):
        time = torch.tensor(schedule(pipe).tolist())
        with torch.no_grad():
            unet = pipe.unet
            emb = unet.time_embedding(unet.time_proj(time))
            emb = block.time_emb_proj(torch.nn.functional.silu(emb))
        if norm == "scale_shift":
            S = paper.smoothing_scale_shift(emb.chunk(2, 1)[0])
        else:
            S = paper.smoothing_additive(emb, block.norm2.weight, 4, block.norm2.eps)
        found = q.unet.get_submodule(path).conv2.channel_divisor
        torch.testing.assert_close(found, S.detach().clamp(min=0.05), rtol=1e-4, atol=1e-5)


def test_the_floor_keeps_small_channels_as_they_are() -> None:
    _, q = smoothed("default")
    factors = torch.cat([b.conv2.channel_divisor for _, b in timed_blocks(q.unet)])
    assert (factors >= 1).all() and (factors == 1).any() and (factors > 1).any()


def test_smoothed_layers_come_back(tmp_path) -> None:
    _, q = smoothed("scale_shift")
    q.save_pretrained(tmp_path / "q")
    again = dqlab.load(tmp_path / "q")
    assert torch.equal(images(again), images(q))
    assert len(dqlab.describe(again)["smoothed"]) == len(list(timed_blocks(q.unet)))


def sqnr_of_second_conv(block, inputs, temb, S) -> float:
    """dB, of the convolution's 6-bit answer for inputs smoothed by S."""
    seen, conv = [], block.conv2
    hook = conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        block(inputs, temb)
    hook.remove()
    u, layer = seen[0], torch.nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1)
    layer.load_state_dict(conv.state_dict())
    smooth_layer(layer, S)
    wrap_layer(layer, "conv2", StepContext())
    layer.input_quantizer.format = Affine(6)
    layer.input_quantizer.set_range(min_max(u / S[:, None, None], Affine(6)))
    with torch.no_grad():
        y, found = conv(u), layer(u)
    return float(10 * math.log10(y.square().mean() / (y - found).square().mean()))


def stretched_block(factor: float):
    """A scale-shift block in which every 16th channel's 1 + scale is `factor` times the rest's."""
    block = ResnetBlock2D(in_channels=64, temb_channels=16, time_embedding_norm="scale_shift")
    with torch.no_grad():
        block.time_emb_proj.weight.zero_()
        block.time_emb_proj.bias.zero_()
        block.time_emb_proj.bias[:64:16] = factor - 1
    return block


@pytest.mark.parametrize(("factor", "gain"), [(8.0, 5.0), (4.0, 2.0)])
def test_smoothing_helps_where_the_embedding_stretches_channels(factor, gain) -> None:
    """A planted ridge of 8 (4) times costs log2 of it in bits: 18 (12) dB at most."""
    block = stretched_block(factor)
    x, temb = torch.randn(8, 64, 8, 8), torch.zeros(8, 16)
    S = Qncd().factors(block, block.time_emb_proj(temb).detach())
    assert S.tolist() == [factor if c % 16 == 0 else 1.0 for c in range(64)]
    plain = sqnr_of_second_conv(block, x, temb, torch.ones(64))
    assert gain < sqnr_of_second_conv(block, x, temb, S) - plain < 6.03 * math.log2(factor)


def test_without_a_stretch_there_is_nothing_to_gain() -> None:
    block, temb = stretched_block(1.0), torch.zeros(8, 16)
    S = Qncd().factors(block, block.time_emb_proj(temb).detach())
    assert torch.equal(S, torch.ones(64))


def test_a_network_without_timed_blocks_is_refused() -> None:
    pipe = new_pipeline()
    for _, block in timed_blocks(pipe.unet):
        block.time_embedding_norm = "none"  # the block then leaves the timestep out
    with pytest.raises(NotApplicableError, match="without\\('reshape'\\)"):
        dqlab.quantize(pipe, "qncd", 8, 8, sampler=sampler())


def running(steps: int, interval: int, offset: int | None = 0, target: str = "injected"):
    return RunningBias({}, steps=steps, interval=interval, offset=offset, target=target)


def quietly(call, *args, **kwargs):
    """Pictures of 8 x 8 are too few numbers for an estimate, and qncd says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="qncd estimates a bias")
        return call(*args, **kwargs)


@pytest.mark.parametrize(("steps", "interval"), [(20, 10), (20, 5), (8, 2), (6, 1)])
def test_one_call_in_interval_steps_is_added(steps, interval) -> None:
    """Exactly, but for the last step, which is not followed by another."""
    offset = 0
    pipe = with_correction(new_pipeline(), running(steps, interval, offset), steps=steps)
    calls = count_calls(pipe.unet)
    quietly(images, pipe, steps=steps)
    assert len(calls) == steps + steps // interval - (interval == 1)
    assert len(pipe.corrector.state["estimates"]) == len(calls) - steps


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_without_an_estimate_nothing_changes(eta) -> None:
    pipe = with_correction(new_pipeline(), running(3, 10, 9), eta)
    assert torch.equal(images(pipe, eta), images(new_pipeline(), eta))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_provisional_step_leaves_the_run_alone(eta) -> None:
    """A network that answers 0 is noised again and asked, and m = -mean(z1)."""
    pipes = [new_pipeline(), new_pipeline()]
    for pipe in pipes:
        pipe.unet.register_forward_hook(_silence)
    made = with_correction(pipes[0], running(3, 2), eta)
    found = quietly(images, made, eta)
    (m,) = made.corrector.state["estimates"]
    generator = torch.Generator().manual_seed(5)
    z1 = torch.randn(2, 3, 8, 8, generator=generator)
    assert abs(m + z1.double().mean()) < 1e-6
    shift = with_correction(pipes[1], _constant(-m), eta)
    torch.testing.assert_close(found, images(shift, eta))


def _silence(module, args, output):
    output.sample = torch.zeros_like(args[0])
    return output


def _constant(by):
    class Constant(Correction):
        kind = "test-constant"

        def eps(self, eps, step):
            return eps + by

    return Constant({})


VARIANCE, BIAS, FIRED = 0.05, 0.4, 6


def ideal_with_late_bias(pipe, steps: int) -> None:
    """The best answer for data N(0, 0.05), and a bias on it from the estimating step on."""
    alphas = pipe.scheduler.alphas_cumprod
    late = int(schedule(pipe, steps)[FIRED])

    def hook(module, args, kwargs, output):
        t = int(torch.as_tensor(kwargs.get("timestep", args[-1])).reshape(-1)[0])
        a = alphas[t]
        best = (1 - a).sqrt() * args[0] / (a * VARIANCE + 1 - a)
        output.sample = best + BIAS * (t <= late)
        return output

    pipe.unet.register_forward_hook(hook, with_kwargs=True)


@pytest.mark.parametrize("target", ["injected", "composite"])
def test_a_planted_bias_is_estimated_and_shrinks(target) -> None:
    """The estimate is the bias, what the provisional step did, and the error of a mean."""
    steps, rows, means = 20, 32, {}
    for name in ("plain", "qncd"):
        pipe = new_pipeline()
        ideal_with_late_bias(pipe, steps)
        t, following = schedule(pipe, steps)[FIRED : FIRED + 2].tolist()
        a_t, a_p = pipe.scheduler.alphas_cumprod[[t, following]]
        if name == "qncd":
            pipe = with_correction(pipe, running(steps, 10, FIRED, target), steps=steps)
        found = images(pipe, steps=steps, batch_size=rows)
        means[name] = abs(float(found.mean()) - 0.5)
    moved = (a_t / a_p).sqrt() * ddim_coefficients(a_t, a_p)[1] * BIAS
    expected = BIAS + (1 - a_t).sqrt() / (a_t * VARIANCE + 1 - a_t) * moved
    if target == "composite":
        expected = expected - (a_t * (1 - a_p) / a_p / (1 - a_t)).sqrt() * BIAS
    assert abs(pipe.corrector.state["estimates"][0] - expected) < 4 * 2 / math.sqrt(rows * 192)
    if target == "injected":
        assert expected > 0.5 * BIAS and means["qncd"] < means["plain"]
    else:  # sees what this one call adds
        assert expected < 0.5 * BIAS


def test_guided_predictions_are_asked_again_with_guidance(monkeypatch) -> None:
    pipe = with_correction(guided_pipeline(monkeypatch), running(3, 2))
    calls = count_calls(pipe.unet)
    quietly(images, pipe, guidance_scale=2.0)
    assert len(calls) == 4


class Peek(Correction):
    """Looks one step ahead and changes nothing."""

    kind = "test-peek"

    def eps(self, eps, step):
        assert not torch.equal(step.follow(eps), step.x)
        return eps


def multistep():
    pipe = DDPMPipeline(new_pipeline().unet, DPMSolverMultistepScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("make", "eta"), [(new_pipeline, 0.0), (new_pipeline, 1.0), (multistep, 0)]
)
def test_looking_ahead_leaves_sampler_noise_and_memory_alone(make, eta) -> None:
    setting = {"num_inference_steps": 6, "output_type": "np"} | ({"eta": eta} if eta else {})
    pictures = [
        pipe(generator=torch.Generator().manual_seed(0), **setting).images
        for pipe in (make(), with_correction(make(), Peek({}), eta, steps=6))
    ]
    assert (pictures[0] == pictures[1]).all()


def test_a_multistep_sampler_is_corrected_too() -> None:
    chosen = recipe("qncd", interval=2, offset=0).only("correct")
    q = dqlab.quantize(multistep(), chosen, 8, 8, sampler={"num_inference_steps": 6})
    calls, setting = count_calls(q.unet), {"num_inference_steps": 6, "output_type": "np"}
    found = quietly(q, generator=torch.Generator().manual_seed(0), **setting).images
    assert len(calls) == 9 and found.shape == (1, 8, 8, 3)


def test_it_corrects_a_run_and_says_so() -> None:
    with pytest.raises(NotApplicableError, match="final samples"):
        prediction_correction(with_correction(new_pipeline(), running(3, 2)))
    with pytest.warns(UserWarning, match="384 elements, fewer than 4096"):
        images(with_correction(new_pipeline(), running(3, 2)))


def test_it_comes_back_from_disk(tmp_path) -> None:
    chosen = recipe("qncd", interval=2, offset=0)
    q = dqlab.quantize(new_pipeline(), chosen, 4, 8, sampler=sampler())
    q.save_pretrained(tmp_path / "q")
    again = dqlab.load(tmp_path / "q")
    assert again.corrector.correction.calls == 1
    assert torch.equal(quietly(images, again), quietly(images, q))


def test_too_few_steps_for_an_estimate_warn() -> None:
    with pytest.warns(UserWarning, match="estimates nothing in 3 steps"):
        dqlab.quantize(new_pipeline(), recipe("qncd").only("correct"), 8, 8, sampler=sampler())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "both"}, "paper or code"),
        ({"target": "none"}, "injected or composite"),
        ({"interval": 0}, "at least 1 step"),
        ({"offset": 10}, "an offset from 0"),
        ({"floor": -1.0}, "not negative"),
    ],
)
def test_options_are_checked(options, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        recipe("qncd", **options)
