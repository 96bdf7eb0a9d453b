"""The error of a prediction over the true prediction, element by element."""

from __future__ import annotations

from torch import Tensor

from dqlab.phenomena.budget import budget
from dqlab.show import charts
from dqlab.show.bundle import Picture, number
from dqlab.show.panel import Canvas
from dqlab.show.roles import ROLES, role, style


@style()
def error_cloud(eps: Tensor, eps_q: Tensor, where: str, width: int = 640,
                height: int = 340) -> Picture:  # fmt: skip
    """Points of the first and last channel, and the line that both parts of a table take out.

    `eps`, `eps_q`: true and quantized prediction of one step `[N, C, ...]`; `where` names it.
    """
    D = eps_q - eps
    found = budget(D, eps)
    canvas = Canvas(width, height)
    panel = canvas.panels[0]
    low, high = float(eps.min()), float(eps.max())
    for channel, name in ((0, "rtn"), (eps.shape[1] - 1, "method")):
        x, y = (t[:, channel].flatten().tolist() for t in (eps, D))
        panel.dots(x, y, ROLES[name], f"channel {channel}")
        line = [float(found.b[channel] + found.k * end) for end in (low, high)]
        panel.line([low, high], line, role(name), f"channel {channel}", marks=False)
    panel.axes.axhline(0, color=ROLES["full_precision"].colour, linewidth=1)
    panel.axes.set(xlabel="true prediction", ylabel="error of the quantized prediction")
    panel.axes.grid()
    means = D.transpose(0, 1).flatten(1).mean(1)
    words = (
        f"{where}: slope {number(float(found.k))}; channel means from {number(float(means.min()))}"
        f" to {number(float(means.max()))}; standard deviation of the error "
        f"{number(float(D.std()))}."
    )
    return charts.light(canvas.picture(words))
