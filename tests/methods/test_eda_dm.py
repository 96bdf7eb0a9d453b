"""EDA-DM as a whole, on the tiny U-Net."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_models import SAMPLER, STEPS, new_pipeline, pipeline, recorded

from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.fit import capture, reconstruct, units_of
from dqlab.fit.profiles import JOINT
from dqlab.fit.reconstruct import outputs_of
from dqlab.layers import quantizers
from dqlab.methods import describe, quantize, recipe
from dqlab.methods.drawing import pick
from dqlab.methods.unet_calibration.eda_dm import EdaDm
from dqlab.models.families import PIXEL_UNET
from dqlab.reference.brecq import block_loss
from dqlab.trajectory import States


def states_of(steps: int, trajectories: int, branches: int = 1) -> States:
    """A sampler whose state is its step's number, constant over the picture."""
    step = torch.arange(steps).repeat_interleave(trajectories * branches)
    seed = torch.arange(trajectories).repeat(steps * branches)
    x = step.float()[:, None, None, None].expand(-1, 3, 2, 2)
    return States(x, 1000 - step, step, seed, x, conditions={}, constants={})


def test_every_pair_is_a_state_of_its_step_and_no_trajectory_is_used_twice() -> None:
    states = states_of(5, 20)
    n = [7, 3, 0, 4, 6]
    chosen = pick(states, n, torch.Generator().manual_seed(0))
    assert chosen.step.bincount(minlength=5).tolist() == n
    assert torch.equal(chosen.x[:, 0, 0, 0], chosen.step.float())
    assert torch.equal(chosen.t, 1000 - chosen.step)
    assert sorted(chosen.seed.tolist()) == list(range(20))
    assert chosen.step.tolist() != sorted(chosen.step.tolist())


def test_few_trajectories_take_turns_and_never_repeat_a_state() -> None:
    chosen = pick(states_of(5, 8), [8, 8, 2, 5, 1], torch.Generator().manual_seed(0))
    pairs = set(zip(chosen.step.tolist(), chosen.seed.tolist(), strict=True))
    assert len(pairs) == 24
    assert chosen.seed.bincount().tolist() == [3] * 8
    with pytest.raises(InvalidInputError, match="Step 0 should give 9"):
        pick(states_of(5, 8), [9, 0, 0, 0, 0], torch.Generator())


def test_both_guidance_branches_come_along() -> None:
    chosen = pick(states_of(3, 4, branches=2), [2, 1, 1], torch.Generator().manual_seed(0))
    assert len(chosen) == 2 * 4
    assert chosen.seed.bincount().tolist() == [2] * 4


def calibrated(**options):
    return quantize(
        pipeline(), recipe("eda-dm", reconstruct=False, **options), 4, 8, sampler=SAMPLER
    )


def test_the_set_has_as_many_rows_as_asked() -> None:
    assert describe(calibrated(samples=17))["calibration"]["rows"] == 17


def test_few_steps_draw_on_more_trajectories() -> None:
    assert describe(calibrated(samples=150))["calibration"]["rows"] == 150


def test_levels_lie_around_zero_unless_asked_otherwise() -> None:
    for symmetric, name in ((True, "uint4-offset"), (False, "uint4")):
        found = quantizers(calibrated(samples=8, symmetric=symmetric).unet)
        assert found["mid_block.resnets.0.conv1.weight"].format.name == name
        assert found["mid_block.attentions.0.p"].format.name == "uint8-zero"
        assert "up_blocks.0.resnets.0.conv_shortcut.input[1]" in found


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="lambda"):
        calibrated(variety=-1.0)
    with pytest.raises(InvalidInputError, match="radius"):
        calibrated(radius=-1.0)
    with pytest.raises(InvalidInputError, match="calibration samples"):
        calibrated(samples=0)
    with pytest.raises(InvalidInputError, match="at least 3"):
        quantize(pipeline(), "eda-dm", 4, 8, sampler={"num_inference_steps": 2})


def test_what_scripts_tune_can_be_set_and_the_rest_is_the_profiles() -> None:
    job = SimpleNamespace(profile="paper", teacher=None)
    usual = EdaDm().fit(job)[-1].settings
    assert usual == JOINT["paper"]
    tuned = EdaDm(layer_weight=0.0, rounding_lr=5e-2, regularizer=0.01).fit(job)[-1].settings
    assert tuned == replace(usual, layer_weight=0.0, rounding_lr=5e-2, lam=0.01)
    assert EdaDm(step_lr=1e-3).fit(job)[-1].settings == replace(usual, step_lr=1e-3)


