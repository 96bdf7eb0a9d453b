"""How good a shipped model is: measured by a command, written into its model card.

Every number comes from `measure_*`; the card (README.md) is rendered from `quality.json` and
`training.json`, never typed.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqlab import seeds
from dqlab.engine.state import write_atomically
from dqlab.errors import UnknownNameError
from dqlab.metrics.fidelity import prompt_fidelity
from dqlab.metrics.frechet import (
    features,
    frechet_distance,
    frechet_with_error,
    stored_features,
)
from dqlab.metrics.intervals import median
from dqlab.metrics.restoration import code_quality, measure_super_resolution, psnr
from dqlab.metrics.sampling import sample
from dqlab.metrics.video import measure_video_features, measure_video_model
from dqlab.models import fashion
from dqlab.models.captions import attributes_of
from dqlab.models.classifier import AttributeClassifier, load_classifier
from dqlab.models.families import Sampler, family_of
from dqlab.models.loading import file_sums, open_component, open_pipeline, read_json
from dqlab.models.recipes.base import add_noise
from dqlab.models.tint import BACKGROUNDS, dress, held_out_pictures
from dqlab.models.training import git_commit, machine_kind
from dqlab.paths import data_dir, models_dir

SAMPLES = 1_000
REFERENCE = 5_000
LOSS_BUCKETS = 10


def reference_features(classifier: AttributeClassifier) -> Tensor:
    """Features of 5,000 tinted training images: shipped, or computed and stored."""

    def compute() -> Tensor:
        grey, labels = fashion.load_split("train")
        images, _ = dress(grey[:REFERENCE], labels[:REFERENCE], torch.Generator().manual_seed(1))
        return features(images / 2 + 0.5, classifier)

    path = data_dir() / "reference" / "train-features.safetensors"
    maker = file_sums(models_dir() / "attribute-classifier")["model.safetensors"]
    return stored_features(path, maker, compute)


def measure_classifier(folder: Path) -> dict[str, Any]:
    """Accuracy per attribute and mean confidence on the held-out images."""
    classifier = load_classifier(folder)
    images, shown = held_out_pictures()
    accuracy = prompt_fidelity(images / 2 + 0.5, shown, classifier)
    confidence = float(classifier.read(images)[1].mean())
    return {"accuracy": _rounded(accuracy), "confidence": round(confidence, 4)}


def measure_pixel_model(folder: Path) -> dict[str, Any]:
    """What every image model is measured by, and the loss per timestep."""
    pipe = open_pipeline(folder)
    found, _ = _measure_images(pipe)
    return found | {"loss_per_timestep": loss_per_timestep(pipe, held_out_pictures()[0])}


def measure_conditional_model(folder: Path) -> dict[str, Any]:
    """What every image model is measured by, and agreement with its captions or classes."""
    pipe, classifier = open_pipeline(folder), load_classifier()
    found, images = _measure_images(pipe)
    asked = attributes_of(list(seeds.QUALITY[:SAMPLES]))
    agreement = prompt_fidelity(images, asked, classifier)
    real, shown = held_out_pictures()
    accuracy = prompt_fidelity(real / 2 + 0.5, shown, classifier)
    return found | {
        "guidance_scale": family_of(pipe).guidance(Sampler()),
        "prompt_agreement": _rounded(agreement),
        "prompt_agreement_standard_error": _rounded(
            {k: (p * (1 - p) / SAMPLES) ** 0.5 for k, p in agreement.items()}
        ),
        "agreement_on_real_images": _rounded(accuracy),
        "agreement_ratio": _rounded({k: agreement[k] / accuracy[k] for k in agreement}),
    }


def measure_binary_latent(folder: Path) -> dict[str, Any]:
    """What every image model is measured by, agreement with the class, and the bits' quality."""
    pipe = open_pipeline(folder)
    found, images = _measure_images(pipe)
    agreement = prompt_fidelity(images, attributes_of(list(seeds.QUALITY[:SAMPLES])))
    return (
        found
        | {"guidance_scale": family_of(pipe).guidance(Sampler())}
        | {"class_agreement": round(agreement["garment"], 4)}
        | code_quality(pipe)
    )


def _measure_images(pipe) -> tuple[dict[str, Any], Tensor]:
    """Confidence, Frechet distance, background distance, seconds; and the samples."""
    classifier = load_classifier()
    start = time.perf_counter()
    first = sample(pipe, seeds.QUALITY[:16], 16)
    seconds = time.perf_counter() - start
    images = torch.cat([first, sample(pipe, seeds.QUALITY[16:SAMPLES])])
    real, _ = held_out_pictures()
    found = {
        "samples": SAMPLES,
        "sampler": vars(Sampler()),
        "confidence": confidence_ratio(images, real, classifier),
        "frechet": frechet_against_train(images, real, classifier),
        "background_distance": round(background_distance(images), 4),
        "background_distance_real": round(background_distance(real / 2 + 0.5), 4),
        "seconds_for_16_images": round(seconds, 2),
    }
    return found, images


