"""Measurements on a small network: schedule, ranges, bits, steps, layers."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DDIMScheduler

from dqlab.errors import InvalidInputError
from dqlab.layers import quantizers
from dqlab.methods import quantize
from dqlab.metrics import error_powers
from dqlab.models.tint import Attributes
from dqlab.phenomena import bits, chain, drift, layers, schedule, steps
from dqlab.trajectory import record


# ------------------------------------------------------------------------------------- schedule
def test_shares_are_shares_and_cross_where_half_is_left(pipe) -> None:
    table = schedule.shares(pipe.scheduler)
    assert np.allclose(table["signal"] + table["noise"], 1)
    crossing = schedule.equal_shares(pipe.scheduler)
    assert table["signal"][crossing] <= 0.5 < table["signal"][crossing - 1]


def test_a_schedule_may_never_cross() -> None:
    with pytest.raises(InvalidInputError, match="half"):
        schedule.equal_shares(DDIMScheduler(num_train_timesteps=10))


def test_knowing_the_noise_gives_the_picture_back(pipe, run) -> None:
    states, _ = run
    picture = torch.rand(3, 8, 8) * 2 - 1
    mixed = schedule.noised(picture, [700, 300], pipe.scheduler, seed=5)
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(5))
    known = dataclasses.replace(
        states[:2], x=mixed, t=torch.tensor([700, 300]), output=noise.expand(2, *noise.shape)
    )
    implied = schedule.implied_image(known, pipe.scheduler)
    assert torch.allclose(implied, picture.expand_as(implied), atol=1e-4)


def test_flaws_are_magnified_most_near_pure_noise(pipe) -> None:
    at = [schedule.magnification(pipe.scheduler, t) for t in (0, 258, 999)]
    assert at[0] < 0.1 < at[1] < at[2]
    assert at[1] == pytest.approx(1, abs=0.01)


# ---------------------------------------------------------------------------------------- chain
def test_the_last_step_implies_the_final_picture(pipe, run) -> None:
    states, images = run
    error = chain.implied_error(states, images, pipe.scheduler)
    assert error[error["step"] == int(states.step.max())]["error"].max() < 1e-9
    assert list(chain.mean_error(error)["step"]) == [0, 1]


class Reader:
    """Names pictures by a list given beforehand."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = torch.tensor(labels)

    def read(self, images: torch.Tensor) -> tuple[Attributes, None]:
        steady = torch.zeros_like(self.labels)
        return Attributes(self.labels, steady, steady), None


def test_a_label_settles_after_its_last_change(pipe, run) -> None:
    states, _ = run
    order = states.seed.argsort(stable=True)
    found = chain.settle_steps(states[order], pipe.scheduler, Reader([4, 2, 4, 1, 7, 7]))
    found = found.set_index(["seed", "attribute"])["step"]
    assert found[0, "garment"] == 2
    assert found[1, "garment"] == 1
    assert found[0, "colour"] == 0


# ---------------------------------------------------------------------------------------- drift
def test_watching_changes_nothing(pipe, run) -> None:
    states, _ = run
    watched = drift.watchable(pipe, states)
    assert error_powers(states, watched.unet)["noise"].max() < 1e-6 * states.output.numel()


def test_ranges_over_steps_contain_what_calibration_finds(pipe, run) -> None:
    states, _ = run
    quantized = quantize(pipe, "rtn", 8, 8, calibration=states)
    table = drift.range_table(quantized, states, drift.activation_sites(quantized))
    static = drift.static_ranges(table)
    for site, found in quantizers(quantized.unet).items():
        if not site.endswith(".weight"):
            low, high = (torch.tensor(float(static.loc[site, k])) for k in ("low", "high"))
            # Batches of another size change the last digit of a sum.
            assert torch.allclose(found.format.params(low, high).scale, found.scale, rtol=1e-5)
    assert (drift.drift(table) >= 1).all()


def test_drift_is_largest_reach_over_smallest() -> None:
    table = pd.DataFrame(
        {"site": ["a", "a", "b", "b"], "low": [-4.0, -1, 0, 0], "high": [1.0, 2, 3, 3]}
    )
    assert drift.drift(table).to_dict() == {"a": 2.0, "b": 1.0}


def test_each_layer_has_its_place_in_the_valley(pipe, run) -> None:
    layers_found = drift.layer_table(drift.watchable(pipe, run[0]))
    places = layers_found.set_index("layer")["branch"]
    assert places["conv_in"] == places["time_embedding.linear_1"] == "down"
    assert places["mid_block.resnets.0.conv1"] == "middle"
    assert places["conv_out"] == places["up_blocks.0.resnets.0.conv1"] == "up"


def test_short_names_stay_different(pipe, run) -> None:
    table = drift.layer_table(drift.watchable(pipe, run[0]))
    short = drift.shorten(table)["layer"]
    assert short.is_unique
    assert {"conv in", "middle res 0 conv1", "up 0 attention 0 q", "time 1"} <= set(short)


