"""A chart described once and drawn twice: by matplotlib for the PNG, as plotly JSON for hovering.

Both have the same size, axes, colours and words, so that the live plot takes the picture's place
without a jump.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from dqlab.errors import InvalidInputError
from dqlab.show.bundle import (
    CHART_PALETTE,
    SCALE,
    Picture,
    figure_png,
    is_quick,
    number,
    round_significant,
)
from dqlab.show.roles import FONT, INK, MAX_WIDTH, PAPER, PLOTLY_LAYOUT, RULE, TITLE_FONT, Role

PLATE = {"boxstyle": "round,pad=0.1,rounding_size=0.3", "facecolor": PAPER, "edgecolor": "none"}
CASING = 1.6  # pixels of white on either side of a near-black line


class Panel:
    """One pair of axes; every mark put on it is drawn by matplotlib and noted for plotly."""

    def __init__(self, axes: Axes, index: int) -> None:
        self.axes = axes
        self.traces: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []
        self.number = "" if index == 0 else str(index + 1)
        self.bar: Axes | None = None
        self.ends: list[tuple[str, Role, float, float]] = []

    def _note_trace(self, kind: str, **trace: Any) -> None:
        anchors = {"xaxis": f"x{self.number}", "yaxis": f"y{self.number}"}
        self.traces.append({"type": kind, **anchors, **trace})

    def line(self, x: Sequence, y: Sequence, look: Role, label: str, marks: bool = True) -> None:
        """A line with markers in a role's look, labelled directly at its right end."""
        case = [patheffects.withStroke(linewidth=2.2 + 2 * CASING, foreground=PAPER)]
        self.axes.plot(
            x, y, color=look.colour, linestyle=look.line, marker=look.marker if marks else "",
            markerfacecolor=PAPER if look.hollow else look.colour, zorder=3,
            path_effects=case if look.colour == INK else [],
        )  # fmt: skip
        width = [(2.2 + 2 * CASING, PAPER)] if look.colour == INK else []
        for thick, colour in [*width, (2.2, look.colour)]:
            under = colour == PAPER
            self._note_trace(
                "scatter", x=list(x), y=list(y), name=label,
                mode="lines" if under or not marks else "lines+markers",
                line={"color": colour, "width": thick, "dash": "solid" if under else look.dash},
                marker={"symbol": look.symbol, "size": 7,
                        "line": {"color": PAPER, "width": 1.5 if look.colour == INK else 0}},
                hoverinfo="skip" if under else "all",
            )  # fmt: skip
        if label:
            self.ends.append((label, look, float(x[-1]), float(y[-1])))

    def dots(self, x: Sequence, y: Sequence, look: Role, label: str) -> None:
        """Points without a line, in a role's look; `label` is told on hovering."""
        self.axes.plot(x, y, linestyle="", marker=look.marker, color=look.colour, zorder=3)
        self._note_trace(
            "scatter", x=list(x), y=list(y), name=label, mode="markers",
            marker={"symbol": look.symbol, "size": 7, "color": look.colour},
        )  # fmt: skip

    def ribbon(self, x: Sequence, low: Sequence, high: Sequence, look: Role) -> None:
        """The area between `low` and `high`, faint, in a role's colour."""
        colour = RULE if look.colour == INK else look.colour
        self.axes.fill_between(x, low, high, color=colour, alpha=0.28, linewidth=0)
        self._polygon(list(x) + list(x)[::-1], list(high) + list(low)[::-1], colour, 0.28)

    def error_bars(self, x: Sequence, y: Sequence, low: Any, high: Any, look: Role) -> None:
        """Vertical bars from `low` to `high` through `y`."""
        below, above = np.subtract(y, low), np.subtract(high, y)
        self.axes.errorbar(
            x, y, yerr=[below, above], fmt="none", ecolor=look.colour, capsize=3, linewidth=1.2
        )
        self._note_trace(
            "scatter", x=list(x), y=list(y), mode="markers", hoverinfo="skip",
            marker={"size": 1, "color": look.colour},
            error_y={"type": "data", "symmetric": False, "array": above, "arrayminus": below,
                     "color": look.colour, "thickness": 1.2, "width": 3},
        )  # fmt: skip

    def band(self, low: float, high: float, look: Role, label: str) -> None:
        """A horizontal band over the whole width with edges, labelled at the right end."""
        self.axes.axhspan(low, high, color=look.colour, alpha=0.14, linewidth=0, zorder=0)
        left, right = self.axes.get_xlim()
        self._polygon([left, right, right, left], [low, low, high, high], look.colour, 0.14)
        for edge in (low, high):
            self.axes.axhline(edge, color=look.colour, linestyle=look.line, linewidth=1.4)
            self._note_trace(
                "scatter", x=[left, right], y=[edge, edge], mode="lines", name=label,
                line={"color": look.colour, "width": 1.4, "dash": look.dash},
            )  # fmt: skip
        self.ends.append((label, look, float(right), float((low + high) / 2)))

    def _polygon(self, x: list, y: list, colour: str, alpha: float) -> None:
        red, green, blue = (round(255 * c) for c in to_rgba(colour)[:3])
        self._note_trace(
            "scatter", x=x, y=y, mode="lines", fill="toself", line={"width": 0},
            fillcolor=f"rgba({red},{green},{blue},{alpha})", hoverinfo="skip",
        )  # fmt: skip

    def bars(self, edges: np.ndarray, heights: Any, colour: str, hatch: str = "") -> None:
        """Histogram bars between neighbouring `edges`; `hatch` marks them without colour."""
        widths, middle = np.diff(edges), (edges[1:] + edges[:-1]) / 2
        self.axes.stairs(
            heights, edges, fill=True, facecolor=colour, hatch=hatch, linewidth=0,
            edgecolor=PAPER if hatch else colour,
        )  # fmt: skip
        pattern = {"shape": hatch[:1], "fgcolor": PAPER} if hatch else {}
        self._note_trace(
            "bar", x=middle, y=heights, width=widths,
            marker={"color": colour, "pattern": pattern, "line": {"width": 0.4, "color": colour}},
        )  # fmt: skip

    def comb(self, at: np.ndarray, bottom: float, top: float, look: Role, label: str) -> None:
        """Vertical teeth at the positions `at`."""
        case = [patheffects.withStroke(linewidth=1.6 + CASING, foreground=PAPER)]
        self.axes.vlines(at, bottom, top, color=look.colour, linewidth=1.6,
                         path_effects=case if look.colour == INK else [])  # fmt: skip
        teeth = np.repeat(at, 3).astype(object)
        heights = np.tile(np.array([bottom, top, None], dtype=object), len(at))
        self._note_trace(
            "scatter", x=list(teeth), y=list(heights), mode="lines", name=label,
            line={"color": look.colour, "width": 1.6}, hovertemplate="%{x}<extra></extra>",
        )  # fmt: skip

    def heat(self, values: np.ndarray, cmap: str, limits: tuple[float, float], unit: str,
             names: tuple[Sequence[str], Sequence[str]]) -> Any:  # fmt: skip
        """A matrix as coloured cells, row 0 on top; `names` are the (row, column) names."""
        rows, columns = values.shape
        image = self.axes.imshow(
            values, cmap=colormaps[cmap].resampled(64), vmin=limits[0], vmax=limits[1],
            aspect="auto", interpolation="nearest", extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
        )  # fmt: skip
        scale = [[i / 16, _hex(image.cmap(i / 16))] for i in range(17)]
        text = [[f"{row}<br>{column}" for column in names[1]] for row in names[0]]
        self._note_trace(
            "heatmap", z=values, colorscale=scale, zmin=limits[0], zmax=limits[1],
            showscale=False, text=text, hovertemplate=f"%{{text}}<br>%{{z}} {unit}<extra></extra>",
        )  # fmt: skip
        return image

    def valley(self, depth: np.ndarray, names: Mapping[str, float]) -> None:
        """A profile of `depth` in [0, 1] per row, with upright names at their rows."""
        rows = np.arange(len(depth))
        self.axes.fill_betweenx(rows, 0, depth, color=RULE, alpha=0.3, linewidth=0)
        self.axes.plot(depth, rows, color=RULE, linewidth=2)
        self.axes.set(xlim=(-0.08, 1.1), ylim=(len(depth) - 0.5, -0.5), xticks=[])
        self._note_trace(
            "scatter", x=depth, y=rows, mode="lines", line={"color": RULE, "width": 2},
            fill="tozerox", hoverinfo="skip",
        )  # fmt: skip
        for name, row in names.items():
            self.axes.text(0.45, row, name, rotation=90, ha="center", va="center")
            self.notes.append({
                "x": 0.45, "y": row, "text": name, "textangle": -90, "showarrow": False,
                "xref": f"x{self.number}", "yref": f"y{self.number}",
            })  # fmt: skip
        for side in ("left", "bottom"):
            self.axes.spines[side].set_visible(False)

    def text(self, x: float, y: float, words: str, colour: str = INK, *, plate: bool = False,
             **align: Any) -> None:  # fmt: skip
        """Words at a point of the data; with a plate unless they stand on a cell."""
        style = {"ha": "center", "va": "center", **align}
        self.axes.text(x, y, words, color=colour, **style).set_gid("" if plate else "bare")
        bare = {"bgcolor": "rgba(0,0,0,0)", "font": {"color": colour, "shadow": "none"}}
        self.notes.append({} if plate else bare)
        self.notes[-1].update({
            "x": x, "y": y, "text": words, "showarrow": False,
            "xref": f"x{self.number}", "yref": f"y{self.number}",
            "xanchor": style["ha"],
            "yanchor": style["va"].replace("center", "middle"),
        })  # fmt: skip

    def remark(self, x: float, words: str) -> None:
        """Words at the top of the panel above `x`, kept inside the axes."""
        left, right = self.axes.get_xlim()
        side = "left" if x < (left + right) / 2 else "right"
        at = 0.01 if side == "left" else 0.99
        self.axes.text(at, 0.97, words, ha=side, va="top", transform=self.axes.transAxes)
        self.notes.append({
            "x": at, "y": 0.97, "text": words, "showarrow": False, "xanchor": side,
            "yanchor": "top", "xref": f"x{self.number} domain", "yref": f"y{self.number} domain",
        })  # fmt: skip

    def measure(self, low: float, high: float, y: float, words: str) -> None:
        """A dimension line from `low` to `high` with words right of it."""
        self.axes.plot(
            [low, high],
            [y, y],
            color=INK,
            linewidth=1.4,
            marker="|",
            markersize=9,
            path_effects=[patheffects.withStroke(linewidth=4, foreground=PAPER)],
        )
        self.axes.annotate(words, (high, y), (8, 0), textcoords="offset points", va="center")
        self._note_trace(
            "scatter",
            x=[low, high],
            y=[y, y],
            mode="lines",
            line={"color": INK, "width": 1.4},
            hoverinfo="skip",
        )
        self.notes.append({
            "x": high, "y": y, "text": words, "showarrow": False, "xanchor": "left", "xshift": 8,
            "xref": f"x{self.number}", "yref": f"y{self.number}",
        })  # fmt: skip

    def label_ends(self, gap: float = 17) -> None:
        """Write each line's label right of its end, moved apart where they would overlap."""
        if not self.ends:
            return
        to_pixels, height = self.axes.transData.transform, self.axes.bbox.height
        bottom = self.axes.bbox.y0
        wanted = [to_pixels((x, y))[1] - bottom for _, _, x, y in self.ends]
        for (words, look, x, y), at in zip(
            self.ends, spread(wanted, gap * SCALE, height), strict=True
        ):
            self.axes.annotate(
                words, xy=(x, y), xytext=(1.0, at / height), textcoords="axes fraction",
                va="center", ha="left", annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": look.colour, "linewidth": 1.2,
                            "shrinkA": 0, "shrinkB": 3, "relpos": (0, 0.5)},
            ).set_x(1.03)  # fmt: skip
            self.notes.append({
                "x": 1.03, "y": at / height, "text": words, "showarrow": False,
                "xref": f"x{self.number} domain", "yref": f"y{self.number} domain",
                "xanchor": "left", "yanchor": "middle",
            })  # fmt: skip

    def time_axis(self, steps: Sequence[int], timesteps: Sequence[int],
                  at: Sequence[float] | None = None, ticks: int = 7) -> None:  # fmt: skip
        """Sampler steps from noise (left) to image (right), each tick naming step and t.

        Step number i sits at the position `at[i]`, by default at its own number.
        """
        at = steps if at is None else at
        picks = tick_picks(len(steps), ticks)
        self.axes.set_xlim(at[0] - 0.5, at[-1] + 0.5)
        names = [f"{steps[i]}\nt = {timesteps[i]}" for i in picks]
        self.axes.set_xticks([at[i] for i in picks], names)
        self.axes.set_xlabel("sampler step and its t (noise → image)")

    def log_scale(self) -> None:
        """A logarithmic y axis with ticks in plain numbers."""
        self.axes.set_yscale("log")
        self.axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        self.axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: number(y)))
        self.axes.yaxis.set_minor_locator(NullLocator())

    def layout(self) -> dict[str, Any]:
        """Plotly's two axes for this panel, read off the drawn matplotlib axes."""
        box = self.axes.get_position()
        if self.bar is not None:
            self.traces[0] |= {"showscale": True, "colorbar": _colour_bar(self.bar)}
        x = _axis(self.axes.xaxis, self.axes.get_xlim(), (box.x0, box.x1), f"y{self.number}")
        y = _axis(self.axes.yaxis, self.axes.get_ylim(), (box.y0, box.y1), f"x{self.number}")
        return {f"xaxis{self.number}": x, f"yaxis{self.number}": y}


