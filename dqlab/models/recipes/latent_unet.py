"""latent-unet: text-to-image in latent space, the small cousin of LDM-4 and Stable Diffusion.

A conditional U-Net on 8x8x4 latents reads captions through cross-attention; one caption in ten
is dropped, for classifier-free guidance. The small text encoder is trained together with the
U-Net (nobody ships one for 26 words). Pipeline: StableDiffusionPipeline.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dqlab.engine import Budget
from dqlab.models import captions, fashion
from dqlab.models.loading import open_component
from dqlab.models.recipes.base import (
    Recipe,
    SupervisedTask,
    add_noise,
    blended_weights,
    weighted_noise_loss,
)
from dqlab.models.tint import dress


class LatentUNet(Recipe):
    """Train `UNet2DConditionModel` and `CLIPTextModel` on latents and captions."""

    name = "latent-unet"
    minutes = 90
    settings: ClassVar[dict[str, Any]] = {
        "widths": [48, 96],
        "groups": 12,
        "text_width": 64,
        "batch": 128,
        "lr": 1e-3,
        "ema_decay": 0.999,
        "drop_caption": 0.1,
        "weighting": "0.5 + 0.5 min(1/SNR, 10), normalised",
        "schedule": "scaled linear, 1000 steps",
        "guidance_scale": 2.0,
        "views_of_each_image": 2,
    }

    def scheduler(self):
        """DDIM, trailing spacing, no clipping (latents have no bounds)."""
        from diffusers import DDIMScheduler

        return DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            timestep_spacing="trailing",
            clip_sample=False,
            steps_offset=1,
        )

    def model(self) -> nn.ModuleDict:
        """The untrained U-Net and text encoder."""
        return nn.ModuleDict({"unet": self._unet(), "text_encoder": self._text_encoder()})

    def _unet(self) -> nn.Module:
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=self.settings["widths"],
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=self.settings["text_width"],
            attention_head_dim=4,
            norm_num_groups=self.settings["groups"],
        )

    def _text_encoder(self) -> nn.Module:
        from transformers import CLIPTextConfig, CLIPTextModel

        width = self.settings["text_width"]
        tokenizer = captions.build_tokenizer()
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=captions.MAX_LENGTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                projection_dim=width,
            )
        )

    def task(self, budget: Budget, device: torch.device) -> SupervisedTask:
        """Noise prediction on stored latents of tinted training images, with captions."""
        torch.manual_seed(0)
        module = self.model().to(device)
        latents, shown = (t.to(device) for t in self._latents())
        ids = captions.tokenize(captions.build_tokenizer(), [*_all_captions(), ""]).to(device)
        abar = self.scheduler().alphas_cumprod.to(device)
        weights = blended_weights(abar)

        def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
            options = {"generator": generator, "device": device}
            rows = torch.randint(len(latents), (self.settings["batch"],), **options)
            clean = latents[rows].float()
            dropped = torch.rand(len(rows), **options) < self.settings["drop_caption"]
            caption = torch.where(dropped, len(ids) - 1, shown[rows].long())
            t = torch.randint(len(abar), (len(rows),), **options)
            return clean, torch.randn(clean.shape, **options), t, ids[caption]

        def objective(batch: tuple[Tensor, ...]) -> Tensor:
            clean, noise, t, tokens = batch
            words = module["text_encoder"](tokens).last_hidden_state
            noisy = add_noise(abar, clean, noise, t)
            predicted = module["unet"](noisy, t, encoder_hidden_states=words).sample
            return weighted_noise_loss(predicted, noise, weights[t])

        return self.supervised(module, draw, objective, budget)

    @torch.no_grad()
    def _latents(self) -> tuple[Tensor, Tensor]:
        """Scaled fp16 latents of the training set in a few tints, and their caption numbers."""
        autoencoder = open_component("autoencoder", "AutoencoderKL")
        grey, labels = fashion.load_split("train")
        parts, numbers = [], []
        for view in range(self.settings["views_of_each_image"]):
            generator = torch.Generator().manual_seed(view)
            for rows in torch.arange(len(grey)).split(256):
                images, shown = dress(grey[rows], labels[rows], generator)
                mean = autoencoder.encode(images).latent_dist.mean
                parts.append((mean * autoencoder.config.scaling_factor).half())
                numbers.append(captions.caption_number(shown).to(torch.int16))
        return torch.cat(parts), torch.cat(numbers)

    def export(self, module: nn.Module, folder: Path) -> None:
        """A StableDiffusionPipeline folder: fp16 U-Net and VAE, fp32 text encoder."""
        from diffusers import StableDiffusionPipeline

        plain = self.model()
        plain.load_state_dict(module.state_dict())
        pipe = StableDiffusionPipeline(
            vae=open_component("autoencoder", "AutoencoderKL").half(),
            text_encoder=plain["text_encoder"],
            tokenizer=captions.build_tokenizer(),
            unet=plain["unet"].half(),
            scheduler=self.scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.save_pretrained(folder)


def _all_captions() -> list[str]:
    return captions.every_attribute().captions()
