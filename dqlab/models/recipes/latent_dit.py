"""latent-dit: a class-conditional diffusion transformer, the small cousin of DiT-XL/2.

64 tokens (8x8 latents, patch 1), adaLN-Zero, one class for each of the 320 captions, and one
label in ten dropped for classifier-free guidance. Pipeline: DiTPipeline, which fixes the null
label at 1000, so that every block owns a table of 1,001 rows: a third of all weights, and the
reason why the network is no wider. While it trains, a row of the table is the
sum of a vector for the garment, one for the colour and one for the background: 320 separate rows
would have to learn every colour forty times, from 375 pictures each.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dqlab.models import captions
from dqlab.models.classifier import HEADS
from dqlab.models.loading import open_component
from dqlab.models.recipes.latent import Ask, LatentRecipe, initialise

NULL_LABEL = 1000


class LatentDiT(LatentRecipe):
    """Train `DiTTransformer2DModel` on latents and classes."""

    name = "latent-dit"
    minutes = 75
    settings: ClassVar[dict[str, Any]] = {
        "width": 96,
        "blocks": 6,
        "heads": 4,
        "batch": 64,
        "lr": 1e-3,
        "ema_decay": 0.999,
        "drop_caption": 0.1,
        "labels": "sum of garment, colour and background",
        "weighting": "0.5 + 0.5 min(1/SNR, 10), normalised",
        "schedule": "scaled linear, 1000 steps",
        "views_of_each_image": 2,
    }

    def network(self) -> nn.Module:
        """The network as it is shipped, untrained."""
        from diffusers import DiTTransformer2DModel

        return DiTTransformer2DModel(
            num_attention_heads=self.settings["heads"],
            attention_head_dim=self.settings["width"] // self.settings["heads"],
            in_channels=4,
            out_channels=4,
            num_layers=self.settings["blocks"],
            sample_size=8,
            patch_size=1,
            num_embeds_ada_norm=NULL_LABEL,
        )

    def model(self) -> nn.Module:
        """The network with label tables that are sums, adaLN-Zero."""
        network = self.network()
        modulations = [block.norm1.linear for block in network.transformer_blocks]
        initialise(network, [*modulations, network.proj_out_1, network.proj_out_2])
        for block in network.transformer_blocks:
            block.norm1.emb.class_embedder = SummedLabels(self.settings["width"])
        return network

    def ask(self, module: nn.Module, device: torch.device) -> Ask:
        """Caption numbers are the class labels."""

        def ask(noisy: Tensor, t: Tensor, caption: Tensor) -> Tensor:
            return module(noisy, timestep=t, class_labels=caption).sample

        return ask

    def export(self, module: nn.Module, folder: Path) -> None:
        """A DiTPipeline folder: fp16, label tables written out, captions as class names."""
        from diffusers import DiTPipeline

        plain = self.network()
        plain.load_state_dict(_written_out(module))
        vae = open_component("autoencoder", "AutoencoderKL").half()
        pipe = DiTPipeline(plain.half(), vae, self.scheduler())
        # The constructor's argument alone would not be saved with the pipeline.
        pipe.register_to_config(id2label=dict(enumerate(captions.every_attribute().captions())))
        pipe.save_pretrained(folder)


class SummedLabels(nn.Module):
    """A label table whose rows are sums of a vector per garment, colour and background.

    Labels from 320 on, the null label 1000 among them, share one vector: unconditional.
    """

    def __init__(self, width: int):
        super().__init__()
        parts = {head: nn.Parameter(0.5 * torch.randn(n, width)) for head, n in HEADS.items()}
        self.parts = nn.ParameterDict(parts)
        self.unlabelled = nn.Parameter(0.5 * torch.randn(1, width))

    def table(self) -> Tensor:
        """One row per caption, then that of no label, `[321, width]`."""
        garment, colour, background = (self.parts[head] for head in HEADS)
        rows = garment[:, None, None] + colour[:, None] + background
        return torch.cat([rows.flatten(0, 2), self.unlabelled])

    def forward(self, labels: Tensor) -> Tensor:
        """int64 `[N]` -> `[N, width]`."""
        return self.table()[labels.clamp(max=captions.NO_CAPTION)]


def _written_out(module: nn.Module) -> dict[str, Tensor]:
    """The trained weights with whole label tables, as diffusers names them."""
    state = {k: v for k, v in module.state_dict().items() if ".class_embedder." not in k}
    every_label = torch.arange(NULL_LABEL + 1)
    for i, block in enumerate(module.transformer_blocks):
        name = f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight"
        state[name] = block.norm1.emb.class_embedder(every_label).detach()
    return state