@torch.no_grad()
def measure_autoencoder(folder: Path) -> dict[str, Any]:
    """Reconstruction of the held-out images: PSNR, Frechet distance, attributes kept."""
    network, classifier = open_component(folder.name, "AutoencoderKL"), load_classifier()
    real, shown = held_out_pictures()
    parts = [network.decode(network.encode(x).latent_dist.mean).sample for x in real.split(100)]
    decoded = torch.cat(parts).clamp(-1, 1)
    per_image = psnr(decoded, real)
    return {
        "psnr_db_median": round(float(median(per_image)), 2),
        "psnr_db_mean": round(float(per_image.mean()), 2),
        "frechet": frechet_against_train(decoded / 2 + 0.5, real, classifier),
        "agreement": _rounded(prompt_fidelity(decoded / 2 + 0.5, shown, classifier)),
    }


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {k: round(v, 4) for k, v in values.items()}


def confidence_ratio(images: Tensor, real: Tensor, classifier: AttributeClassifier) -> dict:
    """The classifier's mean confidence on samples (in [0, 1]) and on real images (in [-1, 1])."""
    generated = float(classifier.read(images * 2 - 1)[1].mean())
    held_out = float(classifier.read(real)[1].mean())
    ratio = generated / held_out
    return {
        "samples": round(generated, 4),
        "held_out": round(held_out, 4),
        "ratio": round(ratio, 4),
    }


def frechet_against_train(
    images: Tensor, real: Tensor, classifier: AttributeClassifier
) -> dict[str, float]:
    """Distance of samples to training images, as a multiple of that of as many test images."""
    train = reference_features(classifier)
    distance, error, _ = frechet_with_error(train, features(images, classifier))
    floor = frechet_distance(train, features(real / 2 + 0.5, classifier))
    return {
        "distance": round(distance, 4),
        "standard_error": round(error, 4),
        "test_images": round(floor, 4),
        "multiple": round(distance / floor, 2),
    }


def background_distance(images: Tensor) -> float:
    """Mean distance of the border's median colour to the nearest true background, in [0, 1] RGB.

    Args:
        images: `[N, 3, H, W]` in [0, 1].

    """
    border = torch.cat(
        [images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], dim=2
    )
    colour = border.median(dim=2).values
    truth = torch.tensor(list(BACKGROUNDS.values()))
    return float(torch.cdist(colour, truth).min(1).values.mean())


@torch.no_grad()
def loss_per_timestep(pipe, images: Tensor) -> list[dict[str, float]]:
    """Held-out noise-prediction loss in ten buckets of the training timesteps."""
    network, abar = pipe.unet.eval(), pipe.scheduler.alphas_cumprod
    width, rows = len(abar) // LOSS_BUCKETS, []
    for bucket in range(LOSS_BUCKETS):
        generator = torch.Generator().manual_seed(bucket)
        clean = images[:128]
        t = torch.randint(width, (len(clean),), generator=generator) + bucket * width
        noise = torch.randn(clean.shape, generator=generator)
        predicted = network(add_noise(abar, clean, noise, t), t).sample
        loss = float((predicted - noise).square().mean())
        rows.append(
            {"t_from": bucket * width, "t_to": (bucket + 1) * width, "mse": round(loss, 5)}
        )
    return rows


MEASURES = {
    "attribute-classifier": measure_classifier,
    "pixel-unet": measure_pixel_model,
    "autoencoder": measure_autoencoder,
    "latent-unet": measure_conditional_model,
    "latent-dit": measure_conditional_model,
    "text-dit": measure_conditional_model,
    "video-features": measure_video_features,
    "video-unet": measure_video_model,
    "video-dit": measure_video_model,
    "sr-unet": measure_super_resolution,
    "binary-latent": measure_binary_latent,
}


def write_card(name: str, census: Callable[[Any], dict[str, Any]] | None = None) -> Path:
    """Measure a shipped model; write `quality.json`, file sums and the model card.

    Args:
        name: which.
        census: asked, with the pipeline, for what the card says about its activations.

    Returns:
        The card's path.

    Raises:
        UnknownNameError: if no measurement is defined for `name`.

    """
    if name not in MEASURES:
        raise UnknownNameError(f"No card for {name!r}; there are {', '.join(MEASURES)}.")
    from dqlab.metrics.card import render

    folder = models_dir() / name
    training = read_json(folder / "training.json")
    quality = MEASURES[name](folder)
    if census and (folder / "model_index.json").is_file():
        quality["phenomena"] = census(open_pipeline(folder), sampler=quality.get("sampler"))
    quality["measured"] = {
        "commit": git_commit(),
        "machine": machine_kind(),
        "date": time.strftime("%Y-%m-%d"),
    }
    training["sha256"] = file_sums(folder)
    _write_json(folder / "quality.json", quality)
    _write_json(folder / "training.json", training)
    card = folder / "README.md"
    card.write_text(render(name, training, quality))
    return card


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))
