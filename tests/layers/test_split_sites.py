"""Sites made of parts: equal to the plain layer, better on two populations, found by running."""

import math

import pytest
import torch
from tiny_models import new_unet
from torch import nn

from dqlab.errors import InvalidInputError
from dqlab.formats import Affine, Log2
from dqlab.layers import StepContext, concatenations, quantizers, split_layer
from dqlab.layers.wrap import wrap_layer
from dqlab.ranges import min_max
from dqlab.reference.q_diffusion import split_gain_db, split_product


def wrapped(layer: nn.Module, sizes=None) -> nn.Module:
    if sizes:
        split_layer(layer, sizes)
    wrap_layer(layer, "layer", StepContext())
    return layer.requires_grad_(False)


def conv(channels: int = 10, kernel: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, 6, kernel, padding=kernel // 2)


def quantize(layer: nn.Module, x: torch.Tensor, weights=None, activations=None) -> nn.Module:
    """Min-max ranges at every site that gets a format."""
    for quantizer, piece in layer.weight_quantizer.pieces(layer.weight):
        if weights:
            quantizer.format = weights
            quantizer.set_range(min_max(piece, weights, axis=0))
    for quantizer, piece in layer.input_quantizer.pieces(x):
        if activations:
            quantizer.format = activations
            quantizer.set_range(min_max(piece, activations))
    return layer


@pytest.mark.parametrize("kernel", [1, 3])
def test_unquantized_parts_give_the_plain_convolution(kernel: int) -> None:
    layer, x = conv(kernel=kernel), torch.randn(2, 10, 5, 5)
    plain = layer(x)
    torch.testing.assert_close(wrapped(layer, (4, 6))(x), plain, atol=1e-5, rtol=0)


def test_a_linear_is_split_along_its_last_dimension() -> None:
    layer, x = nn.Linear(10, 3), torch.randn(2, 7, 10)
    plain = layer(x)
    split = wrapped(layer, (9, 1))
    torch.testing.assert_close(split(x), plain, atol=1e-5, rtol=0)
    seen = [piece.shape[-1] for _, piece in split.input_quantizer.pieces(x)]
    assert seen == [9, 1]


def test_parts_with_one_range_equal_the_unsplit_layer_bit_for_bit() -> None:
    plain, x, fmt = conv(), torch.randn(2, 10, 5, 5), Affine(8)
    split = conv()
    split.load_state_dict(plain.state_dict())
    plain, split = wrapped(plain), wrapped(split, (4, 6))
    shared = min_max(x, fmt)
    for quantizer in [plain.input_quantizer, *split.input_quantizer.parts]:
        quantizer.format = fmt
        quantizer.set_range(shared)
    assert torch.equal(plain(x), split(x))


def test_the_split_layer_computes_the_papers_sum() -> None:
    layer, x, fmt = wrapped(conv(), (4, 6)), torch.randn(2, 10, 5, 5), Affine(4)
    quantize(layer, x, fmt, fmt)
    parts = (x[:, :4], x[:, 4:], layer.weight[:, :4], layer.weight[:, 4:])
    wanted = split_product(
        *parts, layer.bias, tuple(layer.input_quantizer.parts), tuple(layer.weight_quantizer.parts)
    )
    torch.testing.assert_close(layer(x), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ratio", [10.0, 100.0])
def test_the_narrow_part_gains_the_range_ratio(ratio: float) -> None:
    narrow = torch.rand(4, 8, 32, 32) * 2 - 1
    x = torch.cat([narrow, (torch.rand(4, 8, 32, 32) * 2 - 1) * ratio], 1)
    fmt = Affine(8)
    shared = fmt.fake_quant(x, min_max(x, fmt))[:, :8]
    own = quantize(wrapped(conv(16), (8, 8)), x, None, fmt).input_quantizer(x)[:, :8]
    noise = [(y - narrow).square().mean().item() for y in (shared, own)]
    # s^2 / 12 holds to a decibel where the narrow part spans few of the shared steps
    assert abs(10 * math.log10(noise[0] / ((2 * ratio / 255) ** 2 / 12))) < 1
    assert abs(10 * math.log10(noise[1] / ((2 / 255) ** 2 / 12))) < 1
    gain = 10 * math.log10(noise[0] / noise[1])
    assert abs(gain - split_gain_db(1, ratio)) < 1


@pytest.mark.parametrize("c", [10.0, 100.0])
def test_splitting_absorbs_an_imbalance_that_ruins_the_plain_layer(c: float) -> None:
    x, fmt = torch.randn(8, 16, 16, 16), Affine(8)
    layer = conv(16)
    exact = layer(x).detach()
    outputs = {}
    for name, factor, sizes in (("natural", 1, (8, 8)), ("stress", c, (8, 8)), ("plain", c, None)):
        changed = conv(16)
        changed.load_state_dict(layer.state_dict())
        changed.weight.data[:, 8:] /= factor
        skewed = torch.cat([x[:, :8], x[:, 8:] * factor], 1)
        outputs[name] = quantize(wrapped(changed, sizes), skewed, fmt, fmt)(skewed)
    sqnr = {
        name: 10 * math.log10(exact.square().sum() / (y - exact).square().sum())
        for name, y in outputs.items()
    }
    assert abs(sqnr["stress"] - sqnr["natural"]) < 0.1
    assert sqnr["natural"] - sqnr["plain"] > (8 if c == 10 else 25)


def test_a_constant_part_leaves_the_other_alone() -> None:
    fmt, x = Affine(8), torch.randn(2, 10, 5, 5)
    x[:, 4:] = 0
    layer = quantize(wrapped(conv(), (4, 6)), x, fmt, fmt)
    y = layer.input_quantizer(x)
    assert torch.equal(y[:, 4:], x[:, 4:])
    assert (y[:, :4] - x[:, :4]).abs().max() <= layer.input_quantizer.parts[0].scale / 2 + 1e-6


def test_sites_are_named_by_part() -> None:
    layer = wrapped(conv(), (4, 6))
    sites = ["layer.input[0]", "layer.input[1]", "layer.weight[0]", "layer.weight[1]"]
    assert list(quantizers(layer)) == sites


@pytest.mark.parametrize("sizes", [(10, 0), (0, 10), (10,)])
def test_a_part_of_everything_is_the_plain_layer(sizes) -> None:
    assert list(quantizers(wrapped(conv(), sizes))) == ["layer.input", "layer.weight"]


@pytest.mark.parametrize("sizes", [(11, 0), (4, 5), (12, -2), ()])
def test_parts_that_do_not_add_up_are_refused(sizes) -> None:
    with pytest.raises(InvalidInputError, match="reads 10 channels"):
        split_layer(conv(), sizes, "up.shortcut")


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="grouped"):
        split_layer(nn.Conv2d(8, 8, 1, groups=2), (4, 4))
    layer = wrapped(conv(), (4, 6))
    with pytest.raises(InvalidInputError, match=r"layer\.input.*meets 12"):
        layer.input_quantizer(torch.randn(1, 12, 2, 2))
    for part, fmt in zip(layer.weight_quantizer.parts, (Affine(4), Log2(4)), strict=True):
        part.format = fmt
    with pytest.raises(InvalidInputError, match="different formats"):
        _ = layer.weight_quantizer.format


@pytest.mark.parametrize("new", [conv, lambda: nn.Linear(10, 6)], ids=["conv", "linear"])
def test_codes_of_a_split_weight_come_back(new) -> None:
    layer = new()
    x = torch.randn(2, 10, 3, 3) if isinstance(layer, nn.Conv2d) else torch.randn(2, 10)
    quantize(wrapped(layer, (4, 6)), x, Affine(4), Affine(8)).freeze()
    state = layer.state_dict()
    assert "weight" not in state
    assert state["weight_codes"].dtype == torch.uint8
    fresh = wrapped(new(), (4, 6))
    for name, quantizer in quantizers(fresh).items():
        quantizer.format = quantizers(layer)[name].format
    fresh.load_state_dict(state)
    assert torch.equal(fresh.weight, layer.weight)
    assert torch.equal(fresh(x), layer(x))


class Toy(nn.Module):
    """Concatenations of every kind; only `raw` and `line` read one as it is."""

    def __init__(self, second: int = 3):
        super().__init__()
        self.raw, self.after_norm = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.rows, self.line = nn.Conv2d(4, 4, 1), nn.Linear(9, 2)
        self.second = second

    def forward(self, x):
        both = torch.cat([x[:, :5], x[:, 5:]], dim=1)
        y = self.raw(both) + self.after_norm(nn.functional.silu(both))
        y = self.rows(torch.cat((y, y)))
        flat = y.flatten(2)
        wide = torch.concat([flat[..., :2], flat[..., 2:9]], -1)
        vector = torch.cat([y.flatten(1)[:, :4], y.flatten(1)[:, 4:9]], -1)
        return (
            self.line(wide),
            self.line(vector),
            self.raw(torch.cat([x[:, : self.second], x[:, self.second :]], 1)),
        )


def test_only_raw_channel_concatenations_are_found() -> None:
    model, x = Toy(second=5), torch.randn(2, 8, 4, 4)
    assert concatenations(model, lambda: model(x)) == {"raw": (5, 3), "line": (2, 7)}


def test_a_layer_with_two_ways_to_split_is_refused() -> None:
    model = Toy(second=3)
    with pytest.raises(InvalidInputError, match=r"raw read pieces of \(5, 3\)"):
        concatenations(model, lambda: model(torch.randn(2, 8, 4, 4)))


def test_every_shortcut_of_the_up_blocks_is_found_with_its_hidden_channels() -> None:
    unet = new_unet()
    found = concatenations(unet, lambda: unet(torch.randn(1, 3, 8, 8), 5))
    expected = [
        f"up_blocks.{i}.resnets.{j}.conv_shortcut"
        for i, block in enumerate(unet.up_blocks)
        for j in range(len(block.resnets))
    ]
    assert list(found) == expected
    for path, sizes in found.items():
        layer = unet.get_submodule(path)
        assert sum(sizes) == layer.in_channels
        hidden = {}
        block = unet.get_submodule(path.rsplit(".", 3)[0])
        handle = block.register_forward_pre_hook(
            lambda m, args, kwargs, seen=hidden: seen.update(
                width=(kwargs.get("hidden_states", args[0] if args else None)).shape[1]
            ),
            with_kwargs=True,
        )
        unet(torch.randn(1, 3, 8, 8), 5)
        handle.remove()
        if path.endswith("resnets.0.conv_shortcut"):
            assert sizes[0] == hidden["width"]


def test_conditional_unets_are_split_likewise() -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()
    inputs = torch.randn(1, 4, 8, 8), 5, torch.randn(1, 3, 8)
    found = concatenations(unet, lambda: unet(*inputs))
    assert len(found) == 4
    assert all(path.endswith("conv_shortcut") for path in found)
