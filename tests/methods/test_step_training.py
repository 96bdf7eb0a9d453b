"""TDQ's training form: what trains, what is kept, and where its batches come from."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from tiny_diffusion import STEPS, guided_pipeline, images, new_pipeline, sampler

import dqlab
from dqlab import recipe
from dqlab.engine import Report
from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.formats import Affine, Range
from dqlab.layers import Quantizer, StepContext, quantizers
from dqlab.methods import step_networks
from dqlab.methods.lessons import lessons_for
from dqlab.methods.step_networks import StepNetworks
from dqlab.methods.step_training import (
    PROFILES,
    Clock,
    DiffusionTraining,
    LearnedSteps,
    TimedSteps,
    Training,
    keep,
    loss_curve,
)
from dqlab.methods.unet_dynamic.tdq import Grid
from dqlab.models.families import family_of
from dqlab.models.recipes.base import Lessons
from dqlab.trajectory import record

CLEAN = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.fixture(autouse=True, scope="module")
def _few_values():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_networks, "VALUES", 64)
        yield


@cache
def trained(steps: str = "network", updates: int = 2):
    chosen = recipe("tdq", form="training", steps=steps, updates=updates, batch=2)
    return dqlab.quantize(new_pipeline(), chosen, 4, 4, sampler=sampler(), data=CLEAN)


def test_weights_and_their_steps_move_and_activations_get_a_table() -> None:
    chosen = recipe("tdq", steps="static")
    start = dqlab.quantize(new_pipeline(), chosen, 4, 4, sampler=sampler())
    before, after = quantizers(start.unet), quantizers(trained().unet)
    inner = "mid_block.resnets.0.conv1"
    assert not torch.equal(after[f"{inner}.weight"].scale, before[f"{inner}.weight"].scale)
    plain, learned = (p.unet.mid_block.resnets[0].norm1.weight for p in (start, trained()))
    assert not torch.equal(plain, learned)
    table = after[f"{inner}.input"]
    assert table.per_step and table.scale.shape == (STEPS,)
    torch.testing.assert_close(
        table.scale, before[f"{inner}.input"].scale.expand(STEPS), rtol=0.1, atol=0
    )
    assert not after["mid_block.attentions.0.p"].per_step
    assert not any(p.requires_grad for p in trained().unet.parameters())


def test_the_baseline_learns_one_step_for_all_timesteps() -> None:
    found = quantizers(trained("static").unet)
    for site, quantizer in found.items():
        if isinstance(quantizer.format, Grid):
            assert not quantizer.per_step and quantizer.scale.ndim == 0, site


def test_trained_weights_lie_on_their_learned_grid() -> None:
    layer = trained().unet.mid_block.resnets[0].conv1
    s, z = layer.weight_quantizer.scale, layer.weight_quantizer.zero_point
    codes = layer.weight / s + z
    torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
    assert codes.round().min() >= 0 and codes.round().max() <= 15


def test_it_is_saved_and_repeats(tmp_path) -> None:
    trained().save_pretrained(tmp_path / "q")
    again = dqlab.load(tmp_path / "q")
    assert torch.equal(images(again), images(trained()))
    trained.cache_clear()
    assert torch.equal(images(again), images(trained()))
    assert dqlab.describe(again)["recipe"]["options"][0]["form"] == "training"


def test_the_loss_curve_is_kept() -> None:
    points = [{"step": 50, "seconds": 1.0, "loss": 0.25}]
    assert loss_curve(Report(torch.nn.Identity(), "fp32", [], points)) == [(50, 0.25)]
    assert dqlab.describe(trained())["choices"] == {"loss curve": []}


def tiny_site(bits: int = 4) -> tuple[Quantizer, StepContext]:
    context = StepContext()
    context.bind(torch.tensor([900.0, 500.0, 100.0]))
    quantizer = Quantizer("a.input", context)
    quantizer.format = Grid(bits)
    return quantizer, context


def test_rows_at_different_timesteps_equal_single_calls() -> None:
    quantizer, context = tiny_site()
    timed = TimedSteps(quantizer, Clock(StepNetworks(8, torch.tensor([0.3])).eval()), 0)
    x, t = torch.randn(4, 2, 3, 3), torch.tensor([900.0, 500.0, 30.0, 7.0])
    context.at(t)
    together = timed(x)
    for row in range(4):
        context.at(t[row : row + 1])
        assert torch.equal(timed(x[row : row + 1])[0], together[row])


def test_the_table_gives_what_the_live_networks_give() -> None:
    """Export equivalence, bit for bit, on a whole pipeline."""
    pipe = dqlab.quantize(new_pipeline(), recipe("tdq", steps="static"), 8, 4, sampler=sampler())
    names = {
        name: m for name, m in pipe.unet.named_modules()
        if isinstance(m, Quantizer) and isinstance(m.format, Grid)
    }  # fmt: skip
    start = torch.stack([m.scale for m in names.values()])
    networks = StepNetworks(8, start, seed=3).eval()
    with torch.no_grad():  # steps that differ widely between timesteps
        networks.weights[-1].mul_(200)
    clock = Clock(networks)
    placed = {name: TimedSteps(m, clock, i) for i, (name, m) in enumerate(names.items())}
    for name, module in placed.items():
        pipe.unet.set_submodule(name, module)
    live = images(pipe)
    context = pipe.unet.step_context
    job = SimpleNamespace(
        context=context, denoiser=pipe.unet, calibration=SimpleNamespace(x=torch.zeros(1))
    )
    keep(job, placed, networks)
    assert all(m.per_step for m in names.values())
    assert torch.equal(images(pipe), live)
    table = next(iter(names.values())).scale
    assert table.max() / table.min() > 1.05


def test_weight_steps_have_lsqs_gradient_scale_and_activation_steps_none() -> None:
    quantizer = Quantizer("a.weight", StepContext())
    quantizer.format = Affine(4)
    weight = torch.randn(2, 8)
    quantizer.set_range(Range(torch.tensor([[0.2], [0.3]]), torch.tensor([[7.0], [8.0]])))
    assert LearnedSteps(quantizer, weight).grad_scale == pytest.approx(1 / (8 * 15) ** 0.5)
    assert LearnedSteps(quantizer).grad_scale == 1.0


def test_step_sizes_learn_without_decay_at_rates_of_their_own() -> None:
    sites = []
    for name in ("a.weight", "b.input"):
        quantizer = Quantizer(name, StepContext())
        quantizer.format = Affine(4)
        quantizer.set_range(Range(torch.tensor(0.2), torch.tensor(0.0)))
        sites.append(LearnedSteps(quantizer))
    module = torch.nn.ModuleList([torch.nn.Linear(2, 2), *sites])
    how = Training(10, 1, 1e-3, 1e-4, 1e-5)
    lessons = Lessons(lambda g: None, lambda m, b: None)
    groups = DiffusionTraining(module, torch.nn.Identity(), lessons, how).stages[0].parameters
    assert [(len(g["params"]), g["lr"], g["weight_decay"]) for g in groups] == [
        (2, 1e-3, 0.01), (1, 1e-4, 0.0), (1, 1e-5, 0.0),
    ]  # fmt: skip


def test_rates_rise_then_stay_or_fall() -> None:
    paper, teach = PROFILES["paper"], PROFILES["teach"]
    assert (paper.updates, paper.batch) == (200_000, 128)
    assert paper.rate(0) < 1e-3 and paper.rate(0.5) == paper.rate(1) == 1
    assert teach.rate(0) < 0.05 and teach.rate(0.05) == pytest.approx(1) and teach.rate(1) < 1e-9


def job(pipe, data=None, **changes):
    states = record(pipe, [1], sampler())[0]
    fields = {"original": pipe, "family": family_of(pipe), "data": data, "calibration": states}
    return SimpleNamespace(**fields | changes)


def test_batches_are_noised_samples_of_the_callers_data() -> None:
    lessons = lessons_for(job(new_pipeline(), CLEAN), 5)
    clean, noise, t = lessons.draw(torch.Generator().manual_seed(0))
    assert len(clean) == 5 and {tuple(x.flatten().tolist()) for x in clean} <= {
        tuple(x.flatten().tolist()) for x in CLEAN
    }
    abar = new_pipeline().scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise

    def denoiser(x, at):
        assert torch.allclose(x, noisy) and torch.equal(at, t)
        return SimpleNamespace(sample=noise + 0.5)

    assert float(lessons.loss(denoiser, (clean, noise, t))) == pytest.approx(0.25)


def test_a_shipped_model_learns_from_its_own_recipe(monkeypatch, tmp_path) -> None:
    from dqlab.models import fashion

    monkeypatch.setattr(fashion, "load_split", lambda split: fashion.load_held_out())
    pipe = dqlab.load("pixel-unet")
    lessons = lessons_for(job(pipe), 4)
    images_, noise, t = lessons.draw(torch.Generator().manual_seed(0))
    assert images_.shape == noise.shape == (4, 3, 32, 32) and t.shape == (4,)
    with torch.no_grad():
        assert 0 < float(lessons.loss(pipe.unet, (images_, noise, t))) < 0.5


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "Nobody knows what this DDIMPipeline was trained on"),
        (torch.zeros(3, 1, 8, 8), r"data is \(3, 1, 8, 8\); .*\[N, 3, 8, 8\]"),
        (torch.zeros(0, 3, 8, 8), "data is"),
        ("pictures", "data is str"),
        (torch.full((1, 3, 8, 8), torch.nan), "NaN or infinity"),
    ],
)
def test_bad_data_is_refused(data, says) -> None:
    with pytest.raises(InvalidInputError, match=says):
        lessons_for(job(new_pipeline(), data), 2)


def test_data_that_nobody_learns_from_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="tdq learns from no clean samples"):
        dqlab.quantize(new_pipeline(), "tdq", 4, 4, sampler=sampler(), data=CLEAN)


def test_networks_that_need_more_are_refused(monkeypatch) -> None:
    pipe = guided_pipeline(monkeypatch)
    with pytest.raises(NotApplicableError, match="is told class_labels"):
        lessons_for(job(pipe, CLEAN), 2)
    pipe = new_pipeline()
    pipe.scheduler.register_to_config(prediction_type="v_prediction")
    with pytest.raises(NotApplicableError, match="predicts 'v_prediction'"):
        lessons_for(job(pipe, CLEAN), 2)


def test_models_trained_as_a_whole_give_no_lessons() -> None:
    from dqlab.models.recipes import recipe_for

    with pytest.raises(NotApplicableError, match="more than a denoiser"):
        recipe_for("latent-unet").lessons(torch.device("cpu"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"form": "qat"}, "form='qat'; choose one of post-training, training"),
        ({"steps": "best"}, "steps='best'"),
        ({"form": "training", "steps": "table"}, "knows network, static"),
        ({"batch": 0}, "batch=0"),
    ],
)
def test_options_are_checked(options, says) -> None:
    with pytest.raises(InvalidInputError, match=says):
        recipe("tdq", **options)
