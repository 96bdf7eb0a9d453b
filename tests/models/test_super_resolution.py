import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from PIL import Image
from tiny_models import SAMPLER, new_unet
from tiny_pipelines import super_resolution, tiny

import dqlab
from dqlab import seeds
from dqlab.errors import CheckpointError, InvalidInputError
from dqlab.metrics import restoration
from dqlab.models.families import Sampler, family_of
from dqlab.models.pipelines.super_resolution import SuperResolutionPipeline
from dqlab.models.upscaling import (
    assigned,
    blur,
    enlarge,
    low_pictures_of_seeds,
    sharp_pictures,
    shrink,
)
from dqlab.trajectory import record


@pytest.fixture(scope="module")
def pipe():
    return tiny(super_resolution)


class Answer(UNet2DModel):
    """Predicts the noise of a state whose clean picture it is told."""

    def __init__(self, clean: torch.Tensor, scheduler: DDIMScheduler):
        super().__init__(**dict(new_unet(in_channels=6).config))
        self.clean, self.abar = clean, scheduler.alphas_cumprod
        self.seen: list[torch.Tensor] = []

    def forward(self, sample, timestep, **_):
        self.seen.append(sample[:, :3])
        a = self.abar[timestep]
        noise = (sample[:, 3:] - a.sqrt() * self.clean) / (1 - a).sqrt()
        return type("Output", (), {"sample": noise})


def constant(value: float, size: int) -> torch.Tensor:
    return torch.full((1, 3, size, size), value)


def test_blurring_keeps_flat_pictures_and_loses_fine_stripes() -> None:
    torch.testing.assert_close(blur(constant(0.3, 16), torch.tensor([1])), constant(0.3, 16))
    stripes = constant(1.0, 16)
    stripes[..., ::2] = -1
    for scale in (0, 1):
        kept = blur(stripes, torch.tensor([scale])).std()
        assert kept < 0.2 * stripes.std()


