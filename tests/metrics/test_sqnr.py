import math

import pytest
import torch
from torch import nn

from dqlab.errors import InvalidInputError
from dqlab.metrics import (
    bootstrap_mean_sqnr_db,
    error_powers,
    mean_sqnr_db,
    sqnr_per_step,
    to_db,
)
from dqlab.trajectory import States


class Answers(nn.Module):
    """Answers x plus a given error, whatever the rows asked about."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, sample, timestep):
        return (sample + self.error(sample, timestep),)


def states(steps: int = 3, count: int = 5) -> States:
    step = torch.arange(steps).repeat_interleave(count)
    seed = torch.arange(count).repeat(steps)
    x = torch.randn(len(step), 2, 4, 4)
    return States(x, 900 - 100 * step, step, seed, x.clone())


def signs(x):
    return torch.randint(0, 2, x.shape) * 2 - 1


@pytest.mark.parametrize("db", [0, 20, 43])
def test_error_of_known_power(db) -> None:
    found = error_powers(states(), Answers(lambda x, t: x * signs(x) * 10 ** (-db / 20)))
    assert sqnr_per_step(found)["sqnr_db"].tolist() == pytest.approx([db] * 3, abs=1e-3)
    assert mean_sqnr_db(found) == pytest.approx(db, abs=1e-3)


def test_by_hand() -> None:
    x = torch.tensor([[3.0], [4.0], [1.0], [2.0]])
    rows = torch.tensor([0, 0, 1, 1])
    given = States(x, 10 - rows, rows, torch.tensor([7, 8, 7, 8]), x)
    error = torch.tensor([[0.0], [0.5], [1.0], [0.0]])
    found = error_powers(given, Answers(lambda x, t: error))
    assert found["signal"].tolist() == [9, 16, 1, 4]
    assert found["noise"].tolist() == [0, 0.25, 1, 0]
    assert found["seed"].tolist() == [7, 8, 7, 8]
    per_step = sqnr_per_step(found)
    assert per_step["step"].tolist() == [0, 1]
    assert per_step["t"].tolist() == [10, 9]
    expected = [10 * math.log10(25 / 0.25), 10 * math.log10(5 / 1)]
    assert per_step["sqnr_db"].tolist() == pytest.approx(expected)
    assert mean_sqnr_db(found) == pytest.approx(sum(expected) / 2)


def test_guidance_mixes_the_branches_before_the_error_is_taken() -> None:
    """Errors u, c of the branches become u + g (c - u), as the sampler sees them."""
    x = torch.tensor([[3.0], [4.0], [1.0], [2.0]])
    same = torch.tensor([0, 0, 0, 0])
    given = States(
        x, 10 - same, same, torch.tensor([7, 8, 7, 8]), x, torch.tensor([0, 0, 1, 1]),
        branches=("uncond", "cond"), guidance_scale=3.0,
    )  # fmt: skip
    error = torch.tensor([[0.1], [0.0], [0.2], [0.5]])
    found = error_powers(given, Answers(lambda x, t: error))
    assert found["seed"].tolist() == [7, 8]
    truth, mixed = [3 + 3 * (1 - 3), 4 + 3 * (2 - 4)], [0.1 + 3 * 0.1, 3 * 0.5]
    assert found["signal"].tolist() == pytest.approx([v**2 for v in truth])
    assert found["noise"].tolist() == pytest.approx([v**2 for v in mixed], rel=1e-5)


def guided_states() -> States:
    """Six states in both branches, stacked as a pipeline stacks them: by step, then by branch."""
    step, seed = torch.arange(3).repeat_interleave(4), torch.tensor([7, 8]).repeat(6)
    branch = torch.tensor([0, 0, 1, 1]).repeat(3)
    x = torch.randn(12, 2)
    return States(
        x, 10 - step, step, seed, x, branch, branches=("uncond", "cond"), guidance_scale=3.0
    )


def test_the_order_of_guided_rows_does_not_matter() -> None:
    given = guided_states()
    network = Answers(lambda x, t: 0.1 * x.flip(1))
    exact = error_powers(given, network)
    shuffled = error_powers(given[torch.randperm(12)], network)
    assert exact["noise"].tolist() == pytest.approx(shuffled["noise"].tolist(), rel=1e-5)
    assert exact["signal"].tolist() == pytest.approx(shuffled["signal"].tolist(), rel=1e-5)


@pytest.mark.parametrize("rows", [range(11), (0, 1, 6, 7), (2, 3)])
def test_a_state_in_one_branch_only_is_refused(rows) -> None:
    with pytest.raises(InvalidInputError, match="both branches of every state"):
        error_powers(guided_states()[torch.tensor(list(rows))], Answers(lambda x, t: x))


def test_batch_size_does_not_matter() -> None:
    given = states()
    first, second = (error_powers(given, Answers(lambda x, t: x / 8), n) for n in (2, 32))
    assert first.equals(second)


def test_interval_holds_the_mean_and_narrows_with_more_trajectories() -> None:
    def noisy(x, t):
        return x * torch.rand(len(x), 1, 1, 1) * 0.2

    widths = []
    for count in (8, 128):
        found = error_powers(states(count=count), Answers(noisy), 1024)
        low, high = bootstrap_mean_sqnr_db(found)
        assert low < mean_sqnr_db(found) < high
        assert bootstrap_mean_sqnr_db(found) == (low, high)
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_an_exact_answer_is_infinite() -> None:
    found = error_powers(states(), Answers(lambda x, t: 0 * x))
    assert mean_sqnr_db(found) == math.inf
    assert bootstrap_mean_sqnr_db(found) == (math.inf, math.inf)
    assert to_db([1.0, 0.0], [0.0, 0.0]).tolist() == [math.inf, math.inf]


def test_an_exact_step_makes_the_mean_infinite_without_a_nan() -> None:
    found = error_powers(states(), Answers(lambda x, t: x * (t > 800).view(-1, 1, 1, 1)))
    assert sqnr_per_step(found)["sqnr_db"].tolist() == pytest.approx([0, math.inf, math.inf])
    assert bootstrap_mean_sqnr_db(found) == (math.inf, math.inf)
