"""Learned rounding and step sizes: the classic cases, and what a fit must never do."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from wrapped_unet import bench

from dqlab.engine import TrainingDivergedError
from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.fit import (
    Settings,
    capture,
    output_gradients,
    reconstruct,
    reconstruct_all,
    unit_errors,
)
from dqlab.fit.adaround import SoftRounding, harden, soften
from dqlab.fit.capture import Captured
from dqlab.fit.profiles import JOINT, ROUNDING, STEPS
from dqlab.fit.steps import activation_quantizers, dropped, learnable_steps
from dqlab.fit.units import Unit
from dqlab.formats import Affine, Log2, Range
from dqlab.layers import Quantizer, StepContext, split_layer
from dqlab.layers.wrap import wrap_layer
from dqlab.ranges import min_max

QUICK = Settings(20, 4, rounding_lr=0.1, cosine=False, lam=0.03)
MID = "mid_block.resnets.0"


def lone_layer(weight: torch.Tensor, scale: float, sizes=None) -> nn.Module:
    """A model of one linear layer `layer` with a 4-bit signed weight of known step."""
    model = nn.Module()
    model.layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    model.layer.weight.data.copy_(weight)
    if sizes:
        split_layer(model.layer, sizes)
    wrap_layer(model.layer, "layer", StepContext())
    for quantizer, _ in model.layer.weight_quantizer.pieces(model.layer.weight):
        quantizer.format = Affine(4, "sym_signed_narrow")
        quantizer.set_range(Range(torch.tensor(scale), torch.tensor(0.0)))
    return model.requires_grad_(False)


def fit_lone(model: nn.Module, x: torch.Tensor, settings: Settings):
    """Reconstruct that layer on inputs x."""
    teacher = copy.deepcopy(model)
    teacher.layer.weight_quantizer.active = False
    for quantizer, _ in teacher.layer.weight_quantizer.pieces(teacher.layer.weight):
        quantizer.active = False
    spec = torch.utils._pytree.tree_flatten(((x,), {}))[1]
    full = Captured(len(x), [x], [True], spec, teacher.layer(x))
    unit = Unit("layer", "layer", ("layer",))
    return reconstruct(model, teacher, unit, full, None, settings, seed=0)


@pytest.mark.parametrize("sizes", [None, (1, 1)])
def test_correlated_inputs_are_rounded_one_up_one_down(sizes) -> None:
    s = 1.0
    x = torch.randn(256, 1).expand(-1, 2) + 0.05 * torch.randn(256, 2)
    model = lone_layer(torch.full((1, 2), 0.4 * s), s, sizes)
    settings = Settings(300, 64, rounding_lr=0.05, cosine=False, lam=0.3, quantized_share=0)
    report = fit_lone(model, x, settings)
    assert sorted(model.layer.weight.flatten().tolist()) == pytest.approx([0, s])
    power = x.mean(1).square().mean().item()
    assert report.before == pytest.approx((0.8 * s) ** 2 * power, rel=0.05)
    # 0.2 s times the inputs' mean, and s / 2 times their small difference
    difference = (x[:, 0] - x[:, 1]).square().mean().item()
    wanted = (0.2 * s) ** 2 * power + (s / 2) ** 2 * difference
    assert report.after == pytest.approx(wanted, rel=0.1)
    assert report.settled == 1


def test_half_precision_weights_are_rounded_in_single() -> None:
    x = torch.randn(256, 1).expand(-1, 2) + 0.05 * torch.randn(256, 2)
    model = lone_layer(torch.full((1, 2), 0.4), 1.0)
    model.layer.half()
    per_channel = Range(torch.ones(1, 1), torch.zeros(1, 1))
    model.layer.weight_quantizer.set_range(per_channel)
    settings = Settings(300, 64, rounding_lr=0.05, cosine=False, lam=0.3, quantized_share=0)
    report = fit_lone(model, x.half(), settings)
    assert model.layer.weight.dtype is torch.float16
    assert sorted(model.layer.weight.flatten().tolist()) == pytest.approx([0, 1])
    assert report.after < report.before


def test_losses_of_half_precision_do_not_overflow() -> None:
    from dqlab.reference.brecq import block_loss

    z = torch.full((2, 1024, 2), 10.0).half()
    assert float(block_loss(z, 0 * z)) == 1024 * 100


def test_soft_rounding_starts_at_the_weight_and_hardens_to_nearest() -> None:
    weight, fmt = torch.randn(5, 7, 3, 3), Affine(4)
    quantizer = Quantizer("w", StepContext())
    quantizer.format = fmt
    quantizer.set_range(min_max(weight, fmt, axis=0))
    soft = SoftRounding(quantizer, weight)
    low, high = fmt.levels(quantizer.range).squeeze().aminmax(dim=1)
    inside = (weight >= low[:, None, None, None]) & (weight <= high[:, None, None, None])
    assert inside.float().mean() > 0.9
    torch.testing.assert_close(soft(weight)[inside], weight[inside], atol=1e-5, rtol=0)
    torch.testing.assert_close(soft.hard(), quantizer(weight), atol=1e-6, rtol=0)


def test_what_was_hardened_stays_where_its_quantizer_puts_it() -> None:
    made = bench(weights=3)
    layers = [made.student.get_submodule(p) for p in made.unit(MID).layers]
    placed = soften(layers)
    for _, _, soft in placed:
        soft.alpha.data = torch.randn_like(soft.alpha)
    wanted = [soft.hard() for _, _, soft in placed]
    harden(placed)
    for layer, weight in zip(layers, wanted, strict=True):
        assert isinstance(layer.weight_quantizer, Quantizer)
        assert torch.equal(layer.weight, weight)
        assert torch.equal(layer.quantized_weight(), weight)


def test_learned_rounding_beats_nearest_on_states_it_has_not_seen() -> None:
    made = bench(weights=3, rows=8)
    held_out = bench().states[8:12]
    nearest = unit_errors(made.student, made.teacher, made.units, held_out)
    chosen = [made.unit(p) for p in (MID, "up_blocks.1.resnets.1")]
    settings = replace(ROUNDING["teach"], quantized_share=0, batch=8)
    for unit in chosen:
        full = capture(made.teacher, [unit.path], made.states)[unit.path]
        reconstruct(made.student, made.teacher, unit, full, made.states, settings, seed=0)
    learned = unit_errors(made.student, made.teacher, chosen, held_out)
    assert all(learned[u.path] < nearest[u.path] for u in chosen)


def test_the_same_seed_gives_the_same_bytes() -> None:
    results = []
    for seed in (0, 0, 1):
        made = bench(weights=3, rows=8)
        settings = replace(QUICK, quantized_share=0.5, drop=0.5)
        reconstruct_all(
            made.student, made.teacher, made.units[3:5], made.states, settings, seed=seed
        )
        results.append(torch.cat([p.flatten() for p in made.student.parameters()]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_fit_touches_nothing_but_its_unit() -> None:
    made = bench(weights=3, rows=8)
    before = {n: p.clone() for n, p in made.student.named_parameters()}
    teacher = {n: p.clone() for n, p in made.teacher.named_parameters()}
    reconstruct_all(made.student, made.teacher, [made.unit(MID)], made.states, QUICK, seed=0)
    changed = {n for n, p in made.student.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {f"{path}.weight" for path in made.unit(MID).layers}
    assert all(torch.equal(p, teacher[n]) for n, p in made.teacher.named_parameters())
    assert not made.student.training


def test_a_set_smaller_than_a_batch_is_used_whole_with_a_warning() -> None:
    made = bench(weights=3, rows=2)
    with pytest.warns(UserWarning, match="Only 2 calibration rows"):
        reconstruct_all(made.student, made.teacher, [made.unit(MID)], made.states, QUICK, seed=0)


def test_dropout_stays_off() -> None:
    made = bench(weights=3, rows=8)
    made.student.mid_block.resnets[0].dropout.p = 0.5
    modes = []
    made.student.mid_block.resnets[0].dropout.register_forward_hook(
        lambda m, a, y: modes.append(m.training)
    )
    reconstruct_all(made.student, made.teacher, [made.unit(MID)], made.states, QUICK, seed=0)
    assert modes
    assert not any(modes)


def test_step_sizes_never_end_worse_than_they_started() -> None:
    made = bench(weights=None, activations=4, rows=8)
    reports = reconstruct_all(
        made.student,
        made.teacher,
        made.units,
        made.states,
        replace(STEPS["teach"], iterations=20),
        seed=0,
    )
    assert len(reports) == len(made.units)
    assert all(r.after <= r.before for r in reports)
    wild = replace(STEPS["teach"], iterations=5, step_lr=10.0)
    again = bench(weights=None, activations=4, rows=8)
    scales = {q.site: q.scale.clone() for q in activation_quantizers(again.student)}
    reports = reconstruct_all(
        again.student, again.teacher, [again.unit(MID)], again.states, wild, seed=0
    )
    assert not reports[0].kept
    assert reports[0].after == reports[0].before
    for quantizer in activation_quantizers(again.student):
        assert torch.equal(quantizer.scale, scales[quantizer.site])


def test_learned_steps_follow_lsq_and_stay_positive() -> None:
    quantizer = Quantizer("x", StepContext())
    quantizer.format = Affine(4, "sym_signed_narrow")
    quantizer.set_range(Range(torch.tensor(0.5), torch.tensor(0.0)))
    x = torch.randn(8, 4)
    gradients = []
    for scaled in (False, True):
        with learnable_steps([quantizer], scaled) as steps:
            quantizer(x).sum().backward()
            gradients.append(steps[0].grad.item())
            steps[0].data.fill_(-0.5)
        assert quantizer.scale.item() == 0.5
        assert not quantizer.scale.requires_grad
    # N counts one sample's elements, q_max is 7
    assert gradients[1] == pytest.approx(gradients[0] / (4 * 7) ** 0.5)


def test_sixteen_bit_softmax_steps_are_left_alone() -> None:
    """At 4e-4 Adam would move a step of 1 / 65535 past zero at once."""
    made = bench(weights=None, activations=4, rows=8)
    unit = next(u for u in made.units if u.kind == "attention")
    softmax = next(
        q for q in activation_quantizers(made.student.get_submodule(unit.path))
        if q.site.endswith(".p")
    )  # fmt: skip
    softmax.format = Affine(16, "always_zero")
    softmax.set_range(softmax.format.params(torch.tensor(0.0), torch.tensor(1.0)))
    others = {q.site: q.scale for q in activation_quantizers(made.student) if q is not softmax}
    settings = replace(STEPS["teach"], iterations=5)
    reconstruct_all(made.student, made.teacher, [unit], made.states, settings, seed=0)
    assert softmax.scale == torch.tensor(1 / 65535)
    after = {q.site: q.scale for q in activation_quantizers(made.student) if q is not softmax}
    assert any(not torch.equal(after[s], others[s]) for s in after)


def test_dropped_elements_pass_untouched_and_only_inside() -> None:
    quantizer = Quantizer("x", StepContext())
    quantizer.format = Affine(2)
    x = torch.randn(100, 100)
    quantizer.set_range(min_max(x, quantizer.format))
    exact = quantizer(x)
    with dropped([quantizer], 0.25, seed=1):
        first = quantizer(x)
    with dropped([quantizer], 0.25, seed=1):
        assert torch.equal(quantizer(x), first)
    assert torch.equal(quantizer(x), exact)
    raw = (first == x) & (exact != x)
    assert abs(raw.float().mean().item() - 0.25) < 5 * (0.25 * 0.75 / 1e4) ** 0.5
    assert torch.equal(first[~raw], exact[~raw])


def test_without_quantization_the_loss_is_zero() -> None:
    made = bench(weights=None)
    errors = unit_errors(made.student, made.teacher, made.units, made.states)
    assert max(errors.values()) < 1e-8


def test_layer_losses_weigh_nothing_at_weight_zero() -> None:
    """Zero is the limit of small weights, whose losses are computed but do not count."""
    joint = replace(JOINT["teach"], iterations=10, batch=4)
    results = []
    for weight in (0.0, 1e-30, 0.8):
        made, settings = (
            bench(weights=3, activations=8, rows=8),
            replace(joint, layer_weight=weight),
        )
        reconstruct_all(
            made.student, made.teacher, [made.unit(MID)], made.states, settings, seed=0
        )
        results.append(made.student.get_submodule(f"{MID}.conv1").weight.clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_sensitivity_is_the_gradient_of_the_denoisers_error() -> None:
    made = bench(weights=3, rows=4)
    g = output_gradients(made.student, "conv_out", made.states)
    answer = made.states.call(made.student)
    torch.testing.assert_close(g, 2 * (answer - made.states.output).abs() + 1)
    settings = replace(QUICK, fisher=True)
    reports = reconstruct_all(
        made.student, made.teacher, [made.unit(MID)], made.states, settings, seed=0
    )
    assert reports[0].after > 0


def test_failures_name_the_place() -> None:
    made = bench(weights=3, rows=8)
    with pytest.raises(TrainingDivergedError, match=MID):
        reconstruct_all(
            made.student,
            made.teacher,
            [made.unit(MID)],
            made.states,
            replace(QUICK, rounding_lr=float("nan")),
            seed=0,
        )
    quantizer = Quantizer("up.weight", StepContext())
    quantizer.format = Log2(4)
    with pytest.raises(NotApplicableError, match=r"up\.weight"):
        SoftRounding(quantizer, torch.randn(3, 3))
    quantizer.format = Affine(4)
    with pytest.raises(InvalidInputError, match=r"up\.weight has no range"):
        SoftRounding(quantizer, torch.randn(3, 3))


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": 0},
        {"batch": 0},
        {"rounding_lr": None},
        {"drop": 1.5},
        {"quantized_share": -0.1},
        {"lam": -1},
        {"p": 0},
        {"fisher": True, "p": 2.4},
    ],
)
def test_impossible_settings_are_refused(wrong) -> None:
    with pytest.raises(InvalidInputError):
        replace(QUICK, **wrong)
