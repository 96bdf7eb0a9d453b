"""Injections: the same function, and the difficulty they promise, on every kind of network."""

import math

import pytest
import torch
from tiny_architectures import ROWS, build, latent_dit, text_dit
from tiny_architectures import pixel_unet as straddling
from tiny_models import new_unet
from torch import nn

from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.formats import Affine
from dqlab.layers import (
    ChannelOutliers,
    ShortcutImbalance,
    StepContext,
    TimestepDrift,
    concatenations,
    split_layer,
)
from dqlab.layers.inject import norm_bound, readers
from dqlab.layers.wrap import wrap_layer
from dqlab.ranges import min_max

TOLERANCE = 1e-4
SCHEDULE = torch.tensor([400.0, 7.0])


# 6 groups end where the parts do: 24 + 24, 24 + 12 and 12 + 12 channels. In the plain tiny U-Net 4
# groups straddle the boundary of 16 + 8.
WIDTHS = {"block_out_channels": (12, 24), "norm_num_groups": 6}


def pixel_unet():
    inputs = {"sample": torch.randn(ROWS, 3, 8, 8), "timestep": torch.tensor([7, 400])}
    return new_unet(**WIDTHS, attention_head_dim=12), inputs


def latent_unet():
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, **WIDTHS,
        cross_attention_dim=12, attention_head_dim=6,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return model, {
        "sample": torch.randn(ROWS, 4, 8, 8),
        "timestep": torch.tensor([7, 400]),
        "encoder_hidden_states": torch.randn(ROWS, 5, 12),
    }


def change(builder, injection) -> float:
    """Largest relative change of a network's answer."""
    model, ask = build(builder)
    before = ask(model)
    apply(model, ask, injection)
    after = ask(model)
    return float(((after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)).max())


def apply(model, ask, injection) -> None:
    context = StepContext()
    context.bind(SCHEDULE)
    context.attach(model)
    injection.apply(model, lambda: ask(model), context)


@pytest.mark.parametrize("builder", [pixel_unet, latent_unet])
@pytest.mark.parametrize("factor", [2.0, 64.0, 128.0])
def test_an_imbalance_keeps_the_function(builder, factor: float) -> None:
    assert change(builder, ShortcutImbalance(factor)) < TOLERANCE


@pytest.mark.parametrize("builder", [pixel_unet, latent_unet])
def test_an_imbalance_is_there_where_a_layer_reads_it(builder) -> None:
    model, ask = build(builder)
    paths = concatenations(model, lambda: ask(model))
    plain, weights = inputs_of(model, ask, paths), weights_of(model, paths)
    apply(model, ask, ShortcutImbalance(64.0))
    scaled = inputs_of(model, ask, paths)
    assert paths
    for path, sizes in paths.items():
        (deep, skip), (same, large) = (x[path].split(sizes, 1) for x in (plain, scaled))
        torch.testing.assert_close(same, deep, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(large, 64 * skip, rtol=1e-3, atol=64e-4)
        new, old = (w.split(sizes, 1) for w in (weights_of(model, paths)[path], weights[path]))
        assert torch.equal(new[0], old[0])
        assert torch.equal(new[1], old[1] / 64)


def test_only_named_blocks_are_touched_and_splitting_still_finds_them() -> None:
    model, ask = build(pixel_unet)
    before = concatenations(model, lambda: ask(model))
    weights = weights_of(model, before)
    apply(model, ask, ShortcutImbalance(64.0, ("up_blocks.1.*",)))
    after = weights_of(model, before)
    changed = {path for path in before if not torch.equal(weights[path], after[path])}
    assert changed == {path for path in before if path.startswith("up_blocks.1.")}
    assert concatenations(model, lambda: ask(model)) == before


def inputs_of(model, ask, paths) -> dict[str, torch.Tensor]:
    seen, handles = {}, []
    for path in paths:
        hook = model.get_submodule(path).register_forward_pre_hook(
            lambda _, args, path=path: seen.update({path: args[0].clone()})
        )
        handles.append(hook)
    ask(model)
    for handle in handles:
        handle.remove()
    return seen


def weights_of(model, paths) -> dict[str, torch.Tensor]:
    return {path: model.get_submodule(path).weight.clone() for path in paths}


def test_a_norm_group_that_straddles_is_refused_and_nothing_changed() -> None:
    model, ask = build(straddling)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(NotApplicableError, match="holds channels of both"):
        apply(model, ask, ShortcutImbalance(64.0))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    hooks = [hook for m in model.modules() for hook in m._forward_pre_hooks.values()]
    assert len(hooks) == 1, "only the step context's"


def test_scaling_across_the_boundary_would_change_the_function() -> None:
    model, ask = build(straddling)
    before, found = ask(model), readers(model, lambda: ask(model))
    for path, reader in found.items():
        reader.scale_last(model.get_submodule(path), 64.0)
    assert float((ask(model) - before).norm() / before.norm()) > 100 * TOLERANCE


@pytest.mark.parametrize("factor", [3.0, 0.0, -2.0, 100, math.inf, math.nan])
def test_a_factor_that_is_no_power_of_two_is_refused(factor: float) -> None:
    kinds = (
        ShortcutImbalance(factor),
        ChannelOutliers(factor, ("*",), (0,)),
        TimestepDrift((factor, 1.0), ("*",)),
    )
    for injection in kinds:
        with pytest.raises(InvalidInputError, match="power of two"):
            apply(*build(pixel_unet), injection)


def test_a_network_without_concatenations_is_refused() -> None:
    with pytest.raises(NotApplicableError, match="reads a channel concatenation"):
        apply(*build(latent_dit), ShortcutImbalance(64.0))


@pytest.mark.parametrize("variance", [1.0, 0.1, 1e-3])
def test_the_norms_change_stays_within_its_bound(variance: float) -> None:
    norm = nn.GroupNorm(1, 8, eps=1e-5).double()
    x = torch.randn(1, 8, 16, 16, dtype=torch.float64)
    x = (x - x.mean()) / x.std(correction=0) * math.sqrt(variance)
    ratio = (norm(x * 128) / norm(x)).flatten()
    bound = norm_bound(variance, 1e-5)
    expected = math.sqrt((variance + 1e-5) / (variance + 1e-5 / 128**2)) - 1
    assert 0.9 * bound < expected <= bound
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1 + expected), rtol=1e-9, atol=0)


