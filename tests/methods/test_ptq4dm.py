"""PTQ4DM as a whole, on the tiny U-Net and on a made-up layer whose range drifts."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_models import SAMPLER, STEPS, pipeline, recorded

from dqlab import seeds
from dqlab.errors import InvalidInputError, UnknownNameError
from dqlab.formats import Affine
from dqlab.layers import quantizers
from dqlab.methods import describe, quantize, recipe
from dqlab.methods.centred import METRICS, width_rule
from dqlab.methods.unet_calibration.ptq4dm import Ptq4dm
from dqlab.models.families import PIXEL_UNET, Sampler
from dqlab.ranges import min_max
from dqlab.reference.ptq4dm import time_steps
from dqlab.trajectory import record


def calibrated(seed: int = 0, **options):
    job = SimpleNamespace(
        original=pipeline(), sampler=Sampler.of(SAMPLER), profile="teach", seed=seed
    )
    return Ptq4dm(**options).calibrate(job)


def made(**options):
    return quantize(pipeline(), recipe("ptq4dm", **options), 8, 8, sampler=SAMPLER)


def test_steps_are_normally_distributed_with_t_0_at_the_picture() -> None:
    t = time_steps(160, STEPS, generator=torch.Generator().manual_seed(0))
    found = calibrated().step.bincount(minlength=STEPS)
    assert found.tolist() == t.bincount(minlength=STEPS).flip(0).tolist()
    assert found[STEPS - 1] > found[0] > 0  # N(0.4 T, 0.4 T): more near the picture


@pytest.mark.parametrize(("mu", "step"), [(0.0, STEPS - 1), (1.0, 0)])
def test_a_state_is_what_the_network_was_asked_at_its_step(mu: float, step: int) -> None:
    """Neither the reversed pairing nor the output of the step, and the network's own time."""
    chosen = calibrated(samples=4, mu=mu, sigma=0.0)
    assert chosen.step.tolist() == [step] * 4
    times = recorded()[0].t.unique_consecutive()
    assert torch.equal(chosen.t, times[step].expand(4))
    states, _ = record(pipeline(), seeds.CALIBRATION[:32], SAMPLER)
    for row in range(4):
        same = (states.seed == chosen.seed[row]) & (states.step == step)
        assert torch.equal(chosen.x[row], states.x[same][0])


def test_samples_come_from_different_trajectories_and_repeat_with_the_seed() -> None:
    first, again, other = calibrated(samples=24), calibrated(samples=24), calibrated(1, samples=24)
    assert len(first.seed.unique()) == 24
    assert first.hash == again.hash != other.hash
    assert len(calibrated(samples=1)) == 1


def test_a_crowded_step_draws_on_more_trajectories() -> None:
    crowded = calibrated(samples=40, sigma=0.0)
    assert len(crowded.seed.unique()) == 40


def test_levels_lie_around_zero_and_every_site_has_a_range() -> None:
    for symmetric, name in ((True, "uint8-offset"), (False, "uint8")):
        q = made(samples=8, symmetric=symmetric)
        found = quantizers(q.unet)
        assert found["mid_block.resnets.0.conv1.weight"].format.name == name
        assert found["mid_block.attentions.0.p"].format.name == "uint8-zero"
        assert all(bool(s.range.scale.isfinite().all()) for s in found.values() if s.format)
        assert describe(q)["calibration"]["rows"] == 8


