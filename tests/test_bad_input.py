"""Whatever is wrong: one clear error that names thing and fix, and the caller's model whole."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_models import SAMPLER, new_pipeline, pipeline, recorded

import dqlab
from dqlab.errors import DqlabError, InvalidInputError, UnknownNameError
from dqlab.layers import common_policy
from dqlab.methods import Method, Paper, Recipe


@pytest.fixture
def pipe():
    """A pipeline of the test's own; it must come out as it went in."""
    made = new_pipeline()
    yield made
    state = pipeline().unet.state_dict()
    for name, value in made.unet.state_dict().items():
        if not getattr(made, "spoiled", False):
            assert torch.equal(value, state[name])
    assert [type(m) for m in made.unet.modules()] == [type(m) for m in pipeline().unet.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.unet.modules())
    assert dqlab.describe(made) == {}


def refused(error, match, pipe, recipe="rtn", weights=4, activations=8, **named):
    named = {"sampler": SAMPLER, "calibration": recorded()[0]} | named
    with pytest.raises(error, match=match) as raised:
        dqlab.quantize(pipe, recipe, weights, activations, **named)
    return str(raised.value)


@pytest.mark.parametrize("name", ["q-difusion", "", "rtn ", "RTN2"])
def test_unknown_method(pipe, name) -> None:
    refused(UnknownNameError, f"No method {name!r}; there are rtn", pipe, name)


@pytest.mark.parametrize("which", ["weights", "activations"])
@pytest.mark.parametrize("bits", [0, 1, 9, -4, 64, 3.5, 4.0, True, False, math.nan])
def test_impossible_numbers_of_bits(pipe, which, bits) -> None:
    refused(InvalidInputError, rf"{which}={bits!r} .*2, 3, 4, 5, 6, 7, 8.*'fp8'", pipe,
            **{which: bits})  # fmt: skip


@pytest.mark.parametrize("which", ["weights", "activations"])
@pytest.mark.parametrize("bits", ["int", "fp3", "", "4", "uint4x", [4], {"bits": 4}, 4 + 0j])
def test_unknown_formats(pipe, which, bits) -> None:
    found = refused(UnknownNameError, "unknown number format", pipe, **{which: bits})
    assert repr(bits) in found
    assert "fp8" in found


@pytest.mark.parametrize("softmax", [0, 17, True, "fp3", 2.5])
def test_impossible_softmax_bits(pipe, softmax, monkeypatch) -> None:
    monkeypatch.setattr("dqlab.methods.run._calibrate", lambda *_: pytest.fail("too late"))
    if softmax == 2.5:
        monkeypatch.undo()
    refused(DqlabError, r"At .*\.p: ", pipe, softmax=softmax)


def test_impossible_bits_are_refused_before_the_work(pipe, monkeypatch) -> None:
    monkeypatch.setattr("dqlab.methods.run._calibrate", lambda *_: pytest.fail("too late"))
    for bits in (0, 3.5, True, "int", "fp3", [4]):
        for which in ("weights", "activations"):
            with pytest.raises(DqlabError):
                dqlab.quantize(pipe, "rtn", **{"weights": 4, "activations": 4, which: bits})


@pytest.mark.parametrize(
    ("named", "match"),
    [
        ({"profile": "fast"}, "profile='fast'; choose one of teach, paper"),
        ({"policy": "papers"}, "policy='papers'; choose 'common' or 'paper', or pass a Policy"),
        ({"policy": "paper"}, "rtn states no sites and bits of its own"),
        ({"policy": None}, "policy=None"),
        ({"seed": -1}, "seed=-1; choose a whole number"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"seed": "a"}, "seed='a'"),
        ({"seed": None}, "seed=None"),
        ({"state_dir": 5}, "state_dir=5; give the path of a folder"),
        ({"sampler": {"steps": 4}}, "known are num_inference_steps"),
        ({"sampler": {"num_inference_steps": 0}}, "num_inference_steps=0; choose 1 to 1000"),
        ({"sampler": {"eta": 3}}, "eta=3"),
        ({"sampler": {"num_inference_steps": "many"}}, "num_inference_steps='many'"),
        ({"sampler": {"num_inference_steps": 2.5}}, "num_inference_steps=2.5"),
        ({"sampler": {"eta": None}}, "eta=None"),
        ({"sampler": {"guidance_scale": "strong"}}, "guidance_scale='strong'"),
        ({"sampler": 20}, "sampler=20"),
    ],
)
def test_impossible_settings(pipe, named, match) -> None:
    refused(InvalidInputError, match, pipe, **named)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["conv_in.weight", "mid_block.attentions.0.to_q.bias"])
