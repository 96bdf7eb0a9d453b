"""The two networks of Binary Latent Diffusion (Wang et al., CVPR 2023, arXiv 2304.04820).

An autoencoder with one bit per code entry, and a transformer over the code's cells that predicts
which bits of a noisy code have been flipped. Codes are `[N, cells, bits]` in {0, 1}, cells row by
row.
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.embeddings import TimestepEmbedding, get_2d_sincos_pos_embed
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from dqlab.errors import InvalidInputError
from dqlab.reference import binary_latent_diffusion as paper


class BinaryAutoencoder(ModelMixin, ConfigMixin):
    """Pictures to bits and back, through a Bernoulli bottleneck with a straight-through gradient.

    Args:
        bits: per cell.
        embedding: width D of the vector that the decoder reads per cell, sum over c of z_c E_c.
        block_out_channels: widths; each level but the last halves the sides.
        layers_per_block: residual blocks per level of the encoder.
        norm_num_groups: of every group norm.

    """

    @register_to_config
    def __init__(
        self,
        bits: int = 16,
        embedding: int = 64,
        block_out_channels: tuple[int, ...] = (16, 32, 64),
        layers_per_block: int = 1,
        norm_num_groups: int = 8,
    ):
        super().__init__()
        shared = {
            "block_out_channels": block_out_channels,
            "layers_per_block": layers_per_block,
            "norm_num_groups": norm_num_groups,
            "mid_block_add_attention": False,
        }
        levels = len(block_out_channels)
        down, up = ("DownEncoderBlock2D",) * levels, ("UpDecoderBlock2D",) * levels
        self.encoder = Encoder(3, embedding, down, double_z=False, **shared)
        self.to_probabilities = nn.Conv2d(embedding, bits, 1)
        self.embed = nn.Conv2d(bits, embedding, 1, bias=False)
        self.norm = nn.GroupNorm(norm_num_groups, embedding)
        self.decoder = Decoder(embedding, 3, up, **shared)

    def probabilities(self, images: Tensor) -> Tensor:
        """P(bit = 1), `[N, bits, h, w]`, of pictures `[N, 3, H, W]` in [-1, 1].

        Raises:
            InvalidInputError: if the sides are no multiple of the down-sampling factor.

        """
        factor = 2 ** (len(self.config.block_out_channels) - 1)
        if images.shape[-2] % factor or images.shape[-1] % factor:
            raise InvalidInputError(
                f"Pictures of {images.shape[-2]}x{images.shape[-1]} do not divide into cells of "
                f"{factor}x{factor}. Pad or resize them."
            )
        return torch.sigmoid(self.to_probabilities(self.encoder(images)))

    def encode(self, images: Tensor, chance: Tensor | None = None) -> Tensor:
        """Codes `[N, cells, bits]`: the likelier bits, or drawn ones where `chance` is below p.

        `chance` is uniform in [0, 1), `[N, bits, h, w]`.
        """
        return _cells(_bits(self.probabilities(images), chance))

    def decode(self, code: Tensor) -> Tensor:
        """Codes `[N, cells, bits]` of a square picture -> pictures `[N, 3, H, W]`.

        Raises:
            InvalidInputError: if the code holds anything but 0 and 1, or bits of another number.

        """
        if code.shape[-1] != self.config.bits:
            raise InvalidInputError(
                f"A code of {code.shape[-1]} bits per cell does not fit this autoencoder, which "
                f"has {self.config.bits}. Use the transformer that was trained with it."
            )
        side = round(code.shape[1] ** 0.5)
        return self._decoded(paper.check_bits(code).transpose(1, 2).unflatten(2, (side, side)))

    def forward(self, images: Tensor, chance: Tensor | None = None) -> Tensor:
        """Reconstructions; gradients pass the bits as if they were their probabilities."""
        p = self.probabilities(images)
        return self._decoded(paper.straight_through(_bits(p.detach(), chance), p))

    def _decoded(self, z: Tensor) -> Tensor:
        return self.decoder(self.norm(self.embed(z)))


def _bits(p: Tensor, chance: Tensor | None) -> Tensor:
    return paper.deterministic_code(p) if chance is None else (chance < p).to(p.dtype)


def _cells(z: Tensor) -> Tensor:
    """`[N, bits, h, w]` -> `[N, cells, bits]`."""
    return z.flatten(2).transpose(1, 2)


class BinaryTransformer(ModelMixin, ConfigMixin):
    """Which bits of a noisy code were flipped: logits `[N, cells, bits]`.

    Cells are tokens; a token for the time and one for the class stand beside them. A class beyond
    the last means none.

    Args:
        bits: per cell.
        cells: a square number.
        width, layers, heads: of the transformer.
        classes: how many there are, without the one for none.
        num_train_timesteps: T, by which the time is scaled.

    """

    @register_to_config
    def __init__(
        self,
        bits: int = 16,
        cells: int = 64,
        width: int = 144,
        layers: int = 6,
        heads: int = 6,
        classes: int = 10,
        num_train_timesteps: int = 64,
    ):
        super().__init__()
        self.bits_in = nn.Linear(bits, width, bias=False)
        # The released 0.02 leaves the bits a tenth of the position code: this width never gets to
        # see them. Here they are as large as the places they stand at.
        nn.init.normal_(self.bits_in.weight, std=bits**-0.5)
        places = get_2d_sincos_pos_embed(width, round(cells**0.5), output_type="pt")
        self.position = nn.Parameter(torch.as_tensor(places, dtype=torch.float32)[None])
        self.time_token = TimestepEmbedding(width, width)
        self.class_token = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(
            BasicTransformerBlock(
                width, heads, width // heads, activation_fn="gelu", attention_bias=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.bits_out = nn.Linear(width, bits)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Flip logits.

        Args:
            sample: x_t, `[N, cells, bits]` in {0, 1}.
            timestep: t in 1..T, a number or `[N]`.
            class_labels: int64 `[N]`; None for no class.
            return_dict: an object with `.sample`, or a tuple.

        Raises:
            InvalidInputError: if a timestep is outside 1..T.

        """
        rows = len(sample)
        t = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(rows)
        if class_labels is None:
            class_labels = torch.full((rows,), self.config.classes, device=sample.device)
        cells = self.bits_in(2 * sample - 1) + self.position
        extra = torch.stack([self._time(t, sample.dtype), self.class_token(class_labels)], dim=1)
        hidden = torch.cat([cells, extra], dim=1)
        for block in self.blocks:
            hidden = block(hidden)
        logits = self.bits_out(self.norm(hidden[:, : cells.shape[1]]))
        return Transformer2DModelOutput(sample=logits) if return_dict else (logits,)

    def _time(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        last = self.config.num_train_timesteps
        if bool((t < 1).any() or (t > last).any()):
            raise InvalidInputError(
                f"Timesteps reach from {float(t.min()):g} to {float(t.max()):g}; this model knows "
                f"1 to {last} (0 is the clean code)."
            )
        return self.time_token(paper.time_code(t, last, self.config.width).to(dtype))
