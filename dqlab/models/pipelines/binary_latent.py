"""Sampling of binary codes: Binary Latent Diffusion (Wang et al., CVPR 2023, arXiv 2304.04820).

From fair coins, the network says at every step how likely each bit is flipped, and the bits of the
next, less noisy code are drawn from the Bernoulli posterior (`dqlab.reference`'s
`binary_latent_diffusion`). The last step takes the likelier bit.
"""

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from dqlab.errors import InvalidInputError, UnknownNameError
from dqlab.models.pipelines.binary_networks import BinaryAutoencoder, BinaryTransformer
from dqlab.reference import binary_latent_diffusion as paper

Generators = torch.Generator | Sequence[torch.Generator] | None


class BernoulliScheduler(SchedulerMixin, ConfigMixin):
    """The forward process on bits and its reverse step; timesteps run from T to 1.

    Args:
        num_train_timesteps: T.
        schedule: "linear", "cosine" or "sigmoid".
        posterior: "plugin", as released, or "mixture", which is exact.
        prediction_type: what the network answers: "flip".

    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 64,
        schedule: str = "linear",
        posterior: str = "plugin",
        prediction_type: str = "flip",
    ):
        if posterior not in paper.POSTERIORS:
            raise UnknownNameError(
                f"No posterior {posterior!r}; there are {', '.join(paper.POSTERIORS)}."
            )
        self.keep = paper.keep(num_train_timesteps, schedule).float()
        self.set_timesteps(num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str = "cpu") -> None:
        """Choose the timesteps to visit; at least 2, at most T."""
        self.timesteps = paper.grid(num_inference_steps, self.config.num_train_timesteps)
        self.timesteps = self.timesteps.to(device)

    def add_noise(self, original_samples: Tensor, chance: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy codes: a bit is 1 where `chance`, uniform in [0, 1), is below q(x_t = 1)."""
        K_t = self.keep.to(chance.device)[timesteps].view(-1, 1, 1)
        return (chance < paper.marginal(original_samples, K_t)).to(original_samples.dtype)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        temperature: float = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The next code.

        Args:
            model_output: flip logits `[N, cells, bits]`.
            timestep: the t they were asked about.
            sample: x_t.
            temperature: logits are divided by it; below 1 the network is taken for surer.
            generator: of the drawn bits; a sequence holds one per row.
            return_dict: an object with `.prev_sample`, or a tuple.

        Raises:
            InvalidInputError: if the timestep is not one that `set_timesteps` chose.

        """
        p0 = paper.clean_probability(model_output, sample, temperature)
        t, s = self._interval(int(timestep))
        if s == 0:
            previous = paper.deterministic_code(p0)
        else:
            posterior = paper.POSTERIORS[self.config.posterior]
            p = posterior(p0, sample, self.keep[t], self.keep[s])
            previous = (uniform(p.shape, generator, p.device) < p).to(sample.dtype)
        return SchedulerOutput(prev_sample=previous) if return_dict else (previous,)

    def _interval(self, t: int) -> tuple[int, int]:
        """As integers, t and the timestep after it; 0 after the last."""
        visited = [*self.timesteps.tolist(), 0]
        if t not in visited[:-1]:
            raise InvalidInputError(
                f"Timestep {t} is not one of the {len(visited) - 1} that are set. Call "
                "set_timesteps first, or step through scheduler.timesteps."
            )
        return t, visited[visited.index(t) + 1]


def uniform(shape: Sequence[int], generator: Generators, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1); with a sequence of generators, each draws its own row.

    They are drawn where the generator lives, so that a seed means the same on every device.
    """
    if isinstance(generator, Sequence):
        return torch.cat([uniform((1, *shape[1:]), one, device) for one in generator])
    home = device if generator is None else generator.device
    return torch.rand(tuple(shape), generator=generator, device=home).to(device)


class BinaryLatentPipeline(DiffusionPipeline):
    """Pictures from bits: an autoencoder, a transformer over its codes, a Bernoulli sampler."""

    def __init__(
        self,
        autoencoder: BinaryAutoencoder,
        transformer: BinaryTransformer,
        scheduler: BernoulliScheduler,
    ):
        super().__init__()
        self.register_modules(
            autoencoder=autoencoder, transformer=transformer, scheduler=scheduler
        )
        self.image_processor = VaeImageProcessor(do_resize=False)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int] | None = None,
        batch_size: int = 1,
        num_inference_steps: int = 20,
        guidance_scale: float = 2.0,
        temperature: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Sample pictures.

        Args:
            class_labels: one class per picture; None for `batch_size` pictures of any class.
            batch_size: how many, without labels.
            num_inference_steps: network calls, 2 to T.
            guidance_scale: 1 + w; 1 is no guidance.
            temperature: of the flip logits.
            generator: of all drawn bits; a list holds one per picture.
            output_type: "pil", "np" `[N, H, H, 3]` in [0, 1], or "pt" `[N, 3, H, H]`.
            return_dict: an object with `.images`, or a tuple.

        Raises:
            InvalidInputError: if a class, the number of steps or the temperature is impossible.

        """
        labels = self._labels(class_labels, batch_size)
        network, device = self.transformer, self.transformer.device
        shape = (len(labels), network.config.cells, network.config.bits)
        x = (uniform(shape, generator, device) < 0.5).to(network.dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        for t in self.progress_bar(self.scheduler.timesteps):
            logits = self._logits(x, t, labels, guidance_scale)
            x = self.scheduler.step(logits, t, x, temperature, generator).prev_sample
        images = self.autoencoder.decode(x.to(self.autoencoder.dtype)).clamp(-1, 1)
        images = self.image_processor.postprocess(images, output_type=output_type)
        return ImagePipelineOutput(images) if return_dict else (images,)

    def _labels(self, given: Sequence[int] | None, count: int) -> Tensor:
        """int64 `[N]` on the network's device; the number of classes stands for none."""
        none = self.transformer.config.classes
        labels = torch.tensor([none] * count if given is None else list(given))
        if len(labels) == 0 or bool((labels < 0).any() or (labels > none).any()):
            raise InvalidInputError(
                f"class_labels={given!r}; give at least one, each from 0 to {none} "
                f"({none} for none)."
            )
        return labels.to(self.transformer.device)

    def _logits(self, x: Tensor, t: Tensor, labels: Tensor, guidance_scale: float) -> Tensor:
        """Flip logits; with guidance, without a class first and then with it."""
        if guidance_scale <= 1:
            return self.transformer(x, t, class_labels=labels).sample
        none = torch.full_like(labels, self.transformer.config.classes)
        stacked = self.transformer(
            torch.cat([x, x]), t, class_labels=torch.cat([none, labels])
        ).sample
        plain, asked = stacked.chunk(2)
        return paper.guided(asked, plain, guidance_scale - 1)
