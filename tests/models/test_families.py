"""Every pipeline family: recorded, quantized, saved and loaded as its users would."""

import copy

import pytest
import torch
from tiny_pipelines import PIPELINES, dit, flux, latte, ldm, stable_diffusion, svd, tiny
from torch import nn

import dqlab
from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.layers import QuantizedAttention, QuantizedLayer, explore, quantizers
from dqlab.layers.wrap import LAYERS
from dqlab.methods import Correction
from dqlab.methods.corrected import corrected
from dqlab.methods.corrector import Corrector
from dqlab.models import captions, families
from dqlab.models.families import Sampler, family_of
from dqlab.trajectory import record, replay

SAMPLER = {"num_inference_steps": 2}
each_pipeline = pytest.mark.parametrize("builder", PIPELINES, ids=lambda b: b.__name__)


@pytest.fixture(scope="module")
def recorded():
    """States and pictures of two trajectories, by builder."""
    found = {}

    def once(builder):
        if builder not in found:
            found[builder] = record(tiny(builder), [3, 4], SAMPLER)
        return found[builder]

    return once


@each_pipeline
def test_every_operand_is_found_and_named(builder, recorded) -> None:
    pipe = tiny(builder)
    family, (states, _) = family_of(pipe), recorded(builder)
    network = family.denoiser(pipe)
    anatomy = explore(network, lambda: states[:1].call(network))
    assert anatomy.uncovered == []
    modules = dict(network.named_modules())
    assert set(anatomy.layers) == {n for n, m in modules.items() if isinstance(m, LAYERS)}
    assert set(anatomy.attentions) == {n for n, m in modules.items() if hasattr(m, "to_q")}
    assert {family.first, family.last} <= set(anatomy.layers)


@each_pipeline
def test_a_schedule_is_what_the_network_meets(builder, recorded) -> None:
    pipe, (states, _) = tiny(builder), recorded(builder)
    expected = family_of(pipe).schedule(pipe, Sampler.of(SAMPLER))
    met = [float(states.t[states.step == k][0]) for k in range(int(states.step.max()) + 1)]
    assert met == expected.double().tolist()


@each_pipeline
def test_a_seed_gives_the_same_result_alone_and_in_company(builder, recorded) -> None:
    pipe, (_, pictures) = tiny(builder), recorded(builder)
    alone = family_of(pipe).run(pipe, Sampler.of(SAMPLER), [4])
    torch.testing.assert_close(alone[0], pictures[1], rtol=0, atol=1e-4)
    assert pictures.shape[-3] == 3
    assert pictures.ndim == (5 if family_of(pipe).video else 4)
    assert 0 <= pictures.min() < pictures.max() <= 1
    assert not torch.equal(pictures[0], pictures[1])


@each_pipeline
def test_recorded_answers_can_be_asked_again_in_other_batches(builder, recorded) -> None:
    pipe, (states, _) = tiny(builder), recorded(builder)
    again = replay(family_of(pipe).denoiser(pipe), states, 3)
    torch.testing.assert_close(again, states.output, rtol=1e-4, atol=1e-4)
    guided, rows = states.guided(states.output)
    assert len(guided) == 4
    assert states.seed[rows].tolist() == [3, 4] * 2


@each_pipeline
@pytest.mark.parametrize("weights", [8, 4])
def test_quantized_saved_and_loaded_it_gives_the_same(
    builder, weights, recorded, tmp_path
) -> None:
    pipe, (states, pictures) = tiny(builder), recorded(builder)
    family, sampler = family_of(pipe), Sampler.of(SAMPLER)
    q = dqlab.quantize(pipe, "rtn", weights, 8, sampler=sampler, calibration=states)
    network = family.denoiser(q)
    sites = quantizers(network)
    for site, quantizer in sites.items():
        edge = site.rpartition(".")[0] in (family.first, family.last)
        asked = weights if site.endswith(".weight") and not edge else 8
        assert quantizer.format.bits == asked, site
        assert quantizer.scale is not None, site
    layers = [m for m in network.modules() if isinstance(m, QuantizedLayer)]
    attentions = [m for m in network.modules() if isinstance(m, QuantizedAttention)]
    assert len(sites) == 2 * len(layers) + 4 * len(attentions)
    sampled = family.run(q, sampler, [3, 4])
    assert sampled.isfinite().all()
    assert not torch.equal(sampled, pictures)
    if weights == 4:  # one of the two is saved: the paths are the same
        q.save_pretrained(tmp_path)
        again = dqlab.load(tmp_path)
        assert type(again) is type(pipe)
        assert torch.equal(family_of(again).run(again, sampler, [3, 4]), sampled)
        assert dqlab.describe(again) == dqlab.describe(q)


