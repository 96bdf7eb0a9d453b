import copy

import pytest
import torch
from torch import nn

from dqlab.errors import InvalidInputError
from dqlab.layers import StepContext, smooth_layer
from dqlab.layers.wrap import wrap_layer

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (4, 7, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 5, 3), (4, 6, 9)),
    "conv2d": (lambda: nn.Conv2d(6, 5, 3), (4, 6, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(6, 5, 1), (4, 6, 3, 3, 3)),
}


PADDED = {
    "linear": LAYERS["linear"],
    "conv1d": (lambda: nn.Conv1d(6, 5, 3, padding=2), (4, 6, 9)),
    "conv2d": (lambda: nn.Conv2d(6, 5, 3, padding=(1, 2), stride=2), (4, 6, 9, 9)),
    "conv2d without bias": (lambda: nn.Conv2d(6, 5, 3, padding="same", bias=False), (4, 6, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(6, 5, 3, padding=1), (4, 6, 3, 3, 3)),
}


def factors():
    return torch.rand(6, generator=torch.Generator().manual_seed(0)) * 4 + 0.1


@pytest.mark.parametrize("name", LAYERS)
def test_the_function_stays(name) -> None:
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    before = layer(x)
    smooth_layer(layer, factors())
    wrap_layer(layer, "layer", StepContext())
    torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)


def test_the_quantizer_sees_the_divided_input() -> None:
    layer, seen = nn.Linear(6, 5), []
    smooth_layer(layer, factors())
    wrap_layer(layer, "layer", StepContext())
    layer.input_quantizer.taps.append(seen.append)
    x = torch.randn(4, 6)
    layer(x)
    torch.testing.assert_close(seen[0], x / factors())


def test_ones_change_no_bit_and_a_factor_and_its_inverse_nothing() -> None:
    layer = nn.Conv2d(6, 5, 3)
    weight = layer.weight.detach().clone()
    smooth_layer(layer, torch.ones(6))
    assert torch.equal(layer.weight, weight)
    smooth_layer(layer, factors())
    smooth_layer(layer, 1 / factors())
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.channel_divisor, torch.ones(6))


def test_a_copy_brings_its_own_factors() -> None:
    layer = nn.Linear(6, 5)
    smooth_layer(layer, factors())
    twin = copy.deepcopy(layer)
    layer.channel_divisor.zero_()
    assert torch.equal(twin.channel_divisor, factors())


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(2 * x)


@pytest.mark.parametrize(
    ("layer", "S", "message"),
    [
        (nn.Linear(6, 5), torch.ones(5), "reads 6 channels"),
        (nn.Conv2d(6, 6, 3, groups=2), torch.ones(6), r"in 2 group\(s\)"),
        (nn.Linear(6, 5), torch.zeros(6), "positive and finite"),
        (nn.Linear(6, 5), torch.full((6,), torch.nan), "positive and finite"),
        (Own(6, 5), torch.ones(6), "is a Own, which cannot be smoothed"),
    ],
    ids=["other size", "groups", "zero", "NaN", "own forward"],
)
def test_what_cannot_be_smoothed_says_why(layer, S, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        smooth_layer(layer, S, "there")


@pytest.mark.parametrize("name", PADDED)
def test_a_shift_keeps_the_function_at_the_borders_too(name) -> None:
    make, shape = PADDED[name]
    layer, x, shift = make(), torch.randn(shape), torch.linspace(-2, 2, 6)
    before = layer(x)
    smooth_layer(layer, factors(), shift=shift)
    wrap_layer(layer, "layer", StepContext())
    torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)


def test_padding_arrives_as_the_shifted_zero_of_each_channel() -> None:
    layer, seen, shift = nn.Conv2d(6, 5, 3, padding=1), [], torch.linspace(-2, 2, 6)
    smooth_layer(layer, factors(), shift=shift)
    wrap_layer(layer, "layer", StepContext())
    layer.input_quantizer.taps.append(seen.append)
    layer(torch.randn(1, 6, 4, 4))
    torch.testing.assert_close(seen[0][0, :, 0, 0], -shift / factors())


@pytest.mark.parametrize(
    ("layer", "shift", "message"),
    [
        (nn.Linear(6, 5), torch.ones(5), "cannot be shifted by"),
        (nn.Linear(6, 5), torch.full((6,), torch.inf), "must be finite"),
        (nn.Conv2d(6, 5, 3, padding=1, padding_mode="circular"), torch.ones(6), "'circular'"),
    ],
    ids=["other size", "infinite", "circular"],
)
def test_what_cannot_be_shifted_says_why(layer, shift, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        smooth_layer(layer, torch.ones(6), "there", shift)


def test_a_layer_is_shifted_once() -> None:
    layer = nn.Linear(6, 5)
    smooth_layer(layer, torch.ones(6))
    with pytest.raises(InvalidInputError, match="is smoothed already"):
        smooth_layer(layer, torch.ones(6), "there", torch.ones(6))
