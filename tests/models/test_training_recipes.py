import json

import pytest
import torch
from filelock import FileLock
from torch.overrides import TorchFunctionMode

import dqlab
from dqlab.engine import Budget, Progress
from dqlab.errors import CheckpointError, InvalidInputError, UnknownNameError
from dqlab.models import fashion, training
from dqlab.models.classifier import load_classifier
from dqlab.models.recipes import RECIPES, recipe_for
from dqlab.models.recipes.base import add_noise, blended_weights, weighted_noise_loss
from dqlab.models.recipes.pixel_unet import PixelUNet


def weights(folder) -> bytes:
    return next(folder.rglob("*.safetensors")).read_bytes()


def train(name="attribute-classifier", **named):
    named = {"steps": 3, "device": "cpu", "precision": "fp32", "progress": False} | named
    return training.train_model(name, **named)


def test_trains_a_classifier_that_loads(home) -> None:
    folder = train()
    assert folder == home / "data" / "models" / "attribute-classifier"
    load_classifier(folder)
    told = json.loads((folder / "training.json").read_text())
    assert told["recipe"] == "attribute-classifier"
    assert told["stages"][0]["steps"] == 3
    assert told["data"]["hash"] == fashion.data_hash()
    assert told["precision"] == "fp32"
    assert {"seed", "commit", "machine", "date", "settings"} <= told.keys()
    assert [p.name for p in folder.parent.iterdir()] == ["attribute-classifier"]


def test_trains_a_pixel_unet_that_loads(home) -> None:
    train("pixel-unet", steps=2)
    pipe = dqlab.load("pixel-unet")
    assert pipe.unet.dtype is torch.float32
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    assert pipe(num_inference_steps=1, output_type="np").images.shape == (1, 32, 32, 3)


def test_resumes_to_the_same_bytes_and_replaces_the_old_result(home, stop_before) -> None:
    whole = weights(train(out=home / "whole", fresh=True))
    (home / "stopped").mkdir()
    (home / "stopped" / "old").touch()
    with stop_before(2, "attribute-classifier"):
        train(out=home / "stopped", fresh=True)
    assert [p.name for p in (home / "stopped").iterdir()] == ["old"]
    assert weights(train(out=home / "stopped")) == whole
    assert not (home / "stopped" / "old").exists()


def test_failed_export_leaves_the_old_result(home, monkeypatch) -> None:
    folder = train()
    before = weights(folder)

    def full_disk(self, module, target):
        target.mkdir()
        (target / "half").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RECIPES["attribute-classifier"], "export", full_disk)
    with pytest.raises(OSError, match="No space left"):
        train(seed=5, fresh=True)
    assert weights(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["attribute-classifier"]


def test_state_of_other_settings_is_refused(home, monkeypatch) -> None:
    train()
    recipe = RECIPES["attribute-classifier"]
    monkeypatch.setattr(recipe, "settings", recipe.settings | {"lr": 1.0})
    with pytest.raises(CheckpointError, match="another run"):
        train()


@pytest.mark.parametrize("budget", [{"steps": 0}, {"steps": -1}, {"steps": None, "minutes": 0}])
def test_impossible_budgets_are_refused(home, budget) -> None:
    with pytest.raises(InvalidInputError, match="must be positive"):
        train(**budget)
    with pytest.raises(InvalidInputError, match="not both"):
        train(steps=3, minutes=3)


def test_unknown_recipe_lists_what_there_is() -> None:
    with pytest.raises(UnknownNameError, match=r"'big-unet'; there are .*pixel-unet"):
        train("big-unet")


def test_default_budget_is_the_recipes(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        RECIPES["pixel-unet"], "task", lambda self, budget, device: seen.append(budget) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        training.train_model("pixel-unet")
    assert seen == [Budget(minutes=PixelUNet.minutes)]


@pytest.mark.parametrize("name", RECIPES)
def test_batches_come_from_the_generator_alone(parents, name) -> None:
    task = recipe_for(name).task(Budget(steps=1), torch.device("cpu"))
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    losses = [task.loss(task.batch(g), Progress(0, 0.0)) for g in generators]
    assert losses[0] == losses[1] != losses[2]
    assert losses[0].isfinite()


class Concatenations(TorchFunctionMode):
    """Notes the channels of what is joined."""

    def __init__(self) -> None:
        super().__init__()
        self.widths: list[list[int]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.cat and args[0][0].ndim == 4:
            self.widths.append([t.shape[1] for t in args[0]])
        return func(*args, **(kwargs or {}))


def test_no_group_straddles_a_shortcut_concatenation() -> None:
    with torch.no_grad(), Concatenations() as seen:
        PixelUNet().model()(torch.zeros(1, 3, 32, 32), 0)
    assert len(seen.widths) == 6
    for hidden, skip in seen.widths:
        assert hidden % ((hidden + skip) // PixelUNet.settings["groups"]) == 0


def test_noising_keeps_the_variance() -> None:
    abar = torch.tensor([1.0, 0.25, 0.0])
    clean, noise = torch.randn(2, 3, 1, 2, 2)
    noisy = add_noise(abar, clean, noise, torch.tensor([0, 1, 2]))
    assert torch.equal(noisy[0], clean[0])
    torch.testing.assert_close(noisy[1], 0.5 * clean[1] + 0.75**0.5 * noise[1])
    assert torch.equal(noisy[2], noise[2])


def test_blended_weights_have_mean_one_and_are_capped() -> None:
    abar = torch.linspace(0.999, 1e-4, 50)
    found = blended_weights(abar, cap=10.0)
    assert float(found.mean()) == pytest.approx(1)
    assert (found.diff() >= 0).all()
    assert found[0] == pytest.approx(0.5, abs=0.01)
    assert torch.equal(found[-1], found[-2])


def test_weighted_loss_by_hand() -> None:
    predicted, noise = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]], [[[2.0, 0.0]]]])
    assert float(weighted_noise_loss(predicted, noise, torch.tensor([2.0, 0.5]))) == 5.5


def test_one_run_at_a_time(home) -> None:
    runs = home / "state" / "runs"
    runs.mkdir(parents=True)
    with FileLock(runs / "attribute-classifier.lock"), pytest.raises(InvalidInputError) as said:
        train()
    assert "attribute-classifier" in str(said.value)
    train()
