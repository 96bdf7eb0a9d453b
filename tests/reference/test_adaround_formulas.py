"""AdaRound's formulas against the same ones written with numpy, and against known values."""

import numpy as np
import pytest
import torch

from dqlab.formats import Affine
from dqlab.ranges import min_max
from dqlab.reference.adaround import (
    beta_at,
    hard_weight,
    initial_alpha,
    rectified_sigmoid,
    rounding_regularizer,
    soft_weight,
)

BITS = [2, 3, 4, 8]
VARIANTS = ["asymmetric", "sym_offset", "sym_signed_narrow", "sym_signed_full"]


def weights(bits: int, variant: str):
    fmt = Affine(bits, variant)
    W = torch.randn(6, 5, 3, 3, dtype=torch.float64)
    r = min_max(W, fmt, axis=0)
    return W, r.scale, r.zero_point, fmt


def in_numpy(W, s, z, alpha, q_min, q_max, hard):
    W, s, z, alpha = (x.numpy() for x in (W, s, z, alpha))
    h = np.minimum(np.maximum(1.2 / (1 + np.exp(-alpha)) - 0.1, 0), 1)
    up = np.where(alpha >= 0, 1.0, 0.0) if hard else h
    codes = np.minimum(np.maximum(np.floor(W / s) + up + z, q_min), q_max)
    return s * (codes - z)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bits", BITS)
def test_weights_equal_the_numpy_formulation(bits: int, variant: str) -> None:
    W, s, z, fmt = weights(bits, variant)
    alpha = torch.randn_like(W) * 3
    for function, hard in ((soft_weight, False), (hard_weight, True)):
        found = function(W, s, z, alpha, fmt.q_min, fmt.q_max)
        wanted = in_numpy(W, s, z, alpha, fmt.q_min, fmt.q_max, hard)
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bits", BITS)
def test_training_starts_at_the_weight_itself_and_at_nearest(bits: int, variant: str) -> None:
    W, s, z, fmt = weights(bits, variant)
    alpha = initial_alpha(W, s)
    fraction = W / s - (W / s).floor()
    torch.testing.assert_close(rectified_sigmoid(alpha), fraction, rtol=0, atol=1e-6)
    inside = ((W / s).floor() + z >= fmt.q_min) & ((W / s).ceil() + z <= fmt.q_max)
    soft = soft_weight(W, s, z, alpha, fmt.q_min, fmt.q_max)
    torch.testing.assert_close(soft[inside], W[inside], rtol=0, atol=1e-6)
    hard = hard_weight(W, s, z, alpha, fmt.q_min, fmt.q_max)
    nearest = fmt.fake_quant(W, min_max(W, fmt, axis=0))
    torch.testing.assert_close(hard, nearest, rtol=0, atol=1e-12)


def test_exact_halves_go_up() -> None:
    s, z = torch.tensor(1.0), torch.tensor(0.0)
    W = torch.tensor([0.5, 1.5, 2.5])
    assert hard_weight(W, s, z, initial_alpha(W, s), 0, 15).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("beta", [2.0, 7.3, 20.0])
def test_the_regularizer_at_its_ends(beta: float) -> None:
    decided = torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert rounding_regularizer(decided, beta).item() == 0
    half = torch.full((3, 4), 0.5)
    assert rounding_regularizer(half, beta, lam=0.01).item() == pytest.approx(0.01 * 12)
    assert rounding_regularizer(torch.tensor([0.999, 0.0]), beta).item() > 0


def test_the_beta_schedule() -> None:
    schedule = {k: beta_at(k, 1000) for k in (1, 199, 200, 600, 1000)}
    assert schedule == {1: None, 199: None, 200: 20.0, 600: 11.0, 1000: 2.0}
