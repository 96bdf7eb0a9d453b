"""video-dit: videos from captions by a diffusion transformer, the small cousin of Latte.

16 frames of 64 tokens; every spatial block (with captions) is followed by a temporal block
(attention between the frames at one place). The spatial blocks, modulation, embeddings and text
encoder start from text-dit, the temporal blocks with silent outputs; everything is trained, what
is inherited at a slower rate. Captions may end in the motion ("... turning clockwise"); one in
four does not.

The noise schedule is Latte's linear one, not text-dit's. Sixteen frames of one garment, each with
noise of its own, show through noise that would hide one: at the end of text-dit's schedule
(abar = 0.0047) their average still tells the garment's outline, which a network learns to rely on
and does not find when it samples from pure noise. The linear one ends at 4e-5.

LattePipeline always takes half of the output channels for a variance. None is learned here,
since DDIM has no use for one: those four output channels are zero, weights and all.

LattePipeline pads captions to 120 tokens and lets the network attend to the padding: a lone
caption is cut to its words, of several each keeps the padding as zeros, and that of the empty
caption stays what the text encoder makes of it. Training meets both forms, half and half. All
padding of one caption is the same token, so that n of them are one whose score is raised by
log n.
"""

import copy
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dqlab.models import captions
from dqlab.models.loading import open_component, open_pipeline
from dqlab.models.motion import MOTIONS, Clips, motion_captions
from dqlab.models.recipes.latent import Ask
from dqlab.models.recipes.video import VideoRecipe

PADDED = 120
"""Tokens that LattePipeline makes of a caption when there are several."""
UNSEEN = -10_000.0
"""Score offset of a token that is not attended to."""
LATENT_CHANNELS = 4


