"""What an adapter knows about the pipelines of one family, and how it drives them."""

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError
from dqlab.models.families.asked import asked_of_seeds
from dqlab.models.families.sampler import Sampler


def no_conditions(pipe, seeds: Sequence[int]) -> dict[str, Any]:
    """An unconditional pipeline only needs to know how many pictures."""
    return {"batch_size": len(seeds)}


def any_pipeline(pipe) -> bool:
    """No further demand than the pipeline's class."""
    return True


def scheduler_timesteps(pipe, num_inference_steps: int) -> Tensor:
    """The timesteps of the pipeline's scheduler, `[T]`; its own state is left alone."""
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(num_inference_steps)
    return scheduler.timesteps


@contextlib.contextmanager
def fixed_random(seed: int) -> Iterator[None]:
    """While inside, torch's own generators start from `seed`; afterwards they are as before."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class Family:
    """How to drive the pipelines of one family."""

    name: str
    pipelines: tuple[str, ...]
    component: str
    first: str
    last: str
    has_eta: bool = True
    """Whether the pipeline hands eta on to its scheduler."""
    branches: tuple[str, ...] = ()
    """Guidance branches in the order the pipeline stacks them; empty for unguided pipelines."""
    guidance_scale: float = 1.0
    """Default guidance; 1 is none."""
    embedded_guidance: bool = False
    """The network reads the guidance scale as a condition; there are no branches to mix."""
    guidance_argument: str = "guidance_scale"
    """What the pipeline's call names the guidance scale."""
    conditions: Callable[[Any, Sequence[int]], dict[str, Any]] = no_conditions
    """Extra arguments of the pipeline call: what the picture of each seed is to show."""
    timesteps: Callable[[Any, int], Tensor] = scheduler_timesteps
    """The timesteps as the network is told them, from the pipeline and the number of steps."""
    learned_sigma: bool = False
    """The network's output channels beyond its input channels are a variance nobody samples by."""
    video: bool = False
    fits: Callable[[Any], bool] = any_pipeline
    """Tells families of the same pipeline class apart."""

    def denoiser(self, pipe) -> nn.Module:
        """The network that predicts noise."""
        return getattr(pipe, self.component)

    def guidance(self, sampler: Sampler) -> float:
        """The guidance scale in force."""
        asked = sampler.guidance_scale
        return self.guidance_scale if asked is None else asked

    def setting(self, sampler: Sampler) -> str:
        """A sampler setting in words, the guidance in force included."""
        told = f"num_inference_steps={sampler.num_inference_steps}, eta={sampler.eta:g}"
        scale = f", guidance_scale={self.guidance(sampler):g}" if self.branches else ""
        return told + scale

    def mix(self, pipe, sampler: Sampler) -> float | Tensor:
        """What branches are mixed with: the guidance scale, or one per frame, to broadcast."""
        return self.guidance(sampler)

    def prediction_channels(self, pipe) -> int | None:
        """How many of the output's channels the sampler steps by; None for all of them."""
        return self.denoiser(pipe).config.in_channels if self.learned_sigma else None

    def predicts(self, pipe) -> str:
        """What the network's output means: "epsilon", "v_prediction", "sample" or "flow".

        The SQNR is always that of this output, whatever it means.
        """
        return pipe.scheduler.config.get("prediction_type", "flow")

    def arguments(self, pipe, sampler: Sampler, seeds: Sequence[int]) -> dict[str, Any]:
        """Keyword arguments of the pipeline call that runs one trajectory per seed.

        Raises:
            InvalidInputError: if the sampler has an eta or a guidance and the pipeline has none.

        """
        self.check(pipe, sampler)
        found: dict[str, Any] = {
            # On the CPU, so that a seed means the same noise on every machine.
            "generator": [torch.Generator().manual_seed(int(s)) for s in seeds],
            "num_inference_steps": sampler.num_inference_steps,
            "output_type": "np",
        }
        if self.has_eta:
            found["eta"] = sampler.eta
        if self.branches or self.embedded_guidance:
            found[self.guidance_argument] = self.guidance(sampler)
        asked = asked_of_seeds(pipe, seeds)
        asked.pop("prompt", None)  # the conditions hold it
        return found | self.conditions(pipe, seeds) | asked

    def check(self, pipe, sampler: Sampler) -> None:
        """Raise InvalidInputError for an eta or a guidance that this pipeline would ignore."""
        takes = self.has_eta and "eta" in inspect.signature(pipe.scheduler.step).parameters
        if sampler.eta and not takes:
            raise InvalidInputError(
                f"eta={sampler.eta:g} asks for DDIM's noise, but a {type(pipe).__name__} with a "
                f"{type(pipe.scheduler).__name__} has no eta. Use eta=0"
                + (", or give the pipeline a DDIMScheduler." if self.has_eta else ".")
            )

        guided = self.branches or self.embedded_guidance
        if not guided and sampler.guidance_scale not in (None, 1):
            raise InvalidInputError(
                f"guidance_scale={sampler.guidance_scale:g}, but a {type(pipe).__name__} has no "
                "conditions to be guided by. Leave it out."
            )

    def schedule(self, pipe, sampler: Sampler) -> Tensor:
        """The timesteps the network meets under `sampler`, in its order, `[T]`."""
        self.check(pipe, sampler)
        return self.timesteps(pipe, sampler.num_inference_steps)

    def run(self, pipe, sampler: Sampler, seeds: Sequence[int]) -> Tensor:
        """Sample one image or video per seed.

        Returns:
            float32 in [0, 1]: images `[N, 3, H, W]`, videos `[N, frames, 3, H, W]`.

        """
        pipe = copy.copy(pipe)  # the caller keeps their own progress bar and safety checker
        pipe.set_progress_bar_config(disable=True)
        if getattr(pipe, "safety_checker", None) is not None:
            pipe.safety_checker = None  # a blacked-out picture would count as an error
        # Some pipelines draw a stochastic sampler's noise from torch's own generator.
        with torch.no_grad(), fixed_random(int(seeds[0])):
            output = pipe(**self.arguments(pipe, sampler, seeds))
        pixels = output.frames if self.video else output.images
        return torch.as_tensor(pixels).float().movedim(-1, -3)
