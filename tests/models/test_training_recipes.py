import json

import pytest
import torch
from diffusers import UNet2DModel
from filelock import FileLock
from torch.overrides import TorchFunctionMode

import dqlab
from dqlab.engine import Budget, Progress
from dqlab.engine import train as run_task
from dqlab.errors import CheckpointError, InvalidInputError, UnknownNameError
from dqlab.metrics.card import render
from dqlab.models import fashion, training
from dqlab.models.classifier import load_classifier
from dqlab.models.loading import file_sums
from dqlab.models.recipes import RECIPES, recipe_for
from dqlab.models.recipes.base import (
    Part,
    StagedTask,
    add_noise,
    blended_weights,
    weighted_noise_loss,
)
from dqlab.models.recipes.pixel_unet import PixelUNet
from dqlab.models.recipes.sr_unet import SuperResolutionUNet


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


def test_a_complete_run_keeps_its_card_until_it_goes_on(home) -> None:
    card = train() / "README.md"
    card.write_text("measured")
    train()
    assert card.read_text() == "measured"
    load_classifier(train(out=home / "elsewhere"))
    folder = train(steps=5)
    assert not card.exists()
    assert json.loads((folder / "training.json").read_text())["stages"][0]["reopened"] == [3]


@pytest.mark.parametrize("damage", ["truncated", "deleted", "record"])
def test_a_complete_run_mends_a_damaged_result(home, damage) -> None:
    folder = train()
    path, before = next(folder.rglob("*.safetensors")), weights(folder)
    record = folder / "training.json"
    sums = {"sha256": file_sums(folder)}
    record.write_text(json.dumps(json.loads(record.read_text()) | sums))
    if damage == "deleted":
        path.unlink()
    else:
        (path if damage == "truncated" else record).write_bytes(b"{}")
    assert weights(train()) == before
    assert json.loads(record.read_text())["budget"] == {"steps": 3}


@pytest.mark.parametrize("held", ["a folder", "another model", "a file"])
def test_what_is_no_earlier_result_is_not_replaced(home, held) -> None:
    out = home / "thesis"
    if held == "a file":
        out.write_text("dear")
    else:
        out.mkdir()
        name = "training.json" if held == "another model" else "chapter"
        (out / name).write_text('{"recipe": "pixel-unet"}')
    with pytest.raises(InvalidInputError, match=r"thesis exists.*not replaced"):
        train(out=out)
    assert out.exists()
    assert not (home / "state").exists() or not list((home / "state").rglob("state.safetensors"))


@pytest.mark.parametrize("device", ["foo", "cuda:0", "mps"])
def test_a_device_that_is_not_here_is_named(home, monkeypatch, device) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidInputError, match=rf"{device}.*is not here; there is cpu"):
        train(device=device)


def test_a_batch_of_another_size_is_a_run_of_its_own(home) -> None:
    own = recipe_for("attribute-classifier").settings["batch"]
    folder = train(batch=own + 1)
    record = json.loads((folder / "training.json").read_text())
    assert record["settings"]["batch"] == own + 1
    assert recipe_for("attribute-classifier").settings["batch"] == own
    with pytest.raises(CheckpointError, match="belongs to another run"):
        train()
    record["curve"] = []
    assert f"--steps 3 --batch {own + 1}`" in render("attribute-classifier", record, {})
    record |= {"budget": {"minutes": 8}, "machine": "NVIDIA H200"}
    assert f"--minutes 8 --batch {own + 1}` (minutes of one NVIDIA H200)" in render(
        "attribute-classifier", record, {}
    )
    record |= {"budget": {"steps": 3}}
    record["settings"]["batch"] = own
    assert "--steps 3`" in render("attribute-classifier", record, {})
    with pytest.raises(InvalidInputError, match="batch=0; a batch needs at least one row"):
        train(batch=0)


def test_trains_a_pixel_unet_that_loads(home) -> None:
    train("pixel-unet", steps=2)
    pipe = dqlab.load("pixel-unet")
    assert pipe.unet.dtype is torch.float32
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    assert pipe(num_inference_steps=1, output_type="np").images.shape == (1, 32, 32, 3)


def test_trains_a_super_resolution_network_that_loads(home) -> None:
    folder = train("sr-unet", steps=2)
    pipe = dqlab.load("sr-unet")
    images = pipe(torch.rand(2, 3, 8, 8), num_inference_steps=1, output_type="np").images
    assert images.shape == (2, 32, 32, 3)
    assert UNet2DModel.from_pretrained(folder / "unet").config.in_channels == 6


