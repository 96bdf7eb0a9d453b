import copy

import pytest
import torch
from tiny_architectures import BUILDERS, ROWS, build
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from dqlab.errors import InvalidInputError
from dqlab.formats import Affine, Range, parse
from dqlab.layers import QuantizedAttention, QuantizedLayer, StepContext, explore, quantizers
from dqlab.layers.wrap import LAYERS, wrap_attention, wrap_layer
from dqlab.methods.run import wrap_sites
from dqlab.ranges import min_max

each_architecture = pytest.mark.parametrize("builder", BUILDERS, ids=lambda b: b.__name__)


def wrapped(model, call, attentions=True):
    anatomy = explore(model, lambda: call(model))
    twin = copy.deepcopy(model)
    wrap_sites(twin, StepContext(), anatomy.layers, anatomy.attentions if attentions else [])
    return twin


@each_architecture
def test_every_operand_is_found_in_execution_order(builder) -> None:
    model, call = build(builder)
    anatomy = explore(model, lambda: call(model))
    present = {name: m for name, m in model.named_modules() if isinstance(m, LAYERS)}
    order: list[str] = []
    for name, module in present.items():
        module.register_forward_hook(lambda *_, name=name: order.append(name))
    call(model)
    assert anatomy.uncovered == []
    assert anatomy.layers == list(dict.fromkeys(order))
    assert set(anatomy.layers) == set(present)
    projections = {name.rpartition(".")[0] for name in present if name.endswith(".to_q")}
    assert set(anatomy.attentions) == projections
    assert len(anatomy.attentions) == len(projections)
    assert all(anatomy.order.index(p) < anatomy.order.index(p + ".to_q") for p in projections)


@each_architecture
def test_unranged_layers_change_no_bit_and_attention_next_to_none(builder) -> None:
    model, call = build(builder)
    full = call(model)
    assert torch.equal(call(wrapped(model, call, attentions=False)), full)
    torch.testing.assert_close(call(wrapped(model, call)), full, rtol=1e-5, atol=1e-5)


@each_architecture
def test_every_site_is_passed_once_ranged(builder) -> None:
    model, call = build(builder)
    twin, seen = wrapped(model, call), set()
    for site, quantizer in quantizers(twin).items():
        quantizer.taps.append(lambda x, site=site: seen.add(site))
    call(twin)
    operands = {m: ("input", "weight") for m in twin.modules() if isinstance(m, QuantizedLayer)}
    operands |= {m: tuple("qkvp") for m in twin.modules() if isinstance(m, QuantizedAttention)}
    names = {m: name for name, m in twin.named_modules()}
    assert seen == {f"{names[m]}.{o}" for m, chosen in operands.items() for o in chosen}


@each_architecture
def test_ranges_per_step_reach_every_activation(builder) -> None:
    """Frames may be folded into the batch: every row still finds its own sample's step."""
    model, call = build(builder)
    scales, zero = torch.tensor([0.05, 0.2]), torch.tensor(128.0)
    twin = wrapped(model, call)
    call(twin)
    twin.step_context.bind(twin.step_context.timestep)
    give_ranges(twin, Range(scales, zero.expand(ROWS)), per_step=True)
    mixed = call(twin)
    for row, scale in enumerate(scales):
        alone = wrapped(model, call)
        give_ranges(alone, Range(scale, zero))
        torch.testing.assert_close(mixed[row], call(alone)[row], rtol=0, atol=1e-6)


def give_ranges(model, found: Range, per_step: bool = False) -> None:
    for site, quantizer in quantizers(model).items():
        if not site.endswith(".weight"):
            quantizer.format = Affine(8)
            quantizer.set_range(found, per_step)


def test_kinds_and_names_stay_what_they_were() -> None:
    from diffusers import UNet2DModel
    from diffusers.models.attention_processor import Attention

    model, call = build(BUILDERS[0])
    twin = wrapped(model, call)
    assert type(twin) is UNet2DModel
    kinds = {name: type(m) for name, m in model.named_modules()}
    for name, kind in kinds.items():
        assert isinstance(twin.get_submodule(name), kind)
    assert isinstance(twin.conv_in, nn.Conv2d)
    assert isinstance(twin.mid_block.attentions[0], Attention)
    assert type(twin.conv_in).__name__ == "QuantizedConv2d"
    assert [n for n, _ in twin.named_parameters()] == [n for n, _ in model.named_parameters()]


