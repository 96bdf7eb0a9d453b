import pytest
import torch
from tiny_models import pipeline, quantized, recorded
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from dqlab.formats import Affine, Range
from dqlab.formats.stepped import Stepped
from dqlab.layers import QuantizedLayer, StepContext, quantizers
from dqlab.methods.run import wrap_sites
from dqlab.metrics import cost
from dqlab.ranges import min_max
from dqlab.trajectory import States


class Net(nn.Module):
    """A grouped convolution on 4x4 pixels, then one attention of 2 heads over its 16 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, groups=2)
        self.norm = nn.GroupNorm(2, 4)
        self.attend = Attention()

    def forward(self, sample, timestep):
        return (self.attend(self.norm(self.conv(sample)).flatten(2).mT),)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 6)

    def forward(self, x):
        layers = (self.to_q, self.to_k, self.to_v)
        q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in layers)
        return scaled_dot_product_attention(q, k, v)


CONV, QK, V = 4 * 16 * 9, 16 * 4 * 4, 16 * 4 * 6
SCORES, MIX = 2 * 16 * 16 * 2, 2 * 16 * 16 * 3
MACS = CONV + 2 * QK + V + SCORES + MIX
WEIGHTS = 4 * 9 + 16 + 16 + 24
REST = 4 + (4 + 4) + (4 + 4 + 6)


def example(rows: int = 3) -> States:
    t = torch.zeros(rows, dtype=torch.long)
    return States(torch.randn(rows, 2, 4, 4), t, t, t, torch.zeros(rows, 2, 16, 3))


def wrapped(formats: dict[str, int], context: StepContext | None = None) -> Net:
    """`formats`: bits by operand; what is not named stays in full precision."""
    net = Net()
    layers = ["conv", "attend.to_q", "attend.to_k", "attend.to_v"]
    wrap_sites(net, context or StepContext(), layers, ["attend"])
    for site, quantizer in quantizers(net).items():
        if bits := formats.get(site.rpartition(".")[2]):
            quantizer.format = Affine(bits)
            quantizer.set_range(min_max(torch.randn(8), Affine(bits)))
    for layer in (m for m in net.modules() if isinstance(m, QuantizedLayer)):
        if layer.weight_quantizer.format:
            layer.weight_quantizer.set_range(min_max(layer.weight.detach(), Affine(4), axis=0))
    return net


def test_full_precision() -> None:
    found = cost(wrapped({}), example())
    assert found.macs == MACS
    assert found.bit_ops == found.full_bit_ops == MACS * 32 * 32
    assert found.bytes == found.full_bytes == 4 * (WEIGHTS + REST)


def test_four_bit_weights_alone() -> None:
    found = cost(wrapped({"weight": 4}), example())
    assert found.macs == MACS
    assert found.bit_ops == (CONV + 2 * QK + V) * 4 * 32 + (SCORES + MIX) * 32 * 32
    ranges = 2 * (4 + 4 + 4 + 6)
    assert found.bytes == WEIGHTS // 2 + 4 * REST + 4 * ranges


def test_every_operand_with_bits_of_its_own() -> None:
    bits = {"weight": 4, "input": 6, "q": 5, "k": 7, "v": 3, "p": 8}
    found = cost(wrapped(bits), example())
    assert found.bit_ops == (CONV + 2 * QK + V) * 4 * 6 + SCORES * 5 * 7 + MIX * 8 * 3
    ranges = 2 * (4 + 4 + 4 + 6) + 2 * (4 + 4)
    assert found.bytes == WEIGHTS // 2 + 4 * REST + 4 * ranges


def test_bits_that_differ_by_step_count_by_their_mean() -> None:
    context = StepContext()
    context.bind(torch.tensor([9, 0]))
    net = wrapped({"q": 4, "k": 4}, context)
    context.attach(net)
    for name in ("q", "k"):
        site, x = quantizers(net)[f"attend.{name}"], torch.randn(8)
        steps = [Stepped.of(min_max(x, Affine(bits)), bits) for bits in (4, 8)]
        table = [torch.stack([getattr(r, n) for r in steps]) for n in ("scale", "zero_point")]
        site.format = Stepped(8)
        site.set_range(Range(*table), per_step=True)
    expected = SCORES * (4 * 4 + 8 * 8) / 2 + (MACS - SCORES) * 32 * 32
    assert cost(net, example()).bit_ops == pytest.approx(expected)


def test_one_row_is_counted_whatever_the_example_holds() -> None:
    net = wrapped({"weight": 4})
    assert cost(net, example(1)) == cost(net, example(5))


def test_counting_leaves_no_hook() -> None:
    net = wrapped({})
    cost(net, example())
    assert not any(m._forward_hooks for m in net.modules())
    with pytest.raises(RuntimeError):
        cost(net, States(*[torch.zeros(1, 9, 4, 4)] * 5))
    assert not any(m._forward_hooks for m in net.modules())


def test_a_quantized_network_costs_less() -> None:
    states = recorded()[0]
    w8, w4 = (cost(quantized(w, 8).unet, states) for w in (8, 4))
    assert w4.bytes < w8.bytes < w8.full_bytes
    assert w4.bit_ops < w8.bit_ops < w8.full_bit_ops / 10
    assert w4.macs == w8.macs
    assert w8.full_bytes == 4 * sum(p.numel() for p in pipeline().unet.parameters())
