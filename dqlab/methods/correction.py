"""The `correct` moment: what a method may repair around `scheduler.step` while sampling.

A correction is tables (tensors, one row per sampling step) plus settings, so that it can be saved.
Of one step from x_t to x_{t-1} it may edit, in this order,

    before   x_t, for the network and for the scheduler
    eps      the predicted noise, after guidance
    sigma    the noise's standard deviation inside the scheduler's direction term
    noise    the noise sigma z that is added
    after    x_{t-1}

and it asks the network itself only through `Step.predict`, as often as it declares.
`dqlab.methods.corrected` binds it to a pipeline.
"""

import copy
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dqlab.errors import CheckpointError, InvalidInputError, NotApplicableError

FILE = "correction.safetensors"


@dataclass
class Step:
    """One call of `scheduler.step`, as a correction sees it.

    Attributes:
        index: position on the bound schedule, 0 is the noisiest.
        t: the timestep.
        x: the noisy sample x_t `[N, ...]`.
        eta: DDIM's eta of this run; 0 for schedulers without one.
        scheduler: the pipeline's scheduler, to read.
        predict: `predict(x, t)` repeats the last guided network call on other x and t.
        generator: the correction's own random source; the sampler's is never drawn from.
        state: whatever the correction wants to remember; empty when a trajectory starts.
        eps: the corrected prediction, once there is one.

    """

    index: int
    t: int
    x: Tensor
    eta: float
    scheduler: Any
    predict: Callable[[Tensor, Any], Tensor]
    generator: torch.Generator
    state: dict[str, Any] = field(default_factory=dict)
    eps: Tensor | None = None

    @cached_property
    def alphas(self) -> tuple[Tensor, Tensor]:
        """Cumulative alpha of this step and of the next one, (a_t, a_p), scalars.

        Raises:
            NotApplicableError: for schedulers that do not step as DDIM does.

        """
        cumulative = self.scheduler.alphas_cumprod
        after = self._previous()
        return cumulative[self.t], cumulative[after] if after >= 0 else self._final()

    @property
    def sigma(self) -> Tensor:
        """Standard deviation of the noise this step adds, scalar (DDIM, equation 16)."""
        self._final()
        variance = self.scheduler._get_variance(self.t, self._previous())
        return self.eta * variance**0.5

    def clipped(self) -> Tensor | None:
        """Of every element whether the scheduler cuts the x_0 of `eps`; None if it cuts nothing.

        Of a scheduler that scales x_0 by a threshold of its own (`thresholding`) this says None.
        """
        config = self.scheduler.config
        if self.eps is None or config.thresholding or not config.clip_sample:
            return None
        a_t = self.alphas[0].to(self.x)
        x0 = (self.x - (1 - a_t).sqrt() * self.eps) / a_t.sqrt()
        return x0.abs() > config.clip_sample_range

    def follow(self, eps: Tensor) -> Tensor:
        """The next sample if the scheduler were given `eps`; nothing of the run changes.

        Noise of a stochastic sampler comes from `generator`.
        """
        trial = copy.copy(self.scheduler)
        for name, value in vars(self.scheduler).items():
            if isinstance(value, list):  # what a multistep scheduler remembers
                setattr(trial, name, list(value))
        plain = type(trial).step.__wrapped__
        more = {"eta": self.eta, "generator": self.generator}
        taken = inspect.signature(plain).parameters
        more = {name: value for name, value in more.items() if name in taken}
        return plain(trial, eps, self.t, self.x, **more).prev_sample

    def _previous(self) -> int:
        scheduler = self.scheduler
        return self.t - scheduler.config.num_train_timesteps // scheduler.num_inference_steps

    def _final(self) -> Tensor:
        if not hasattr(self.scheduler, "final_alpha_cumprod"):
            raise NotApplicableError(
                f"{type(self.scheduler).__name__} does not step as DDIM does, so the noise of a "
                "step cannot be corrected. Use a DDIM pipeline; with eta=1 it samples as DDPM."
            )
        return self.scheduler.final_alpha_cumprod


