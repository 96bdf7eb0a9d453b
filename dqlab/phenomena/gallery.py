"""Behind the gallery: samples of every shipped model, and its measured quality in words."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from dqlab import seeds
from dqlab.methods import load as load_pipeline
from dqlab.metrics.restoration import restore
from dqlab.metrics.sampling import sample
from dqlab.models.loading import read_json, shipped
from dqlab.models.tint import held_out_pictures
from dqlab.models.upscaling import shrink
from dqlab.paths import models_dir
from dqlab.phenomena import stored

NAME = "gallery"
COMMAND = "python -m dqlab.phenomena.gallery"
SHOWN = 4
"""Pictures per model; a video's are frames of one clip, first and last included."""

STANDS_FOR = {
    "pixel-unet": "DDIM on CIFAR-10, ADM",
    "latent-unet": "LDM-4, Stable Diffusion",
    "latent-dit": "DiT-XL/2",
    "text-dit": "PixArt-alpha, -sigma",
    "video-unet": "AnimateDiff, SVD",
    "video-dit": "Latte, Open-Sora",
    "sr-unet": "SR3",
    "binary-latent": "Binary Latent Diffusion",
}
"""Models of the papers whose part each plays, in the order of the gallery."""


def members() -> list[str]:
    """Shipped models that belong into the gallery."""
    found = set(shipped())
    return [name for name in STANDS_FOR if name in found]


def measure(say: stored.Say) -> stored.Found:
    """Samples `[SHOWN, 3, 32, 32]` of every member as bytes, and what each costs and is worth."""
    tensors, rows = {}, []
    for name in members():
        pipe = load_pipeline(name)
        tensors[name] = stored.to_bytes(pictures(name, pipe))
        network = getattr(pipe, "transformer", None) or pipe.unet
        rows.append(
            {
                "model": name,
                "pipeline": type(pipe).__name__,
                "network": type(network).__name__,
                "parameters": sum(p.numel() for p in network.parameters()),
            }
        )
        say(name)
    return {"models": pd.DataFrame(rows)}, tensors


def pictures(name: str, pipe: Any) -> Tensor:
    """The first pictures a shipped model makes of the first seeds, `[SHOWN, 3, 32, 32]`.

    A super-resolution model gets the first held-out pictures at half their width; a video model
    shows frames of its first clip.
    """
    if name == "sr-unet":
        low = shrink(held_out_pictures()[0][:SHOWN], 16)
        return restore(pipe, low, seeds.GALLERY[:SHOWN]) / 2 + 0.5
    if name.startswith("video"):
        clip = sample(pipe, seeds.GALLERY[:1])[0]
        return clip[torch.linspace(0, len(clip) - 1, SHOWN).round().long()]
    return sample(pipe, seeds.GALLERY[:SHOWN])


def quality(name: str) -> str:
    """One sentence from the model's `quality.json`."""
    found = read_json(models_dir() / name / "quality.json")
    if name == "sr-unet":
        return _restored(found["x2"])
    if name == "binary-latent":
        return (
            f"{found['class_agreement']:.1%} show the class asked for; its bits alone keep "
            f"{found['psnr_db']['likelier_bits']:.1f} dB"
        )
    if "generated" in found:
        return _filmed(found)
    if "prompt_agreement" in found:
        agreed, real = (found[k]["all"] for k in ("prompt_agreement", "agreement_on_real_images"))
        return (
            f"{agreed:.1%} show all that was asked for (real pictures: {real:.1%}); "
            f"{_distance(found)}"
        )
    return (
        f"a classifier is {found['confidence']['ratio']:.2f} times as sure of them as of real "
        f"pictures; {_distance(found)}"
    )


def _distance(found: Mapping[str, Any]) -> str:
    return f"Fréchet distance {found['frechet']['multiple']:.1f} times that of real ones"


def _restored(found: Mapping[str, Any]) -> str:
    ours, bicubic = found["restored"], found["bicubic"]
    return (
        f"×2: {ours['psnr_db']:.1f} dB (bicubic: {bicubic['psnr_db']:.1f}), "
        f"features {ours['feature_distance_ratio']:.2f} times as far from the true ones"
    )


def _filmed(found: Mapping[str, Any]) -> str:
    same, real = (
        found[k]["frames_like_the_majority"]["all"]["mean"] for k in ("generated", "real")
    )
    return f"{same:.1%} of frames show what their clip shows (real clips: {real:.1%}); " + (
        _distance(found)
    )


def main() -> None:
    """Sample every shipped model and replace data/results/gallery."""
    stored.produce_from(NAME, COMMAND, "all shipped models", models_dir(), measure)


if __name__ == "__main__":
    main()