@pytest.mark.parametrize("builder", [dit, stable_diffusion], ids=lambda b: b.__name__)
def test_branches_are_told_apart(builder, recorded) -> None:
    """The unconditional rows of different seeds carry the same condition, the others their own."""
    pipe, (states, _) = tiny(builder), recorded(builder)
    (condition,) = states.conditions.values()
    branches = family_of(pipe).branches
    rows = {
        b: condition[(states.branch == i) & (states.step == 0)] for i, b in enumerate(branches)
    }
    assert torch.equal(rows["uncond"][0], rows["uncond"][1])
    assert not torch.equal(rows["cond"][0], rows["cond"][1])


def test_guided_predictions_are_what_the_sampler_steps_by(recorded) -> None:
    """For DiT: conditional first, and the learned variance is no part of it."""
    pipe, (states, _) = tiny(dit), recorded(dit)
    steps, plain = [], pipe.scheduler.step

    def step(output, *args, **named):
        steps.append(output)
        return plain(output, *args, **named)

    pipe.scheduler.step = step
    try:
        family_of(pipe).run(pipe, Sampler.of(SAMPLER), [3, 4])
    finally:
        del pipe.scheduler.step
    guided, _ = states.guided(states.output)
    assert states.output.shape[1] == 8
    torch.testing.assert_close(guided, torch.cat([s[:2] for s in steps]), rtol=0, atol=1e-6)


def test_frames_have_their_own_guidance(recorded) -> None:
    """SVD's scale rises from 1 in the first frame, where the guided answer is the asked one."""
    states, _ = recorded(svd)
    guided, rows = states.guided(states.output)
    torch.testing.assert_close(guided[:, 0], states.output[rows][:, 0])
    assert (guided[:, -1] - states.output[rows][:, -1]).abs().max() > 1e-3


def test_flux_is_guided_without_branches(recorded) -> None:
    states, _ = recorded(flux)
    assert states.branches == ()
    assert states.conditions["guidance"].unique().tolist() == [3.5]
    assert len(states) == 2 * 2


def test_classes_are_the_numbers_of_captions() -> None:
    every = captions.every_attribute()
    assert captions.caption_number(every).tolist() == list(range(320))
    pipe = tiny(dit)
    asked = family_of(pipe).arguments(pipe, Sampler(), [3, 4])["class_labels"]
    expected = captions.attributes_of([3, 4]).captions()
    assert [every.captions()[i] for i in asked] == expected


@pytest.mark.parametrize("builder", [dit, flux, svd], ids=lambda b: b.__name__)
def test_eta_is_refused_where_there_is_none(builder) -> None:
    sampler = SAMPLER | {"eta": 0.5}
    with pytest.raises(InvalidInputError, match=r"eta=0\.5 asks for DDIM's noise.*Use eta=0"):
        record(tiny(builder), [0], sampler)
    with pytest.raises(InvalidInputError, match="has no eta"):
        dqlab.quantize(tiny(builder), "rtn", 8, 8, sampler=sampler)


def test_eta_is_refused_if_the_scheduler_would_ignore_it() -> None:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    plain = tiny(stable_diffusion)
    pipe = StableDiffusionPipeline(
        **plain.components | {"scheduler": DPMSolverMultistepScheduler()},
        requires_safety_checker=False,
    )
    with pytest.raises(InvalidInputError, match=r"DPMSolverMultistepScheduler has no eta.*DDIM"):
        record(pipe, [0], SAMPLER | {"eta": 1})
    states, _ = record(pipe, [0], {"num_inference_steps": 3})
    assert states.t.unique().tolist() == sorted(family_of(pipe).schedule(pipe, Sampler(3)))


def test_guidance_is_refused_where_there_is_none() -> None:
    with pytest.raises(InvalidInputError, match=r"guidance_scale=3, but a LDMPipeline has no"):
        record(tiny(ldm), [0], SAMPLER | {"guidance_scale": 3})
    assert family_of(tiny(ldm)).arguments(tiny(ldm), Sampler(guidance_scale=1), [0])


