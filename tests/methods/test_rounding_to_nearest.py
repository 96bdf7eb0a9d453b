import copy

import pytest
import torch
from tiny_models import SAMPLER, new_pipeline, pipeline, quantized, recorded

import dqlab
from dqlab import seeds
from dqlab.errors import InvalidInputError
from dqlab.formats import parse
from dqlab.layers import Policy, QuantizedLayer, Rule, quantizers
from dqlab.methods import method as method_module
from dqlab.metrics import error_powers, mean_sqnr_db
from dqlab.ranges import MinMax
from dqlab.trajectory import record


def held_out_db(weights, activations) -> float:
    states, _ = record(pipeline(), seeds.HELD_OUT[:2], SAMPLER)
    return mean_sqnr_db(error_powers(states, quantized(weights, activations).unet))


def captured_inputs(unet, states) -> dict[str, list[torch.Tensor]]:
    seen: dict[str, list[torch.Tensor]] = {}
    handles = [
        m.register_forward_pre_hook(
            lambda m, args, name=name: seen.setdefault(name, []).append(args[0])
        )
        for name, m in unet.named_modules()
        if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)
    ]
    with torch.no_grad():
        states.call(unet)
    for handle in handles:
        handle.remove()
    return seen


def test_weight_ranges_are_min_max_per_output_channel() -> None:
    original, found = pipeline().unet, quantizers(quantized(4, 8).unet)
    for name, bits in (("conv_in", 8), ("mid_block.attentions.0.to_q", 4)):
        weight = original.get_submodule(name).weight.detach()
        low = weight.flatten(1).amin(1).clamp(max=0)
        high = weight.flatten(1).amax(1).clamp(min=0)
        scale = (high - low) / (2**bits - 1)
        quantizer = found[f"{name}.weight"]
        assert quantizer.scale.shape == (len(weight), *[1] * (weight.ndim - 1))
        torch.testing.assert_close(quantizer.scale.flatten(), scale)
        assert torch.equal(quantizer.zero_point.flatten(), -(low / scale).round() + 0.0)


def test_weights_lie_on_their_grid() -> None:
    original, found = pipeline().unet, quantized(4, 8).unet
    weight = original.mid_block.attentions[0].to_q.weight.detach()
    quantizer = quantizers(found)["mid_block.attentions.0.to_q.weight"]
    s, z = quantizer.scale, quantizer.zero_point
    expected = s * ((weight / s).round().add(z).clamp(0, 15) - z)
    assert torch.equal(found.mid_block.attentions[0].to_q.weight, expected)


def test_activation_ranges_are_min_max_of_the_inputs_with_weights_quantized() -> None:
    q = quantized(4, 8)
    twin = copy.deepcopy(pipeline().unet)
    for name, module in q.unet.named_modules():
        if isinstance(module, QuantizedLayer):
            twin.get_submodule(name).weight.data.copy_(module.weight)
    found = quantizers(q.unet)
    for name, seen in captured_inputs(twin, recorded()[0]).items():
        low = min(float(x.min()) for x in seen)
        high = max(float(x.max()) for x in seen)
        scale = (max(high, 0) - min(low, 0)) / 255
        assert float(found[f"{name}.input"].scale) == pytest.approx(scale, rel=1e-4), name
        assert found[f"{name}.input"].scale.ndim == 0


def test_softmax_output_has_eight_bits_and_no_zero_point() -> None:
    found = {s: q for s, q in quantizers(quantized(4, 4).unet).items() if s.endswith(".p")}
    assert found
    for quantizer in found.values():
        assert quantizer.format.name == "uint8-zero"
        assert float(quantizer.zero_point) == 0
        assert 0 < float(quantizer.scale) * 255 <= 1


def test_more_bits_are_better() -> None:
    """Each halved step quarters the error: 6 dB a bit. Four bits apart must show."""
    assert held_out_db(8, 8) > held_out_db(6, 6) > held_out_db(4, 4)
    assert held_out_db(8, 8) > held_out_db(4, 4) + 12
    assert held_out_db(8, None) > held_out_db(8, 8)


@pytest.mark.parametrize("bits", ["fp4", "fp8", "int4-narrow", parse("log2-4")])
def test_formats_by_name_and_value(bits) -> None:
    q = quantized(bits, None)
    found = quantizers(q.unet)["mid_block.attentions.0.to_q.weight"]
    assert found.format == parse(bits)
    assert dqlab.describe(q)["weights"] == parse(bits).name
    assert quantizers(q.unet)["conv_in.weight"].format.name == "uint8"


def test_nothing_to_quantize_is_the_original() -> None:
    states, _ = recorded()
    torch.testing.assert_close(
        states.call(quantized(None, None).unet), states.output, rtol=0, atol=1e-5
    )


