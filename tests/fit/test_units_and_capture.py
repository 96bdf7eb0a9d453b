"""Units in execution order, and what hooks read at their doors."""

import pytest
import torch
from torch import nn
from wrapped_unet import bench, weight_bench

from dqlab.errors import InvalidInputError
from dqlab.fit import Tape, capture, inner_layers
from dqlab.fit.capture import affordable, row_bytes
from dqlab.fit.steps import activation_quantizers
from dqlab.formats import Range
from dqlab.trajectory import States


def test_units_are_blocks_in_the_order_they_run() -> None:
    made = weight_bench()
    paths = [u.path for u in made.units]
    assert paths == sorted(paths, key=made.anatomy.order.index)
    assert paths.index("mid_block.resnets.0") < paths.index("mid_block.attentions.0")
    assert paths.index("mid_block.attentions.0") < paths.index("mid_block.resnets.1")
    assert paths.index("up_blocks.0.resnets.0") < paths.index("up_blocks.0.attentions.0")
    assert paths.index("up_blocks.0.attentions.0") < paths.index("up_blocks.0.resnets.1")
    assert paths[-1] == "conv_out"


def test_every_layer_is_in_exactly_one_unit() -> None:
    made = weight_bench()
    inside = [path for u in made.units for path in u.layers]
    assert sorted(inside) == sorted(made.anatomy.layers)
    kinds = {u.path: u.kind for u in made.units}
    assert kinds["mid_block.resnets.0"] == "residual"
    assert kinds["mid_block.attentions.0"] == "attention"
    assert kinds["conv_in"] == "layer"
    assert "mid_block.resnets.0.time_emb_proj" in made.unit("mid_block.resnets.0").layers
    assert "up_blocks.0.resnets.0.conv_shortcut" in made.unit("up_blocks.0.resnets.0").layers


def test_transformer_blocks_are_units_and_swallow_their_attentions() -> None:
    from diffusers.models.attention import BasicTransformerBlock

    from dqlab.fit import units_of
    from dqlab.layers import StepContext, explore
    from dqlab.layers.wrap import wrap_attention, wrap_layer

    model = nn.Sequential(nn.Linear(8, 8), BasicTransformerBlock(8, 1, 8)).eval()
    anatomy = explore(model, lambda: model(torch.randn(1, 3, 8)))
    for path in anatomy.layers:
        wrap_layer(model.get_submodule(path), path, StepContext())
    for path in anatomy.attentions:
        wrap_attention(model.get_submodule(path), path, StepContext())
    units = units_of(model, anatomy.order, anatomy.layers)
    assert [(u.path, u.kind) for u in units] == [("0", "layer"), ("1", "transformer")]


def test_inner_layers_are_those_that_do_not_add_to_the_output_directly() -> None:
    made = bench(weights=None)
    for path, inner in {
        "mid_block.resnets.0": ["conv1", "time_emb_proj"],
        "up_blocks.0.resnets.0": ["conv1", "time_emb_proj"],
        "mid_block.attentions.0": ["to_q", "to_k", "to_v"],
        "conv_in": [],
    }.items():
        example = capture(made.teacher, [path], made.states[:1])[path]
        found = inner_layers(made.teacher, made.unit(path), example)
        assert found == [f"{path}.{name}" for name in inner]


def test_captured_inputs_are_bit_identical_to_a_manual_forward() -> None:
    made = weight_bench()
    for path in ("mid_block.resnets.0", "mid_block.attentions.0", "conv_out"):
        seen = []
        handle = made.student.get_submodule(path).register_forward_hook(
            lambda m, args, y, seen=seen: seen.append((args[0].clone(), y.clone()))
        )
        for part in made.states.batches(5):
            part.call(made.student)
        handle.remove()
        kept = capture(made.student, [path], made.states, batch_size=5)[path]
        assert torch.equal(kept.leaves[0], torch.cat([x for x, _ in seen]))
        assert torch.equal(kept.output, torch.cat([y for _, y in seen]))