class Canvas:
    """A figure of panels in a grid, `width` x `height` CSS pixels, at most 960 wide."""

    def __init__(self, width: int = 760, height: int = 400, heights: Sequence[float] = (1,),
                 widths: Sequence[float] = (1,), sharex: Any = False) -> None:  # fmt: skip
        if width > MAX_WIDTH:
            raise InvalidInputError(f"A figure {width} px wide: at most {MAX_WIDTH} fit a page.")
        self.size = (width, height)
        self.figure = Figure((width / 72, height / 72), dpi=72 * SCALE, layout="constrained")
        self.figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, wspace=0.01, hspace=0.02)
        axes = self.figure.subplots(
            len(heights), len(widths), squeeze=False, sharex=sharex,
            height_ratios=heights, width_ratios=widths,
        )  # fmt: skip
        self.panels = [Panel(a, i) for i, a in enumerate(axes.flat)]

    def colour_bar(self, image: Any, unit: str) -> None:
        """A thin bar right of the last panel that says what its colours mean."""
        axes = self.panels[-1].axes
        bar = self.figure.colorbar(image, ax=axes, fraction=0.05, pad=0.015, aspect=30, label=unit)
        bar.outline.set_visible(False)
        self.panels[-1].bar = bar.ax

    def picture(self, sentence: str, facts: Mapping[str, Any] | None = None) -> Picture:
        """Finish: the sentence becomes the title, and the same figure is written both ways."""
        title = textwrap.fill(sentence, int(self.size[0] / 8.6))
        self.figure.suptitle(title, x=0.012, ha="left", fontsize=TITLE_FONT, linespacing=1.25)
        engine = self.figure.get_layout_engine()
        if any(panel.ends for panel in self.panels):
            # Labels are spread over the height the axes will have, then given their room.
            engine.execute(self.figure)
            for panel in self.panels:
                panel.label_ends()
        engine.execute(self.figure)
        self.figure.set_layout_engine("none")
        put_plates(self.figure)
        plotly = None if is_quick() else round_significant(self._plotly(title))
        return Picture(
            figure_png(self.figure, CHART_PALETTE), sentence, self.size, plotly, facts or {}
        )

    def _plotly(self, title: str) -> dict[str, Any]:
        head = {
            "text": title.replace("\n", "<br>"), "showarrow": False, "align": "left",
            "x": 0.012, "xref": "paper", "xanchor": "left", "font": {"size": TITLE_FONT},
            "y": 1 - 4 / self.size[1], "yref": "paper", "yanchor": "top",
        }  # fmt: skip
        layout = {**PLOTLY_LAYOUT, "width": self.size[0], "height": self.size[1],
                  "barmode": "overlay", "bargap": 0}  # fmt: skip
        for panel in self.panels:
            layout |= panel.layout()
        notes = [head, *(note for panel in self.panels for note in panel.notes)]
        layout["annotations"] = [{"bgcolor": PAPER, **note} for note in notes]
        return {"data": [t for panel in self.panels for t in panel.traces], "layout": layout}


