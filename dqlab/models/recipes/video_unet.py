"""video-unet: short videos from captions, the small cousin of AnimateDiff.

latent-unet with a motion module after every block layer: attention between the frames at one
place. As in AnimateDiff (Guo et al., arXiv 2307.04725) only the motion modules are trained, and
each begins with a zero output projection, so that training starts at the image model exactly.
No motion module in the middle block, as in AnimateDiff's first release. Captions say nothing
about the motion, which the noise decides. Pipeline: AnimateDiffPipeline, to be called with
`num_frames=8`.
"""

import copy
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dqlab.models import captions
from dqlab.models.loading import open_pipeline
from dqlab.models.motion import Clips
from dqlab.models.recipes.latent import Ask, all_captions
from dqlab.models.recipes.video import VideoRecipe


class VideoUNet(VideoRecipe):
    """Train the motion modules of a `UNetMotionModel` on latents of clips and captions."""

    name = "video-unet"
    minutes = 45
    settings: ClassVar[dict[str, Any]] = {
        "frames": 8,
        "heads": 4,
        "batch": 12,
        "lr": 1e-3,
        "ema_decay": 0.998,
        "drop_caption": 0.1,
        "trained": "motion modules only",
        "weighting": "0.5 + 0.5 min(1/SNR, 10), normalised",
        "schedule": "scaled linear, 1000 steps",
    }
    starts_from = ("autoencoder", "latent-unet")

    def model(self) -> nn.Module:
        """The image model with motion modules that do nothing yet; all else is frozen."""
        from diffusers import MotionAdapter, UNetMotionModel

        image = open_pipeline("latent-unet").unet
        motion = MotionAdapter(
            block_out_channels=image.config.block_out_channels,
            motion_layers_per_block=image.config.layers_per_block,
            motion_num_attention_heads=self.settings["heads"],
            motion_norm_num_groups=image.config.norm_num_groups,
            motion_max_seq_length=self.settings["frames"],
            use_motion_mid_block=False,
        )
        module = UNetMotionModel.from_unet2d(image, motion).requires_grad_(False)
        for name, part in module.named_modules():
            if name.endswith("motion_modules"):
                part.requires_grad_(True)
                for motion_module in part:
                    nn.init.zeros_(motion_module.proj_out.weight)
                    nn.init.zeros_(motion_module.proj_out.bias)
        return module

    def told(self, clips: Clips, generator: torch.Generator) -> Tensor:
        """Caption numbers `[N]`."""
        number = captions.caption_number(clips.shown)
        lost = self.dropped(len(number), generator)
        return torch.where(lost, captions.NO_CAPTION, number)

    @torch.no_grad()
    def ask(self, module: nn.Module, device: torch.device) -> Ask:
        """Captions are read, once, by the image model's text encoder."""
        image = open_pipeline("latent-unet")
        ids = captions.tokenize(image.tokenizer, all_captions())
        words = image.text_encoder(ids).last_hidden_state.to(device)

        def ask(noisy: Tensor, t: Tensor, caption: Tensor) -> Tensor:
            read = words[caption].repeat_interleave(noisy.shape[2], 0)
            return module(noisy, t, encoder_hidden_states=read).sample

        return ask

    def export(self, module: nn.Module, folder: Path) -> None:
        """An AnimateDiffPipeline folder: fp16 U-Net and VAE, fp32 text encoder."""
        from diffusers import AnimateDiffPipeline

        image = open_pipeline("latent-unet")
        pipe = AnimateDiffPipeline(
            vae=image.vae.half(),
            text_encoder=image.text_encoder,
            tokenizer=image.tokenizer,
            unet=copy.deepcopy(module).half(),
            motion_adapter=None,
            scheduler=self.scheduler(),
        )
        pipe.save_pretrained(folder)
