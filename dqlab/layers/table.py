"""Answers of a layer that depend on the timestep alone, kept instead of computed.

A table simulates them: the layer still runs, and its answer is then replaced by the kept one of
the row's sampling step. Deployed, neither the layer nor what feeds it alone would run.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError
from dqlab.formats import Affine, Range
from dqlab.layers.context import StepContext
from dqlab.layers.wrap import TABLE, QuantizedLayer

BITS = 8


class AnswerTable(nn.Module):
    """A layer's answers at every step of the bound schedule, in 8-bit codes with a range per step.

    Attributes:
        codes: uint8 `[T, C]`.
        scale, zero_point: `[T, 1]`.
        used: bool `[T]`: steps at which the table answers; at the others the layer does.

    """

    def __init__(self, site: str, context: StepContext, steps: int, channels: int):
        super().__init__()
        self.site, self.context = site, context
        self.register_buffer("codes", torch.zeros(steps, channels, dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(steps, 1))
        self.register_buffer("zero_point", torch.zeros(steps, 1))
        self.register_buffer("used", torch.ones(steps, dtype=torch.bool))

    @property
    def answers(self) -> Tensor:
        """What is kept, `[T, C]`."""
        return Affine(BITS).decode(self.codes, Range(self.scale, self.zero_point))

    def forward(self, y: Tensor) -> Tensor:
        """The kept answers of the rows' steps where they are used, else `y` `[N, ..., C]`."""
        steps = self.context.steps_of(len(y), self.site).to(y.device)
        shape = (len(y), *[1] * (y.ndim - 2), -1)
        kept, used = self.answers[steps].reshape(shape), self.used[steps].reshape(shape)
        return torch.where(used, kept.to(y.dtype), y)


def answer_from(layer: QuantizedLayer, answers: Tensor, used: Tensor | None = None) -> AnswerTable:
    """Let a wrapped layer answer with `answers` `[T, C]`, at the steps `used` `[T]` or at all.

    Raises:
        InvalidInputError: if they are not finite.

    """
    site = layer.input_quantizer.site.removesuffix("input") + "answers"
    if not bool(answers.isfinite().all()):
        raise InvalidInputError(f"{site} hold NaN or infinity; check the model's weights.")
    low, high = answers.aminmax(dim=1, keepdim=True)
    found = Affine(BITS).params(low, high)
    table = AnswerTable(site, layer.input_quantizer.context, *answers.shape)
    table.codes = Affine(BITS).encode(answers, found).to(torch.uint8)
    table.scale, table.zero_point = found.scale, found.zero_point
    if used is not None:
        table.used = used.to(table.used.device)
    layer.add_module(TABLE, table)
    return table


def expect_table(layer: QuantizedLayer, shape: tuple[int, int]) -> None:
    """Make room for a table whose numbers are yet to be loaded."""
    answer_from(layer, torch.zeros(*shape, device=layer.weight.device))


def tables(model: nn.Module) -> dict[str, list[int]]:
    """Steps and channels of every table, by the path of its layer."""
    return {
        path.removesuffix(f".{TABLE}"): list(m.codes.shape)
        for path, m in model.named_modules()
        if isinstance(m, AnswerTable)
    }
