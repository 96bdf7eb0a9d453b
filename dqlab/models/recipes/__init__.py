"""Training recipes of the shipped models, by name."""

from dqlab.errors import InvalidInputError, UnknownNameError
from dqlab.models.recipes.attribute_classifier import AttributeClassifierRecipe
from dqlab.models.recipes.autoencoder import AutoencoderRecipe
from dqlab.models.recipes.base import Recipe
from dqlab.models.recipes.binary_latent import BinaryLatent
from dqlab.models.recipes.latent_dit import LatentDiT
from dqlab.models.recipes.latent_unet import LatentUNet
from dqlab.models.recipes.pixel_unet import PixelUNet
from dqlab.models.recipes.sr_unet import SuperResolutionUNet
from dqlab.models.recipes.text_dit import TextDiT
from dqlab.models.recipes.video_dit import VideoDiT
from dqlab.models.recipes.video_features import VideoFeaturesRecipe
from dqlab.models.recipes.video_unet import VideoUNet

RECIPES: dict[str, type[Recipe]] = {
    recipe.name: recipe
    for recipe in (
        AttributeClassifierRecipe,
        PixelUNet,
        AutoencoderRecipe,
        LatentUNet,
        LatentDiT,
        TextDiT,
        VideoFeaturesRecipe,
        VideoUNet,
        VideoDiT,
        SuperResolutionUNet,
        BinaryLatent,
    )
}


def recipe_for(name: str, batch: int | None = None) -> Recipe:
    """The training recipe called `name`.

    Args:
        name: which.
        batch: rows of a batch, in place of the recipe's own, which are for slow cores.

    Raises:
        UnknownNameError: if there is none.
        InvalidInputError: for a batch without rows.

    """
    if name not in RECIPES:
        raise UnknownNameError(f"No training recipe {name!r}; there are {', '.join(RECIPES)}.")
    recipe = RECIPES[name]()
    if batch is not None:
        if batch < 1:
            raise InvalidInputError(f"batch={batch}; a batch needs at least one row.")
        recipe.settings = recipe.settings | {"batch": batch}
    return recipe
