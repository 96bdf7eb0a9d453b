"""One adapter per pipeline family: the few facts dqlab needs beyond the diffusers interface.

Which component is the denoiser, which layers are first and last, how guidance stacks its
branches, whether there is an eta, and how to ask the pipeline for a given list of trajectories.
A family that exists small (as dqlab ships it) and large (as it was published) has two entries,
which differ in their default guidance and in what they are asked to show.
"""

from dqlab.errors import NotApplicableError
from dqlab.models.families.asked import ask
from dqlab.models.families.bare import BareModel, wrap_module
from dqlab.models.families.dit import DIT, LATENT_DIT
from dqlab.models.families.family import Family
from dqlab.models.families.flow import FLUX, SD3
from dqlab.models.families.latent import LATENT_UNET, LDM, LDM_TEXT, SDXL, STABLE_DIFFUSION
from dqlab.models.families.own import BINARY_LATENT, SR_UNET
from dqlab.models.families.pixart import PIXART, TEXT_DIT
from dqlab.models.families.pixel import DDPM_UNET, PIXEL_UNET
from dqlab.models.families.sampler import Sampler
from dqlab.models.families.video import ANIMATEDIFF, LATTE, SVD, VIDEO_DIT, VIDEO_UNET

FAMILIES: tuple[Family, ...] = (
    PIXEL_UNET, DDPM_UNET,
    LATENT_UNET, STABLE_DIFFUSION, SDXL, LDM, LDM_TEXT,
    LATENT_DIT, DIT, TEXT_DIT, PIXART,
    SD3, FLUX,
    VIDEO_UNET, ANIMATEDIFF, SVD, VIDEO_DIT, LATTE,
    SR_UNET, BINARY_LATENT,
)  # fmt: skip

__all__ = ["FAMILIES", "BareModel", "Family", "Sampler", "ask", "family_of", "wrap_module"]


def family_of(pipe) -> Family:
    """The adapter for a pipeline.

    Raises:
        NotApplicableError: if no family knows the pipeline's class.

    """
    if isinstance(pipe, BareModel):
        return pipe.family
    ancestors = {cls.__name__ for cls in type(pipe).__mro__}
    for family in FAMILIES:
        if ancestors & set(family.pipelines) and family.fits(pipe):
            return family
    known = ", ".join(dict.fromkeys(name for family in FAMILIES for name in family.pipelines))
    raise NotApplicableError(
        f"dqlab does not know how to drive a {type(pipe).__name__}; it knows {known}. Wrap a "
        "network without a pipeline in dqlab.wrap_module(network, sample); an adapter for another "
        "pipeline is one `Family` in dqlab/models/families."
    )
