"""Q-Diffusion as a whole, on the tiny U-Net."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from tiny_models import SAMPLER, STEPS, pipeline, recorded

from dqlab import seeds
from dqlab.errors import InvalidInputError
from dqlab.fit import unit_errors, units_of
from dqlab.fit.profiles import ROUNDING
from dqlab.fit.profiles import STEPS as STEP_SETTINGS
from dqlab.formats import Affine
from dqlab.layers import SplitQuantizer, explore, quantizers
from dqlab.methods import describe, load, quantize, recipe
from dqlab.methods.method import SetRanges
from dqlab.methods.reconstruction import Reconstruct
from dqlab.models.families import LATENT_UNET
from dqlab.trajectory import record, replay, tapped


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few iterations; what is measured here does not need more."""
    for table, settings in (
        (ROUNDING, {"iterations": 80, "batch": 8, "rounding_lr": 0.08}),
        (STEP_SETTINGS, {"iterations": 3, "batch": 4}),
    ):
        monkeypatch.setitem(table, "teach", replace(table["teach"], **settings))


def quantized(weights=3, activations=8, **options):
    chosen = recipe("q-diffusion", samples=4, **options)
    return quantize(pipeline(), chosen, weights, activations, sampler=SAMPLER)


@cache
def whole():
    """The full method once, for tests that only look at it."""
    return quantized()


def shortcuts(pipe) -> list[str]:
    return [
        name.removesuffix(".input_quantizer")
        for name, module in pipe.unet.named_modules()
        if isinstance(module, SplitQuantizer) and name.endswith(".input_quantizer")
    ]


def test_the_method_says_what_it_is() -> None:
    chosen = recipe("q_diffusion")
    assert chosen.slug == "q-diffusion"
    assert set(chosen.owners) == {"calibrate", "reshape", "place", "fit"}


def test_exactly_the_up_blocks_shortcuts_are_split() -> None:
    pipe = quantized(reconstruct=False)
    assert len(shortcuts(pipe)) == 4
    assert all("up_blocks" in s and s.endswith("conv_shortcut") for s in shortcuts(pipe))
    for path in shortcuts(pipe):
        for operand in ("input", "weight"):
            parts = getattr(pipe.unet.get_submodule(path), f"{operand}_quantizer").parts
            assert [p.site for p in parts] == [f"{path}.{operand}[{i}]" for i in range(2)]
            assert not torch.equal(parts[0].scale, parts[1].scale)
    assert shortcuts(quantized(reconstruct=False, split=False)) == []


def test_the_calibration_set_is_m_steps_of_n_trajectories() -> None:
    seen = {}

    class Look(type(recipe("q-diffusion").methods[0])):
        def reshape(self, job):
            seen["states"] = job.calibration

    from dqlab.methods.recipe import Recipe

    method = Look(steps=2, samples=3, reconstruct=False)
    quantize(
        pipeline(),
        Recipe((method,), dict.fromkeys(method.moments(), method)),
        8,
        8,
        sampler=SAMPLER,
    )
    states = seen["states"]
    assert len(states) == 2 * 3
    assert states.step.unique().tolist() == [0, 1]
    assert states.seed.unique().tolist() == list(seeds.CALIBRATION[:3])


def test_activation_ranges_cover_all_of_up_to_64_rows() -> None:
    chosen = recipe("q-diffusion", samples=16, steps=3, search=False, reconstruct=False)
    states, _ = record(pipeline(), seeds.CALIBRATION[:16], SAMPLER)
    pipe = quantize(pipeline(), chosen, 8, 8, sampler=SAMPLER)
    low, high = states.x.aminmax()
    site = quantizers(pipe.unet)["conv_in.input"]
    assert len(states) == 48
    torch.testing.assert_close(site.scale, (high - low) / 255)


def test_moving_ranges_see_the_whole_set() -> None:
    """Batches of 16 in random order: 0.95 of the past, 0.05 of the new batch's min-max."""
    chosen = recipe(
        "q-diffusion", samples=16, steps=3, search=False, reconstruct=False, running=True
    )
    states, _ = record(pipeline(), seeds.CALIBRATION[:16], SAMPLER)
    pipe = quantize(pipeline(), chosen, 8, 8, sampler=SAMPLER)
    rows = torch.randperm(48, generator=torch.Generator().manual_seed(0)).split(16)
    low, high = states.x[rows[0]].aminmax()
    for batch in rows[1:]:
        new = states.x[batch].aminmax()
        low, high = 0.95 * low + 0.05 * new.min, 0.95 * high + 0.05 * new.max
    site = quantizers(pipe.unet)["conv_in.input"]
    torch.testing.assert_close(site.scale, (high - low) / 255)


@pytest.mark.parametrize("chained", [True, False])
def test_chained_ranges_are_those_of_the_quantized_network(chained: bool) -> None:
    """Asked again, every site of the quantized network reaches exactly as far as its range."""
    states = recorded()[0][:4]
    chosen = recipe("q-diffusion", search=False, reconstruct=False, chained=chained)
    pipe = quantize(pipeline(), chosen, 8, 2, sampler=SAMPLER, calibration=states)
    found, seen = quantizers(pipe.unet), {}
    sites = [s for s, q in found.items() if ".weight" not in s and q.format]
    with tapped(pipe.unet, sites, lambda site, x: seen.__setitem__(site, x)):
        replay(pipe.unet, states)
    alike = [
        torch.allclose(found[s].format.params(*seen[s].aminmax()).scale, found[s].scale, rtol=1e-5)
        for s in sites
    ]
    assert all(alike) == chained
    assert alike[sites.index("conv_in.input")]


