"""A pipeline of 8x8 pictures with random weights, and corrections that are easy to predict."""

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from dqlab.layers import StepContext, common_policy
from dqlab.methods.corrected import corrected
from dqlab.methods.correction import Correction
from dqlab.methods.corrector import Corrector
from dqlab.methods.job import Job
from dqlab.models import families
from dqlab.models.families import Family, Sampler, family_of

STEPS = 3


def new_pipeline(cls=DDIMPipeline, clip_sample: bool = False, **changes):
    settings = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(**settings | changes).eval()
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=clip_sample)
    pipe = cls(unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampler(eta: float = 0.0, steps: int = STEPS) -> dict:
    return {"num_inference_steps": steps, "eta": eta}


def images(pipe, eta: float = 0.0, steps: int = STEPS, seed: int = 1, **more):
    """Two pictures before they are cut to [0, 1]: the sampler's own numbers."""
    generator = torch.Generator().manual_seed(seed)
    setting = sampler(eta, steps) | {"output_type": "pt", "batch_size": 2}
    return pipe(generator=generator, **setting | more).images


def schedule(pipe, steps: int = STEPS) -> torch.Tensor:
    pipe.scheduler.set_timesteps(steps)
    return pipe.scheduler.timesteps


def with_correction(pipe, correction: Correction, eta: float = 0.0, steps: int = STEPS):
    bound, family = Sampler(steps, eta), family_of(pipe)
    made = Corrector(correction, family, bound, schedule(pipe, steps), seed=5)
    return corrected(pipe, made)


def count_calls(network) -> list[int]:
    """Grows by one entry per forward of `network`."""
    calls: list[int] = []
    network.register_forward_hook(lambda *_: calls.append(1))
    return calls


def tilted(pipe, slope: float, bias: tuple, spread: float = 0.0) -> None:
    """Make the network's answer (1 + slope) eps + bias_c + spread n: a known kind of error."""
    generator = torch.Generator().manual_seed(3)

    def hook(module, args, output):
        noise = torch.randn(output.sample.shape, generator=generator)
        shift = torch.tensor(bias).reshape(1, 3, 1, 1)
        output.sample = output.sample * (1 + slope) + shift + spread * noise
        return output

    pipe.unet.register_forward_hook(hook)


def job_of(pipe, replaced, eta: float = 0.0, **changes) -> Job:
    """A quantization of `pipe` at its last moment, `replaced` being what it made of it."""
    context = StepContext()
    context.bind(schedule(pipe))
    family, setting = family_of(pipe), Sampler(STEPS, eta)
    policy = common_policy("conv_in", "conv_out")
    return Job(
        pipe, replaced.unet, family, None, setting, 4, 4, policy, context=context, **changes
    )


class Guided(DiffusionPipeline):
    """Guidance between two class labels, stacked as Stable Diffusion stacks its branches."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size=1,
        generator=None,
        eta=0.0,
        num_inference_steps=50,
        guidance_scale=7.5,
        output_type="np",
    ):
        shape = (batch_size, 3, 8, 8)
        x = randn_tensor(shape, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            labels = torch.tensor([0, 1]).repeat_interleave(batch_size)
            uncond, cond = self.unet(torch.cat([x, x]), t, class_labels=labels).sample.chunk(2)
            eps = uncond + guidance_scale * (cond - uncond)
            x = self.scheduler.step(eps, t, x, eta=eta, generator=generator).prev_sample
        x = x.permute(0, 2, 3, 1).numpy() if output_type == "np" else x
        return ImagePipelineOutput(images=x)


GUIDED = Family(
    "guided test U-Net",
    pipelines=("Guided",),
    component="unet",
    first="conv_in",
    last="conv_out",
    branches=("uncond", "cond"),
    guidance_scale=2.0,
)


def guided_pipeline(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, GUIDED))
    return new_pipeline(Guided, num_class_embeds=2)
