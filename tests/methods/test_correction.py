import copy
import inspect

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from tiny_diffusion import (
    STEPS,
    count_calls,
    guided_pipeline,
    images,
    new_pipeline,
    sampler,
    schedule,
    with_correction,
)

from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.methods.corrected import prediction_correction
from dqlab.methods.correction import Correction
from dqlab.metrics import error_powers
from dqlab.trajectory import record


class Nothing(Correction):
    """Overrides every hook and changes nothing."""

    kind = "test-nothing"

    def before(self, x, step):
        return x.clone()

    def eps(self, eps, step):
        return eps.clone()

    def sigma(self, sigma, step):
        return sigma.clone()

    def noise(self, noise, step):
        return noise.clone()

    def after(self, x, step):
        return x.clone()


class Shift(Correction):
    """eps + table."""

    kind = "test-shift"

    def eps(self, eps, step):
        return eps + self.at("by", step)


class Before(Correction):
    kind = "test-before"

    def before(self, x, step):
        return x + 0.25 if step.index == 0 else x


class After(Correction):
    kind = "test-after"

    def after(self, x, step):
        return x + 0.5 if step.index == STEPS - 1 else x


class Silence(Correction):
    kind = "test-silence"

    def noise(self, noise, step):
        return torch.zeros_like(noise)


class Count(Correction):
    """Remembers how many steps of this trajectory it saw, and draws from its own generator."""

    kind = "test-count"
    remembers = True

    def __init__(self):
        super().__init__({})
        self.seen, self.drawn = [], []

    def eps(self, eps, step):
        step.state["count"] = step.state.get("count", 0) + 1
        self.seen.append(step.state["count"])
        self.drawn.append(float(torch.randn((), generator=step.generator)))
        return eps


class Ask(Correction):
    """Asks the network again at every step; declares `calls`."""

    kind = "test-ask"

    def __init__(self, calls):
        super().__init__({})
        self.calls, self.same = calls, []

    def eps(self, eps, step):
        self.same.append(torch.equal(step.predict(step.x, step.t), eps))
        return eps


def shift(*by: float) -> Shift:
    return Shift({"by": torch.tensor(by)})


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_correction_that_changes_nothing_is_bit_identical(eta) -> None:
    plain = images(new_pipeline(clip_sample=True), eta)
    pipe = with_correction(new_pipeline(clip_sample=True), Nothing({}), eta)
    assert torch.equal(images(pipe, eta), plain)


def test_signatures_are_kept() -> None:
    pipe = with_correction(new_pipeline(), shift(0, 0, 0))
    assert inspect.signature(type(pipe.scheduler).step) == inspect.signature(DDIMScheduler.step)
    assert {"eta", "generator"} <= inspect.signature(pipe.scheduler.step).parameters.keys()
    assert inspect.signature(type(pipe).__call__) == inspect.signature(DDIMPipeline.__call__)
    assert isinstance(pipe, DDIMPipeline) and isinstance(pipe.scheduler, DDIMScheduler)


def test_eps_is_what_the_scheduler_gets() -> None:
    """One DDIM step is linear in eps: x_p moves by C_t times the shift."""
    pipe = with_correction(new_pipeline(), shift(0.0, 0.0, 0.125))
    last = int(schedule(pipe)[-1])
    a_t = pipe.scheduler.alphas_cumprod[last]
    slope = -((1 - a_t) / a_t).sqrt()  # the last step goes to a_p = 1
    moved = slope * 0.125 / 2  # pictures are x / 2 + 1 / 2
    plain, other = images(new_pipeline()), images(pipe)
    inside = (plain > 0.01) & (plain < 0.99) & (other > 0.01) & (other < 0.99)
    assert inside.any()
    torch.testing.assert_close(other[inside], plain[inside] + moved, atol=1e-5, rtol=0)


