"""EDA-DM's density, variety and allocation: built cases, and loops in numpy."""

import math

import numpy as np
import pytest
import torch

from dqlab.errors import InvalidInputError
from dqlab.reference.brecq import block_loss
from dqlab.reference.eda_dm import (
    allocate,
    density,
    fine_grained_loss,
    min_max_normalized,
    pairwise_mse,
    score,
    variety,
)


def two_clusters() -> torch.Tensor:
    """Ten steps with feature u, five with an orthogonal v; one row, one pixel."""
    u, v = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 2.0, 0.0])
    return torch.stack([u] * 10 + [v] * 5).reshape(15, 1, 3, 1, 1)


def test_two_clusters() -> None:
    F = two_clusters()
    D, V = density(F, 0.1), variety(F)
    assert D.tolist() == [9] * 10 + [4] * 5
    np.testing.assert_allclose(V, [5.0] * 10 + [10.0] * 5, atol=1e-6)
    assert min_max_normalized(D).tolist() == [1.0] * 10 + [0.0] * 5
    assert allocate(score(D, V, 1), 30) == [2] * 15
    assert allocate(score(D, V, 0), 30) == [3] * 10 + [0] * 5
    weighted = score(D, V, 2)
    assert weighted[-1] == pytest.approx(2 * float(weighted[0]))


def test_against_loops() -> None:
    F = torch.randn(5, 3, 4, 2, 2)
    n = F.numpy().astype(np.float64)
    mse, V = np.zeros((5, 5)), np.zeros(5)
    for i in range(5):
        for j in range(5):
            mse[i, j] = ((n[i] - n[j]) ** 2).mean()
            dots = (n[i] * n[j]).sum(1)
            norms = np.sqrt((n[i] ** 2).sum(1)) * np.sqrt((n[j] ** 2).sum(1))
            V[i] += 0 if i == j else (1 - dots / norms).sum()
    np.testing.assert_allclose(pairwise_mse(F), mse, atol=1e-12)
    np.testing.assert_allclose(variety(F), V, rtol=1e-5)
    r = float(np.median(mse))
    np.testing.assert_array_equal(density(F, r), (mse <= r).sum(1) - 1)


def test_variety_ignores_scale_and_density_does_not() -> None:
    F = torch.randn(6, 2, 4, 3, 3)
    scaled = F * torch.tensor([1.0, 5.0, 0.1, 2.0, 1.0, 7.0]).reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(variety(F), variety(scaled), rtol=1e-5, atol=1e-5)
    r = float(pairwise_mse(F).median())
    assert density(F, r).tolist() != density(scaled, r).tolist()


@pytest.mark.parametrize("r", [0.0, math.inf])
def test_a_radius_that_tells_nothing_leaves_variety_alone(r: float) -> None:
    F = torch.randn(6, 2, 4, 3, 3)
    D = density(F, r)
    assert set(D.tolist()) == {0 if r == 0 else 5}
    torch.testing.assert_close(score(D, variety(F), 1.2), 1.2 * min_max_normalized(variety(F)))


def test_equal_features_share_evenly() -> None:
    F = torch.ones(4, 2, 3, 2, 2)
    assert allocate(score(density(F, 1.0), variety(F), 1.2), 8) == [2] * 4


@pytest.mark.parametrize(
    ("S", "N", "wanted"),
    [
        ([2, 1, 1], 8, [4, 2, 2]),
        ([1, 1, 1, 1], 6, [2, 2, 1, 1]),
        ([1, 1, 1], 4, [2, 1, 1]),
        ([5, 0, 0], 3, [3, 0, 0]),
        ([1] * 7, 3, None),
        ([0.3, 0.01, 4.0, 1.0], 1000, None),
    ],
)
def test_allocation_always_adds_up(S, N: int, wanted) -> None:
    n = allocate(torch.tensor(S, dtype=torch.float64), N)
    assert sum(n) == N
    assert min(n) >= 0
    assert wanted is None or n == wanted


def test_layer_losses_add_to_the_block_loss() -> None:
    z_hat, z = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    y_hat, y = [torch.randn(2, 6), torch.randn(2, 4, 3, 3)], [torch.randn(2, 6), z]
    block = block_loss(z_hat, z)
    assert fine_grained_loss(z_hat, z, y_hat, y, 0.0) == block
    inner = block_loss(y_hat[0], y[0]) + block_loss(y_hat[1], y[1])
    torch.testing.assert_close(fine_grained_loss(z_hat, z, y_hat, y, 0.8), block + 0.8 * inner)
    assert fine_grained_loss(z, z, y, y, 0.8) == 0
    torch.testing.assert_close(fine_grained_loss(z_hat, z, [], [], 0.8), block)


@pytest.mark.parametrize(
    "call",
    [
        lambda: density(torch.zeros(3, 1, 2, 1, 1), -1.0),
        lambda: score(torch.ones(3), torch.ones(3), -0.1),
        lambda: allocate(torch.ones(3), 0),
    ],
)
def test_impossible_settings_are_refused(call) -> None:
    with pytest.raises(InvalidInputError):
        call()
