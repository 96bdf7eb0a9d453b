"""Tiny random networks of every architecture dqlab is about, with inputs for one call."""

import torch
from tiny_models import new_unet, seeded

ROWS = 2


def pixel_unet():
    return new_unet(), {"sample": torch.randn(ROWS, 3, 8, 8), "timestep": torch.tensor([7, 400])}


def latent_unet():
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=12,
        attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return model, {
        "sample": torch.randn(ROWS, 4, 8, 8),
        "timestep": torch.tensor([7, 400]),
        "encoder_hidden_states": torch.randn(ROWS, 5, 12),
    }


def latent_dit():
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8,
        num_layers=2, patch_size=1, sample_size=4, num_embeds_ada_norm=10, norm_num_groups=4,
        dropout=0.0,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(ROWS, 4, 4, 4),
        "timestep": torch.tensor([7, 400]),
        "class_labels": torch.tensor([1, 3]),
    }


def text_dit():
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8,
        num_layers=2, patch_size=1, sample_size=4, cross_attention_dim=16,
        caption_channels=12, norm_num_groups=4, use_additional_conditions=False,
    )  # fmt: skip
    keep = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    return model, {
        "hidden_states": torch.randn(ROWS, 4, 4, 4),
        "timestep": torch.tensor([7, 400]),
        "encoder_hidden_states": torch.randn(ROWS, 5, 12),
        "encoder_attention_mask": keep,
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def flux():
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=12, pooled_projection_dim=12,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(ROWS, 16, 4),
        "timestep": torch.tensor([0.1, 0.9]),
        "encoder_hidden_states": torch.randn(ROWS, 5, 12),
        "pooled_projections": torch.randn(ROWS, 12),
        "img_ids": torch.randn(16, 3),
        "txt_ids": torch.zeros(5, 3),
    }


def video_unet():
    from diffusers import UNetMotionModel

    model = UNetMotionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=12,
        num_attention_heads=2, motion_num_attention_heads=2, motion_max_seq_length=4,
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
        up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"),
    )  # fmt: skip
    return model, {
        "sample": torch.randn(ROWS, 4, 3, 8, 8),
        "timestep": torch.tensor([7, 400]),
        "encoder_hidden_states": torch.randn(3 * ROWS, 5, 12),
    }


def video_dit():
    from diffusers import LatteTransformer3DModel

    model = LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8,
        num_layers=1, patch_size=1, sample_size=4, cross_attention_dim=16,
        caption_channels=12, video_length=3, norm_type="ada_norm_single",
        norm_elementwise_affine=False,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(ROWS, 4, 3, 4, 4),
        "timestep": torch.tensor([7, 400]),
        "encoder_hidden_states": torch.randn(ROWS, 5, 12),
    }


BUILDERS = (pixel_unet, latent_unet, latent_dit, text_dit, flux, video_unet, video_dit)


def build(builder):
    """The model in eval mode, and a function that calls it."""
    model, inputs = seeded(builder)
    model.eval().requires_grad_(False)
    return model, lambda called: called(**inputs, return_dict=False)[0]