def test_before_edits_what_network_and_scheduler_see() -> None:
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    plain, pipe = new_pipeline(), with_correction(new_pipeline(), Before({}))
    x = start + 0.25
    for t in schedule(plain):
        with torch.no_grad():
            x = plain.scheduler.step(plain.unet(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(images(pipe), (x / 2 + 0.5).clamp(0, 1), atol=1e-6, rtol=0)


def test_after_edits_the_next_sample() -> None:
    plain, other = images(new_pipeline()), images(with_correction(new_pipeline(), After({})))
    expected = (plain + 0.25).clamp(0, 1)
    inside = (plain > 0) & (plain < 1)
    torch.testing.assert_close(other[inside], expected[inside], atol=1e-6, rtol=0)


def test_noise_is_what_is_added() -> None:
    """Without noise at eta 1 the sample is the mean, which the scheduler gives for z = 0."""
    plain, pipe = new_pipeline(), with_correction(new_pipeline(), Silence({}), eta=1.0)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for t in schedule(plain):
        with torch.no_grad():
            eps = plain.unet(x, t).sample
        zero = torch.zeros_like(x)
        x = plain.scheduler.step(eps, t, x, eta=1.0, variance_noise=zero).prev_sample
    torch.testing.assert_close(images(pipe, 1.0), (x / 2 + 0.5).clamp(0, 1), atol=1e-6, rtol=0)


def test_state_and_generator_start_anew_with_every_trajectory() -> None:
    correction = Count()
    pipe = with_correction(new_pipeline(), correction)
    images(pipe), images(pipe)
    assert correction.seen == [1, 2, 3, 1, 2, 3]
    assert correction.drawn[:3] == correction.drawn[3:] and len(set(correction.drawn)) == 3


def test_a_loop_of_ones_own_is_corrected_and_resets_too() -> None:
    correction = Count()
    pipe = with_correction(new_pipeline(), correction)
    for _ in range(2):
        x = torch.zeros(1, 3, 8, 8)
        for t in schedule(pipe):
            x = pipe.scheduler.step(torch.zeros_like(x), t, x, return_dict=False)[0]
    assert correction.seen == [1, 2, 3, 1, 2, 3]


def test_predict_repeats_the_network_and_is_counted() -> None:
    correction = Ask(calls=STEPS)
    pipe = with_correction(new_pipeline(), correction)
    calls = count_calls(pipe.unet)
    assert torch.equal(images(pipe), images(new_pipeline()))
    assert correction.same == [True] * STEPS and len(calls) == 2 * STEPS


def test_undeclared_network_calls_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"test-ask asked the network 2 times.*declares 1"):
        images(with_correction(new_pipeline(), Ask(calls=1)))


@pytest.mark.parametrize("correction", [Ask(calls=3), Before({})], ids=["asks", "edits input"])
def test_what_needs_the_network_is_refused_outside_the_pipeline(correction) -> None:
    pipe = with_correction(new_pipeline(), correction)
    x, t = torch.zeros(1, 3, 8, 8), schedule(pipe)[0]
    with pytest.raises(InvalidInputError, match="inside a call of the pipeline"):
        pipe.scheduler.step(x, t, x)


def test_other_sampler_settings_are_refused() -> None:
    pipe = with_correction(new_pipeline(), shift(0, 0, 0))
    with pytest.raises(InvalidInputError, match=r"fitted for 3 sampling steps.*set to 4"):
        images(pipe, steps=4)
    with pytest.raises(InvalidInputError, match=r"fitted for eta=0.*eta=1"):
        images(pipe, eta=1.0)


@pytest.mark.parametrize(
    "swap",
    [
        lambda pipe: DDIMScheduler.from_config(pipe.scheduler.config),
        lambda pipe: DDPMScheduler.from_config(pipe.scheduler.config),
        lambda pipe: type(pipe.scheduler).from_config(pipe.scheduler.config),
        lambda pipe: copy.deepcopy(pipe.scheduler),
    ],
    ids=["rebuilt", "another class", "rebuilt by its own class", "copied"],
)
def test_a_replaced_scheduler_is_refused(swap, tmp_path) -> None:
    pipe = with_correction(new_pipeline(), shift(0, 0, 0))
    pipe.scheduler = swap(pipe)
    with pytest.raises(InvalidInputError, match="replaced or rebuilt"):
        images(pipe)
    with pytest.raises(InvalidInputError, match="replaced or rebuilt"):
        pipe.save_pretrained(tmp_path)


def test_another_guidance_scale_is_refused(monkeypatch) -> None:
    pipe = with_correction(guided_pipeline(monkeypatch), shift(0, 0, 0))
    images(pipe, guidance_scale=2.0)
    with pytest.raises(InvalidInputError, match=r"guidance_scale=2, but .* with 7.5"):
        images(pipe)


def test_predict_repeats_the_guided_call(monkeypatch) -> None:
    correction = Ask(calls=STEPS)
    images(with_correction(guided_pipeline(monkeypatch), correction), guidance_scale=2.0)
    assert correction.same == [True] * STEPS


def test_before_edits_every_branch_alike(monkeypatch) -> None:
    seen = []
    pipe = with_correction(guided_pipeline(monkeypatch), Before({}))
    pipe.unet.conv_in.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images(pipe, guidance_scale=2.0)
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 0.25
    assert torch.equal(seen[0], torch.cat([start, start]))


def test_sqnr_after_guidance_sees_the_correction(monkeypatch) -> None:
    pipe = guided_pipeline(monkeypatch)
    states, _ = record(pipe, range(2), sampler())
    made = with_correction(pipe, shift(0.5, 0.5, 0.5))
    powers = error_powers(states, pipe.unet, correct=prediction_correction(made))
    assert powers["noise"].tolist() == pytest.approx([0.25 * 192] * 6, rel=1e-4)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"num_inference_steps": 6}, "num_inference_steps=6"),
        ({"eta": 1.0}, "eta=1"),
        ({"guidance_scale": 3.0}, "guidance_scale=3"),
    ],
)
def test_sqnr_on_states_of_another_setting_is_refused(other, told, monkeypatch) -> None:
    """Six steps visit the timesteps of three, too."""
    pipe = guided_pipeline(monkeypatch)
    states, _ = record(pipe, range(1), sampler() | other)
    correct = prediction_correction(with_correction(pipe, shift(0.5, 0.5, 0.5)))
    eps, rows = states.guided(states.output)
    with pytest.raises(InvalidInputError, match=rf"fitted for .*, but these .* with .*{told}"):
        correct(eps, states[rows])