def test_a_model_without_middle_attention_needs_a_probe() -> None:
    pipe = new_pipeline(add_attention=False)
    with pytest.raises(NotApplicableError, match="probe="):
        quantize(pipe, "eda-dm", 4, 8, sampler=SAMPLER)
    chosen = recipe("eda-dm", probe="mid_block.resnets.1", samples=8, reconstruct=False)
    found = describe(quantize(pipe, chosen, 4, 8, sampler=SAMPLER))
    assert found["calibration"]["rows"] == 8


def test_features_are_the_middle_attentions_input_by_step() -> None:
    states = recorded()[0]
    seen = []
    middle = pipeline().unet.mid_block.attentions[0]
    handle = middle.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        states[states.step == 1].call(pipeline().unet)
    handle.remove()

    class Job:
        original, family = pipeline(), PIXEL_UNET

    F = EdaDm().features(Job, states, compared=4)
    assert F.shape[:2] == (STEPS, 4)
    torch.testing.assert_close(F[1], seen[0], atol=1e-5, rtol=1e-5)


class Sequences(torch.nn.Module):
    """A network of tokens; its block takes `frames` rows per state."""

    def __init__(self, frames: int):
        super().__init__()
        self.frames, self.block = frames, torch.nn.Identity()

    def forward(self, sample, timestep):
        self.block(sample.repeat_interleave(self.frames, 0))
        return (sample,)


@pytest.mark.parametrize("frames", [1, 2])
def test_features_of_tokens_have_their_channels_last_and_frames_as_rows(frames) -> None:
    step, seed = torch.arange(3).repeat_interleave(4), torch.arange(4).repeat(3)
    x = torch.randn(12, 5, 7)
    states = States(x, 900 - step, step, seed, x)

    class Job:
        original, family = Sequences(frames), SimpleNamespace(denoiser=lambda pipe: pipe)

    F = EdaDm(probe="block").features(Job, states, compared=2)
    assert F.shape == (3, 2 * frames, 7, 5)
    assert torch.equal(F[1, 0], states.x[4].T)


def inner_errors(made, model, unit, inner, states) -> list[float]:
    """Held-out error of every inner layer, the unit fed with full-precision inputs."""
    full = capture(made.teacher, [unit.path], states)[unit.path]
    outputs = []
    for network in (model, made.teacher):
        with torch.no_grad(), outputs_of(network, inner) as seen:
            full.call(network.get_submodule(unit.path))
        outputs.append(seen)
    return [float(block_loss(a, b)) for a, b in zip(*outputs, strict=True)]


def test_layer_losses_keep_inner_layers_close() -> None:
    """Without them a block's layers drift; with them each is closer to full precision."""
    fits = {}
    for weight in (0.0, 0.8):
        job = _Grab()
        method = job.method(samples=24)
        with pytest.raises(_Grabbed):
            quantize(pipeline(), method, 3, None, sampler=SAMPLER)
        made = job.bench()
        unit = next(u for u in made.units if u.path == "mid_block.resnets.0")
        settings = replace(
            JOINT["teach"], iterations=150, batch=16, layer_weight=weight, quantized_share=0
        )
        full = capture(made.teacher, [unit.path], made.states)[unit.path]
        reconstruct(made.student, made.teacher, unit, full, made.states, settings, seed=0)
        inner = [f"{unit.path}.conv1", f"{unit.path}.time_emb_proj"]
        held_out = recorded()[0]
        fits[weight] = inner_errors(made, made.student, unit, inner, held_out)
    assert all(fine < plain for fine, plain in zip(fits[0.8], fits[0.0], strict=True))


class _Grabbed(Exception):
    """The job is caught right after weight ranges were set."""


class _Grab:
    """Runs a recipe up to its fit and keeps the job."""

    def method(self, **options):
        from dqlab.methods.method import SetRanges
        from dqlab.methods.recipe import Recipe

        grab = self

        class Look(EdaDm):
            def fit(self, job):
                import copy

                grab.job, grab.teacher = job, copy.deepcopy(job.denoiser)
                SetRanges("weight").run(job)
                raise _Grabbed

        method = Look(**options)
        return Recipe((method,), dict.fromkeys(method.moments(), method))

    def bench(self):
        job = self.job
        units = units_of(job.denoiser, job.anatomy.order, job.anatomy.layers)
        return SimpleNamespace(
            student=job.denoiser, teacher=self.teacher, units=units, states=job.calibration
        )


def test_the_whole_method_runs_and_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = replace(JOINT["teach"], iterations=4, batch=4)
    monkeypatch.setitem(JOINT, "teach", quick)
    chosen = recipe("eda-dm", samples=8)
    found = [
        describe(quantize(pipeline(), chosen, 4, 8, sampler=SAMPLER))["fingerprint"]
        for _ in range(2)
    ]
    assert found[0] == found[1]