def test_trains_bits_and_then_their_transformer(untrained_parts) -> None:
    folder = train("binary-latent", steps=5)
    told = json.loads((folder / "training.json").read_text())
    assert [(s["name"], s["steps"]) for s in told["stages"]] == [("bits", 2), ("flips", 3)]
    pipe = dqlab.load("binary-latent")
    images = pipe(class_labels=[3], num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 32, 32, 3)


def test_each_stage_trains_its_own_network(untrained_parts) -> None:
    task = recipe_for("binary-latent").task(Budget(steps=2), torch.device("cpu"))
    for name, part in zip(task.module, task.stages, strict=True):
        part.start()
        task.module.zero_grad(set_to_none=True)
        task.loss(task.batch(torch.Generator().manual_seed(0)), Progress(0, 0.0)).backward()
        trained = {id(p) for p in task.module.parameters() if p.grad is not None}
        assert trained == {id(p) for p in part.parameters}
        assert trained == {id(p) for p in task.module[name].parameters()}


def two_lines(stop_after: int | None = None) -> StagedTask:
    """A slope, then an offset on top of it; asks to be interrupted at its n-th batch."""
    torch.manual_seed(0)
    module = torch.nn.ModuleDict({n: torch.nn.Linear(1, 1) for n in ("slope", "offset")})
    count = iter(range(99))

    def draw(generator):
        if next(count) == stop_after:
            raise KeyboardInterrupt
        return torch.randn(4, 1, generator=generator)

    def objective(x):
        return (module["slope"](x) - 3 * x).square().mean()

    def second(x):
        return (module["offset"](module["slope"](x).detach()) - 3 * x - 1).square().mean()

    parts = [
        Part("slope", 0.5, module["slope"], draw, objective, 0.1),
        Part("offset", 0.5, module["offset"], draw, second, 0.1),
    ]
    return StagedTask(module, parts, "two-lines", Budget(steps=8), 0.9)


@pytest.mark.parametrize("stop_after", [2, 4, 6])
def test_staged_training_resumes_in_the_stage_it_was_in(tmp_path, stop_after) -> None:
    options = {"seed": 1, "precision": "fp32", "progress": False}
    whole = run_task(two_lines(), **options).module.state_dict()
    with pytest.raises(KeyboardInterrupt):
        run_task(two_lines(stop_after), run_dir=tmp_path, **options)
    resumed = run_task(two_lines(), run_dir=tmp_path, **options).module.state_dict()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_a_share_of_a_budget() -> None:
    assert Budget(steps=10).share(0.4) == Budget(steps=4)
    assert Budget(steps=1).share(0.4) == Budget(steps=1)
    assert Budget(minutes=60).share(0.4) == Budget(minutes=24)


def test_resumes_to_the_same_bytes_and_replaces_the_old_result(home, stop_before) -> None:
    whole = weights(train(out=home / "whole", fresh=True))
    (home / "stopped").mkdir()
    (home / "stopped" / "old").touch()
    (home / "stopped" / "training.json").write_text('{"recipe": "attribute-classifier"}')
    with stop_before(2, "attribute-classifier"):
        train(out=home / "stopped", fresh=True)
    assert {p.name for p in (home / "stopped").iterdir()} == {"old", "training.json"}
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


@pytest.mark.parametrize(("recipe", "channels"), [(PixelUNet, 3), (SuperResolutionUNet, 6)])
def test_no_group_straddles_a_shortcut_concatenation(recipe, channels) -> None:
    with torch.no_grad(), Concatenations() as seen:
        recipe().model()(torch.zeros(1, channels, 32, 32), 0)
    assert len(seen.widths) == 6
    for hidden, skip in seen.widths:
        assert hidden % ((hidden + skip) // recipe.settings["groups"]) == 0


@pytest.mark.parametrize(("name", "megabytes"), [("sr-unet", 3), ("binary-latent", 5)])
def test_models_fit_their_share_of_the_data_folder(name, megabytes) -> None:
    """Half precision takes two bytes a number."""
    numbers = sum(p.numel() for p in recipe_for(name).model().parameters())
    assert 2 * numbers < 1e6 * megabytes


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


def test_results_forget_where_their_parts_lay(untrained_parts) -> None:
    folder = train("latent-unet", steps=1)
    assert (folder / "vae" / "config.json").is_file()
    assert not [p for p in folder.rglob("*.json") if str(untrained_parts) in p.read_text()]


def test_one_run_at_a_time(home) -> None:
    runs = home / "state" / "runs"
    runs.mkdir(parents=True)
    with FileLock(runs / "attribute-classifier.lock"), pytest.raises(InvalidInputError) as said:
        train()
    assert "attribute-classifier" in str(said.value)
    train()
