from dataclasses import replace

import pytest
import torch
from tiny_models import SAMPLER, STEPS, new_pipeline, pipeline, recorded, seeded

from dqlab.errors import InvalidInputError
from dqlab.layers import StepContext, explore, quantizers
from dqlab.methods.run import wrap_sites
from dqlab.models import families
from dqlab.models.families import Sampler
from dqlab.trajectory import concatenate, inactive, record, replay, tapped


def test_rows_are_named_by_step_and_seed() -> None:
    states, images = recorded(4)
    assert states.step.tolist() == [k for k in range(STEPS) for _ in range(4)]
    assert states.seed.tolist() == [0, 1, 2, 3] * STEPS
    scheduler = pipeline().scheduler
    scheduler.set_timesteps(STEPS)
    assert states.t.unique_consecutive().tolist() == scheduler.timesteps.tolist()
    assert images.shape == (4, 3, 8, 8)
    assert 0 <= images.min() < images.max() <= 1


def test_the_pipeline_itself_made_the_images() -> None:
    _, images = recorded(4)
    generators = [torch.Generator().manual_seed(k) for k in range(4)]
    plain = pipeline()(4, generators, num_inference_steps=STEPS, output_type="np").images
    assert torch.equal(images, torch.from_numpy(plain).permute(0, 3, 1, 2))


def test_recorded_answers_are_the_networks_own() -> None:
    states, _ = recorded(4)
    with torch.no_grad():
        again = [states[states.step == k].call(pipeline().unet) for k in range(STEPS)]
    assert torch.equal(torch.cat(again), states.output)


def test_replay_gives_the_recorded_answers_at_any_batch_size() -> None:
    states, _ = recorded(4)
    assert torch.equal(replay(pipeline().unet, states, batch_size=4), states.output)
    torch.testing.assert_close(replay(pipeline().unet, states, 5), states.output)


def test_replay_leaves_the_mode_as_it_was() -> None:
    unet = new_pipeline().unet.train()
    replay(unet, recorded(4)[0][:2])
    assert unet.training


def test_a_trajectory_does_not_depend_on_its_batch() -> None:
    states, images = recorded(4)
    alone, image = record(pipeline(), [2], SAMPLER)
    mine = states[states.seed == 2]
    for name in ("x", "output"):
        torch.testing.assert_close(getattr(alone, name), getattr(mine, name), rtol=0, atol=1e-5)
    torch.testing.assert_close(image[0], images[2], rtol=0, atol=1e-5)
    parts, _ = record(pipeline(), range(4), SAMPLER, batch_size=3)
    assert parts.seed.tolist() == [0, 1, 2] * STEPS + [3] * STEPS
    assert parts.step.tolist() == [k for k in range(STEPS) for _ in range(3)] + [0, 1, 2]
    order = torch.argsort(parts.step * 10 + parts.seed)
    torch.testing.assert_close(parts[order].x, states.x, rtol=0, atol=1e-5)


def test_stochastic_sampling_is_recorded_too() -> None:
    noisy = SAMPLER | {"eta": 1.0}
    states, images = record(pipeline(), [0, 1], noisy)
    again, _ = record(pipeline(), [0, 1], noisy)
    assert states.hash == again.hash != record(pipeline(), [0, 1], SAMPLER)[0].hash
    assert torch.equal(replay(pipeline().unet, states, 2), states.output)
    assert images.isfinite().all()


def test_hash_changes_with_the_data() -> None:
    states, _ = recorded(4)
    assert states.hash == record(pipeline(), range(4), SAMPLER)[0].hash
    nudged = states.x.clone()
    nudged[-1, -1, -1, -1] += 1e-3
    others = [
        replace(states, x=nudged),
        replace(states, t=states.t + 1),
        replace(states, conditions={"class_labels": torch.arange(len(states))}),
        states[1:],
    ]
    assert len({states.hash, *(other.hash for other in others)}) == 5


def test_progress_counts_trajectories() -> None:
    counts = []
    record(pipeline(), range(5), SAMPLER, batch_size=2, progress=counts.append)
    assert counts == [2, 4, 5]


def test_recording_leaves_the_pipeline_as_it_was() -> None:
    pipe = new_pipeline()
    pipe.set_progress_bar_config(disable=False, leave=False)
    record(pipe, [0], SAMPLER)
    assert pipe._progress_bar_config == {"disable": False, "leave": False}
    assert not any(m._forward_hooks for m in pipe.unet.modules())
    pipe.unet.forward = None
    with pytest.raises(TypeError):
        record(pipe, [0], SAMPLER)
    assert not pipe.unet._forward_hooks


def test_no_seeds_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="`seeds` is empty"):
        record(pipeline(), [])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["x", "output", "condition"])