OUTLIERS = ("transformer_blocks.*.to_[qkv]", "*.attn1.to_[qkv]", "*.ff.net.0.proj")


@pytest.mark.parametrize(
    ("builder", "layers"),
    [
        (latent_dit, OUTLIERS),
        (text_dit, OUTLIERS),
        (latent_unet, OUTLIERS),
        (pixel_unet, ("*.conv1", "*.attentions.0.to_[qkv]")),
    ],
)
def test_outliers_keep_every_bit_of_the_function(builder, layers) -> None:
    """Powers of two move exponents alone, so products and sums round as before."""
    assert change(builder, ChannelOutliers(64.0, layers, (1, 3))) < 1e-6


def test_outliers_are_in_the_named_channels() -> None:
    model, ask = build(latent_dit)
    path = "transformer_blocks.0.attn1.to_q"
    plain = inputs_of(model, ask, [path])[path]
    apply(model, ask, ChannelOutliers(32.0, (path,), (1, 3)))
    ratio = inputs_of(model, ask, [path])[path] / plain
    expected = torch.ones(plain.shape[-1])
    expected[[1, 3]] = 32.0
    torch.testing.assert_close(ratio, expected.expand_as(ratio))


@pytest.mark.parametrize("channels", [(), (16,), (-1,)])
def test_channels_that_are_not_there_are_refused(channels: tuple[int, ...]) -> None:
    path = "transformer_blocks.0.attn1.to_q"
    with pytest.raises(InvalidInputError, match="reads channels 0 to 15"):
        apply(*build(latent_dit), ChannelOutliers(2.0, (path,), channels))


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no_such_layer"):
        apply(*build(latent_dit), ChannelOutliers(2.0, ("no_such_layer",), (0,)))


@pytest.mark.parametrize("builder", [pixel_unet, latent_dit, text_dit])
def test_a_drift_keeps_the_function(builder) -> None:
    layers = ("*.conv1", "*.attn1.to_*", "*.ff.net.0.proj")
    assert change(builder, TimestepDrift((16.0, 0.25), layers)) < TOLERANCE


def test_a_drift_scales_each_row_by_its_steps_factor() -> None:
    model, ask = build(pixel_unet)
    path = "mid_block.resnets.0.conv1"
    plain = inputs_of(model, ask, [path])[path]
    apply(model, ask, TimestepDrift((16.0, 0.25), (path,)))
    scaled = inputs_of(model, ask, [path])[path]
    torch.testing.assert_close(scaled[0], plain[0] / 4)  # t = 7, the schedule's second
    torch.testing.assert_close(scaled[1], plain[1] * 16)  # t = 400, its first


def test_a_drift_wants_a_factor_for_every_step_and_its_own_schedule() -> None:
    with pytest.raises(InvalidInputError, match="1 factors for a sampler of 2 steps"):
        apply(*build(pixel_unet), TimestepDrift((2.0,), ("*.conv1",)))
    model, ask = build(pixel_unet)
    apply(model, ask, TimestepDrift((2.0, 1.0), ("*.conv1",)))
    with pytest.raises(InvalidInputError, match=r"\[9.0\] are not among the 2 steps"):
        model(torch.randn(1, 3, 8, 8), 9)


FACTOR = 64.0
"""20 log10(64) = 36.1 dB more noise in the deep part, if both parts reach equally far."""


@pytest.mark.parametrize("split", [False, True])
def test_a_shared_range_pays_for_the_imbalance_and_split_ranges_do_not(split: bool) -> None:
    """The guarantee on a layer, activations at 8 bits, both parts uniform on [-1, 1].

    Shared, the step is c times larger: the deep part's error grows by 20 log10 c, the skip part's
    (after W2 / c) stays, and the sum grows by 10 log10((c^2 + 1) / 2). Split, every scale takes up
    the factor exactly.
    """
    lost = snr_of_layer(1.0, split) - snr_of_layer(FACTOR, split)
    expected = 0.0 if split else 10 * math.log10((FACTOR**2 + 1) / 2)
    assert lost == pytest.approx(expected, abs=1e-3 if split else 1.0)


def snr_of_layer(factor: float, split: bool) -> float:
    generator = torch.Generator().manual_seed(0)
    deep, skip = torch.rand(2, 4, 8, 16, 16, generator=generator) * 2 - 1
    layer = nn.Conv2d(16, 16, 1, bias=False).requires_grad_(False)
    layer.weight.data = torch.randn(16, 16, 1, 1, generator=generator)
    truth = layer(torch.cat([deep, skip], 1))
    layer.weight.data[:, 8:] /= factor
    x = torch.cat([deep, factor * skip], 1)
    if split:
        split_layer(layer, (8, 8))
    wrap_layer(layer, "layer", StepContext())
    for quantizer, piece in layer.input_quantizer.pieces(x):
        quantizer.format = Affine(8)
        quantizer.set_range(min_max(piece, quantizer.format))
    return float(10 * (truth.square().sum() / (layer(x) - truth).square().sum()).log10())