class VideoDiT(VideoRecipe):
    """Train `LatteTransformer3DModel` and `T5EncoderModel` on latents of clips and captions."""

    name = "video-dit"
    minutes = 60
    settings: ClassVar[dict[str, Any]] = {
        "frames": 16,
        "batch": 4,
        "lr": 1e-3,
        "inherited_lr": 3e-4,
        "ema_decay": 0.998,
        "drop_caption": 0.1,
        "drop_motion": 0.25,
        "weighting": "0.5 + 0.5 min(1/SNR, 10), normalised",
        "schedule": "linear, 1000 steps",
    }
    starts_from = ("autoencoder", "text-dit")

    def scheduler(self):
        """DDIM, trailing spacing, no clipping, Latte's betas (diffusers' defaults)."""
        from diffusers import DDIMScheduler

        return DDIMScheduler(
            beta_schedule="linear", timestep_spacing="trailing", clip_sample=False, steps_offset=1
        )

    def model(self) -> nn.ModuleDict:
        """text-dit with a temporal block after each of its blocks, and words for motions."""
        image = open_pipeline("text-dit")
        image.text_encoder.resize_token_embeddings(len(tokenizer()), mean_resizing=False)
        parts = {
            "transformer": self._transformer(image.transformer),
            "text_encoder": image.text_encoder,
        }
        return nn.ModuleDict(parts)

    def _transformer(self, image: nn.Module) -> nn.Module:
        from diffusers import LatteTransformer3DModel

        same = (
            "num_attention_heads", "attention_head_dim", "in_channels", "num_layers",
            "cross_attention_dim", "attention_bias", "sample_size", "patch_size",
            "activation_fn", "num_embeds_ada_norm", "norm_type", "norm_elementwise_affine",
            "norm_eps", "caption_channels",
        )  # fmt: skip
        network = LatteTransformer3DModel(
            **{name: image.config[name] for name in same},
            out_channels=2 * LATENT_CHANNELS,
            video_length=self.settings["frames"],
        )
        known = {k: v for k, v in image.state_dict().items() if not k.startswith("proj_out.")}
        network.load_state_dict(known, strict=False)
        for block in network.temporal_transformer_blocks:
            for last in (block.attn1.to_out[0], block.ff.net[2]):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
        with torch.no_grad():
            for name in ("weight", "bias"):
                ours, theirs = (getattr(n.proj_out, name) for n in (network, image))
                ours.zero_()[:LATENT_CHANNELS] = theirs[:LATENT_CHANNELS]
        return network

    def parameters(self, module: nn.ModuleDict) -> list[dict[str, Any]]:
        """The temporal blocks at the full rate, all else at `inherited_lr`."""
        new = list(module["transformer"].temporal_transformer_blocks.parameters())
        ours = {id(p) for p in new}
        inherited = [p for p in module.parameters() if id(p) not in ours]
        rate = self.settings["inherited_lr"]
        return [{"params": new}, {"params": inherited, "lr": rate}]

    def told(self, clips: Clips, generator: torch.Generator) -> Tensor:
        """Caption numbers and how many text tokens the pipeline would make, `[N, 2]`."""
        count, options = len(clips.motion), {"generator": generator, "device": generator.device}
        still = torch.rand(count, **options) < self.settings["drop_motion"]
        motion = torch.where(still, len(MOTIONS), clips.motion)
        number = captions.caption_number(clips.shown) * (len(MOTIONS) + 1) + motion
        several = torch.rand(count, **options) < 0.5
        kept = torch.where(several, PADDED, token_counts().to(number.device)[number])
        lost = self.dropped(count, generator)
        return torch.stack([torch.where(lost, len(texts()) - 1, number), kept], dim=1)

    def ask(self, module: nn.Module, device: torch.device) -> Ask:
        """Captions are read by the text encoder that is trained along."""
        encoded = captions.encode(tokenizer(), texts())
        ids, masks = encoded.input_ids.to(device), encoded.attention_mask.to(device)

        def ask(noisy: Tensor, t: Tensor, told: Tensor) -> Tensor:
            number, kept = told.unbind(1)
            mask = masks[number]
            words = module["text_encoder"](ids[number], attention_mask=mask).last_hidden_state
            empty = (number == len(ids) - 1)[:, None, None]
            words = torch.where(empty, words, words * mask[:, :, None])
            bias = text_bias(mask, kept).repeat_interleave(noisy.shape[2], 0)
            answer = module["transformer"](
                noisy, encoder_hidden_states=words, encoder_attention_mask=bias, timestep=t
            ).sample
            return answer[:, :LATENT_CHANNELS]

        return ask

    def export(self, module: nn.Module, folder: Path) -> None:
        """A LattePipeline folder: fp16 transformer and VAE, fp32 text encoder."""
        from diffusers import LattePipeline

        plain = copy.deepcopy(module)
        pipe = LattePipeline(
            tokenizer=tokenizer(),
            text_encoder=plain["text_encoder"],
            vae=open_component("autoencoder", "AutoencoderKL").half(),
            transformer=plain["transformer"].half(),
            scheduler=self.scheduler(),
        )
        pipe.save_pretrained(folder)


def tokenizer():
    """text-dit's tokenizer and, after its words, those of the motions."""
    words = dict.fromkeys(word for phrase in MOTIONS for word in phrase.split())
    return captions.build_t5_tokenizer(tuple(words))


@cache
def texts() -> list[str]:
    """Every caption with every motion, then without one; last of all the empty text.

    The text of caption c and motion m is number 9 c + m, with m = 8 for none.
    """
    shown = captions.every_attribute()
    columns = [
        motion_captions(shown, torch.full_like(shown.garment, m)) for m in range(len(MOTIONS))
    ]
    rows = zip(*columns, shown.captions(), strict=True)
    return [*(text for row in rows for text in row), ""]


@cache
def token_counts() -> Tensor:
    """Tokens of each of `texts()`, its end included, int64."""
    return torch.tensor([len(text.split()) + 1 for text in texts()])


def text_bias(mask: Tensor, kept: Tensor) -> Tensor:
    """Score offsets `[N, 1, L]` that make of L tokens the `kept` ones of the pipeline.

    Args:
        mask: which of the L tokens are words, `[N, L]`; the last never is.
        kept: tokens the pipeline would show, `[N]`: words and, beyond them, padding.

    """
    bias = torch.where(mask.bool(), 0.0, UNSEEN)
    padding = kept - mask.sum(1)
    bias[:, -1] = torch.where(padding > 0, padding.clamp(min=1).log(), UNSEEN)
    return bias[:, None]
