"""A skyline: how far each channel of a tensor reaches, its parts in colours of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dqlab.errors import InvalidInputError
from dqlab.show.bundle import Picture
from dqlab.show.frames import to_array
from dqlab.show.panel import Canvas
from dqlab.show.roles import role, style

LOOKS = ("ablation_1", "ablation_2", "method", "rtn")
HATCHES = ("", "//", "..", "xx")  # parts differ in grey print, too


@style()
def skyline(reach: Any, sizes: Sequence[int], names: Sequence[str], sentence: str, *,
            step: tuple[float, str] | None = None, limits: tuple[float, float] | None = None,
            unit: str = "largest |value| of the channel", width: int = 640,
            height: int = 310) -> Picture:  # fmt: skip
    """Bars of `reach` [C] on a log axis, channel by channel.

    `sizes` and `names`: channels and name of each consecutive part, at most four. `step`: a
    height and its words, drawn across, such as one step of the quantizer. `limits` fixes the y
    axis, for pictures to be compared.
    """
    heights = to_array(reach, "skyline")
    if sum(sizes) != len(heights) or len(sizes) != len(names) or len(sizes) > len(LOOKS):
        raise InvalidInputError(
            f"Parts of {list(sizes)} channels named {list(names)} do not make a skyline of "
            f"{len(heights)} channels; at most {len(LOOKS)} parts are told apart."
        )
    floor = limits[0] if limits else float(heights[heights > 0].min(initial=1.0)) / 2
    canvas = Canvas(width, height)
    panel = canvas.panels[0]
    starts = np.cumsum([0, *sizes])
    for look, hatch, left, right in zip(LOOKS, HATCHES, starts[:-1], starts[1:], strict=False):
        edges = np.arange(left, right + 1)
        panel.bars(edges, np.maximum(heights[left:right], floor), role(look).colour, hatch)
    panel.log_scale()
    if step is not None:
        panel.line([0, len(heights)], [step[0]] * 2, role("rtn"), step[1], marks=False)
    panel.axes.set_xlim(0, len(heights))
    panel.axes.set_ylim(*(limits or (floor, float(heights.max()) * 2)))
    middles = (starts[:-1] + starts[1:]) / 2
    ticks = [f"{name}\n{size} channels" for name, size in zip(names, sizes, strict=True)]
    panel.axes.set_xticks(middles, ticks)
    panel.axes.tick_params(axis="x", length=0)
    panel.axes.set_ylabel(unit)
    return canvas.picture(sentence)