def test_the_papers_policy_spares_no_layer() -> None:
    chosen = recipe("q-diffusion", samples=2, reconstruct=False)
    found = quantizers(quantize(pipeline(), chosen, 4, 6, sampler=SAMPLER, policy="paper").unet)
    assert found["conv_in.weight"].format.bits == found["conv_out.weight"].format.bits == 4
    bits = {operand: found[f"mid_block.attentions.0.{operand}"].format.bits for operand in "qkvp"}
    assert bits == {"q": 6, "k": 6, "v": 6, "p": 8}


def test_text_models_keep_sixteen_softmax_bits_in_the_papers_policy() -> None:
    policy = recipe("q-diffusion").paper_policy(LATENT_UNET)
    assert policy.format("mid_block.attentions.0.p", 4, 8) == Affine(16, "always_zero")
    assert policy.format("mid_block.attentions.0.q", 4, 8) == Affine(8)


def test_the_papers_policy_belongs_to_the_method_that_places() -> None:
    both = recipe("q-diffusion") | recipe("softmax-bias-correction")
    assert both.paper_policy(LATENT_UNET).name == "q-diffusion"
    with pytest.raises(InvalidInputError, match="states no sites and bits of its own"):
        recipe("q-diffusion").without("place").paper_policy(LATENT_UNET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": STEPS + 1}, f"sampler with {STEPS} steps"),
        ({"samples": 513}, "samples=513"),
        ({"samples": 0}, "samples=0"),
    ],
)
def test_sets_that_cannot_be_recorded_are_refused(options, message: str) -> None:
    chosen = recipe("q-diffusion", **options)
    with pytest.raises(InvalidInputError, match=message):
        quantize(pipeline(), chosen, 8, 8, sampler=SAMPLER)


def test_weights_come_first_then_activation_ranges_then_their_steps() -> None:
    phases = []

    class Look(type(recipe("q-diffusion").methods[0])):
        def fit(self, job):
            phases.extend(super().fit(job))
            return [SetRanges("weight"), SetRanges("activation")]

    from dqlab.methods.recipe import Recipe

    method = Look(samples=2)
    quantize(
        pipeline(),
        Recipe((method,), dict.fromkeys(method.moments(), method)),
        8,
        8,
        sampler=SAMPLER,
    )
    kinds = [(type(p), p.name) for p in phases]
    assert kinds == [
        (SetRanges, "weight ranges"),
        (Reconstruct, "rounding"),
        (SetRanges, "activation ranges"),
        (Reconstruct, "step sizes"),
    ]
    assert phases[1].settings.quantized_share == 1
    assert phases[3].settings.quantized_share == 0
    assert (phases[1].settings.p, phases[3].settings.p) == (2.0, 2.4)


def test_blocks_are_closer_to_the_original_than_with_nearest_rounding() -> None:
    held_out, _ = record(pipeline(), seeds.HELD_OUT[:4], SAMPLER)
    learned, nearest = whole(), quantized(reconstruct=False)
    anatomy = explore(learned.unet, lambda: held_out[:1].call(learned.unet))
    units = [u for u in units_of(learned.unet, anatomy.order, anatomy.layers) if u.kind != "layer"]
    errors = [
        unit_errors(q.unet, pipeline().unet, units, held_out, source=learned.unet)
        for q in (learned, nearest)
    ]
    better = [errors[0][u.path] < errors[1][u.path] for u in units]
    assert sum(better) >= 0.9 * len(better)


def test_the_result_is_on_its_grid_and_comes_back_from_disk(tmp_path) -> None:
    pipe, states = whole(), recorded()[0][:4]
    for module in pipe.unet.modules():
        if hasattr(module, "weight_quantizer"):
            assert torch.equal(module.weight, module.weight_quantizer(module.weight))
    pipe.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert shortcuts(again) == shortcuts(pipe)
    assert torch.equal(states.call(again.unet), states.call(pipe.unet))
    assert describe(again)["recipe"]["methods"] == ["q-diffusion"]


def test_the_same_call_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROUNDING, "teach", replace(ROUNDING["teach"], iterations=3))
    first, second = quantized(), quantized()
    assert describe(first)["fingerprint"] == describe(second)["fingerprint"]


def test_weights_alone_can_be_quantized() -> None:
    pipe = quantized(activations=None, reconstruct=False)
    found = quantizers(pipe.unet)
    assert all(q.format is None for s, q in found.items() if ".weight" not in s)
    assert found["up_blocks.0.resnets.0.conv_shortcut.weight[1]"].format.bits == 3


def test_a_shared_calibration_set_is_used_as_given() -> None:
    states = recorded()[0]
    chosen = recipe("q-diffusion", reconstruct=False)
    pipe = quantize(pipeline(), chosen, 8, 8, sampler=SAMPLER, calibration=states)
    assert describe(pipe)["calibration"]["hash"] == states.hash
