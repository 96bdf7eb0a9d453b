"""BRECQ's losses, LSQ's gradient and QDrop's mix against numpy and known values."""

import math

import numpy as np
import pytest
import torch

from dqlab.errors import InvalidInputError
from dqlab.formats import Affine, Range
from dqlab.reference.brecq import block_loss, damped, fisher_diagonal, fisher_full
from dqlab.reference.lsq import gradient_scale, step_gradient
from dqlab.reference.qdrop import mix


@pytest.mark.parametrize("shape", [(4, 6, 3, 5), (4, 7, 8), (4, 6)])
@pytest.mark.parametrize("p", [2.0, 2.4])
def test_block_loss_sums_dimension_one_and_averages_the_rest(shape, p: float) -> None:
    a, b = torch.randn(shape).double(), torch.randn(shape).double()
    wanted = (np.abs(a.numpy() - b.numpy()) ** p).sum() * shape[1] / np.prod(shape)
    assert block_loss(a, b, p).item() == pytest.approx(wanted, rel=1e-12)


def test_a_difference_of_one_everywhere_costs_the_number_of_channels() -> None:
    z = torch.randn(2, 24, 4, 4)
    assert block_loss(z + 1, z).item() == pytest.approx(24, rel=1e-6)


def test_fisher_with_equal_sensitivity_is_the_plain_loss() -> None:
    a, b = torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4)
    plain, ones = block_loss(a, b), torch.ones_like(a)
    torch.testing.assert_close(fisher_diagonal(a, b, ones), plain)
    torch.testing.assert_close(damped(torch.zeros(3)), torch.ones(3))


def test_an_insensitive_channel_does_not_count() -> None:
    a, b, g = torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4), torch.rand(2, 5, 4, 4)
    g[:, 3] = 0
    changed = a.clone()
    changed[:, 3] += 100
    assert fisher_diagonal(a, b, g) == fisher_diagonal(changed, b, g)


def test_fisher_full_against_numpy() -> None:
    a, b, g = (torch.randn(3, 4, 2, 2).double() for _ in range(3))
    n = [x.numpy() for x in (a, b, g)]
    weighted = np.abs(n[0] - n[1]) * np.abs(n[2])
    wanted = np.mean([row.sum() * row.mean() for row in weighted]) / 100
    assert fisher_full(a, b, g).item() == pytest.approx(wanted, rel=1e-12)
    with pytest.raises(InvalidInputError, match="fisher_full"):
        fisher_full(a[0], b[0], g[0])


def test_known_step_gradients() -> None:
    s, z = torch.tensor(0.5), torch.tensor(5.0)
    inside = step_gradient(3.3 * s, s, torch.tensor(0.0), -8, 7)
    assert inside.item() == pytest.approx(-0.3, abs=1e-6)
    assert step_gradient(torch.tensor(100.0), s, z, 0, 15).item() == 10
    assert step_gradient(torch.tensor(-100.0), s, z, 0, 15).item() == -5


@pytest.mark.parametrize("variant", ["asymmetric", "sym_signed_narrow"])
def test_the_simulated_quantizer_has_this_gradient(variant: str) -> None:
    fmt = Affine(4, variant)
    x = torch.randn(200)
    s = torch.tensor(0.2, requires_grad=True)
    z = torch.tensor(6.0 if variant == "asymmetric" else 0.0)
    fmt.fake_quant(x, Range(s, z)).sum().backward()
    wanted = step_gradient(x, s.detach(), z, fmt.q_min, fmt.q_max).sum()
    torch.testing.assert_close(s.grad, wanted)


def test_the_gradient_scale() -> None:
    assert gradient_scale(64, 15) == 1 / math.sqrt(64 * 15)


def test_mixing_takes_its_share_of_elements() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.zeros(100, 100), torch.ones(100, 100)
    share = 1 - mix(a, b, 0.3, generator).mean().item()
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 10_000)
    assert mix(a, b, 1.0, generator) is a
    assert mix(a, b, 0.0, generator) is b
