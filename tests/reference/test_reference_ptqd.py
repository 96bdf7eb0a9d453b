import torch

from dqlab.reference import ptqd


def planted(slope: float, count: int = 200_000):
    """eps ~ N(0, 1), D = slope eps + b_c + 0.2 n."""
    generator = torch.Generator().manual_seed(0)
    eps, n = torch.randn(2, count // 100, 3, 10, 10, generator=generator)
    bias = torch.tensor([0.1, -0.05, 0.3])
    return eps, slope * eps + bias.reshape(3, 1, 1) + 0.2 * n, bias


def test_planted_correlation_bias_and_variance_come_back() -> None:
    eps, D, bias = planted(0.3)
    k = ptqd.correlation_slope(D, eps)
    mu, s2 = ptqd.residual_statistics(D, eps, k)
    assert abs(k - 0.3) < 0.01
    assert (mu - bias).abs().max() < 0.01
    assert abs(s2.sqrt() - 0.2) < 0.01
    left = ptqd.corrected_prediction(eps + D, k, mu) - eps
    assert abs(left.std() - 0.2 / 1.3) < 0.002


def test_a_negative_slope_is_zero_and_leaves_the_error_whole() -> None:
    eps, D, _ = planted(-0.2)
    k = ptqd.correlation_slope(D, eps)
    mu, s2 = ptqd.residual_statistics(D, eps, k)
    assert k == 0
    torch.testing.assert_close(mu, D.double().mean((0, 2, 3)))
    torch.testing.assert_close(s2, D.double().var((0, 2, 3), correction=0).mean())
    assert abs(ptqd.correlation_slope(D, eps, clip=False) + 0.2) < 0.01


def test_an_exact_multiple_is_undone() -> None:
    eps = torch.randn(4, 3, 5, 5)
    D = 0.25 * eps
    k = ptqd.correlation_slope(D, eps)
    mu, s2 = ptqd.residual_statistics(D, eps, k)
    torch.testing.assert_close(ptqd.corrected_prediction(eps + D, k, mu).float(), eps)
    assert abs(k - 0.25) < 1e-6 and mu.abs().max() < 1e-6 and s2 < 1e-12


def test_a_constant_prediction_has_no_slope() -> None:
    eps = torch.full((2, 3, 4, 4), 0.7)
    assert ptqd.correlation_slope(torch.randn_like(eps), eps) == 0


def schedule_at(t: int, stride: int):
    """(beta, alpha, a_t, a_p, sigma at eta 1) of a linear schedule."""
    alphas = 1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    cumulative = alphas.cumprod(0)
    a_t, a_p = cumulative[t], cumulative[t - stride]
    sigma = ((1 - a_p) / (1 - a_t) * (1 - a_t / a_p)).sqrt()
    return 1 - alphas[t], alphas[t], a_t, a_p, sigma


def test_ddpm_and_ddim_agree_on_adjacent_timesteps() -> None:
    k, s2 = torch.tensor(0.1), torch.tensor(0.01)
    for t in (10, 400, 999):
        beta, alpha, a_t, a_p, sigma = schedule_at(t, 1)
        ddim = ptqd.ddim_sigma(a_t, a_p, sigma, k, s2)
        ddpm = ptqd.ddpm_sigma(beta, alpha, a_t, sigma, k, s2)
        torch.testing.assert_close(ddim, ddpm, rtol=1e-5, atol=0)


def step_down(x, e, a_t, a_p, sigma, direction_sigma, noise_sigma, z):
    x0 = (x - (1 - a_t).sqrt() * e) / a_t.sqrt()
    direction = (1 - a_p - direction_sigma**2).clamp(min=0).sqrt()
    return a_p.sqrt() * x0 + direction * e + noise_sigma * z


def one_step(updated: bool):
    """Mean and variance of the corrected step, minus and over the full-precision step's."""
    _, _, a_t, a_p, sigma = schedule_at(500, 50)
    k, s = torch.tensor(0.2, dtype=torch.float64), 0.4
    eps, x = 1.0, 0.8
    residual, z = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(1)).double()
    e = (eps * (1 + k) + s * residual) / (1 + k)
    calm = ptqd.ddim_sigma(a_t, a_p, sigma, k, torch.tensor(s**2))
    x_p = step_down(x, e, a_t, a_p, sigma, calm if updated else sigma, calm, z)
    exact = step_down(x, torch.tensor(eps), a_t, a_p, sigma, sigma, 0.0, 0.0)
    weight = ptqd.ddim_weight(a_t, a_p, sigma, k)
    assert 0 < weight**2 * s**2 < sigma**2
    return x_p.mean() - exact, x_p.var() / sigma**2


def test_the_residual_replaces_the_samplers_own_noise() -> None:
    shift, ratio = one_step(updated=False)
    assert abs(shift) < 1e-2 and abs(ratio - 1) < 0.02


def test_sigma_in_the_direction_term_shifts_the_mean() -> None:
    shift, _ = one_step(updated=True)
    assert abs(shift) > 1e-2


def test_more_residual_than_noise_leaves_none() -> None:
    _, _, a_t, a_p, sigma = schedule_at(500, 50)
    zero = torch.tensor(0.0)
    assert ptqd.ddim_sigma(a_t, a_p, sigma, zero, torch.tensor(1e3)) == 0
    assert ptqd.ddim_sigma(a_t, a_p, zero, zero, torch.tensor(1.0)) == 0
    assert ptqd.ddim_sigma(a_t, a_p, sigma, zero, zero) == sigma


def test_bits_are_the_fewest_whose_snr_exceeds_the_schedules() -> None:
    snr_f = torch.tensor([0.5, 2.0, 2.0, 9.0])
    snr_q = {8: torch.tensor([9.0, 9.0, 2.5, 8.0]), 4: torch.tensor([1.0, 2.0, 1.0, 1.0])}
    # at step 1 four bits only equal the schedule, at step 3 no bits suffice
    assert ptqd.step_aware_bits(snr_q, snr_f) == [4, 8, 8, 8]
    assert ptqd.snr_forward(torch.tensor(0.75)) == 3
    assert ptqd.snr_quantized(torch.full((4,), 3.0), torch.full((4,), 0.5)) == 6
