"""Where a quantization that trains on the diffusion loss gets its batches from."""

from pathlib import Path

import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.methods.job import Job
from dqlab.models.recipes import recipe_for
from dqlab.models.recipes.base import Lessons, add_noise


def lessons_for(job: Job, batch: int) -> Lessons:
    """What the denoiser of a job can learn from: the caller's data, or its own model's.

    Args:
        job: a quantization; its `data` are clean samples `[N, ...]` as the denoiser meets them,
            or None for the training data of a shipped model.
        batch: rows in a batch.

    Raises:
        InvalidInputError: if `data` are no such samples, or nobody knows what it was trained on.
        NotApplicableError: if the denoiser does not predict noise, or needs conditions beside
            the samples.

    """
    predicts = job.family.predicts(job.original)
    if predicts != "epsilon":
        raise NotApplicableError(
            f"Training on the diffusion loss is for networks that predict the noise; this "
            f"{job.family.name} predicts {predicts!r}."
        )
    if job.data is None:
        return recipe_for(_trained_as(job.original)).lessons(job.calibration.x.device, batch)
    if job.calibration.conditions:
        raise NotApplicableError(
            f"This {job.family.name} is told {', '.join(job.calibration.conditions)} beside its "
            "input, which data= does not hold. Leave data out, or use an unconditional model."
        )
    return _lessons(job, _checked(job.data, job.calibration.x), batch)


def _trained_as(pipe) -> str:
    """The recipe of a shipped model, by the folder it was opened from.

    Raises:
        InvalidInputError: if it comes from elsewhere.

    """
    folder = Path(str(getattr(pipe, "name_or_path", None) or ""))
    if not (folder / "training.json").is_file():
        raise InvalidInputError(
            f"Nobody knows what this {type(pipe).__name__} was trained on. Pass "
            "quantize(..., data=x) with clean samples x as its denoiser meets them, or load a "
            "shipped model such as 'pixel-unet'."
        )
    return folder.name


def _checked(data: Tensor, like: Tensor) -> Tensor:
    if not isinstance(data, Tensor) or data.shape[1:] != like.shape[1:] or not len(data):
        given = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
        raise InvalidInputError(
            f"data is {given}; give clean samples as a tensor of shape [N, "
            f"{', '.join(map(str, like.shape[1:]))}]."
        )
    if not bool(data.isfinite().all()):
        raise InvalidInputError("data holds NaN or infinity; leave those samples out.")
    return data.to(like)


def _lessons(job: Job, data: Tensor, size: int) -> Lessons:
    """Ho et al. 2020, algorithm 1: mean squared error of the noise, at random timesteps."""
    abar = job.original.scheduler.alphas_cumprod.to(data)

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        options = {"generator": generator, "device": data.device}
        rows = torch.randint(len(data), (size,), **options)
        t = torch.randint(len(abar), (size,), **options)
        return data[rows], torch.randn(data[rows].shape, **options), t

    def loss(denoiser: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        clean, noise, t = batch
        return (denoiser(add_noise(abar, clean, noise, t), t).sample - noise).square().mean()

    return Lessons(draw, loss)
