import pytest
import torch
from torch import nn

from dqlab.errors import InvalidInputError
from dqlab.layers import StepContext, answer_from
from dqlab.layers.table import expect_table, tables
from dqlab.layers.wrap import wrap_layer
from dqlab.metrics.cost import stored_bytes

STEPS = torch.tensor([900.0, 500.0, 100.0])


def wrapped():
    context, layer = StepContext(), nn.Linear(4, 6)
    context.bind(STEPS)
    wrap_layer(layer, "there", context)
    return layer, context


def test_rows_get_the_answer_of_their_own_step() -> None:
    layer, context = wrapped()
    answers = torch.randn(3, 6)
    table = answer_from(layer, answers)
    context.at(torch.tensor([100.0, 900.0]))
    y = layer(torch.randn(2, 4))
    assert torch.equal(y, table.answers[[2, 0]])
    assert (table.answers - answers).abs().max() <= (answers.amax() - answers.amin()) / 255
    assert torch.equal(layer(torch.randn(4, 4)), table.answers[[2, 2, 0, 0]])  # two frames each
    assert torch.equal(layer(torch.randn(2, 7, 4))[:, 3], table.answers[[2, 0]])


def test_elsewhere_the_layer_answers_itself() -> None:
    layer, context = wrapped()
    x = torch.randn(3, 4)
    before = layer(x).detach()
    table = answer_from(layer, torch.randn(3, 6), torch.tensor([True, False, True]))
    context.at(STEPS)
    y = layer(x)
    assert torch.equal(y[1], before[1]) and torch.equal(y[[0, 2]], table.answers[[0, 2]])


def test_a_step_that_is_not_kept_is_an_error_that_lists_what_is() -> None:
    layer, context = wrapped()
    answer_from(layer, torch.randn(3, 6))
    context.at(torch.tensor([123.0]))
    with pytest.raises(InvalidInputError, match=r"\[123.0\] are not among the 3 steps"):
        layer(torch.randn(1, 4))


def test_answers_must_be_finite() -> None:
    with pytest.raises(InvalidInputError, match=r"there\.answers hold NaN"):
        answer_from(wrapped()[0], torch.full((3, 6), torch.nan))


def test_tables_are_found_loaded_and_counted() -> None:
    layer, _ = wrapped()
    bare = stored_bytes(layer)
    answer_from(layer, torch.randn(3, 6))
    net = nn.ModuleDict({"a": layer})
    assert tables(net) == {"a": [3, 6]}
    assert stored_bytes(net) == bare + 3 * 6 + 3 * (4 + 4 + 1)
    other, _ = wrapped()
    expect_table(other, (3, 6))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.answer_table.answers, layer.answer_table.answers)
