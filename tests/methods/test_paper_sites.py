"""policy="paper" of categories 1.3 and 1.4: what stays in full precision; all still runs."""

from functools import cache

import pytest
from tiny_diffusion import images, new_pipeline, sampler
from tiny_pipelines import animatediff, tiny

import dqlab
from dqlab import recipe
from dqlab.layers import quantizers
from dqlab.trajectory import record

OPTIONS = {
    "tdq": {"steps": "static"},
    "tfmq-dm": {"reconstruct": False, "temporal": "nearest"},
    "qvd": {"alpha": 0.5},
}
TIME = ("time_embedding", "time_emb_proj")


@cache
def bits_of(slug: str) -> dict[str, int | None]:
    """Bits of every site of a tiny U-Net at W4A6 by the paper's own policy."""
    pipe = new_pipeline()
    calibration = record(pipe, [0, 1], sampler())[0]
    q = dqlab.quantize(pipe, recipe(slug, **OPTIONS[slug]), 4, 6, sampler=sampler(),
                       calibration=calibration, policy="paper")  # fmt: skip
    assert images(q).isfinite().all()
    return {s: getattr(x.format, "bits", None) for s, x in quantizers(q.unet).items()}


def test_tdq_spares_the_ends_the_time_and_attentions_products() -> None:
    for site, bits in bits_of("tdq").items():
        spared = site.startswith(("conv_in", "conv_out")) or any(part in site for part in TIME)
        spared |= site.endswith((".q", ".k", ".v", ".p"))
        assert bits == (None if spared else 4 if site.endswith(".weight") else 6), site


def test_tfmq_dm_spares_what_its_code_spares() -> None:
    found = bits_of("tfmq-dm")
    spared = [s for s, bits in found.items() if bits is None]
    shortcuts = [s for s in found if "conv_shortcut" in s or "downsamplers" in s]
    assert shortcuts and set(shortcuts) <= set(spared)
    for site in ("conv_in.weight", "conv_out.input", "time_embedding.linear_1.weight",
                 "time_embedding.linear_2.input", "down_blocks.0.resnets.0.conv1.input",
                 "mid_block.attentions.0.q", "mid_block.attentions.0.p"):  # fmt: skip
        assert site in spared
    for site, bits in {"time_embedding.linear_2.weight": 4, "mid_block.resnets.0.conv1.input": 6,
                       "down_blocks.0.resnets.0.conv1.weight": 4,
                       "mid_block.resnets.0.time_emb_proj.input": 6,
                       "mid_block.resnets.0.time_emb_proj.weight": 4}.items():  # fmt: skip
        assert found[site] == bits


def test_tiar_works_where_the_first_layer_is_spared(monkeypatch) -> None:
    from dqlab.methods.unet_time_information import tfmq_dm

    monkeypatch.setitem(tfmq_dm.TIAR, "teach", tfmq_dm.Settings(20, 8, rounding_lr=0.05, lam=0.01))
    pipe = new_pipeline()
    before = pipe.unet.time_embedding.linear_1.weight.clone()
    q = dqlab.quantize(pipe, recipe("tfmq-dm", reconstruct=False), 4, 6, sampler=sampler(),
                       calibration=record(pipe, [0], sampler())[0], policy="paper")  # fmt: skip
    first, second = (getattr(q.unet.time_embedding, f"linear_{i}").weight for i in (1, 2))
    assert (first == before).all()
    assert (second != pipe.unet.time_embedding.linear_2.weight).any()


@pytest.mark.parametrize("end", ["conv_in", "conv_out"])
def test_qvd_gives_the_ends_8_bits(end) -> None:
    found = bits_of("qvd")
    assert found[f"{end}.weight"] == 8 and found["conv_in.input"] == 8
    assert found["conv_out.input"] is None
    assert found["mid_block.resnets.0.conv1.weight"] == 4
    assert found["mid_block.attentions.0.q"] == 6


def test_videos_have_the_same_names() -> None:
    """The rules name modules; a video network has them too."""
    pipe = tiny(animatediff)
    calibration = record(pipe, [0], sampler())[0]
    q = dqlab.quantize(pipe, "rtn", 8, 8, sampler=sampler(), calibration=calibration)
    sites = dqlab.describe(q)["formats"]
    for part in (".time_emb_proj.", "downsamplers", "time_embedding.linear_2.input"):
        assert any(part in site for site in sites)
    assert {"conv_in.weight", "conv_out.input", "down_blocks.0.resnets.0.conv1.input"} <= {*sites}