def test_noise_drawn_by_torchs_own_generator_repeats(recorded) -> None:
    """LDM's pipeline gives its scheduler no generator."""
    noisy, state = Sampler(2, eta=1.0), torch.random.get_rng_state()
    first, second = (family_of(tiny(ldm)).run(tiny(ldm), noisy, [3, 4]) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, recorded(ldm)[1])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_large_models_are_told_from_small_ones() -> None:
    pipe = tiny(stable_diffusion)
    assert family_of(pipe).guidance(Sampler()) == 2.0
    large = type(pipe)(**pipe.components, requires_safety_checker=False)
    large.unet = type(pipe.unet).from_config(dict(pipe.unet.config) | {"sample_size": 64})
    assert family_of(large).name == "Stable Diffusion"
    assert family_of(large).guidance(Sampler()) == 7.5
    assert family_of(large).guidance(Sampler(guidance_scale=3)) == 3


def test_a_safety_checker_blackens_nothing(recorded) -> None:
    pipe = tiny(stable_diffusion)
    careful = type(pipe)(**pipe.components, requires_safety_checker=False)
    careful.safety_checker = nn.Identity()
    found = family_of(careful).run(careful, Sampler.of(SAMPLER), [3, 4])
    assert torch.equal(found, recorded(stable_diffusion)[1])
    assert careful.safety_checker is not None


class Shift(Correction):
    """Moves the prediction and the sample; asks the network once more."""

    kind = "shift for families"
    calls = 2

    def before(self, x, step):
        return x + 0.1

    def eps(self, eps, step):
        assert step.predict(step.x, step.t).shape == eps.shape == step.x.shape
        return eps + 0.05


Correction.kinds.pop(Shift.kind)


def shifted(pipe):
    family, sampler = family_of(pipe), Sampler.of(SAMPLER)
    made = copy.copy(pipe)
    made.register_modules(scheduler=copy.deepcopy(pipe.scheduler))
    times = family.schedule(pipe, sampler)
    return corrected(made, Corrector(Shift({}), family, sampler, times, 0))


@pytest.mark.parametrize("builder", [dit, stable_diffusion, latte], ids=lambda b: b.__name__)
def test_corrections_meet_one_row_per_sample(builder, recorded) -> None:
    """Also for DiT, whose pipeline hands its scheduler every row twice."""
    pipe = tiny(builder)
    family, sampler = family_of(pipe), Sampler.of(SAMPLER)
    both = family.run(shifted(pipe), sampler, [3, 4])
    alone = family.run(shifted(pipe), sampler, [4])
    torch.testing.assert_close(both[1], alone[0], rtol=0, atol=1e-4)
    assert not torch.equal(both, recorded(builder)[1])


def test_corrections_need_integer_timesteps() -> None:
    pipe = tiny(flux)
    family = family_of(pipe)
    times = family.schedule(pipe, Sampler(2))
    with pytest.raises(NotApplicableError, match=r"integer timesteps.*has fractions"):
        corrected(pipe, Corrector(Shift({}), family, Sampler(2), times, 0))


PROMPTS = ["a red bag on a white background", "a blue boot on a black background"]


def test_users_ask_for_their_own_pictures(tmp_path) -> None:
    pipe = dqlab.ask(tiny(stable_diffusion), prompt=PROMPTS, height=24, width=16)
    assert not hasattr(tiny(stable_diffusion), "_dqlab_asked")
    given = family_of(pipe).arguments(pipe, Sampler(), [4, 7, 6])
    assert given["prompt"] == [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    states, pictures = record(pipe, [4, 7], SAMPLER)
    assert pictures.shape == (2, 3, 24, 16)
    q = dqlab.quantize(pipe, "rtn", 8, 8, sampler=SAMPLER, calibration=states)
    q.save_pretrained(tmp_path)
    again = dqlab.load(tmp_path)
    sampled = family_of(q).run(q, Sampler(2), [4, 7])
    assert torch.equal(family_of(again).run(again, Sampler(2), [4, 7]), sampled)
    one = dqlab.ask(pipe, prompt=PROMPTS[0])
    assert family_of(one).arguments(one, Sampler(), [1, 2])["prompt"] == [PROMPTS[0]] * 2
    assert family_of(one).arguments(one, Sampler(), [1, 2])["height"] == 24


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"guidance_scale": 3}, "guidance_scale=3: sampler=dict"),
        ({"colour": 1}, "colour=1: its call takes prompt, height"),
        ({"height": 24}, "height and width together"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": torch.zeros(1)}, "prompt is a Tensor, which cannot be saved"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked, why) -> None:
    with pytest.raises(InvalidInputError, match=why):
        dqlab.ask(tiny(stable_diffusion), **asked)


def test_names_of_families_are_their_own() -> None:
    names = [family.name for family in families.FAMILIES]
    assert len(set(names)) == len(names)
