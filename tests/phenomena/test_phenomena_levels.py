"""Rounding, clipping and granularity against theory."""

import pytest
import torch

from dqlab.errors import InvalidInputError
from dqlab.formats import Affine
from dqlab.phenomena import levels


def test_evenly_filled_cells_lose_a_twelfth_of_the_squared_scale() -> None:
    values = torch.rand(200_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    facts = levels.rounding_error(values, *levels.fitted(values, 6))
    assert facts["ratio"] == pytest.approx(1, abs=0.02)
    assert facts["clipped"] == 0


def test_a_comb_that_is_too_short_clips_and_loses_more() -> None:
    values = torch.linspace(-1, 1, 10_001)
    fmt = Affine(4)
    half = levels.rounding_error(values, fmt, levels.place(fmt, -1, 1, scale=0.5))
    whole = levels.rounding_error(values, fmt, levels.place(fmt, -1, 1))
    assert half["clipped"] == pytest.approx(0.5, abs=0.05)
    assert half["ratio"] > 10 * whole["ratio"]


def test_levels_need_a_distance() -> None:
    with pytest.raises(InvalidInputError, match="scale=0"):
        levels.place(Affine(4), -1, 1, scale=0)


def test_the_parts_of_the_error_add_up_and_have_their_slopes() -> None:
    curve = levels.clip_curve(levels.gaussian(), 4, [1.0, 2.0, 3.0, 4.5])
    assert torch.allclose(
        torch.tensor((curve["rounding"] + curve["clipping"]).to_numpy()),
        torch.tensor(curve["total"].to_numpy()),
    )
    assert curve["clipping"].is_monotonic_decreasing
    assert curve["rounding"].is_monotonic_increasing


@pytest.mark.parametrize(("bits", "step"), [(3, 0.5860), (4, 0.3352), (5, 0.1881)])
def test_the_best_clip_point_of_a_gaussian_is_the_known_one(bits: int, step: float) -> None:
    # Steps of the best uniform quantizer: J. Max, IRE Trans. Inf. Theory 6 (1960), table II.
    best = step * (2**bits - 1) / 2
    points = [best * (0.6 + 0.05 * i) for i in range(17)]
    found = levels.min_max_loss(levels.clip_curve(levels.gaussian(), bits, points))
    assert found["best"] == pytest.approx(best, rel=0.11)


def test_min_max_loses_nothing_to_itself() -> None:
    curve = levels.clip_curve(levels.gaussian(), 4, [3.0])
    assert levels.min_max_loss(curve)["loss_db"] == 0


def test_ranges_per_channel_pay_where_channels_differ() -> None:
    same = torch.randn(16, 400, generator=torch.Generator().manual_seed(0))
    apart = same * torch.logspace(0, 2, 16).unsqueeze(1)
    gains = levels.granularity([("same", same), ("apart", apart)], 4).set_index("layer")["gain"]
    assert gains["same"] < 3 < gains["apart"]
    assert gains["same"] > -0.5


def test_weights_are_found_by_name() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.SiLU(), torch.nn.Linear(4, 5))
    assert [(n, tuple(w.shape)) for n, w in levels.weights_of(net)] == [
        ("0", (3, 2, 1, 1)),
        ("2", (5, 4)),
    ]