def test_each_picture_is_blurred_by_its_own_factor() -> None:
    pictures = torch.rand(3, 3, 16, 16) * 2 - 1
    found = blur(pictures, torch.tensor([1, 0, 1]))
    for row, factor in enumerate((4, 2, 4)):
        one = pictures[row : row + 1]
        torch.testing.assert_close(found[row], enlarge(shrink(one, 16 // factor), 16)[0])


def test_seeds_of_different_purposes_never_share_a_picture() -> None:
    purposes = (seeds.CALIBRATION, seeds.SEARCH, seeds.HELD_OUT, seeds.GALLERY)
    pictures = torch.cat([assigned(purpose).picture for purpose in purposes])
    assert len(pictures.unique()) == len(pictures) <= 1000
    scale = assigned(seeds.HELD_OUT).scale
    assert scale.unique().tolist() == [2, 4]
    assert (scale == 2).float().mean() == 0.5
    again = assigned(list(seeds.HELD_OUT)[::-1])
    assert torch.equal(again.picture.flip(0), assigned(seeds.HELD_OUT).picture)
    assert (assigned(seeds.QUALITY).picture < 1000).all()


def test_a_seeds_low_resolution_picture_comes_from_its_sharp_one(pipe) -> None:
    chosen = list(seeds.HELD_OUT[:4])
    low = low_pictures_of_seeds(pipe, chosen)["image"]
    assert sorted({one.shape[-1] for one in low}) == [2, 4]  # a tiny network makes 8x8
    for one, sharp in zip(low, sharp_pictures(chosen), strict=True):
        expected = shrink(sharp[None], one.shape[-1])[0] / 2 + 0.5
        torch.testing.assert_close(one, expected)


def test_a_perfect_network_gives_the_picture_back(pipe) -> None:
    sharp = (torch.rand(2, 3, 8, 8) * 2 - 1) / 4
    low = shrink(sharp, 4)
    y = enlarge(low, 8)
    network = Answer(1.5 * (sharp - y), pipe.scheduler)
    exact = SuperResolutionPipeline(network, pipe.scheduler, gain=1.5)
    exact.set_progress_bar_config(disable=True)
    out = exact(image=low / 2 + 0.5, num_inference_steps=3, output_type="pt").images
    torch.testing.assert_close(out * 2 - 1, sharp, atol=1e-4, rtol=0)
    for seen in network.seen:
        torch.testing.assert_close(seen, y)


def test_takes_pictures_of_every_kind_and_of_both_sizes(pipe) -> None:
    values = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    options = {"num_inference_steps": 2, "output_type": "np"}
    kinds = [
        Image.fromarray(values),
        values.astype(np.float32) / 255,
        torch.tensor(values).permute(2, 0, 1) / 255,
        torch.tensor(values).permute(2, 0, 1)[None] / 255,
    ]
    found = [
        pipe(one, generator=torch.Generator().manual_seed(1), **options).images for one in kinds
    ]
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, atol=1e-5)
    mixed = pipe([torch.rand(3, 4, 4), torch.rand(3, 2, 2)], **options).images
    assert mixed.shape == (2, 8, 8, 3)
    (plain,) = pipe(kinds[0], num_inference_steps=1, return_dict=False)
    assert plain[0].size == (8, 8)


@pytest.mark.parametrize("shape", [(3, 3, 3), (3, 8, 8), (3, 4, 2)])
def test_other_sizes_are_refused(pipe, shape) -> None:
    with pytest.raises(InvalidInputError, match=r"does not fit: this model makes 8x8 from 4x4 or"):
        pipe(torch.rand(shape))


def test_folder_comes_back_and_plain_diffusers_opens_the_network(pipe, tmp_path) -> None:
    pipe.save_pretrained(tmp_path / "sr")
    again = dqlab.load(tmp_path / "sr")
    assert type(again) is SuperResolutionPipeline
    assert again.config.gain == 4.0
    plain = UNet2DModel.from_pretrained(tmp_path / "sr" / "unet")
    for name, value in pipe.unet.state_dict().items():
        assert torch.equal(plain.state_dict()[name], value)
    seen = [family_of(p).run(p, Sampler(2), [0, 1]) for p in (pipe, again)]
    assert torch.equal(*seen)


def test_a_pipeline_that_nobody_knows_is_one_error(pipe, tmp_path) -> None:
    pipe.save_pretrained(tmp_path / "sr")
    index = tmp_path / "sr" / "model_index.json"
    index.write_text(index.read_text().replace("SuperResolutionPipeline", "NoSuchPipeline"))
    with pytest.raises(CheckpointError, match="NoSuchPipeline"):
        dqlab.load(tmp_path / "sr")


def test_states_hold_the_given_picture_beside_the_noisy_one(pipe) -> None:
    states, images = record(pipe, seeds.HELD_OUT[:2], SAMPLER)
    assert images.shape == (2, 3, 8, 8)
    assert states.x.shape == (6, 6, 8, 8)
    assert states.output.shape == (6, 3, 8, 8)
    given = states.x[:, :3].reshape(3, 2, -1)
    assert torch.equal(given[0], given[1])
    assert torch.equal(given[0], given[2])
    assert not torch.equal(given[0, 0], given[0, 1])


def test_corrections_of_predicted_noise_apply(pipe) -> None:
    recipe = dqlab.recipe("ptqd", samples=2)
    q = dqlab.quantize(pipe, recipe, 4, 8, sampler=SAMPLER)
    assert type(q).__name__ == "CorrectedSuperResolutionPipeline"
    assert family_of(q).run(q, Sampler.of(SAMPLER), [0]).isfinite().all()


def test_restored_pictures_are_measured_against_bicubic(pipe, monkeypatch, tmp_path) -> None:
    sharp = torch.rand(6, 3, 8, 8) * 2 - 1
    monkeypatch.setattr(restoration, "held_out_pictures", lambda: (sharp, None))
    monkeypatch.setattr(restoration, "features", lambda images: images.flatten(1)[:, :5])
    monkeypatch.setattr(restoration, "BATCH", 4)
    pipe.save_pretrained(tmp_path / "sr")
    found = json.loads(json.dumps(restoration.measure_super_resolution(tmp_path / "sr")))
    bicubic = enlarge(shrink(sharp, 2), 8)
    error = (bicubic - sharp).square().flatten(1).mean(1)
    expected = float((10 * (4 / error).log10()).mean())
    assert found["x4"]["bicubic"]["psnr_db"] == pytest.approx(expected, abs=0.01)
    told = found["x2"]
    for name in ("restored", "deterministic"):
        ratio = told[name]["feature_distance"] / told["bicubic"]["feature_distance"]
        assert told[name]["feature_distance_ratio"] == pytest.approx(ratio, abs=1e-3)
    assert told["restored"] != told["deterministic"]
    assert found["sampler"]["eta"] == 1
    exact = restoration.picture_errors(sharp.clone(), sharp)
    assert exact["ssim"] == 1
    assert exact["feature_distance"] == 0