def tick_picks(total: int, count: int) -> list[int]:
    """About `count` indices into `total` at one stride, the first and the last among them."""
    stride = max(1, -(-(total - 1) // (count - 1)))
    picks = [i for i in range(0, total - 1, stride) if total - 1 - i > stride / 2]
    return [*picks, total - 1]


def put_plates(figure: Figure) -> None:
    """Give all text its white plate, except text that was put on a coloured cell on purpose."""
    for text in figure.findobj(Text):
        if text.get_text() and text.get_gid() != "bare" and text.get_bbox_patch() is None:
            text.set_bbox(PLATE)


def spread(wanted: Sequence[float], gap: float, height: float) -> list[float]:
    """Positions near `wanted`, in the same order, at least `gap` apart and inside [0, height]."""
    order = np.argsort(wanted, kind="stable")
    placed = np.clip(np.asarray(wanted, dtype=float)[order], 0, height)
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    ceiling = height
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    found = np.empty(len(placed))
    found[order] = placed
    return [float(p) for p in found]


def _axis(axis: Any, limits: tuple, domain: tuple, anchor: str) -> dict[str, Any]:
    log, words = axis.get_scale() == "log", axis.label.get_text()
    inside = [t for t in axis.get_major_ticks() if min(limits) <= t.get_loc() <= max(limits)]
    spine = axis.axes.spines["bottom" if axis.axis_name == "x" else "left"]
    return {
        "domain": list(domain), "anchor": anchor, "type": "log" if log else "linear",
        "range": list(np.log10(limits)) if log else list(limits),
        "showticklabels": any(t.label1.get_visible() for t in inside),
        "title": {"text": words.replace("\n", "<br>"), "standoff": 6, "font": {"size": FONT}},
        "tickvals": [t.get_loc() for t in inside],
        "ticktext": [t.label1.get_text().replace("\n", "<br>") for t in inside],
        "showgrid": any(line.get_visible() for line in axis.get_gridlines()),
        "gridcolor": "rgba(122,122,122,0.25)", "zeroline": False, "linecolor": RULE,
        "showline": spine.get_visible(),
        "ticks": "outside" if spine.get_visible() else "", "tickcolor": RULE, "automargin": False,
    }  # fmt: skip


def _colour_bar(axes: Axes) -> dict[str, Any]:
    box = axes.get_position()
    return {
        "x": box.x0, "xanchor": "left", "xpad": 0, "thickness": 14, "outlinewidth": 0,
        "y": (box.y0 + box.y1) / 2, "len": box.y1 - box.y0, "ypad": 0,
        "title": {"text": axes.get_ylabel(), "side": "right", "font": {"size": FONT}},
    }  # fmt: skip


def _hex(rgba: tuple[float, ...]) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in rgba[:3])