def test_layers_take_their_input_by_keyword() -> None:
    layer = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    expected = layer(input=x)
    wrap_layer(layer, "layer", StepContext())
    assert torch.equal(layer(input=x), expected)


def test_a_copy_is_independent() -> None:
    model, call = build(BUILDERS[0])
    first = wrapped(model, call)
    second = copy.deepcopy(first)
    contexts = {id(q.context) for q in quantizers(second).values()}
    assert contexts == {id(second.step_context)} != {id(first.step_context)}
    before = call(first)
    call(second)
    for layer in (m for m in second.modules() if isinstance(m, QuantizedLayer)):
        layer.weight_quantizer.format = Affine(2)
        layer.weight_quantizer.set_range(min_max(layer.weight, Affine(2), axis=0))
        layer.freeze()
    second(torch.zeros(3, 3, 8, 8), 11)
    assert first.step_context.timestep.tolist() == [7, 400]
    assert second.step_context.timestep.tolist() == [11, 11, 11]
    assert torch.equal(call(first), before)
    assert not torch.equal(call(second), before)


@pytest.mark.parametrize("name", ["int4", "uint4", "uint8", "int3-narrow", "fp4", "fp8", "log2-4"])
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 5), lambda: nn.Conv2d(4, 6, 3, groups=2)])
def test_frozen_weights_are_stored_as_codes(name, make) -> None:
    layer, fmt = make(), parse(name)
    x = torch.randn(2, 4, 5, 5) if isinstance(layer, nn.Conv2d) else torch.randn(2, 6)
    fresh = copy.deepcopy(layer)
    wrap_layer(layer, "layer", StepContext())
    layer.weight_quantizer.format = fmt
    layer.weight_quantizer.set_range(min_max(layer.weight.detach(), fmt, axis=0))
    layer.freeze()
    once, out = layer.weight.detach().clone(), layer(x)
    layer.freeze()
    assert torch.equal(layer.weight, once), "freezing twice moved the weight"
    state = layer.state_dict()
    assert "weight" not in state
    assert not state["weight_codes"].is_floating_point()
    assert state["weight_codes"].element_size() == 1
    assert len(state["weight_codes"].unique()) <= 2**fmt.bits
    wrap_layer(fresh, "layer", StepContext())
    fresh.weight_quantizer.format = fmt
    fresh.load_state_dict(state)
    assert fresh.frozen
    assert torch.equal(fresh.weight, once)
    assert torch.equal(fresh(x), out)


ATTENTION_CASES = {
    "plain": {},
    "boolean mask": {"attn_mask": torch.rand(2, 1, 5, 7) > 0.3},
    "empty row": {"attn_mask": torch.arange(5)[:, None].expand(5, 7) > 0},
    "additive mask": {"attn_mask": torch.randn(2, 1, 1, 7)},
    "additive empty row": {"attn_mask": torch.full((1, 1, 1, 7), -torch.inf)},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "scale zero": {"scale": 0.0},
    "grouped": {"enable_gqa": True},
}


class Attend(nn.Module):
    def forward(self, q, k, v, **named):
        return scaled_dot_product_attention(q, k, v, **named)


@pytest.mark.parametrize("case", ATTENTION_CASES)
def test_explicit_attention_is_the_fused_one(case) -> None:
    named, heads = ATTENTION_CASES[case], 4
    shared = heads // 2 if named.get("enable_gqa") else heads
    q = torch.randn(2, heads, 5, 8)
    k, v = torch.randn(2, shared, 7, 8), torch.randn(2, shared, 7, 6)
    module = Attend()
    fused = module(q, k, v, **named)
    wrap_attention(module, "attend", StepContext())
    explicit = module(q, k, v, **named)
    assert explicit.isfinite().all()
    torch.testing.assert_close(explicit, fused, rtol=1e-5, atol=1e-6)


