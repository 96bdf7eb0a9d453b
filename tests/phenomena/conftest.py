"""A pipeline small enough to measure in a second, and the shipped folder it may use."""

import shutil

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from dqlab.models.classifier import AttributeClassifier, save_classifier
from dqlab.models.families import Sampler
from dqlab.paths import ROOT
from dqlab.trajectory import States, record

STEPS = 3


@pytest.fixture(scope="session")
def pipe() -> DDIMPipeline:
    """A random U-Net on 8x8 pictures, with attention, as the shipped one in small."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
    ).eval()  # fmt: skip
    scheduler = DDIMScheduler(timestep_spacing="trailing", beta_schedule="linear")
    return DDIMPipeline(unet, scheduler)


@pytest.fixture(scope="session")
def sampler() -> Sampler:
    return Sampler(num_inference_steps=STEPS)


@pytest.fixture(scope="session")
def run(pipe: DDIMPipeline, sampler: Sampler) -> tuple[States, torch.Tensor]:
    """Two full-precision trajectories and their pictures."""
    return record(pipe, [0, 1], sampler)


@pytest.fixture
def shipped(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """A shipped folder with the held-out pictures and an untrained classifier."""
    source = ROOT / "data" / "fashion-mnist"
    shutil.copytree(source, tmp_path / "fashion-mnist")
    torch.manual_seed(1)
    save_classifier(AttributeClassifier(width=8), tmp_path / "models" / "attribute-classifier")
    monkeypatch.setenv("DQLAB_SHIPPED_DIR", str(tmp_path))
    return tmp_path