def test_policy_of_your_own() -> None:
    policy = Policy("mine", (Rule("up_blocks.*", None), Rule("*.weight*", parse("fp8")),
                             Rule("*", "activations")))  # fmt: skip
    q = dqlab.quantize(
        pipeline(), "rtn", 4, 8, sampler=SAMPLER, calibration=recorded()[0], policy=policy
    )
    for site, quantizer in quantizers(q.unet).items():
        wanted = None if site.startswith("up_blocks") else parse("fp8")
        assert quantizer.format == wanted or not site.endswith(".weight")
    assert dqlab.describe(q)["policy"] == policy.to_dict()


def test_same_call_same_bytes() -> None:
    again = dqlab.quantize(pipeline(), "rtn", 4, 8, sampler=SAMPLER, calibration=recorded()[0])
    assert dqlab.describe(again)["fingerprint"] == dqlab.describe(quantized(4, 8))["fingerprint"]
    for name, value in quantized(4, 8).unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], value)


def test_default_calibration_is_the_uniform_set() -> None:
    q = dqlab.quantize(new_pipeline(), "rtn", 8, 8, sampler=SAMPLER)
    states, _ = record(pipeline(), seeds.CALIBRATION[:32], SAMPLER)
    assert dqlab.describe(q)["calibration"] == {"hash": states.hash, "rows": 32 * 3}


def test_the_schedule_is_the_samplers_whatever_the_calibration_set() -> None:
    states, _ = record(pipeline(), range(4), SAMPLER, batch_size=2)
    for chosen in (states, states[states.step > 0], states[torch.tensor([7, 1, 4])]):
        q = dqlab.quantize(pipeline(), "rtn", 8, 8, sampler=SAMPLER, calibration=chosen)
        assert q.unet.step_context.schedule.tolist() == [999.0, 666.0, 332.0]
        assert dqlab.describe(q)["schedule"] == [999.0, 666.0, 332.0]


def facts(pipe):
    hooks = [
        len(getattr(m, name))
        for m in pipe.unet.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    ]
    return {
        "state": {k: v.clone() for k, v in pipe.unet.state_dict().items()},
        "kinds": [type(m) for m in pipe.unet.modules()],
        "hooks": sum(hooks),
        "config": dict(pipe.unet.config),
        "pipeline config": dict(pipe.config),
        "grad": [p.requires_grad for p in pipe.unet.parameters()],
        "training": pipe.unet.training,
        "bar": dict(pipe._progress_bar_config),
    }


def assert_untouched(pipe, before) -> None:
    after = facts(pipe)
    states = before["state"], after["state"]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert {k: v for k, v in after.items() if k != "state"} == {
        k: v for k, v in before.items() if k != "state"
    }
    assert "quantization_config" not in pipe.unet.config


def test_original_is_untouched() -> None:
    pipe = new_pipeline()
    pipe.unet.train()
    pipe.unet.requires_grad_(True)
    before = facts(pipe)
    q = dqlab.quantize(pipe, "rtn", 4, 4, sampler=SAMPLER, calibration=recorded()[0])
    assert_untouched(pipe, before)
    assert dqlab.describe(pipe) == {}
    assert type(q) is type(pipe)
    assert q.scheduler is not pipe.scheduler
    assert not any(a is b for a in q.unet.parameters() for b in pipe.unet.parameters())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError, OSError])
def test_original_is_untouched_when_stopped_in_the_middle(monkeypatch, stop) -> None:
    class Stopping(MinMax):
        def update(self, x):
            raise stop

    pipe = new_pipeline()
    before = facts(pipe)
    monkeypatch.setattr(method_module, "MinMax", Stopping)
    with pytest.raises(stop):
        dqlab.quantize(pipe, "rtn", 4, 4, sampler=SAMPLER, calibration=recorded()[0])
    assert_untouched(pipe, before)


def test_original_is_untouched_when_stopped_while_recording(monkeypatch) -> None:
    pipe, count = new_pipeline(), iter(range(100))
    before, step = facts(pipe), type(pipe.scheduler).step

    def stopping(*args, **named):
        if next(count) == 1:
            raise KeyboardInterrupt
        return step(*args, **named)

    monkeypatch.setattr(type(pipe.scheduler), "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        dqlab.quantize(pipe, "rtn", 4, 4, sampler=SAMPLER)
    assert_untouched(pipe, before)


def test_observer_errors_name_the_site(monkeypatch) -> None:
    class Refusing(MinMax):
        def update(self, x):
            raise InvalidInputError("no.")

    monkeypatch.setattr(method_module, "MinMax", Refusing)
    with pytest.raises(InvalidInputError, match=r"At [\w.]+\.(input|q|k|v|p): no\."):
        dqlab.quantize(pipeline(), "rtn", 4, 4, sampler=SAMPLER, calibration=recorded()[0])


def test_description_says_how_it_was_made() -> None:
    found = dqlab.describe(quantized(4, 8))
    assert found["recipe"] == {"methods": ["rtn"], "options": [{}], "moments": {}}
    assert (found["weights"], found["activations"]) == (4, 8)
    assert found["sampler"] == {"num_inference_steps": 3, "eta": 0.0, "guidance_scale": None}
    assert found["policy"]["name"] == "common"
    assert found["uncovered"] == []
    assert set(found["formats"]) == set(quantizers(quantized(4, 8).unet))
