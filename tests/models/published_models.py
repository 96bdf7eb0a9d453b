"""The denoisers of published models from their public configs, whole, on the meta device.

A tensor there has a shape and no numbers, so that a model of twelve billion weights is built and
run in a second. `parameters` are millions, as published or counted from the public weights.
"""

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Published:
    """One denoiser: its class and config, arguments of a call by shape, and its size."""

    hub_id: str
    pipeline: str
    network: str
    config: dict[str, Any]
    inputs: dict[str, Any]
    parameters: float
    more: dict[str, Any] = field(default_factory=dict)

    def build(self) -> torch.nn.Module:
        import diffusers

        with torch.device("meta"):
            network = getattr(diffusers, self.network)(**self.config)
        return network.to("meta").eval()  # a few parameters are made elsewhere

    def call(self, network: torch.nn.Module):
        named = {name: torch.empty(shape, device="meta") for name, shape in self.inputs.items()}
        if "class_labels" in named:
            named["class_labels"] = named["class_labels"].long()
        added = {k: torch.empty(v, device="meta") for k, v in self.more.items()}
        if added or self.network.startswith("PixArt"):
            named["added_cond_kwargs"] = added or {"resolution": None, "aspect_ratio": None}
        return network(**named, return_dict=False)[0]


def _unet(**more: Any) -> dict[str, Any]:
    return {"in_channels": 4, "out_channels": 4, "layers_per_block": 2} | more


XL = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8,
    "num_layers": 28, "patch_size": 2, "sample_size": 64, "norm_elementwise_affine": False,
    "attention_bias": True, "activation_fn": "gelu-approximate",
}  # fmt: skip
TEXT = {"norm_type": "ada_norm_single", "caption_channels": 4096, "cross_attention_dim": 1152}
WIDTHS = (320, 640, 1280, 1280)

PUBLISHED = (
    Published(
        "google/ddpm-cifar10-32", "DDPMPipeline", "UNet2DModel",
        {
            "sample_size": 32, "block_out_channels": (128, 256, 256, 256), "layers_per_block": 2,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False,
            "freq_shift": 1, "norm_eps": 1e-6,
        },
        {"sample": (1, 3, 32, 32), "timestep": (1,)}, 35.746,
    ),
    Published(
        "CompVis/ldm-celebahq-256", "LDMPipeline", "UNet2DModel",
        {
            "sample_size": 64, "block_out_channels": (224, 448, 672, 896), "layers_per_block": 2,
            "attention_head_dim": 32,
        },
        {"sample": (1, 3, 64, 64), "timestep": (1,)}, 274.1,
    ),
    Published(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", "StableDiffusionPipeline",
        "UNet2DConditionModel",
        _unet(block_out_channels=WIDTHS, sample_size=64, cross_attention_dim=768,
              attention_head_dim=8),
        {"sample": (2, 4, 64, 64), "timestep": (2,), "encoder_hidden_states": (2, 77, 768)}, 859.5,
    ),
    Published(
        "stabilityai/stable-diffusion-xl-base-1.0", "StableDiffusionXLPipeline",
        "UNet2DConditionModel",
        _unet(
            block_out_channels=WIDTHS[:3], sample_size=128, cross_attention_dim=2048,
            attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 2, 10),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        ),
        {"sample": (2, 4, 128, 128), "timestep": (2,), "encoder_hidden_states": (2, 77, 2048)},
        2567.5, {"text_embeds": (2, 1280), "time_ids": (2, 6)},
    ),
    Published(
        "facebook/DiT-XL-2-256", "DiTPipeline", "DiTTransformer2DModel",
        XL | {"sample_size": 32, "num_embeds_ada_norm": 1000},
        {"hidden_states": (2, 4, 32, 32), "timestep": (2,), "class_labels": (2,)}, 749.8,
    ),
    Published(
        "PixArt-alpha/PixArt-XL-2-512x512", "PixArtAlphaPipeline", "PixArtTransformer2DModel",
        XL | TEXT | {"use_additional_conditions": False},
        {
            "hidden_states": (2, 4, 64, 64), "timestep": (2,),
            "encoder_hidden_states": (2, 120, 4096), "encoder_attention_mask": (2, 120),
        },
        610.9,
    ),
    Published(
        "stabilityai/stable-diffusion-3-medium-diffusers", "StableDiffusion3Pipeline",
        "SD3Transformer2DModel",
        {
            "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16,
            "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24,
            "joint_attention_dim": 4096, "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
        },
        {
            "hidden_states": (2, 16, 128, 128), "timestep": (2,),
            "encoder_hidden_states": (2, 333, 4096), "pooled_projections": (2, 2048),
        },
        2028.3,
    ),
    Published(
        "black-forest-labs/FLUX.1-dev", "FluxPipeline", "FluxTransformer2DModel",
        {
            "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38,
            "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
            "pooled_projection_dim": 768, "guidance_embeds": True,
        },
        {
            "hidden_states": (1, 4096, 64), "timestep": (1,), "guidance": (1,),
            "encoder_hidden_states": (1, 512, 4096), "pooled_projections": (1, 768),
            "img_ids": (4096, 3), "txt_ids": (512, 3),
        },
        11901.4,
    ),
    Published(
        "guoyww/animatediff-motion-adapter-v1-5-2", "AnimateDiffPipeline", "UNetMotionModel",
        _unet(block_out_channels=WIDTHS, sample_size=64, cross_attention_dim=768,
              num_attention_heads=8, motion_num_attention_heads=8, motion_max_seq_length=32),
        {"sample": (2, 4, 16, 64, 64), "timestep": (2,), "encoder_hidden_states": (32, 77, 768)},
        1312.7,
    ),
    Published(
        "stabilityai/stable-video-diffusion-img2vid", "StableVideoDiffusionPipeline",
        "UNetSpatioTemporalConditionModel",
        {
            "sample_size": 96, "in_channels": 8, "out_channels": 4, "layers_per_block": 2,
            "block_out_channels": WIDTHS, "num_attention_heads": (5, 10, 20, 20),
            "cross_attention_dim": 1024, "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 768, "num_frames": 14,
        },
        {
            "sample": (2, 14, 8, 72, 128), "timestep": (2,),
            "encoder_hidden_states": (2, 1, 1024), "added_time_ids": (2, 3),
        },
        1524.6,
    ),
    Published(
        "maxin-cn/Latte-1", "LattePipeline", "LatteTransformer3DModel",
        XL | TEXT | {"video_length": 16},
        {
            "hidden_states": (2, 4, 16, 64, 64), "timestep": (2,),
            "encoder_hidden_states": (2, 120, 4096),
        },
        1057.0,
    ),
)  # fmt: skip