class Correction:
    """Base of all corrections. Subclasses name their `kind` and override what they edit.

    Attributes:
        tables: tensors whose first axis is the sampling step; saved with the pipeline.
        settings: JSON-able keyword arguments of the class; saved too.
        calls: network calls of its own per trajectory; `Step.predict` allows no more.
        remembers: whether `eps` depends on the run's own state. If so there is no SQNR on given
            states, and results are reported as the paired error of final samples.

    """

    kinds: ClassVar[dict[str, type["Correction"]]] = {}
    kind: ClassVar[str]
    calls: int = 0
    remembers: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Correction.kinds[cls.kind] = cls

    def __init__(self, tables: dict[str, Tensor], **settings: Any):
        for name, table in tables.items():
            finite = table.isfinite().reshape(len(table), -1).all(1)
            if not bool(finite.all()):
                row = int((~finite).nonzero()[0])
                raise InvalidInputError(
                    f"The table {name!r} of {self.kind} is not finite at step {row}: the network "
                    "answered NaN or infinity there. Use more bits, or check the model."
                )
        self.tables, self.settings = tables, settings

    def at(self, name: str, step: Step) -> Tensor:
        """The row of a table for this step, on the sample's device."""
        return self.tables[name][step.index].to(step.x.device)

    def before(self, x: Tensor, step: Step) -> Tensor:
        """The noisy sample that network and scheduler get instead of `x`."""
        return x

    def eps(self, eps: Tensor, step: Step) -> Tensor:
        """The prediction the scheduler gets instead of the network's guided `eps`."""
        return eps

    def sigma(self, sigma: Tensor, step: Step) -> Tensor:
        """The standard deviation in the direction term: a scalar, or one per channel `[C, 1, ..]`.

        Called if `sigma`, the sampler's own, is not 0.
        """
        return sigma

    def noise(self, noise: Tensor, step: Step) -> Tensor:
        """What is added instead of `noise` = sigma z; called if sigma is not 0."""
        return noise

    def after(self, x: Tensor, step: Step) -> Tensor:
        """The next sample, instead of the scheduler's `x`."""
        return x

    @classmethod
    def edits(cls, *hooks: str) -> bool:
        """Whether the class overrides any of the named hooks."""
        return any(getattr(cls, hook) is not getattr(Correction, hook) for hook in hooks)


def save_tables(correction: Correction, folder: Path) -> None:
    """Write the tables beside a saved pipeline; `describe_correction` says the rest."""
    save_file({k: v.contiguous() for k, v in correction.tables.items()}, folder / FILE)


def describe_correction(pipe_class: type, correction: Correction) -> dict[str, Any]:
    """JSON-able: what `restore_correction` needs beside the tables."""
    return {
        "kind": correction.kind,
        "settings": correction.settings,
        "pipeline": pipe_class.__name__,
        "hash": _hash(correction.tables),
    }


def restore_correction(folder: Path, described: dict[str, Any]) -> Correction:
    """The correction saved in `folder`.

    Raises:
        CheckpointError: if its file is missing, damaged or not the one described.

    """
    try:
        tables = load_file(folder / FILE)
        made = Correction.kinds[described["kind"]](tables, **described["settings"])
    except (SafetensorError, OSError, KeyError, TypeError, InvalidInputError) as error:
        raise CheckpointError(
            f"{folder / FILE} is missing or damaged ({error!r}), and without its correction this "
            "pipeline would sample differently. Save it again."
        ) from error
    if _hash(tables) != described["hash"]:
        raise CheckpointError(
            f"{folder / FILE} holds other numbers than when it was saved. Save it again."
        )
    return made


def _hash(tables: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, table in sorted(tables.items()):
        digest.update(name.encode())
        digest.update(table.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