def test_the_run_stops_where_it_can() -> None:
    made, ran = weight_bench(), []
    hook = made.student.conv_out.register_forward_hook(lambda *_: ran.append("conv_out"))
    own = made.student.mid_block.resnets[0].register_forward_hook(lambda *_: ran.append("mid"))
    capture(made.student, ["mid_block.resnets.0"], made.states[:2], outputs=False)
    assert ran == []
    capture(made.student, ["mid_block.resnets.0"], made.states[:2])
    assert set(ran) == {"mid"}
    hook.remove()
    own.remove()
    made.states[:1].call(made.student)
    assert not made.student.conv_out._forward_hooks


def test_a_unit_called_on_what_was_captured_answers_the_same() -> None:
    made = weight_bench()
    for unit in made.units:
        kept = capture(made.teacher, [unit.path], made.states[:4])[unit.path]
        rows = torch.tensor([2, 0])
        again = kept.take(rows).call(made.teacher.get_submodule(unit.path))
        torch.testing.assert_close(again, kept.output[rows], atol=1e-5, rtol=1e-5)


class Tabled(nn.Module):
    """A network whose block takes a constant as long as a whole number of batches."""

    def __init__(self):
        super().__init__()
        self.block = Rotated(3, 3)
        self.register_buffer("table", torch.randn(8, 3))

    def forward(self, sample, timestep):
        return (self.block(sample, timestep, table=self.table),)


class Rotated(nn.Linear):
    def forward(self, x, t, table):
        return super().forward(x * table[: x.shape[1]]) + t[:, None, None]


@pytest.mark.parametrize("rows", [1, 4, 8, 12])
def test_constants_are_told_from_rows_whatever_their_length(rows) -> None:
    model, one = Tabled(), torch.arange(rows)
    x = torch.randn(rows, 5, 3)
    states = States(x, 900 - one, one, one, x)
    kept = capture(model, ["block"], states, batch_size=4)["block"]
    assert kept.per_row == [True, True, False]
    chosen = torch.arange(rows).flip(0)[:3]
    again = kept.take(chosen).call(model.block)
    torch.testing.assert_close(again, kept.output[chosen])


def test_a_unit_that_runs_alone_uses_the_ranges_of_its_rows_steps() -> None:
    """Whatever step the whole network was asked about before."""
    made = bench(weights=None, activations=4)
    schedule = made.states.t.unique().flip(0)
    made.student.step_context.bind(schedule)
    for quantizer in activation_quantizers(made.student):
        scale = quantizer.scale * torch.logspace(0, 2, len(schedule))
        zero = quantizer.zero_point.expand(len(schedule))
        quantizer.set_range(Range(scale, zero), per_step=True)
    unit = made.unit("mid_block.resnets.0")
    kept = capture(made.student, [unit.path], made.states)[unit.path]
    rows = torch.randperm(len(made.states))[:4]
    made.states[:4].call(made.student)
    again = kept.take(rows).call(made.student.get_submodule(unit.path))
    torch.testing.assert_close(again, kept.output[rows], atol=1e-4, rtol=1e-4)


def test_a_tape_gives_the_same_whatever_the_memory() -> None:
    made = weight_bench()
    paths = [u.path for u in made.units]
    wide = Tape(made.teacher, paths, made.states)
    sizes = row_bytes(capture(made.teacher, paths, made.states[:1]))
    limit = 2 * max(sizes.values()) * len(made.states)
    narrow = Tape(made.teacher, paths, made.states, memory=limit)
    for path in paths:
        assert torch.equal(wide[path].output, narrow[path].output)
        held = sum(sizes[p] for p in narrow.kept) * len(made.states)
        assert held <= limit
    assert len(wide.kept) == len(paths)


def test_more_rows_than_memory_holds_are_thinned_evenly() -> None:
    states = weight_bench().states
    with pytest.warns(UserWarning, match="evenly spaced"):
        kept = affordable(states, 100, memory=400)
    assert torch.equal(kept.x, states.x[[0, 4, 7, 11]])
    assert affordable(states, 100, memory=1200) is states


def test_nan_is_reported_where_it_is() -> None:
    made = weight_bench()
    with torch.no_grad():
        made.student.mid_block.resnets[0].conv1.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(InvalidInputError, match=r"mid_block\.resnets\.1"):
        capture(made.student, ["mid_block.resnets.1"], made.states)


def test_an_empty_set_is_refused() -> None:
    made = weight_bench()
    with pytest.raises(InvalidInputError, match="empty"):
        capture(made.student, ["conv_in"], made.states[:0])