def test_weights_that_are_no_numbers(pipe, name, value) -> None:
    pipe.spoiled = True
    parameter = dict(pipe.unet.named_parameters())[name]
    with torch.no_grad():
        parameter.view(-1)[3] = value
    refused(InvalidInputError, rf"weight {name} of the unet holds NaN or infinity", pipe)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_calibration_that_is_no_number(pipe, value) -> None:
    states = recorded()[0]
    x = states.x.clone()
    x[5, 0, 0, 0] = value
    match = r"calibration set holds NaN or infinity in row 5 \(step 1, seed 1\)"
    refused(InvalidInputError, match, pipe, calibration=replace(states, x=x))


def test_overflow_on_the_way_names_the_layer(pipe) -> None:
    pipe.spoiled = True
    with torch.no_grad():
        pipe.unet.conv_in.weight.fill_(1e38)
    refused(InvalidInputError, r"At [\w.]+\.input: .*(NaN|infinite)", pipe)


def test_empty_calibration(pipe) -> None:
    refused(InvalidInputError, "calibration set is empty", pipe, calibration=recorded()[0][:0])


@pytest.mark.parametrize("given", [torch.zeros(2, 3, 8, 8), "uniform", recorded, 7])
def test_calibration_that_is_no_set_of_states(pipe, given) -> None:
    refused(InvalidInputError, r"calibration is a \w+; pass what dqlab\.trajectory\.record", pipe,
            calibration=given)  # fmt: skip


def test_calibration_of_another_model(pipe) -> None:
    states = recorded()[0]
    other = replace(states, x=states.x[:, :2])
    refused(InvalidInputError, r"(?s)UNet2DModel cannot run on the calibration set", pipe,
            calibration=other)  # fmt: skip


def test_a_method_on_a_model_it_does_not_fit(pipe) -> None:
    for given in (pipe.unet, pipe.scheduler, None, "pixel-unet"):
        with pytest.raises(DqlabError, match=r"how to drive a \w+; it knows DDIMPipeline"):
            dqlab.quantize(given, "rtn", 4, 8)


def test_constant_and_one_sided_activations_are_no_error(pipe) -> None:
    states = recorded()[0]
    for x in (torch.zeros_like(states.x), states.x.abs(), -states.x.abs() - 1):
        q = dqlab.quantize(pipe, "rtn", 4, 8, sampler=SAMPLER, calibration=replace(states, x=x))
        assert states.call(q.unet).isfinite().all()


def test_dead_channels_are_no_error() -> None:
    dead = new_pipeline()
    with torch.no_grad():
        dead.unet.conv_in.weight[0] = 0
        dead.unet.mid_block.attentions[0].to_q.weight.zero_()
    q = dqlab.quantize(dead, "rtn", 2, 2, sampler=SAMPLER, calibration=recorded()[0])
    assert q.unet.conv_in.weight[0].abs().max() == 0
    assert recorded()[0].call(q.unet).isfinite().all()


def test_sampling_off_the_bound_schedule_works_for_plain_rounding(pipe) -> None:
    q = dqlab.quantize(pipe, "rtn", 8, 8, sampler=SAMPLER, calibration=recorded()[0])
    assert q(num_inference_steps=7, output_type="np").images.shape == (1, 8, 8, 3)


def test_policy_that_forgets_a_site(pipe) -> None:
    rules = common_policy("conv_in", "conv_out").rules[:-1]
    policy = replace(common_policy("a", "b"), rules=rules)
    refused(InvalidInputError, "no rule for site .*; add one", pipe, policy=policy)


class Misplaced(Method):
    """Gives formats to other sites than there are."""

    slug = "misplaced"
    paper = Paper("Misplaced", "here", "0000.00000")
    category = "test"

    def __init__(self, change):
        self.change = change

    def formats(self, job):
        found = super().formats(job)
        self.change(found)
        return found


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda f: f.pop("conv_in.input"), "gave no format for conv_in.input"),
        (lambda f: f.update(conv_inn=None), "gave formats for conv_inn, which are no sites"),
    ],
)
def test_formats_that_do_not_meet_the_sites(pipe, change, match) -> None:
    method = Misplaced(change)
    with pytest.raises(InvalidInputError, match=match):
        dqlab.quantize(pipe, Recipe((method,), {"place": method}), 4, 8, sampler=SAMPLER,
                       calibration=recorded()[0])  # fmt: skip


@pytest.mark.parametrize("name", [None, 3, b"pixel-unet", ["pixel-unet"], "a" * 5000])
def test_what_no_pipeline_can_be_loaded_from(name) -> None:
    with pytest.raises(InvalidInputError, match=r"Cannot load .*give a shipped name"):
        dqlab.load(name)