def test_every_range_metric_is_another_range() -> None:
    x = torch.randn(1, 5_000, generator=torch.Generator().manual_seed(0)) ** 3
    found = {float(width_rule(m)(x, Affine(4, "sym_offset"))[1]) for m in METRICS}
    assert len(found) >= 3
    states, scales = recorded()[0][:2], set()
    for metric in ("mse", "l1"):
        chosen = recipe("ptq4dm", metric=metric)
        q = quantize(pipeline(), chosen, 8, 4, sampler=SAMPLER, calibration=states)
        scales.add(float(quantizers(q.unet)["mid_block.resnets.0.conv1.input"].range.scale))
    assert len(scales) == 2
    with pytest.raises(UnknownNameError, match="mse, l1, cosine, kl"):
        quantize(
            pipeline(), recipe("ptq4dm", metric="l7"), 8, 4, sampler=SAMPLER, calibration=states
        )


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_chooses_among_the_same_hundred_widths(metric: str) -> None:
    """One of them is below a fifth: a lone 100 among 20,000 unit normals is not worth a level.

    Cut to 5 it costs 95 / 20,000 in L1; kept, the step of 200 / 255 costs others a quarter of it.
    """
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    x[0] = 100.0
    low, high = width_rule(metric)(x[None], Affine(8, "sym_offset"))
    assert float(high) == -float(low)
    assert float(high) == pytest.approx(round(float(high)), abs=1e-3)
    if metric == "l1":
        assert float(high) < 20


def test_values_that_a_histogram_tells_apart_are_not_cut_off() -> None:
    """Each of 60 values has a bin of its own, so by divergence all widths are alike."""
    x = torch.randn(1, 60, generator=torch.Generator().manual_seed(0))
    low, high = width_rule("kl")(x, Affine(8, "sym_offset"))
    assert float(high) == float(x.abs().max()) == -float(low)


@pytest.mark.parametrize("slug", ["ptq4dm", "eda-dm"])
def test_the_papers_policies_are_what_was_quantized(slug: str) -> None:
    policy = recipe(slug).paper_policy(PIXEL_UNET)
    assert policy.name == slug
    assert policy.format("conv_in.weight", 4, 6) == Affine(8)
    assert policy.format("mid_block.resnets.0.conv1.input", 4, 6) == Affine(6)
    assert policy.format("mid_block.attentions.0.to_q.weight", 4, 6) == Affine(4)
    operands = [policy.format(f"mid_block.attentions.0.{x}", 4, 6) for x in "qkvp"]
    wanted = [Affine(6)] * 3 + [Affine(8, "always_zero")]
    assert operands == ([None] * 4 if slug == "ptq4dm" else wanted)


def test_impossible_settings_are_refused_before_anything_changes() -> None:
    for options in ({"mu": 2.0}, {"sigma": -1.0}, {"samples": 0}):
        with pytest.raises(InvalidInputError):
            made(**options)


def test_constant_activations_have_finite_ranges() -> None:
    states = recorded()[0][:2]
    flat = replace(states, x=torch.zeros_like(states.x))
    q = quantize(pipeline(), "ptq4dm", 8, 8, sampler=SAMPLER, calibration=flat)
    assert all(bool(s.range.scale.isfinite().all()) for s in quantizers(q.unet).values())


def error_at(values: torch.Tensor, seen: torch.Tensor) -> float:
    fmt = Affine(8, "sym_offset")
    return float((fmt.fake_quant(values, min_max(seen, fmt)) - values).square().mean())


def test_where_ranges_drift_many_steps_beat_one() -> None:
    """A made-up layer that reaches 8 times as far at its widest step as at its narrowest.

    One narrow step's range clips the widest step: of uniform values on [-8, 8], those beyond 1
    lose (1/8) int_1^8 (x - 1)^2 dx = 7^3 / 24 on average. Drawn steps include a wide one, and
    the step of that comb is at most 16 / 255.
    """
    T, generator = 20, torch.Generator().manual_seed(0)
    reach = torch.logspace(3, 0, T, base=2)  # t = 0, the picture, reaches furthest
    values = (torch.rand(T, 4_096, generator=generator) * 2 - 1) * reach[:, None]
    t = time_steps(64, T, generator=generator)
    drawn = max(error_at(values[k], values[t]) for k in range(T))
    noise = max(error_at(values[k], values[T - 1]) for k in range(T))
    assert drawn < (16 / 255) ** 2 / 12 * 1.05
    assert noise == pytest.approx(7**3 / 24, rel=0.1)