def test_reach_is_relative_to_each_layers_own_maximum(pipe, run) -> None:
    watched = drift.watchable(pipe, run[0])
    table = drift.range_table(watched, run[0], ["conv_in.input", "conv_out.input"])
    reach = drift.reach(table, drift.layer_table(watched))
    assert (reach.groupby("layer")["percent"].max() == 100).all()


def test_values_are_those_that_pass(pipe, run) -> None:
    watched = drift.watchable(pipe, run[0])
    assert torch.equal(drift.values_at(watched, run[0], "conv_in.input"), run[0].x.flatten())


# ----------------------------------------------------------------------------------------- bits
@pytest.mark.parametrize("activations", [4, 6, None])
def test_other_activation_bits_equal_a_fresh_quantization(pipe, run, activations) -> None:
    states, _ = run
    first = quantize(pipe, "rtn", 4, 8, calibration=states)
    ranges = drift.static_ranges(drift.range_table(first, states, drift.activation_sites(first)))
    quick = bits.with_bits(first, activations, ranges)
    slow = quantize(pipe, "rtn", 4, activations, calibration=states)
    for site, found in quantizers(slow.unet).items():
        same = quantizers(quick.unet)[site]
        assert found.format == same.format
        if not site.endswith(".weight") and found.format is not None:
            assert torch.allclose(found.scale, same.scale, rtol=1e-5)
            assert torch.equal(found.zero_point, same.zero_point)
    assert quantizers(first.unet)["mid_block.resnets.0.conv1.input"].format.bits == 8


def test_decibels_are_read_off_by_bits_and_seed() -> None:
    rows = {"step": [0, 1], "t": [9.0, 3.0], "seed": [0, 0], "signal": [100.0, 100.0]}
    powers = pd.concat(
        [
            pd.DataFrame(rows | {"noise": [1.0, 10.0], "weights": 4, "activations": 8}),
            pd.DataFrame(rows | {"noise": [100.0, 1.0], "weights": 4, "activations": 4}),
        ]
    )
    table = bits.mean_db(powers)
    assert bits.db_of(table, 4, 8) == pytest.approx(15)
    assert bits.db_of(table, 4, 4) == pytest.approx(10)
    found = bits.per_seed(powers, [(4, 4)])
    assert found["db"].tolist() == pytest.approx([0, 20])
    assert found["timestep"].tolist() == [9, 3]


# ---------------------------------------------------------------------------------------- steps
def test_a_step_that_is_not_rough_changes_nothing(pipe, run) -> None:
    states, images = run
    for step, made in steps.single_step(pipe, pipe, states, [0, 2]).items():
        assert torch.allclose(made, images, atol=1e-5), step


def test_a_rough_step_changes_the_picture(pipe, run) -> None:
    states, images = run
    rough = quantize(pipe, "rtn", 2, 2, calibration=states)
    made = steps.single_step(pipe, rough, states, [1])[1]
    assert float((made - images).abs().max()) > 1e-3


def test_error_is_fresh_or_inherited(pipe, run, sampler) -> None:
    states, _ = run
    rough = quantize(pipe, "rtn", 4, 4, calibration=states)
    drifted, _ = record(rough, [0, 1], sampler)
    parts = steps.fresh_and_inherited(pipe.unet, rough.unet, states, drifted)
    first = parts[parts["step"] == 0].pivot(index="seed", columns="series", values="error")
    assert "inherited" not in first
    assert np.allclose(first["fresh"], first["both"], rtol=1e-3)
    none = steps.fresh_and_inherited(pipe.unet, pipe.unet, states, states)
    assert none["error"].max() < 1e-8
    assert len(steps.median_error(parts)) == 3 * 3 - 1


@pytest.mark.parametrize(
    ("inherited", "expected"),
    [([1, 3, 3, 3], 1), ([0, 3, 1, 3], 3), ([3, 3, 3, 1], None), ([3, 3, 3, 3], 0)],
)
def test_overtaking_is_for_good(inherited: list[int], expected: int | None) -> None:
    rows = [("fresh", s, 2.0) for s in range(4)]
    rows += [("inherited", s, float(e)) for s, e in enumerate(inherited)]
    frame = pd.DataFrame(rows, columns=["series", "step", "error"])
    assert steps.overtaking_step(frame) == expected


# --------------------------------------------------------------------------------------- layers
def test_one_layer_at_a_time_and_all_but_the_ends(pipe, run) -> None:
    states, _ = run
    watched = drift.watchable(pipe, states)
    table = drift.layer_table(watched)
    names = table["layer"].tolist()
    ranges = drift.static_ranges(drift.range_table(watched, states, [f"{n}.input" for n in names]))
    found = layers.one_at_a_time(watched, states, ranges, table[:3], bits=4)
    assert list(dict.fromkeys(found["layer"])) == names[:3]
    together = layers.sensitivity(watched, states, ranges, names[:3])
    means = found.groupby("step")["db"].min().to_numpy()
    assert (together["db"].to_numpy() < means + 1).all()
    ends = layers.ends_against_middle(watched, states, ranges, names, ["conv_in", "conv_out"])
    assert set(ends) == {"ends", "others"}
    assert all(q.format is None for q in quantizers(watched.unet).values())
