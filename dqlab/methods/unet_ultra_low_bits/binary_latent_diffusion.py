"""BLD: Binary Latent Diffusion (Wang et al., CVPR 2023, arXiv 2304.04820).

Claim: a picture's latent code may hold one bit per entry, and diffusion can run on the bits
themselves: the forward process flips them, q(x_t = 1 | x_0) = K_t x_0 + (1 - K_t)/2, and a
transformer predicts which ones were flipped, x_0 XOR x_t.

What is quantized is the data, not a network: the method is a model of its own, `binary-latent`,
with its autoencoder, its transformer and its sampler. Formulas:
`dqlab.reference.binary_latent_diffusion`; networks and sampler: `dqlab.models.pipelines`.
"""

from dqlab.methods.method import Method, Paper
from dqlab.models.families import Family


class BinaryLatentDiffusion(Method):
    """Refuses every model and names the one to load."""

    slug = "binary-latent-diffusion"
    paper = Paper("Binary Latent Diffusion", "CVPR 2023", "2304.04820")
    category = "1.7"
    kind = "model"

    def unfit(self, family: Family) -> str | None:
        """Nothing that is trained already can be given a binary code afterwards."""
        return (
            "it is a model with a binary code of its own, not a way to quantize another. Load it: "
            "dqlab.load('binary-latent'); its transformer can be quantized with other methods."
        )


METHOD = BinaryLatentDiffusion