def test_bad_states_are_named_by_row_step_and_seed(where, value) -> None:
    states, _ = recorded(4)
    bad = (states.x if where != "output" else states.output).clone()
    bad[6, 0, 0, 0] = value
    changed = {"conditions": {"encoder_hidden_states": bad}} if where == "condition" else {}
    broken = replace(states, **changed or {where: bad})
    with pytest.raises(InvalidInputError, match=r"calibration.*row 6 \(step 1, seed 2\)"):
        broken.check("calibration")
    assert states.check("calibration") is states


def test_empty_states_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="held-out set is empty"):
        recorded(4)[0][:0].check("held-out")


@pytest.mark.parametrize("name", ["t", "step", "seed", "output", "branch"])
def test_ragged_states_are_refused(name) -> None:
    states, _ = recorded(4)
    for changed in (getattr(states, name)[:-1], torch.cat([getattr(states, name)] * 2)):
        with pytest.raises(InvalidInputError, match=f"12 rows of x but .* of {name}"):
            replace(states, **{name: changed}).check("calibration")
    labels = torch.arange(5)
    with pytest.raises(InvalidInputError, match="12 rows of x but 5 of class_labels"):
        replace(states, conditions={"class_labels": labels}).check("calibration")


def test_pieces_join_again() -> None:
    states, _ = recorded(4)
    joined = concatenate(list(states.batches(5)))
    assert joined.hash == states.hash
    assert torch.equal(joined.output, states.output)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"num_inference_steps": 1001}, "num_inference_steps=1001"),
        ({"eta": 2}, "eta=2"),
        ({"steps": 5}, "unknown settings; known are num_inference_steps, eta, guidance_scale"),
    ],
)
def test_impossible_samplers_are_refused(given, named) -> None:
    with pytest.raises(InvalidInputError, match=named):
        Sampler.of(given)


def wrapped_unet():
    unet = new_pipeline().unet
    states, _ = recorded(4)
    anatomy = explore(unet, lambda: states[:1].call(unet))
    wrap_sites(unet, StepContext(), anatomy.layers, anatomy.attentions)
    return unet


def test_taps_see_the_tensors_and_are_gone_afterwards() -> None:
    unet, states, seen = wrapped_unet(), recorded(4)[0], {}
    sites = ["conv_in.input", "conv_in.weight"]
    with tapped(unet, sites, lambda site, x: seen.setdefault(site, []).append(x)):
        replay(unet, states, 8)
    assert torch.equal(torch.cat(seen["conv_in.input"]), states.x)
    assert torch.equal(seen["conv_in.weight"][0], unet.conv_in.weight)
    assert not any(q.taps for q in quantizers(unet).values())
    with pytest.raises(ZeroDivisionError), tapped(unet, sites, lambda site, x: 1 / 0):
        replay(unet, states, 8)
    assert not any(q.taps for q in quantizers(unet).values())


def test_inactive_quantizers_come_back() -> None:
    found = list(quantizers(wrapped_unet()).values())
    found[0].active = False
    with pytest.raises(KeyError), inactive(found[:3]):
        assert [q.active for q in found[:4]] == [False, False, False, True]
        raise KeyError
    assert [q.active for q in found[:4]] == [False, True, True, True]


def prompts_of_seeds(pipe, seeds):
    """Prompt embeddings drawn from each seed, for a pipeline without a text encoder."""
    drawn = [torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return {
        "prompt_embeds": torch.cat(drawn),
        "negative_prompt_embeds": torch.zeros(len(drawn), 5, 12),
        "height": 16,
        "width": 16,
    }


def guided_pipeline():
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        cross_attention_dim=12, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = DDIMScheduler(timestep_spacing="trailing", steps_offset=1, clip_sample=False)
    pipe = StableDiffusionPipeline(
        vae, None, None, unet.eval(), scheduler, None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_guided_rows_carry_their_condition(monkeypatch) -> None:
    family = replace(families.LATENT_UNET, guidance_scale=3.0, conditions=prompts_of_seeds)
    monkeypatch.setattr(families, "FAMILIES", (family,))
    pipe = seeded(guided_pipeline)
    states, images = record(pipe, [5, 6, 7], SAMPLER, batch_size=2)
    assert images.shape == (3, 3, 16, 16)
    assert len(states) == 2 * 3 * STEPS
    assert states.seed.tolist() == [5, 6, 5, 6] * STEPS + [7, 7] * STEPS
    prompts = states.conditions["encoder_hidden_states"]
    assert prompts.shape == (len(states), 5, 12)
    first = states[:4]
    assert torch.equal(first.x[:2], first.x[2:])
    assert first.conditions["encoder_hidden_states"][:2].abs().max() == 0
    assert first.conditions["encoder_hidden_states"][2:].abs().min() > 0
    torch.testing.assert_close(replay(pipe.unet, states, 3), states.output, rtol=0, atol=1e-5)
    guided, rows = states.guided(states.output)
    plain, asked = states.output[:2], states.output[2:4]
    torch.testing.assert_close(guided[:2], plain + 3.0 * (asked - plain))
    assert states.seed[rows].tolist() == [5, 6] * STEPS + [7] * STEPS
    assert bool((states.branch[rows] == 1).all())
