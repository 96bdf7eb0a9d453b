"""text-dit: a text-to-image diffusion transformer, the small cousin of PixArt-alpha.

64 tokens (8x8 latents, patch 1) with one time modulation shared by all blocks (adaLN-single);
captions enter through cross-attention, and one in ten is dropped for classifier-free guidance.
The small T5 encoder is trained together with the transformer. Pipeline: PixArtAlphaPipeline, to be
called with `use_resolution_binning=False`.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dqlab.models import captions
from dqlab.models.loading import open_component
from dqlab.models.recipes.latent import Ask, LatentRecipe, all_captions, initialise


class TextDiT(LatentRecipe):
    """Train `PixArtTransformer2DModel` and `T5EncoderModel` on latents and captions."""

    name = "text-dit"
    minutes = 60
    settings: ClassVar[dict[str, Any]] = {
        "width": 128,
        "blocks": 5,
        "heads": 4,
        "text_width": 64,
        "batch": 64,
        "lr": 1e-3,
        "ema_decay": 0.999,
        "drop_caption": 0.1,
        "weighting": "0.5 + 0.5 min(1/SNR, 10), normalised",
        "schedule": "scaled linear, 1000 steps",
        "views_of_each_image": 2,
    }

    def model(self) -> nn.ModuleDict:
        """The untrained transformer and text encoder."""
        parts = {"transformer": self._transformer(), "text_encoder": self._text_encoder()}
        return nn.ModuleDict(parts)

    def _transformer(self) -> nn.Module:
        from diffusers import PixArtTransformer2DModel

        width, heads = self.settings["width"], self.settings["heads"]
        network = PixArtTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=4,
            out_channels=4,
            num_layers=self.settings["blocks"],
            sample_size=8,
            patch_size=1,
            cross_attention_dim=width,
            caption_channels=self.settings["text_width"],
        )
        crossings = [block.attn2.to_out[0] for block in network.transformer_blocks]
        initialise(network, [*crossings, network.proj_out])
        return network

    def _text_encoder(self) -> nn.Module:
        from transformers import T5Config, T5EncoderModel

        width = self.settings["text_width"]
        return T5EncoderModel(
            T5Config(
                vocab_size=len(captions.build_t5_tokenizer()),
                d_model=width,
                d_kv=width // 4,
                d_ff=4 * width,
                num_layers=2,
                num_heads=4,
                dropout_rate=0.0,
            )
        )

    def ask(self, module: nn.Module, device: torch.device) -> Ask:
        """Captions are read by the text encoder; padding is masked in both networks."""
        encoded = captions.encode(captions.build_t5_tokenizer(), all_captions())
        ids, masks = encoded.input_ids.to(device), encoded.attention_mask.to(device)

        def ask(noisy: Tensor, t: Tensor, caption: Tensor) -> Tensor:
            mask = masks[caption]
            words = module["text_encoder"](ids[caption], attention_mask=mask).last_hidden_state
            return module["transformer"](
                noisy, encoder_hidden_states=words, encoder_attention_mask=mask, timestep=t
            ).sample

        return ask

    def export(self, module: nn.Module, folder: Path) -> None:
        """A PixArtAlphaPipeline folder: fp16 transformer and VAE, fp32 text encoder."""
        from diffusers import PixArtAlphaPipeline

        plain = self.model()
        plain.load_state_dict(module.state_dict())
        pipe = PixArtAlphaPipeline(
            tokenizer=captions.build_t5_tokenizer(),
            text_encoder=plain["text_encoder"],
            vae=open_component("autoencoder", "AutoencoderKL").half(),
            transformer=plain["transformer"].half(),
            scheduler=self.scheduler(),
        )
        pipe.save_pretrained(folder)
