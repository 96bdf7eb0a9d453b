"""Injected pipelines: same images, quantized like any other, never saved."""

from functools import cache

import pytest
import torch
from tiny_models import SAMPLER, STEPS, new_pipeline

from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.fit.capture import capture
from dqlab.layers import ChannelOutliers, ShortcutImbalance, TimestepDrift, quantizers
from dqlab.methods import quantize, recipe
from dqlab.models.families import Sampler, family_of
from dqlab.trajectory import injected, record
from dqlab.trajectory.injected import relative_change

SITES = "up_blocks.0.resnets.0.conv_shortcut.input"
SHORTCUT = ShortcutImbalance(64.0)
KINDS = (
    SHORTCUT,
    ChannelOutliers(64.0, ("*.to_[qkv]",), (0, 5)),
    TimestepDrift((8.0, 1.0, 0.125), ("*.conv1",)),
)

WIDTHS = {"block_out_channels": (12, 24), "norm_num_groups": 6, "attention_head_dim": 12}
"""No norm group straddles a concatenation."""


@cache
def pipeline():
    return new_pipeline(**WIDTHS)


@cache
def recorded(count: int = 4):
    return record(pipeline(), range(count), SAMPLER)


def made(*injections):
    return injected(pipeline(), *injections, sampler=SAMPLER, states=recorded(1)[0])


@pytest.mark.parametrize("kinds", [(k,) for k in KINDS] + [KINDS], ids=len)
def test_the_images_are_the_same(kinds) -> None:
    run, setting = family_of(pipeline()).run, Sampler.of(SAMPLER)
    torch.testing.assert_close(
        run(made(*kinds), setting, range(2)), run(pipeline(), setting, range(2)),
        rtol=0, atol=1e-3,
    )  # fmt: skip
    assert relative_change(pipeline().unet, made(*kinds).unet, recorded()[0]) < 1e-4


def test_the_original_is_left_alone() -> None:
    before = {name: p.clone() for name, p in pipeline().unet.named_parameters()}
    made(*KINDS)
    assert all(torch.equal(p, before[n]) for n, p in pipeline().unet.named_parameters())
    assert "save_pretrained" not in vars(pipeline())


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("part", ["pipeline", "denoiser"])
def test_saving_is_refused_and_leaves_no_file(quantized: bool, part: str, tmp_path) -> None:
    pipe = made(SHORTCUT)
    if quantized:
        pipe = quantize(pipe, "rtn", 8, 8, sampler=SAMPLER, calibration=recorded()[0])
    with pytest.raises(InvalidInputError, match="not saved"):
        (pipe if part == "pipeline" else pipe.unet).save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_corrected_pipeline_is_not_saved_either(tmp_path) -> None:
    chosen = recipe("rtn") | recipe("ptqd")
    pipe = quantize(made(SHORTCUT), chosen, 8, 8, sampler=SAMPLER)
    with pytest.raises(InvalidInputError, match="not saved"):
        pipe.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_split_ranges_take_up_the_factor_and_shared_ones_grow_with_it() -> None:
    options = {"sampler": SAMPLER, "calibration": recorded()[0]}
    ranges = {}
    for split in (False, True):
        chosen = recipe("q-diffusion", split=split, search=False, reconstruct=False)
        for name, pipe in (("plain", pipeline()), ("injected", made(SHORTCUT))):
            sites = quantizers(quantize(pipe, chosen, 8, 8, **options).unet)
            ranges[name] = {s: q.scale for s, q in sites.items() if SITES in s}
        assert ranges["plain"].keys() == ranges["injected"].keys()
        for site, scale in ranges["plain"].items():
            grown = float(ranges["injected"][site] / scale)
            expected = (64 if site.endswith("[1]") else 1) if split else None
            if expected:
                assert grown == pytest.approx(expected, rel=0.02)
            else:
                assert grown > 16  # the parts of this net reach about equally far


def test_a_captured_unit_answers_as_it_did() -> None:
    """Its input is kept as it arrives, or its hook would scale it a second time."""
    layer = "up_blocks.0.upsamplers.0.conv"
    pipe = made(SHORTCUT, ChannelOutliers(64.0, (layer,), (0,)))
    for path in ("up_blocks.0.resnets.0", layer):
        seen = capture(pipe.unet, [path], recorded()[0][:4])[path]
        again = seen.call(pipe.unet.get_submodule(path))
        torch.testing.assert_close(again, seen.output)


def test_a_skip_scaled_down_meets_the_norms_eps_and_is_refused() -> None:
    with pytest.raises(NotApplicableError, match="eps is large beside its variance"):
        made(ShortcutImbalance(2.0**-8))


def test_what_cannot_be_undone_is_refused() -> None:
    """This block's output depends on the concatenation in a way no weight can undo."""
    pipe = new_pipeline(**WIDTHS)
    block = pipe.unet.up_blocks[1].resnets[1]
    forward = type(block).forward

    def also_reads(x, temb):
        return forward(block, x, temb) + x.mean()

    block.forward = also_reads
    with pytest.raises(NotApplicableError, match="away from the original"):
        injected(pipe, SHORTCUT, sampler=SAMPLER, states=recorded(1)[0])


def test_a_drift_follows_the_samplers_steps() -> None:
    with pytest.raises(InvalidInputError, match=f"2 factors for a sampler of {STEPS} steps"):
        made(TimestepDrift((2.0, 1.0), ("*.conv1",)))
