"""Recording denoisers whose arguments are nested, per frame, or without a batch."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from tiny_architectures import flux, text_dit, video_unet
from tiny_models import SAMPLER, STEPS, new_unet, seeded

from dqlab.errors import NotApplicableError
from dqlab.models import families
from dqlab.models.families import Family
from dqlab.trajectory import concatenate, record, replay
from dqlab.trajectory.arguments import flatten, same, unflatten


@dataclass
class Direct:
    """A pipeline that asks its network about noise, with the arguments of each seed."""

    network: torch.nn.Module
    sample: torch.Tensor
    rows: dict[str, torch.Tensor]
    whole: dict[str, Any] = field(default_factory=dict)
    branches: int = 1
    changes: Any = None

    def set_progress_bar_config(self, **_) -> None: ...

    def __call__(self, batch_size, generator, num_inference_steps, output_type, **_):
        seeds = [g.initial_seed() for g in generator] * self.branches
        for k in range(num_inference_steps):
            x = torch.stack([self.of_seed(self.sample[0], s) for s in seeds]) / (k + 1)
            named = {name: self.per_seed(v, seeds) for name, v in self.rows.items()}
            if self.changes:
                named |= self.changes(k)
            t = torch.tensor(900 - 100 * k)
            self.network(x, timestep=t, **unflatten(self.whole | named), return_dict=False)
        images = torch.zeros(batch_size, 4, 4, 3).numpy()
        return type("Output", (), {"images": images})

    def of_seed(self, like: torch.Tensor, seed: int) -> torch.Tensor:
        return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))

    def per_seed(self, given: torch.Tensor, seeds) -> torch.Tensor:
        """As many rows for each seed as `given` has for one of its two."""
        part = given[: len(given) // 2]
        if not part.is_floating_point():
            return torch.cat([part] * len(seeds))
        return torch.cat([self.of_seed(part, s + 100) for s in seeds])


def sdxl():
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=12,
        attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time",
        addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 * 4 + 10,
    )  # fmt: skip
    return model, {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([7, 400]),
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(2, 10), "time_ids": torch.rand(2, 6), "image": None,
        },
    }  # fmt: skip


WHOLE = ("img_ids", "txt_ids")
CASES = {
    sdxl: {"encoder_hidden_states": 1, "added_cond_kwargs.text_embeds": 1,
           "added_cond_kwargs.time_ids": 1},
    text_dit: {"encoder_hidden_states": 1, "encoder_attention_mask": 1},
    flux: {"encoder_hidden_states": 1, "pooled_projections": 1},
    video_unet: {"encoder_hidden_states": 3},
}  # fmt: skip


def direct(builder, monkeypatch, **more) -> Direct:
    family = Family("test network", ("Direct",), "network", "first", "last", has_eta=False)
    monkeypatch.setattr(families, "FAMILIES", (family,))
    model, inputs = seeded(builder)
    flat = flatten(inputs)
    sample, _ = (flat.pop(name) for name in list(flat)[:2])
    rows = {k: v for k, v in flat.items() if isinstance(v, torch.Tensor) and k not in WHOLE}
    whole = {k: v for k, v in flat.items() if k not in rows}
    return Direct(model.eval(), sample, rows, whole, **more)


@pytest.mark.parametrize("builder", CASES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_argument_comes_back_row_by_row(builder, count, monkeypatch) -> None:
    """16 image ids and 5 text ids of Flux are multiples of some of these counts."""
    pipe = direct(builder, monkeypatch)
    states, _ = record(pipe, range(count), SAMPLER, batch_size=4)
    assert len(states) == count * STEPS
    shapes = {name: len(value) for name, value in states.conditions.items()}
    assert shapes == {name: m * len(states) for name, m in CASES[builder].items()}
    for size in (1, 2, 7):
        again = replay(pipe.network, states, size)
        torch.testing.assert_close(again, states.output, rtol=1e-4, atol=1e-5)
    assert states.check("calibration") is states


@pytest.mark.parametrize("builder", CASES)
def test_chosen_rows_take_their_conditions_along(builder, monkeypatch) -> None:
    pipe = direct(builder, monkeypatch)
    states, _ = record(pipe, range(3), SAMPLER)
    rows = torch.tensor([7, 0, 4])
    torch.testing.assert_close(
        replay(pipe.network, states[rows]), states.output[rows], rtol=1e-4, atol=1e-5
    )
    mask = states.step == 1
    assert torch.equal(states[mask].output, states.output[mask])
    joined = concatenate([states[:2], states[2:]])
    assert joined.hash == states.hash
    alone, _ = record(pipe, [1], SAMPLER)
    mine = states[states.seed == 1]
    for name, value in alone.conditions.items():
        assert torch.equal(value, mine.conditions[name])


def test_guidance_stacks_frames_branch_by_branch(monkeypatch) -> None:
    pipe = direct(video_unet, monkeypatch, branches=2)
    families.FAMILIES = (replace(families.FAMILIES[0], branches=("uncond", "cond")),)
    states, _ = record(pipe, [4, 5], SAMPLER)
    assert states.branch.tolist() == [0, 0, 1, 1] * STEPS
    assert len(states.conditions["encoder_hidden_states"]) == 3 * len(states)
    prompt = states[states.seed == 5].conditions["encoder_hidden_states"]
    assert torch.equal(prompt[:3], pipe.of_seed(prompt[:3], 105))


def test_a_spoiled_nested_condition_is_named_by_its_row(monkeypatch) -> None:
    states, _ = record(direct(sdxl, monkeypatch), range(2), SAMPLER)
    ids = states.conditions["added_cond_kwargs.time_ids"].clone()
    ids[3, 2] = torch.nan
    bad = replace(states, conditions=states.conditions | {"added_cond_kwargs.time_ids": ids})
    with pytest.raises(ValueError, match=r"row 3 \(step 1, seed 1\)"):
        bad.check("calibration")
    assert bad.hash != states.hash


def test_constants_that_change_on_the_way_are_refused(monkeypatch) -> None:
    def ids(k: int) -> dict[str, torch.Tensor]:
        return {"txt_ids": torch.full((5, 3), float(k))}

    pipe = direct(flux, monkeypatch, changes=ids)
    with pytest.raises(NotApplicableError, match="another txt_ids in the course of sampling"):
        record(pipe, range(2), SAMPLER)


class Coupled(torch.nn.Module):
    """Reads a table whose length must equal that of the batch plus two."""

    def forward(self, sample, timestep, table, return_dict=True):
        if len(table) != 2 * len(sample) or len(sample) != 2:
            raise ValueError("two rows only")
        return (sample * table.mean(),)


def test_a_network_that_fits_one_batch_only_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", (
        Family("coupled", ("Direct",), "network", "a", "b", has_eta=False),
    ))  # fmt: skip
    network = Coupled()
    network.weight = torch.nn.Parameter(torch.ones(1))
    pipe = Direct(network, torch.randn(2, 3), {"table": torch.randn(4, 3)})
    with pytest.raises(NotApplicableError, match=r"which of table have a row for every picture"):
        record(pipe, range(2), SAMPLER)


def test_unconditional_networks_are_asked_no_more_than_before(monkeypatch) -> None:
    calls = []
    pipe = direct(lambda: (new_unet(), {"sample": torch.randn(2, 3, 8, 8), "timestep": 1}),
                  monkeypatch)  # fmt: skip
    pipe.network.register_forward_hook(lambda *_: calls.append(1))
    record(pipe, range(2), SAMPLER)
    assert len(calls) == STEPS


def test_dotted_names_are_nested_dicts() -> None:
    nested = {"a": 1, "b": {"c": 2, "d": {"e": None}}, "f": {}}
    flat = flatten(nested)
    assert flat == {"a": 1, "b.c": 2, "b.d.e": None, "f": {}}
    assert unflatten(flat) == nested


def test_constants_are_compared_by_value() -> None:
    x = torch.arange(3)
    assert same((x, [1, None]), (x.clone(), [1, None]))
    assert not same((x, 1), (x + 1, 1))
    assert not same([x], [x, x])
    assert not same(x, x[:2])
    assert not same(1, None)
