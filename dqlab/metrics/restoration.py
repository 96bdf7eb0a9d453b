"""How well pictures are restored: super-resolution against bicubic, bits against their pictures.

Feature distance: mean over pictures of the Euclidean distance between the attribute classifier's
features of the restored and of the true picture.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqlab import seeds
from dqlab.metrics.frechet import features
from dqlab.models.families import Sampler
from dqlab.models.loading import open_pipeline
from dqlab.models.pipelines.super_resolution import ANCESTRAL
from dqlab.models.tint import held_out_pictures
from dqlab.models.upscaling import SCALES, enlarge, shrink

BATCH = 50
TIMES = 8
"""Buckets of the training timesteps in which bit accuracy is told."""


def picture_errors(restored: Tensor, sharp: Tensor) -> dict[str, float]:
    """Mean PSNR in dB, SSIM and feature distance of pictures `[N, 3, 32, 32]` in [-1, 1]."""
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    seen = [features(x / 2 + 0.5) for x in (restored, sharp)]
    return {
        "psnr_db": round(float(psnr(restored, sharp).mean()), 2),
        "ssim": round(float(ssim(restored, sharp, data_range=2.0)), 4),
        "feature_distance": round(float((seen[0] - seen[1]).norm(dim=1).mean()), 4),
    }


def psnr(restored: Tensor, sharp: Tensor) -> Tensor:
    """10 log10(4 / mean squared error) per picture in [-1, 1], dB `[N]`."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return peak_signal_noise_ratio(
        restored, sharp, data_range=2.0, reduction="none", dim=(1, 2, 3)
    )


def measure_super_resolution(folder: Path) -> dict[str, Any]:
    """Restored held-out pictures beside bicubic enlargement, for both factors.

    Ratios of feature distances are to bicubic's. `restored` draws fresh noise at every step, as
    SR3 does (eta 1); `deterministic` is DDIM with eta 0.
    """
    pipe, (sharp, _) = open_pipeline(folder), held_out_pictures()
    found: dict[str, Any] = {"samples": len(sharp), "sampler": vars(Sampler(eta=ANCESTRAL))}
    for scale in SCALES:
        low = shrink(sharp, sharp.shape[-1] // scale)
        bicubic = picture_errors(enlarge(low, sharp.shape[-1]), sharp)
        told = {"bicubic": bicubic}
        for name, eta in (("restored", ANCESTRAL), ("deterministic", 0.0)):
            images = restore(pipe, low, seeds.QUALITY[: len(low)], eta)
            told[name] = picture_errors(images, sharp)
            ratio = told[name]["feature_distance"] / bicubic["feature_distance"]
            told[name]["feature_distance_ratio"] = round(ratio, 3)
        found[f"x{scale}"] = told
    return found


def restore(pipe: Any, low: Tensor, noise: Sequence[int], eta: float = ANCESTRAL) -> Tensor:
    """What a super-resolution pipeline makes of `low`, at the default number of steps.

    Args:
        pipe: a `SuperResolutionPipeline`.
        low: `[N, 3, h, h]` in [-1, 1].
        noise: a seed for each picture.
        eta: DDIM's eta.

    Returns:
        `[N, 3, H, H]` in [-1, 1].

    """
    parts = []
    for start in range(0, len(low), BATCH):
        chosen = noise[start : start + BATCH]
        images = pipe(
            image=low[start : start + BATCH] / 2 + 0.5,
            num_inference_steps=Sampler().num_inference_steps,
            eta=eta,
            generator=[torch.Generator().manual_seed(int(s)) for s in chosen],
            output_type="pt",
        ).images
        parts.append(images * 2 - 1)
    return torch.cat(parts)


@torch.no_grad()
def code_quality(pipe: Any) -> dict[str, Any]:
    """Reconstruction from likelier and from drawn bits, use of the bits, accuracy over time.

    The accuracy of a bucket of timesteps stands beside that of copying the noisy bits.
    """
    network, (real, shown) = pipe.autoencoder, held_out_pictures()
    generator = torch.Generator().manual_seed(0)
    p = torch.cat([network.probabilities(part) for part in real.split(BATCH)])
    parts = zip(
        real.split(BATCH), torch.rand(p.shape, generator=generator).split(BATCH), strict=True
    )
    drawn = torch.cat([network.encode(part, chance) for part, chance in parts])
    likely = torch.cat([network.encode(part) for part in real.split(BATCH)])
    rate = likely.mean((0, 1))
    return {
        "bits_per_picture": likely[0].numel(),
        "psnr_db": {
            "likelier_bits": round(float(psnr(_decoded(network, likely), real).mean()), 2),
            "drawn_bits": round(float(psnr(_decoded(network, drawn), real).mean()), 2),
        },
        "bits_with_rate_between_5_and_95_percent": round(
            float(((rate >= 0.05) & (rate <= 0.95)).float().mean()), 3
        ),
        "bit_accuracy": bit_accuracy(pipe, likely, shown.garment),
    }


def _decoded(network: Any, code: Tensor) -> Tensor:
    return torch.cat([network.decode(part) for part in code.split(BATCH)]).clamp(-1, 1)


@torch.no_grad()
def bit_accuracy(pipe: Any, clean: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """Share of clean bits that the transformer names right, per bucket of timesteps.

    Args:
        pipe: a `BinaryLatentPipeline`.
        clean: codes `[N, cells, bits]`.
        labels: their classes, int64 `[N]`.

    Returns:
        Rows t_from, t_to, accuracy, copying (the share of bits that noise has left alone).

    """
    scheduler, rows = pipe.scheduler, []
    width = scheduler.config.num_train_timesteps // TIMES
    for bucket in range(TIMES):
        generator = torch.Generator().manual_seed(bucket)
        low, high = bucket * width + 1, (bucket + 1) * width
        t = torch.randint(low, high + 1, (len(clean),), generator=generator)
        x_t = scheduler.add_noise(clean, torch.rand(clean.shape, generator=generator), t)
        parts = zip(x_t.split(BATCH), t.split(BATCH), labels.split(BATCH), strict=True)
        logits = torch.cat([pipe.transformer(x, at, c).sample for x, at, c in parts])
        named = torch.where(logits > 0, 1 - x_t, x_t)
        hits = {"accuracy": named == clean, "copying": x_t == clean}
        told = {k: round(float(v.float().mean()), 4) for k, v in hits.items()}
        rows.append({"t_from": low, "t_to": high, **told})
    return rows