def test_attention_quantizes_each_operand() -> None:
    q, k, v = torch.randn(3, 1, 2, 4, 8).unbind()
    module = Attend()
    wrap_attention(module, "attend", StepContext())
    grids = {}
    for operand, x in {"q": q, "k": k, "v": v, "p": torch.tensor([0.0, 1.0])}.items():
        quantizer = module.get_submodule(f"{operand}_quantizer")
        quantizer.format = Affine(3)
        quantizer.set_range(min_max(x, Affine(3)))
        grids[operand] = lambda x, n=quantizer: n.format.fake_quant(x, n.range)
    scores = grids["q"](q) @ grids["k"](k).transpose(-2, -1) * 8**-0.5
    expected = grids["p"](scores.softmax(-1)) @ grids["v"](v)
    torch.testing.assert_close(module(q, k, v), expected)


class OwnSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)
        self.own, self.transposed = OwnLinear(4, 4), nn.ConvTranspose1d(1, 1, 1)

    def forward(self, x):
        return self.transposed(self.own(self.up(x).softmax(-1)).unsqueeze(1))


class OwnLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def test_what_cannot_be_quantized_is_listed() -> None:
    model = OwnSoftmax()
    anatomy = explore(model, lambda: model(torch.randn(2, 4)))
    assert anatomy.layers == ["up"]
    assert sorted(anatomy.uncovered) == [
        " (OwnSoftmax) computes a softmax of its own",
        "own (OwnLinear) has a forward of its own",
        "transposed (ConvTranspose1d) has no quantized form",
        "unused (Linear) did not run",
    ]


class OwnProducts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.inner = Moves()

    def forward(self, x):
        return self.inner(nn.functional.linear(x, self.weight))


class Moves(nn.Module):
    """An einsum of one tensor is no product; one of two is."""

    def __init__(self) -> None:
        super().__init__()
        self.last = Pairs()

    def forward(self, x):
        return self.last(torch.einsum("ab->ba", x))


class Pairs(nn.Module):
    def forward(self, x):
        return torch.einsum("ab,cb->ac", x, x)


def test_products_outside_layers_and_attention_are_listed() -> None:
    model = OwnProducts()
    anatomy = explore(model, lambda: model(torch.randn(2, 4)))
    assert anatomy.uncovered == [
        " (OwnProducts) computes a linear of its own",
        "inner.last (Pairs) computes a einsum of its own",
    ]


class Hidden(nn.Module):
    """Attends by a kernel that nobody sees, unless told to do it openly."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.openly = nn.Linear(4, 4), False

    def forward(self, x):
        q = self.to_q(x)
        return scaled_dot_product_attention(q, q, q) if self.openly else q.cumsum(-1)


def test_attention_by_an_unseen_kernel_is_listed() -> None:
    model = nn.Sequential(Hidden())
    anatomy = explore(model, lambda: model(torch.randn(2, 3, 4)))
    assert anatomy.attentions == []
    (told,) = anatomy.uncovered
    assert told.startswith("0 (Hidden) computes its attention out of sight")


def test_attention_that_slips_past_its_quantizers_is_refused() -> None:
    """As after setting another attention backend on a quantized model."""
    model = Hidden()
    model.openly = True
    wrap_attention(model, "block.attn", StepContext())
    model(torch.randn(2, 3, 4))
    model.openly = False
    with pytest.raises(InvalidInputError, match=r"block\.attn attended without.*backend"):
        model(torch.randn(2, 3, 4))


def test_older_attention_processors_are_listed() -> None:
    """diffusers' first processor multiplies and normalises by itself."""
    from diffusers.models.attention_processor import AttnProcessor

    model, call = build(BUILDERS[1])
    model.set_attn_processor(AttnProcessor())
    anatomy = explore(model, lambda: call(model))
    assert anatomy.attentions == []
    attentions = [n for n, m in model.named_modules() if hasattr(m, "to_q")]
    assert [told.split()[0] for told in anatomy.uncovered] == attentions
    assert all("computes a softmax of its own" in told for told in anatomy.uncovered)


def test_exploring_leaves_no_hook_even_if_the_run_fails() -> None:
    model, _ = build(BUILDERS[0])

    def fail():
        model(torch.zeros(1, 3, 8, 8), 0)
        raise KeyError("run")

    with pytest.raises(KeyError):
        explore(model, fail)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_range_with_nan_names_the_site() -> None:
    layer = nn.Linear(2, 2)
    wrap_layer(layer, "up.0", StepContext())
    nan = torch.tensor(float("nan"))
    with pytest.raises(InvalidInputError, match=r"up\.0\.weight is not finite"):
        layer.weight_quantizer.set_range(Range(nan, nan))
