"""A network of one's own, without a pipeline: wrapped, quantized, compared, saved, loaded."""

import itertools
import runpy
from pathlib import Path

import pytest
import torch
from tiny_models import fill_shipped, seeded
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import dqlab
from dqlab.errors import CheckpointError, InvalidInputError, NotApplicableError
from dqlab.layers import quantizers
from dqlab.methods import Correction, Method
from dqlab.trajectory import record, replay

STEPS = 3
SAMPLER = {"num_inference_steps": STEPS}


class Network(nn.Module):
    """Names its timestep in its own way and answers with a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.qkv, self.labels = nn.Linear(8, 24), nn.Embedding(3, 8)

    def forward(self, x, sigma, *, label):
        h = self.enter(x) + self.labels(label)[..., None, None] + sigma.view(-1, 1, 1, 1)
        q, k, v = self.qkv(h.flatten(2).mT).chunk(3, -1)
        h = h + scaled_dot_product_attention(q, k, v).mT.unflatten(-1, x.shape[-2:])
        return self.leave(h.tanh())


def sample(denoiser, seeds, sampler):
    """Euler steps from sigma 1 to 0, guided, all samples of a step in one call."""
    x = torch.stack([torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(s))
                     for s in seeds])  # fmt: skip
    asked = torch.tensor([s % 2 for s in seeds])
    sigmas = torch.linspace(1, 0, sampler.num_inference_steps + 1)
    for now, after in itertools.pairwise(sigmas):
        label = torch.cat([torch.full_like(asked, 2), asked])
        uncond, cond = denoiser(torch.cat([x, x]), now.expand(2 * len(x)), label=label).chunk(2)
        x = x + (after - now) * (uncond + sampler.guidance_scale * (cond - uncond))
    return x.sigmoid()


@pytest.fixture(scope="module")
def model():
    return dqlab.wrap_module(
        seeded(Network), sample, first="enter", last="leave", branches=("uncond", "cond"),
        guidance_scale=3.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def quantized(model):
    return dqlab.quantize(model, "rtn", 4, 8, sampler=SAMPLER)


def test_its_trajectories_are_recorded(model) -> None:
    states, pictures = record(model, [4, 5], SAMPLER)
    assert torch.equal(pictures, model([4, 5], SAMPLER))
    assert len(states) == 2 * 2 * STEPS
    assert states.conditions["label"].tolist() == [2, 2, 0, 1] * STEPS
    assert states.guidance_scale == 3.0
    torch.testing.assert_close(replay(model.denoiser, states, 5), states.output)
    assert states.t.unique_consecutive().tolist() == pytest.approx([1, 2 / 3, 1 / 3])


def test_its_sites_keep_their_names_and_the_original_is_left_alone(model, quantized) -> None:
    sites = quantizers(quantized.denoiser)
    expected = {f"{layer}.{operand}" for layer in ("enter", "qkv", "leave")
                for operand in ("weight", "input")}  # fmt: skip
    assert set(sites) == expected | {f".{operand}" for operand in "qkvp"}
    assert {s: q.format.bits for s, q in sites.items() if s.endswith("weight")} == {
        "enter.weight": 8, "qkv.weight": 4, "leave.weight": 8,
    }  # fmt: skip
    assert not quantizers(model.denoiser)
    assert quantized.denoiser.step_context.schedule.tolist() == pytest.approx([1, 2 / 3, 1 / 3])
    assert dqlab.describe(model) == {}
    assert dqlab.describe(quantized)["predicts"] == "unknown"


def test_the_users_own_module_is_not_touched() -> None:
    mine = Network().train()
    wrapped = dqlab.wrap_module(mine, sample)
    assert mine.training
    assert not wrapped.denoiser.training


def test_saved_and_loaded_into_the_module_it_gives_the_same(model, quantized, tmp_path) -> None:
    quantized.save_pretrained(tmp_path)
    again = dqlab.load(tmp_path, into=model)
    assert torch.equal(again([4, 5], SAMPLER), quantized([4, 5], SAMPLER))
    assert not torch.equal(again([4, 5], SAMPLER), model([4, 5], SAMPLER))
    assert dqlab.describe(again) == dqlab.describe(quantized)
    assert not quantizers(model.denoiser)


def test_it_is_compared_like_a_pipeline(model, quantized, tmp_path, monkeypatch) -> None:
    fill_shipped(tmp_path)
    monkeypatch.setenv("DQLAB_SHIPPED_DIR", str(tmp_path))
    found = dqlab.compare(model, quantized, num_seeds=2)
    assert found.to_dict()["sqnr_db_mean"] > 0
    assert found.images.shape == (2, 3, 6, 6)


def test_loading_it_without_its_module_says_how(quantized, model, tmp_path) -> None:
    quantized.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"load\(folder, into=dqlab\.wrap_module"):
        dqlab.load(tmp_path)
    (tmp_path / "denoiser" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="do not belong together"):
        dqlab.load(tmp_path, into=model)


def test_another_network_is_refused(quantized, tmp_path) -> None:
    class Other(Network):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.Linear(2, 2)

    quantized.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        dqlab.load(tmp_path, into=dqlab.wrap_module(Other(), sample))
    with pytest.raises(InvalidInputError, match="different architecture"):
        dqlab.compare(dqlab.wrap_module(Other(), sample), quantized)


def test_only_quantized_networks_are_saved(model, tmp_path) -> None:
    with pytest.raises(InvalidInputError, match="Only a quantized network"):
        model.save_pretrained(tmp_path)


def test_eta_is_refused_unless_the_function_reads_it(model) -> None:
    noisy = SAMPLER | {"eta": 0.5}
    with pytest.raises(InvalidInputError, match=r"eta=0\.5.*wrap_module\(\.\.\., eta=True\)"):
        record(model, [0], noisy)
    seen = []

    def watched(denoiser, seeds, sampler):
        seen.append(sampler.eta)
        return sample(denoiser, seeds, sampler)

    record(dqlab.wrap_module(Network(), watched, eta=True), [0], noisy)
    assert seen == [0.5]


def test_a_correction_has_no_scheduler_to_work_around(model) -> None:
    class Nothing(Correction):
        kind = "nothing here"

    class Corrects(Method):
        slug, category = "corrects-nothing", "1.5"

        def correct(self, job):
            return Nothing({})

    try:
        method = Corrects()
        recipe = dqlab.recipe("rtn")
        recipe = type(recipe)((method,), {"correct": method})
        with pytest.raises(NotApplicableError,
                           match=r"this BareModel has none.*without\('correct'\)"):  # fmt: skip
            dqlab.quantize(model, recipe, 8, 8, sampler=SAMPLER)
    finally:
        del Correction.kinds["nothing here"]


class NoTime(nn.Module):
    def forward(self, x):
        return x


class Anything(nn.Module):
    def forward(self, *args):
        return args[0]


@pytest.mark.parametrize("network", [NoTime(), Anything()], ids=lambda m: type(m).__name__)
def test_a_network_must_take_a_sample_and_a_timestep(network) -> None:
    with pytest.raises(InvalidInputError, match=r"needs f\(x, t, \.\.\.\)"):
        dqlab.wrap_module(network, sample)


def test_layers_to_spare_must_exist() -> None:
    with pytest.raises(InvalidInputError, match="Network has no layer 'entry'"):
        dqlab.wrap_module(Network(), sample, first="entry")


@pytest.mark.parametrize("bad", [lambda *_: None, lambda *_: torch.zeros(7, 3, 4, 4)])
def test_a_sampling_function_must_return_pictures(bad) -> None:
    with pytest.raises(InvalidInputError, match="for 2 seeds; return a tensor"):
        record(dqlab.wrap_module(Network(), bad), [0, 1], SAMPLER)


EXAMPLE = Path(__file__).parent / "bare_example" / "own_network.py"


def test_the_readmes_example_runs(tmp_path, monkeypatch) -> None:
    code = EXAMPLE.read_text()
    assert code in (EXAMPLE.parents[3] / "README.md").read_text()
    fill_shipped(tmp_path)
    monkeypatch.setenv("DQLAB_SHIPPED_DIR", str(tmp_path))
    made = runpy.run_path(str(EXAMPLE))
    found = made["comparison"].to_dict()
    assert found["sqnr_db_mean"] > 0  # None, for an exact answer, would fail too
    assert found["flips"] == {}
