"""Folders of a test's own, and stand-ins for what recipes build on."""

import contextlib
import shutil
from pathlib import Path

import pytest

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
