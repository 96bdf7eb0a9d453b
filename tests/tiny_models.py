"""Small, randomly initialised models for tests of mechanism; never change a cached one."""

from collections.abc import Callable
from functools import cache

import torch

import dqlab
from dqlab.models.classifier import AttributeClassifier, save_classifier

STEPS = 3
SAMPLER = {"num_inference_steps": STEPS}


def seeded(build: Callable, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def new_unet(**changes):
    from diffusers import UNet2DModel

    settings = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
        "resnet_time_scale_shift": "scale_shift",
    }
    return seeded(lambda: UNet2DModel(**settings | changes)).eval()


def new_pipeline(**changes):
    """A DDIMPipeline of 8x8 pictures; 3 steps are its usual sampler here."""
    from diffusers import DDIMPipeline, DDIMScheduler

    scheduler = DDIMScheduler(beta_schedule="linear", timestep_spacing="trailing")
    pipe = DDIMPipeline(new_unet(**changes), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def pipeline():
    return new_pipeline()


@cache
def recorded(count: int = 4):
    """States and images of the first `count` trajectories of the shared pipeline."""
    from dqlab.trajectory import record

    return record(pipeline(), range(count), SAMPLER)


@cache
def quantized(weights=8, activations=8):
    return dqlab.quantize(
        pipeline(), "rtn", weights, activations, sampler=SAMPLER, calibration=recorded()[0]
    )


def fill_shipped(folder) -> None:
    """What a shipped folder holds: a classifier with random weights and the tiny pipeline."""
    save_classifier(seeded(AttributeClassifier), folder / "models" / "attribute-classifier")
    pipeline().save_pretrained(folder / "models" / "tiny-unet")
