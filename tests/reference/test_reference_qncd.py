import math

import pytest
import torch

from dqlab.errors import InvalidInputError
from dqlab.reference import qncd


def test_scale_shift_factors() -> None:
    assert torch.equal(qncd.smoothing_scale_shift(torch.zeros(5, 3)), torch.ones(3))
    assert torch.equal(qncd.smoothing_scale_shift(torch.full((5, 3), -2.0)), torch.ones(3))
    scale = torch.tensor([[0.0, 3.0], [1.0, -3.0]])
    assert qncd.smoothing_scale_shift(scale).tolist() == [1.5, 3.0]


def test_additive_factors_by_hand() -> None:
    """Two groups of two: (1, 3) has mean 2 and deviation 1, (0, 4) mean 2 and deviation 2."""
    emb = torch.tensor([[1.0, 3.0, 0.0, 4.0]])
    gamma = torch.tensor([2.0, -3.0, 1.0, 0.5])
    found = qncd.smoothing_additive(emb, gamma, groups=2, eps=0.0)
    torch.testing.assert_close(found, torch.tensor([2.0, 3.0, 1.0, 0.5]))


def test_a_constant_embedding_has_no_factor_and_no_nan() -> None:
    emb, gamma = torch.full((4, 6), 0.7), torch.ones(6)
    assert torch.equal(qncd.smoothing_additive(emb, gamma, 2), torch.zeros(6))
    assert torch.equal(qncd.smoothing_additive_code(emb, gamma, 2), torch.ones(6))


def test_the_codes_factors_never_shrink_and_lose_no_sign() -> None:
    emb = torch.tensor([[-5.0, 0.0, 0.0, 5.0]])
    found = qncd.smoothing_additive_code(emb, torch.tensor([1.0, 1.0, 1.0, -2.0]), 1, eps=0.0)
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, 1.0, 2 * math.sqrt(2)]))


def test_estimates_fall_where_the_code_makes_them() -> None:
    def steps(count, **options):
        return [i + 1 for i in range(count) if qncd.fires(i, count, **options)]

    assert steps(30) == [7, 17, 27]
    assert steps(20, interval=5, offset=0) == [1, 6, 11, 16]
    assert steps(3, interval=1, offset=0) == [1, 2]  # not at the last
    with pytest.raises(InvalidInputError, match="interval=0"):
        qncd.fires(0, 10, 0)


def test_noising_again_has_the_forward_process_mean_and_variance() -> None:
    z1 = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    a_t, a_p = torch.tensor(0.3), torch.tensor(0.5)
    found = qncd.renoise(torch.tensor(2.0), a_t, a_p, z1)
    assert abs(found.mean() / (2 * math.sqrt(0.6)) - 1) < 0.01
    assert abs(found.var() / 0.4 - 1) < 0.01
    assert torch.equal(qncd.renoise(z1, a_t, a_t, z1.flip(0)), z1)
    with pytest.raises(InvalidInputError, match="noise to image"):
        qncd.renoise(z1, a_p, a_t, z1)


def test_the_estimate_is_the_bias() -> None:
    """Exactly where the network finds z1; to sampling error where it finds all of the noise."""
    n = 1_000_000
    e, z1 = torch.randn(2, n, generator=torch.Generator().manual_seed(1))
    a_t, a_p = torch.tensor(0.3), torch.tensor(0.5)
    assert abs(qncd.estimated_bias(z1 + 0.25, z1) - 0.25) < 1e-7
    assert abs(qncd.estimated_bias(torch.zeros(n), z1) + z1.double().mean()) < 1e-12
    ideal = qncd.composite_noise(e, a_t, a_p, z1)
    assert abs(ideal.var() - 1) < 0.01
    assert abs(qncd.estimated_bias(ideal + 0.1, z1) - 0.1) < 0.008
    assert abs(qncd.estimated_bias(ideal + 0.1, ideal) - 0.1) < 1e-6


def test_the_composite_is_what_noising_again_left() -> None:
    """x_hat = sqrt(a_t) x_0 + sqrt(1 - a_t) composite."""
    x0, e, z1 = torch.randn(3, 100, generator=torch.Generator().manual_seed(2))
    a_t, a_p = torch.tensor(0.3), torch.tensor(0.5)
    x_hat = qncd.renoise(a_p.sqrt() * x0 + (1 - a_p).sqrt() * e, a_t, a_p, z1)
    composite = qncd.composite_noise(e, a_t, a_p, z1)
    torch.testing.assert_close(x_hat, a_t.sqrt() * x0 + (1 - a_t).sqrt() * composite)
