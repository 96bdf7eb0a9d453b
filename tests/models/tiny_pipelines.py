"""Every pipeline dqlab knows, from its real classes at a size that samples in a moment."""

from functools import cache

import torch
from tiny_models import new_pipeline, seeded

from dqlab.models import captions
from dqlab.models.families import ask

WIDTH = 16
"""Of the text encoders."""


@cache
def clip_tokenizer():
    return captions.build_tokenizer()


@cache
def t5_tokenizer():
    from transformers import T5Tokenizer

    words = dict.fromkeys(" ".join(captions.every_attribute().captions()).split())
    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in words)]
    return T5Tokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)


def clip(projected: bool = False):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=WIDTH,
        num_hidden_layers=2, num_attention_heads=2, projection_dim=WIDTH,
        max_position_embeddings=captions.MAX_LENGTH, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5():
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(t5_tokenizer()), d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1,
        num_heads=2,
    )  # fmt: skip
    return T5EncoderModel(config).eval()


def vae(channels: int = 4, **more):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, sample_size=16, latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        **more,
    ).eval()  # fmt: skip


def ddim(**more):
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        timestep_spacing="trailing", **{"clip_sample": False, "steps_offset": 1} | more
    )


UNET = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1,
    "block_out_channels": (8, 16), "norm_num_groups": 4, "cross_attention_dim": WIDTH,
}  # fmt: skip
DIT = {
    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "num_layers": 2,
    "sample_size": 4,
}  # fmt: skip
TEXT_UNET = UNET | {
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def ddim_pixels():
    return new_pipeline()


def ddpm_pixels():
    from diffusers import DDPMPipeline, DDPMScheduler

    return DDPMPipeline(new_pipeline().unet, DDPMScheduler())


def ldm():
    from diffusers import LDMPipeline, UNet2DModel, VQModel

    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    first = VQModel(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=3, num_vq_embeddings=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return LDMPipeline(first, unet.eval(), ddim())


def ldm_text():
    from diffusers import AutoencoderKL, LDMTextToImagePipeline, UNet2DConditionModel
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
        LDMBertConfig,
        LDMBertModel,
    )

    tokenizer = clip_tokenizer()
    bert = LDMBertModel(
        LDMBertConfig(
            vocab_size=len(tokenizer), max_position_embeddings=77, encoder_layers=1,
            encoder_ffn_dim=WIDTH, encoder_attention_heads=2, head_dim=8, d_model=WIDTH,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    # This pipeline takes its pictures to be eight times as large as their latents.
    first = AutoencoderKL(
        block_out_channels=(4,) * 4, norm_num_groups=4, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    unet = UNet2DConditionModel(**TEXT_UNET).eval()
    return LDMTextToImagePipeline(first.eval(), bert.eval(), tokenizer, unet, ddim())


def stable_diffusion():
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    return StableDiffusionPipeline(
        vae(), clip(), clip_tokenizer(), UNet2DConditionModel(**TEXT_UNET).eval(), ddim(),
        None, None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl():
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        **TEXT_UNET | {"cross_attention_dim": 2 * WIDTH, "attention_head_dim": (2, 4)},
        transformer_layers_per_block=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + WIDTH,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae(), clip(), clip(True), clip_tokenizer(), clip_tokenizer(), unet.eval(), ddim()
    )


def dit():
    from diffusers import DiTPipeline, DiTTransformer2DModel

    network = DiTTransformer2DModel(
        **DIT, out_channels=8, patch_size=1, num_embeds_ada_norm=1000, norm_num_groups=4,
        dropout=0.0,
    )  # fmt: skip
    # Published weights are not zero here, and zeros would hide whatever the blocks do.
    for block in network.transformer_blocks:
        torch.nn.init.normal_(block.norm1.linear.weight, std=0.1)
    return DiTPipeline(network.eval(), vae(), ddim())


def pixart(kind: str = "PixArtAlphaPipeline"):
    import diffusers

    network = diffusers.PixArtTransformer2DModel(
        **DIT, out_channels=8, patch_size=1, cross_attention_dim=16, caption_channels=WIDTH,
        norm_num_groups=4, use_additional_conditions=False,
    ).eval()  # fmt: skip
    return getattr(diffusers, kind)(t5_tokenizer(), t5(), vae(), network, ddim())


def pixart_sigma():
    return pixart("PixArtSigmaPipeline")


def sd3():
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    network = SD3Transformer2DModel(
        **DIT, out_channels=4, patch_size=1, joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16, pooled_projection_dim=2 * WIDTH, pos_embed_max_size=8,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    ).eval()  # fmt: skip
    return StableDiffusion3Pipeline(
        network, FlowMatchEulerDiscreteScheduler(shift=3.0), vae(shift_factor=0.1),
        clip(True), clip_tokenizer(), clip(True), clip_tokenizer(), None, None,
    )  # fmt: skip


def flux():
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    network = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    ).eval()  # fmt: skip
    pipe = FluxPipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae(shift_factor=0.1),
        clip(), clip_tokenizer(), t5(), t5_tokenizer(), network,
    )  # fmt: skip
    return ask(pipe, height=16, width=16)  # it says nowhere how large its pictures are


def animatediff():
    from diffusers import AnimateDiffPipeline, UNetMotionModel

    unet = UNetMotionModel(
        **UNET, num_attention_heads=2, motion_num_attention_heads=2, motion_max_seq_length=4,
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
        up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"),
    ).eval()  # fmt: skip
    scheduler = ddim(beta_schedule="linear")
    return AnimateDiffPipeline(vae(), clip(), clip_tokenizer(), unet, None, scheduler)


def svd():
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    unet = UNetSpatioTemporalConditionModel(
        sample_size=8, in_channels=8, out_channels=4, num_frames=3, layers_per_block=1,
        block_out_channels=(32, 32), cross_attention_dim=WIDTH, num_attention_heads=2,
        addition_time_embed_dim=4, projection_class_embeddings_input_dim=12,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    )  # fmt: skip
    first = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), sample_size=16, down_block_types=("DownEncoderBlock2D",) * 2
    )
    eye = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, image_size=224,
            num_attention_heads=2, patch_size=112, projection_dim=WIDTH,
        )
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        prediction_type="v_prediction", timestep_type="continuous", use_karras_sigmas=True,
        timestep_spacing="leading", sigma_min=0.002, sigma_max=700.0, steps_offset=1,
    )  # fmt: skip
    return StableVideoDiffusionPipeline(
        first.eval(), eye.eval(), unet.eval(), scheduler, CLIPImageProcessor()
    )


def latte():
    from diffusers import LattePipeline, LatteTransformer3DModel

    network = LatteTransformer3DModel(
        **DIT | {"num_layers": 1}, out_channels=8, patch_size=1, cross_attention_dim=16,
        caption_channels=WIDTH, video_length=3, norm_type="ada_norm_single",
        norm_elementwise_affine=False,
    ).eval()  # fmt: skip
    return LattePipeline(t5_tokenizer(), t5(), vae(), network, ddim())


def super_resolution():
    from dqlab.models.pipelines.super_resolution import SuperResolutionPipeline

    pipe = new_pipeline(in_channels=6)
    return SuperResolutionPipeline(pipe.unet, pipe.scheduler, gain=4.0)


PIPELINES = (
    ddim_pixels, ddpm_pixels, ldm, ldm_text, stable_diffusion, sdxl, dit, pixart, pixart_sigma,
    sd3, flux, animatediff, svd, latte, super_resolution,
)  # fmt: skip


@cache
def tiny(builder):
    """The pipeline, the same every time; never change it."""
    pipe = seeded(builder)
    pipe.set_progress_bar_config(disable=True)
    return pipe
