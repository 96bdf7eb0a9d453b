import math

import pytest
import torch

from dqlab.reference import d2_dpm

DRAWS = 1_000_000
V_QQ, V_QD, V_DD = 1.44, 0.3, 0.25
MU_Q, MU_D = 0.2, -0.1


def planted():
    """(Eq, D) of a known joint law."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, DRAWS, generator=generator, dtype=torch.float64)
    Eq = MU_Q + math.sqrt(V_QQ) * a
    D = MU_D + V_QD / math.sqrt(V_QQ) * a + math.sqrt(V_DD - V_QD**2 / V_QQ) * b
    return Eq, D


def test_a_known_law_comes_back() -> None:
    law = d2_dpm.joint(*planted())
    expected = (MU_Q, MU_D, V_QQ, V_QD, V_DD)
    for found, known in zip(law, expected, strict=True):
        assert abs(float(found) - known) < 0.01 * max(abs(known), 0.2)


def test_error_variances_are_v_c_and_twice_v_c() -> None:
    Eq, D = planted()
    law = d2_dpm.joint(Eq, D)
    v_c = d2_dpm.conditional_variance(*law[2:])
    assert abs(v_c - (V_DD - V_QD**2 / V_QQ)) < 0.01 * v_c
    E = Eq - D
    calm = Eq - d2_dpm.conditional_mean(Eq, law.mu_q, law.mu_D, d2_dpm.slope(law.v_qq, law.v_qD))
    z = torch.randn(DRAWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = calm - v_c.sqrt() * z
    assert abs((calm - E).var() / v_c - 1) < 0.01
    assert abs((drawn - E).var() / (2 * v_c) - 1) < 0.01
    assert abs(drawn.var() / E.var() - 1) < 0.01  # the law of E itself
    assert abs(calm.var() - (E.var() - v_c)) < 0.01 * E.var()  # shrunk by v_c


def test_an_exact_line_leaves_no_variance() -> None:
    Eq = torch.randn(4096, dtype=torch.float64)
    law = d2_dpm.joint(Eq, 0.25 * Eq + 0.1)
    v_c = d2_dpm.conditional_variance(*law[2:])
    assert 0 <= v_c < 1e-12
    b = d2_dpm.slope(law.v_qq, law.v_qD)
    e = Eq - d2_dpm.conditional_mean(Eq, law.mu_q, law.mu_D, b)
    torch.testing.assert_close(e, 0.75 * Eq - 0.1)


def test_an_independent_error_loses_its_mean_only() -> None:
    generator = torch.Generator().manual_seed(2)
    Eq, n = torch.randn(2, DRAWS, generator=generator)
    law = d2_dpm.joint(Eq, 0.3 + 0.1 * n)
    assert d2_dpm.slope(law.v_qq, law.v_qD).abs() < 5 * 0.1 / math.sqrt(DRAWS)
    assert abs(law.mu_D - 0.3) < 5 * 0.1 / math.sqrt(DRAWS)


def test_trimming_takes_the_outlier_and_no_more_of_a_constant() -> None:
    D = torch.randn(10_000, generator=torch.Generator().manual_seed(3))
    Eq = torch.randn(10_000, generator=torch.Generator().manual_seed(4))
    spoilt, more = torch.cat([D, torch.tensor([100.0])]), torch.cat([Eq, torch.tensor([0.0])])
    keep = d2_dpm.kept(spoilt)
    assert not keep[-1] and keep[:-1].all()
    for found, clean in zip(d2_dpm.joint(more, spoilt, keep), d2_dpm.joint(Eq, D), strict=True):
        assert abs(found - clean) < 1e-3
    constant = torch.full((100,), 0.7)
    assert d2_dpm.kept(constant).all()
    law = d2_dpm.joint(Eq[:100], constant)
    assert d2_dpm.conditional_variance(*law[2:]) == 0


def test_identical_channels_are_one_law() -> None:
    Eq, D = (x[:1000] for x in planted())
    whole = d2_dpm.joint(Eq.repeat(3), D.repeat(3))
    each = d2_dpm.joint(Eq.expand(3, -1), D.expand(3, -1))
    n = len(Eq)
    for name in ("mu_q", "mu_D"):
        torch.testing.assert_close(getattr(each, name), getattr(whole, name).expand(3))
    for name in ("v_qq", "v_qD", "v_DD"):  # n - 1 against 3 n - 1
        scaled = getattr(whole, name) * (3 * n - 1) / (3 * (n - 1))
        torch.testing.assert_close(getattr(each, name), scaled.expand(3))


def at(a_t: float, a_p: float, eta: float = 1.0):
    a_t, a_p = torch.tensor(a_t, dtype=torch.float64), torch.tensor(a_p, dtype=torch.float64)
    sigma = eta * ((1 - a_p) / (1 - a_t) * (1 - a_t / a_p)).sqrt()
    return a_t, a_p, sigma


def test_sigma_by_channel_is_the_scalar_formula() -> None:
    step = at(0.3, 0.6)
    v_c = torch.tensor([0.01, 0.04, 0.09], dtype=torch.float64)
    found = d2_dpm.ddim_sigma(*step, v_c)
    assert torch.equal(found, torch.stack([d2_dpm.ddim_sigma(*step, v) for v in v_c]))
    k = d2_dpm.ddim_weight(*step)
    torch.testing.assert_close(found**2 + k**2 * v_c, (step[2] ** 2).expand(3))


@pytest.mark.parametrize(
    ("step", "v_c"), [(at(0.3, 0.6, eta=0.0), 0.1), (at(0.3, 0.6), 1e6), (at(0.9, 1.0), 0.1)]
)
def test_nothing_is_left_where_there_is_no_noise_or_too_much_error(step, v_c) -> None:
    assert d2_dpm.ddim_sigma(*step, torch.tensor(v_c)) == 0
    assert d2_dpm.ddim_weight(*step).isfinite()


@pytest.mark.parametrize("s2", [0.0, 0.04])
def test_it_takes_out_at_least_what_ptqd_does(s2) -> None:
    """Against draws of D = k E + D'; both coincide where nothing is left over."""
    k, generator = 0.2, torch.Generator().manual_seed(5)
    E, n = torch.randn(2, DRAWS, generator=generator, dtype=torch.float64)
    D = k * E + math.sqrt(s2) * n
    law = d2_dpm.joint(E + D, D)
    predicted = d2_dpm.slope_with_correlated_error(
        torch.tensor(k), torch.tensor(1.0), torch.tensor(s2)
    )
    assert abs(d2_dpm.slope(law.v_qq, law.v_qD) - predicted) < 1e-3
    assert (predicted > k / (1 + k)) == (s2 > 0) or abs(predicted - k / (1 + k)) < 1e-7
