"""StepContext: what a quantizer may know about the moment its layer runs.

The denoiser publishes it with a forward pre-hook: the timestep of every row and that timestep's
index on the schedule a quantized pipeline is bound to. There is one context per wrapped denoiser;
a deep copy of the denoiser brings its own.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError


class StepContext:
    """Timestep and step index of the rows now running through a denoiser.

    Attributes:
        schedule: timesteps of the bound sampler in sampling order, float `[T]`, or None.
        timestep: float `[N]`, one per row of the running (or last) batch; None before the first.

    """

    def __init__(self) -> None:
        self.schedule: Tensor | None = None
        self.timestep: Tensor | None = None
        self._step: Tensor | None = None

    def bind(self, schedule: Tensor | None) -> None:
        """Say which timesteps the sampler will visit, in its order."""
        self.schedule = None if schedule is None else schedule.detach().cpu().to(torch.float64)

    def attach(self, denoiser: nn.Module) -> None:
        """Publish from `denoiser`'s forward from now on."""
        denoiser.step_context = self
        denoiser.register_forward_pre_hook(self.publish, with_kwargs=True)

    def publish(self, denoiser: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: read sample and timestep however they were passed."""
        named = call_arguments(denoiser, args, kwargs)
        sample, time = named[sample_argument(denoiser)], named[time_argument(denoiser)]
        timestep = torch.as_tensor(time).detach().cpu().to(torch.float64).reshape(-1)
        self.at(timestep.expand(len(sample)) if len(timestep) == 1 else timestep)

    def at(self, timestep: Tensor) -> None:
        """Say at which timesteps the rows are that run next, float `[N]` on the CPU.

        The denoiser does this itself; a part of it that runs alone must be told.
        """
        self.timestep, self._step = timestep, None

    @property
    def step(self) -> Tensor:
        """Index of every row's timestep on the bound schedule, int64 `[N]`.

        Raises:
            InvalidInputError: if nothing is bound, or a row's timestep is not on the schedule.

        """
        if self._step is None:
            self._step = self._find()
        return self._step

    def steps_of(self, rows: int, site: str) -> Tensor:
        """`step` for a tensor of `rows` rows: N, or N x frames where frames are folded in.

        Raises:
            InvalidInputError: as `step`; also if `rows` is no multiple of N.

        """
        step = self.step
        if rows % len(step):
            raise InvalidInputError(
                f"{site} meets {rows} rows, but the denoiser runs {len(step)}, so their sampling "
                "steps are unknown. Give this site one range for all steps."
            )
        return step.repeat_interleave(rows // len(step))

    def frames_of(self, rows: int, frames: int, site: str) -> Tensor:
        """Which frame each row is of, int64 `[rows]`, where frames are folded into the batch.

        Raises:
            InvalidInputError: if there is not one row for each of `frames` frames of every video.

        """
        videos = 0 if self.timestep is None else len(self.timestep)
        if rows != videos * frames:
            raise InvalidInputError(
                f"{site} has one range for each of {frames} frames and expects [videos x frames, "
                f"...]; it meets {rows} rows for {videos} videos. Ask for {frames} frames, or "
                "quantize again for another number."
            )
        return torch.arange(frames).repeat(videos)

    def _find(self) -> Tensor:
        if self.schedule is None or self.timestep is None:
            raise InvalidInputError(
                "This model looks ranges up by sampling step, but no schedule is bound or no "
                "forward is running. Sample with the pipeline that `quantize` returned."
            )
        hit = self.timestep[:, None] == self.schedule[None, :]
        if not bool(hit.any(1).all()):
            stray = sorted(set(self.timestep[~hit.any(1)].tolist()))
            raise InvalidInputError(
                f"Timesteps {stray[:4]} are not among the {len(self.schedule)} steps this model "
                "was quantized for. Sample with the same scheduler and num_inference_steps, or "
                "quantize again with sampler=dict(num_inference_steps=...)."
            )
        return hit.int().argmax(1)


def call_arguments(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a forward call by name, those of a `**conditions` among the others."""
    signature = inspect.signature(type(module).forward)
    named = dict(signature.bind(module, *args, **kwargs).arguments)
    del named[next(iter(signature.parameters))]
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(name, {})
    return named


def sample_argument(denoiser: nn.Module) -> str:
    """Name of the noisy input in the denoiser's forward: its first argument after self."""
    return list(inspect.signature(type(denoiser).forward).parameters)[1]


def time_argument(denoiser: nn.Module) -> str:
    """Name of the timestep in the denoiser's forward: `timestep`, or else its second argument."""
    names = list(inspect.signature(type(denoiser).forward).parameters)
    return "timestep" if "timestep" in names else names[2]


def answer_of(output: Any) -> Tensor:
    """The tensor in what a denoiser returned: itself, a tuple's first, or an output's `sample`."""
    if isinstance(output, Tensor):
        return output
    return output[0] if isinstance(output, tuple) else output.sample
