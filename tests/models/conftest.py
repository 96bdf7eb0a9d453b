"""Folders of a test's own, and stand-ins for what recipes build on."""

import contextlib
import shutil
from pathlib import Path

import pytest
import torch

from dqlab.models import fashion
from dqlab.models.classifier import AttributeClassifier, save_classifier
from dqlab.models.recipes import RECIPES, recipe_for


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Own folders, and 40 real images in place of the training split."""
    grey, labels = fashion.load_held_out()
    monkeypatch.setattr(fashion, "load_split", lambda split: (grey[:40], labels[:40]))
    monkeypatch.setattr(fashion, "load_held_out", lambda: (grey, labels))
    monkeypatch.setenv("DQLAB_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("DQLAB_SHIPPED_DIR", str(tmp_path / "data"))
    for recipe in RECIPES.values():
        monkeypatch.setattr(recipe, "settings", recipe.settings | {"batch": 4})
    return tmp_path


@pytest.fixture(scope="session")
def untrained(tmp_path_factory) -> Path:
    """A judge and an autoencoder, never trained."""
    models = tmp_path_factory.mktemp("untrained")
    save_classifier(AttributeClassifier(), models / "attribute-classifier")
    plain = recipe_for("autoencoder")
    plain.export(plain.model(), models / "autoencoder")
    return models


@pytest.fixture
def untrained_parts(home, untrained):
    """What latent recipes build on, in the test's own folder."""
    shutil.copytree(untrained, home / "data" / "models")
    return home


@pytest.fixture(scope="session")
def random_models(tmp_path_factory):
    """What the video models start from, with random weights; built once, never changed."""
    folder, held_out = tmp_path_factory.mktemp("shipped"), fashion.load_held_out()
    save_classifier(AttributeClassifier(), folder / "models" / "attribute-classifier")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DQLAB_SHIPPED_DIR", str(folder))
        patch.setattr(fashion, "load_held_out", lambda: held_out)
        for name in ("autoencoder", "latent-unet", "text-dit"):
            recipe = recipe_for(name)
            recipe.export(awake(recipe.model()), folder / "models" / name)
    return folder


def awake(module):
    """Weights away from zero: what begins as the identity hides what its blocks do."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.02 * torch.randn_like(value))
    return module


@pytest.fixture
def parents(home, random_models):
    """A home with image models in it."""
    shutil.copytree(random_models, home / "data", dirs_exist_ok=True)
    return home


@pytest.fixture
def stop_before(monkeypatch):
    """Press Ctrl-C when the recipe called `name` asks for its batch number `step`."""

    @contextlib.contextmanager
    def stopping(step: int, name: str):
        asked = RECIPES[name].task

        def interruptible(self, budget, device):
            task = asked(self, budget, device)
            draw, count = task.draw, iter(range(99))

            def interrupted(generator):
                if next(count) == step:
                    raise KeyboardInterrupt
                return draw(generator)

            task.draw = interrupted
            return task

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(RECIPES[name], "task", interruptible)
            yield

    return stopping