def test_a_deep_copy_is_whole_and_separate() -> None:
    pipe = with_correction(new_pipeline(), shift(0.1, 0.2, 0.3))
    twin = copy.deepcopy(pipe)
    before = images(pipe)
    pipe.corrector.correction.tables["by"].zero_()
    assert twin.scheduler.corrector is twin.corrector is not pipe.corrector
    assert torch.equal(images(twin), before)
    assert not torch.equal(images(pipe), before)


def test_schedulers_without_outside_noise_are_refused() -> None:
    pipe = DDPMPipeline(new_pipeline().unet, DDPMScheduler())
    with pytest.raises(NotApplicableError, match="test-silence edits the sampler's noise"):
        with_correction(pipe, Silence({}))
    assert type(pipe) is DDPMPipeline


def test_tables_must_be_finite() -> None:
    with pytest.raises(InvalidInputError, match="'by' of test-shift is not finite at step 1"):
        shift(0.0, float("nan"), 0.0)


def test_sqnr_sees_the_corrected_prediction() -> None:
    """On the full-precision network the only error is the planted one, b_k at step k."""
    by = (0.5, -0.25, 0.125)
    pipe = new_pipeline()
    states, _ = record(pipe, range(3), sampler())
    shuffled = states[torch.randperm(len(states))]
    made = prediction_correction(with_correction(pipe, shift(*by)))
    powers = error_powers(shuffled, pipe.unet, correct=made)
    expected = [b * b * 3 * 8 * 8 for b in by for _ in range(3)]
    assert powers["noise"].tolist() == pytest.approx(expected, rel=1e-4)


def test_half_precision_stays_half() -> None:
    """Tables per channel are in single precision and would carry the sample along."""

    class Channels(Correction):
        kind = "test-channels"

        def eps(self, eps, step):
            return eps + self.at("by", step)

        noise = after = eps

    pipe = new_pipeline()
    pipe.unet.half()
    made = with_correction(pipe, Channels({"by": torch.full((STEPS, 3, 1, 1), 0.1)}), eta=1.0)
    assert images(made, 1.0).dtype is torch.float16


class Alphas(Correction):
    """Reads the schedule, as corrections of the sampler's variance do."""

    kind = "test-alphas"

    def eps(self, eps, step):
        return eps * (step.alphas[0] / step.alphas[1])


@pytest.mark.parametrize("last", [None, 10])
def test_sqnr_does_not_depend_on_what_the_pipeline_ran_last(last) -> None:
    pipe = new_pipeline()
    states, _ = record(pipe, range(2), sampler())
    made = with_correction(pipe, Alphas({}))
    wanted = prediction_correction(made)(states.output, states)
    made.scheduler.num_inference_steps = last
    assert torch.equal(prediction_correction(made)(states.output, states), wanted)
    assert made.scheduler.num_inference_steps == last


def test_sqnr_is_refused_for_corrections_of_a_whole_run() -> None:
    with pytest.raises(NotApplicableError, match="final samples"):
        prediction_correction(with_correction(new_pipeline(), Count()))


def test_without_an_edit_of_eps_the_network_itself_predicts() -> None:
    assert prediction_correction(with_correction(new_pipeline(), After({}))) is None
    assert prediction_correction(new_pipeline()) is None
