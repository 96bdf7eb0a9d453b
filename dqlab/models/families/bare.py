"""Denoisers without a pipeline: any `nn.Module` called as f(x, t, **conditions)."""

import copy
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError
from dqlab.layers.context import call_arguments, time_argument
from dqlab.models.families.family import Family, fixed_random
from dqlab.models.families.sampler import Sampler
from dqlab.models.loading import BARE, record_of

Sample = Callable[[nn.Module, Sequence[int], Sampler], Tensor]


class BareModel:
    """A denoiser and a function that samples with it, where dqlab expects a pipeline.

    Attributes:
        denoiser: the network.
        sample: the function.
        family: the adapter dqlab drives it by.

    """

    scheduler = None

    def __init__(self, denoiser: nn.Module, sample: Sample, family: Family):
        self.denoiser, self.sample, self.family = denoiser, sample, family

    def register_modules(self, denoiser: nn.Module, **_: Any) -> None:
        """Replace the network; `quantize` calls this on a copy, as it does with pipelines."""
        self.denoiser = denoiser

    def __call__(self, seeds: Sequence[int], sampler: Sampler | dict | None = None) -> Tensor:
        """Sample one picture per seed, `[N, C, H, W]` in [0, 1]."""
        return self.family.run(self, Sampler.of(sampler), seeds)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a quantized network's codes, ranges and record; `load(folder, into=...)` reads it.

        Raises:
            InvalidInputError: if it is not quantized.

        """
        if not record_of(self.denoiser):
            raise InvalidInputError(
                "Only a quantized network is saved here; save your own with its state_dict()."
            )
        self.denoiser.save_pretrained(Path(folder) / BARE)
        index = {"_class_name": type(self).__name__}
        (Path(folder) / "model_index.json").write_text(json.dumps(index))


@dataclass(frozen=True)
class BareFamily(Family):
    """Drives a `BareModel`."""

    def check(self, pipe, sampler: Sampler) -> None:
        """Raise InvalidInputError for an eta the sampling function did not say it takes."""
        if sampler.eta and not self.has_eta:
            raise InvalidInputError(
                f"eta={sampler.eta:g}, but the sampling function of this {self.name} has none. "
                "Use eta=0, or wrap_module(..., eta=True) if it reads sampler.eta."
            )

    def predicts(self, pipe) -> str:
        """Nobody said what the output means."""
        return "unknown"

    def schedule(self, pipe, sampler: Sampler) -> Tensor:
        """The timesteps the network meets, found by sampling once."""
        met: list[float] = []

        def note(network: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            t = call_arguments(network, args, kwargs)[time_argument(network)]
            met.append(torch.as_tensor(t).reshape(-1)[0].item())

        handle = pipe.denoiser.register_forward_pre_hook(note, with_kwargs=True)
        try:
            self.run(pipe, sampler, [0])
        finally:
            handle.remove()
        return torch.tensor(met, dtype=torch.float64)

    def run(self, pipe, sampler: Sampler, seeds: Sequence[int]) -> Tensor:
        """Call the sampling function, its random numbers fixed.

        Raises:
            InvalidInputError: if it returns anything but one picture per seed.

        """
        self.check(pipe, sampler)
        setting = replace(sampler, guidance_scale=self.guidance(sampler))
        with torch.no_grad(), fixed_random(int(seeds[0])):
            found = pipe.sample(pipe.denoiser, list(seeds), setting)
        if not isinstance(found, Tensor) or found.ndim < 3 or len(found) != len(seeds):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InvalidInputError(
                f"The sampling function returned {shape} for {len(seeds)} seeds; return a tensor "
                "with one picture per seed, [N, C, H, W] in [0, 1]."
            )
        return found.float()


def wrap_module(
    denoiser: nn.Module,
    sample: Sample,
    *,
    first: str | None = None,
    last: str | None = None,
    branches: tuple[str, ...] = (),
    guidance_scale: float = 1.0,
    eta: bool = False,
) -> BareModel:
    """Make a network without a pipeline something that `quantize`, `compare` and `load` accept.

    Args:
        denoiser: any module called as f(x, t, ...): the noisy sample `[N, ...]`, the timestep
            (as `sample` gives it, and also `[N]`: dqlab asks about rows of several steps at
            once), then conditions by any name, with a row per sample or none. It answers with a
            tensor, a tuple whose first is one, or an output with a `sample`.
        sample: `sample(denoiser, seeds, sampler)` runs one trajectory per seed through the
            `denoiser` it is given, with `sampler.num_inference_steps` calls, and returns pictures
            `[N, C, H, W]` in [0, 1]. The same seed must give the same picture.
        first: path of the layer that reads the sample, to be kept at 8 bits; None for no such.
        last: path of the layer that makes the answer, likewise.
        branches: if `sample` stacks guidance branches in one call, their order: ("uncond", "cond")
            or ("cond", "uncond").
        guidance_scale: what `sample` gets where the caller names none.
        eta: whether `sample` reads `sampler.eta`.

    Raises:
        InvalidInputError: if the module does not take a sample and a timestep, or has no such
            layer.

    """
    parameters = list(inspect.signature(type(denoiser).forward).parameters.values())[1:]
    plain = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(plain) < 2 or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise InvalidInputError(
            f"{type(denoiser).__name__}.forward takes ({', '.join(map(str, parameters))}); dqlab "
            "needs f(x, t, ...) with named arguments."
        )
    names = dict(denoiser.named_modules())
    for layer in (first, last):
        if layer is not None and layer not in names:
            raise InvalidInputError(f"{type(denoiser).__name__} has no layer {layer!r}.")
    family = BareFamily(
        type(denoiser).__name__, (), BARE, first or "", last or "", eta, branches,
        guidance_scale,
    )  # fmt: skip
    return BareModel(copy.deepcopy(denoiser).eval(), sample, family)
