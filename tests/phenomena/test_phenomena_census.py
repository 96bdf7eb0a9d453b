"""The census against layers whose inputs are known."""

import math

import numpy as np
import pytest
import torch
from tiny_models import new_pipeline, seeded

from dqlab.layers import concatenations
from dqlab.phenomena import census
from dqlab.trajectory import record

SAMPLER = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def unet():
    return new_pipeline()


@pytest.fixture(scope="module")
def unet_states(unet):
    return record(unet, [0, 1], SAMPLER)[0]


@pytest.fixture(scope="module")
def frame(unet, unet_states):
    return census.census(unet, unet_states)


def guided_dit():
    """A class-conditional transformer whose modulation is known."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2,
        sample_size=4, patch_size=1, num_embeds_ada_norm=1000,
    ).eval()  # fmt: skip
    first = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, sample_size=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip
    return DiTPipeline(network, first, DDIMScheduler(timestep_spacing="trailing"))


def text_dit():
    """A transformer whose blocks share their modulation."""
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2,
        sample_size=4, patch_size=1, cross_attention_dim=16, caption_channels=8,
    ).eval()  # fmt: skip


def counted(*batches: torch.Tensor, positions: bool = True, pieces=()) -> dict[str, float]:
    seen = census._Inputs()
    for rows in batches:
        seen.add(rows, positions)
    return seen.figures(pieces)


def test_figures_of_known_rows() -> None:
    rows = torch.tensor([[1.0, -2.0, 0.5, 8.0], [1.0, 1.0, -1.0, -4.0]])
    found = counted(rows[:1], rows[1:], pieces=(2, 2))
    assert found["largest"] == 8
    assert found["channel_ratio"] == 8  # channel maxima 1, 2, 1, 8; torch's median is the lower
    assert found["shortcut"] == pytest.approx(2 / 8)
    assert found["token_ratio"] == pytest.approx(np.quantile([8, 4], 0.99) / 4)
    assert found["token_spread"] == pytest.approx(np.std([8, 4], ddof=1) / 6)


def test_vectors_have_no_tokens_and_most_layers_no_shortcut() -> None:
    found = counted(torch.randn(5, 4), positions=False)
    assert math.isnan(found["token_ratio"]) and math.isnan(found["token_spread"])
    assert math.isnan(found["shortcut"])


def test_skewness_of_an_exponential_is_two_and_of_noise_is_zero() -> None:
    """Standard error of sample skewness: sqrt(6 / n) for a Gaussian; more for an exponential."""
    n = 100_000
    noise = counted(torch.randn(n // 10, 10))["skewness"]
    assert abs(noise) < 5 * (6 / n) ** 0.5
    halves = torch.empty(2, n // 20, 10).exponential_()
    waits = counted(*halves)["skewness"]
    assert waits == pytest.approx(2, abs=0.3)
    assert counted(torch.ones(3, 3))["skewness"] == 0


def test_every_layer_at_every_step(unet, unet_states, frame) -> None:
    layers = frame["layer"].unique()
    assert layers[0] == "time_embedding.linear_1"
    assert len(frame) == 2 * len(layers)
    assert frame["step"].unique().tolist() == [0, 1]
    assert (frame["branch"] == "").all()
    assert (frame["channel_ratio"] >= 1).all()
    entered = frame[frame["layer"] == "conv_in"].set_index("step")
    for step in (0, 1):
        part = unet_states[unet_states.step == step]
        assert entered.loc[step, "timestep"] == int(part.t[0])
        assert entered.loc[step, "largest"] == float(part.x.abs().max())


def test_shortcuts_are_those_layers_that_read_concatenations(unet, unet_states, frame) -> None:
    parts = concatenations(unet.unet, lambda: unet_states[:1].call(unet.unet))
    known = frame.dropna(subset=["shortcut"])["layer"].unique()
    assert set(known) == set(parts)
    assert len(parts) > 0


def test_drift_is_over_steps(frame) -> None:
    reach = frame.pivot(index="layer", columns="step", values="largest")
    found = census.drift(frame).loc[reach.index]
    assert np.allclose(found["drift"], reach.max(axis=1) / reach.min(axis=1))
    assert np.allclose(found["step_spread"], reach.std(axis=1) / reach.mean(axis=1))


def test_a_louder_channel_is_found(unet, unet_states, frame) -> None:
    """conv_norm_out's weight scales what conv_out reads, but a SiLU stands between."""
    loud = new_pipeline()
    with torch.no_grad():
        loud.unet.conv_norm_out.weight[3] *= 30
    before, after = (
        t[t["layer"] == "conv_out"]["channel_ratio"].min()
        for t in (frame, census.census(loud, unet_states))
    )
    assert after > 5 * before


def test_modulation_of_scale_shift_blocks(unet, unet_states) -> None:
    """With a time projection that ignores time, the scale is its bias."""
    flat = new_pipeline()
    with torch.no_grad():
        for block in flat.unet.modules():
            if hasattr(block, "time_emb_proj"):
                block.time_emb_proj.weight.zero_()
                block.time_emb_proj.bias.zero_()
                block.time_emb_proj.bias[0] = 4.0
    found = census.modulation(flat, unet_states)
    assert len(found) == sum(hasattr(m, "time_emb_proj") for m in flat.unet.modules())
    assert np.allclose(found["ratio"], 5)


def test_modulation_of_adaln_zero_and_its_branches() -> None:
    pipe = seeded(guided_dit)
    width = 16
    with torch.no_grad():
        for block in pipe.transformer.transformer_blocks:
            block.norm1.linear.weight.zero_()
            block.norm1.linear.bias.zero_()
            block.norm1.linear.bias[width] = 2.0  # scale of attention, first channel
            block.norm1.linear.bias[4 * width + 1] = 6.0  # scale of the MLP, second
    states, _ = record(pipe, [0], SAMPLER)
    found = census.modulation(pipe, states).set_index("norm")["ratio"]
    assert found.to_dict() == {
        f"transformer_blocks.{i}.norm1 {part}": ratio
        for i in (0, 1)
        for part, ratio in (("attention", 3), ("mlp", 7))
    }
    frame = census.census(pipe, states)
    assert set(frame["branch"]) == {"cond", "uncond"}
    summary = census.summary(pipe, 1, SAMPLER)
    assert summary["modulation"] == {"median": 5, "largest": 7}
    assert summary["trajectories"] == 1
    assert "shortcut" not in summary
    assert "temporal_skewness" not in summary


def test_modulation_of_adaln_single_adds_the_blocks_own_table() -> None:
    network = seeded(text_dit)
    with torch.no_grad():
        for table in (b.scale_shift_table for b in network.transformer_blocks):
            table.zero_()
            table[1, 0] = 1.0
    scales = census._scales(network)
    assert len(scales) == 4
    module, cut = scales["transformer_blocks.0 attention"]
    assert module is network.adaln_single.linear
    shared = torch.arange(6 * 16.0).reshape(1, -1)
    expected = shared[:, 16:32].clone()
    expected[0, 0] += 1
    assert torch.equal(cut(shared), expected)


def test_summary_of_a_unet(unet) -> None:
    found = census.summary(unet, 1, SAMPLER)
    assert {"drift", "channel_ratio", "token_ratio", "shortcut", "modulation"} <= found.keys()
    assert found["drift"]["largest"] >= found["drift"]["median"] >= 1
    assert 0 <= found["drift"]["share_above_2"] <= 1
