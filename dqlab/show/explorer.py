"""The explorer frame: controls in one narrow column, the picture beside, one live sentence below.

An explorer is three pure functions: compute(**params) -> data, draw(data) -> Picture and
sentence(data) -> str. The widgets only connect them, so that every setting runs in a test.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets

from dqlab.errors import DqlabError, InvalidInputError, UnknownNameError
from dqlab.show.bundle import Live, Picture, quickly, stack

COLUMN = "250px"
MAX_STOPS = 5


@dataclass(frozen=True)
class Control:
    """One knob: keyword `name` of compute, a `label`, its finite `options`, and the `default`.

    `kind` is "slider" (ordered options), "choice" (a drop-down) or "switch" (False, True).
    """

    name: str
    label: str
    options: Sequence[Any] = (False, True)
    default: Any = None
    kind: str = "slider"

    def __post_init__(self) -> None:
        if self.start not in self.options:
            raise InvalidInputError(
                f"Control {self.name!r}: the default {self.default!r} is none of its options "
                f"{list(self.options)}."
            )

    @property
    def start(self) -> Any:
        """The value the control starts with."""
        return self.options[0] if self.default is None else self.default

    def widget(self) -> widgets.Widget:
        """The ipywidget for this control; all kinds can be reached and moved by keyboard."""
        makers = {"slider": _slider, "choice": _choice, "switch": _switch}
        if self.kind not in makers:
            raise UnknownNameError(
                f"Control kind {self.kind!r} is unknown: use one of {', '.join(makers)}."
            )
        return makers[self.kind](self)


def _slider(control: Control) -> widgets.Widget:
    return widgets.SelectionSlider(
        options=[(str(o), o) for o in control.options], value=control.start,
        description=control.label, continuous_update=False, **_SHAPE,
    )  # fmt: skip


def _choice(control: Control) -> widgets.Widget:
    return widgets.Dropdown(
        options=[(str(o), o) for o in control.options], value=control.start,
        description=control.label, **_SHAPE,
    )  # fmt: skip


def _switch(control: Control) -> widgets.Widget:
    return widgets.Checkbox(value=control.start, description=control.label, indent=False)


_SHAPE: dict[str, Any] = {
    "style": {"description_width": "80px"},
    "layout": {"width": "auto"},
}


class Explorer:
    """Controls, presets, a picture and a sentence. Show it as the last line of a cell.

    `presets`: {name: {control: value, ...}} (controls left out take their default); the first
    2 or 3 of them, or `stops`, are drawn one below the other for readers without a kernel. It
    opens on the preset `start` (else the first) and Reset returns there: choose one where the
    effect is plain.
    `seconds`: set it where one setting takes longer than 0.3 s; then nothing is computed before
    the run button is pressed, and compute gets a keyword `progress`, to be called with a share
    in [0, 1].
    """

    def __init__(self, title: str, controls: Sequence[Control], compute: Callable[..., Any],
                 draw: Callable[[Any], Picture], sentence: Callable[[Any], str] | None = None, *,
                 presets: Mapping[str, Mapping[str, Any]], stops: Sequence[str] | None = None,
                 start: str | None = None, seconds: float | None = None) -> None:  # fmt: skip
        self.title, self.controls, self.seconds = title, list(controls), seconds
        self.compute, self.draw, self.sentence = compute, draw, sentence
        self.defaults = {c.name: c.start for c in self.controls}
        self.presets = {name: self._complete(name, given) for name, given in presets.items()}
        self.stops = list(presets)[:3] if stops is None else list(stops)
        if not 2 <= len(self.stops) <= MAX_STOPS or set(self.stops) - set(self.presets):
            raise InvalidInputError(
                f"Explorer {title!r} needs 2 to {MAX_STOPS} stops out of its presets "
                f"({', '.join(self.presets)}); got {self.stops}."
            )
        self.start = next(iter(presets)) if start is None else start
        if self.start not in self.presets:
            raise InvalidInputError(
                f"Explorer {title!r} starts at {self.start!r}, which is no preset "
                f"({', '.join(self.presets)})."
            )
        self._seen: dict[tuple, tuple[Picture, str]] = {}
        self._live: Live | None = None

    def _complete(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        for key, value in given.items():
            options = next((c.options for c in self.controls if c.name == key), None)
            if options is None or value not in options:
                raise InvalidInputError(
                    f"Preset {name!r} sets {key}={value!r}; allowed: "
                    f"{list(options) if options is not None else [c.name for c in self.controls]}."
                )
        return {**self.defaults, **given}

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every combination of the controls' options."""
        names = [c.name for c in self.controls]
        for values in itertools.product(*(c.options for c in self.controls)):
            yield dict(zip(names, values, strict=True))

    def known(self, params: Mapping[str, Any]) -> bool:
        """Whether this setting was drawn before, so that showing it takes no time."""
        return tuple(params[name] for name in self.defaults) in self._seen

    def frame(self, params: Mapping[str, Any],
              progress: Callable[[float], None] | None = None) -> tuple[Picture, str]:  # fmt: skip
        """Picture and sentence at one setting, remembered for the next time."""
        key = tuple(params[name] for name in self.defaults)
        if key not in self._seen:
            extra = {"progress": progress or (lambda share: None)} if self.seconds else {}
            data = self.compute(**params, **extra)
            picture = self.draw(data)
            words = self.sentence(data) if self.sentence else picture.sentence
            self._seen[key] = (picture, words)
        return self._seen[key]

    def still(self) -> Picture:
        """The stops below one another, with their sentences: the explorer without a kernel."""
        frames = {name: self.frame(self.presets[name]) for name in self.stops}
        lines = [f"{name}: {words}" for name, (_, words) in frames.items()]
        return stack([p for p, _ in frames.values()], "\n".join([self.title, *lines]))

    def live(self) -> Live:
        """The widget with its stand-in; made once, so that showing it twice shows one state."""
        if self._live is None:
            still = self.still()
            self._live = Live(Frame(self).box, still.sentence, still)
        return self._live

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple:
        return self.live()._repr_mimebundle_()

    def __repr__(self) -> str:
        return self.still().sentence


class Frame:
    """The widgets of one explorer. Presets and reset set all controls, then draw once."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.knobs = {c.name: c.widget() for c in explorer.controls}
        self.image, self.notice = widgets.HTML(), widgets.HTML()
        self.bar = widgets.FloatProgress(value=0, min=0, max=1, layout={"width": "auto"})
        self.presets = {name: _button(name) for name in explorer.presets}
        self.reset = _button("Reset", f"Back to: {explorer.start}")
        self.run = _button(f"Run (about {explorer.seconds:g} s)" if explorer.seconds else "Run")
        self._quiet = False
        self.box = self._arrange()
        self._connect()
        self.go_to(explorer.start)

    def _arrange(self) -> widgets.VBox:
        slow = [self.run, self.bar] if self.explorer.seconds else []
        column = [*self.presets.values(), *self.knobs.values(), *slow, self.reset]
        height = max(p.size[1] for p, _ in map(self.explorer.frame, self._stop_settings()))
        left = widgets.VBox(column, layout={"width": COLUMN, "flex": "0 0 auto"})
        right = widgets.Box([self.image], layout={"height": f"{height + 12}px"})
        title = widgets.HTML(f"<strong>{html.escape(self.explorer.title)}</strong>")
        return widgets.VBox([title, widgets.HBox([left, right]), self.notice])

    def _stop_settings(self) -> list[dict[str, Any]]:
        return [self.explorer.presets[name] for name in self.explorer.stops]

    def _connect(self) -> None:
        for knob in self.knobs.values():
            knob.observe(self._moved, names="value")
        for name, button in self.presets.items():
            button.on_click(lambda _, name=name: self.go_to(name))
        self.reset.on_click(lambda _: self.go_to(self.explorer.start))
        self.run.on_click(lambda _: self.show())

    def _moved(self, _: object) -> None:
        if self._quiet:
            return
        if self.explorer.seconds and not self.explorer.known(self.setting()):
            self.notice.value = "Press run to see what this setting does."
        else:
            self.show()

    def go_to(self, preset: str) -> None:
        """Set every control as the preset says and show the result."""
        self._quiet = True
        for name, value in self.explorer.presets[preset].items():
            self.knobs[name].value = value
        self._quiet = False
        self._moved(None)

    def show(self) -> None:
        """Draw the current setting; an error a user can act on is told in the sentence's place."""
        try:
            with quickly():
                picture, words = self.explorer.frame(self.setting(), self._progress)
        except DqlabError as error:
            self.notice.value = html.escape(str(error))
            return
        self.image.value = picture.img()
        self.notice.value = f'<p aria-live="polite">What to notice: {html.escape(words)}</p>'

    def setting(self) -> dict[str, Any]:
        """The controls' values now."""
        return {name: knob.value for name, knob in self.knobs.items()}

    def _progress(self, share: float) -> None:
        self.bar.value = share


def _button(words: str, tooltip: str = "") -> widgets.Button:
    return widgets.Button(description=words, tooltip=tooltip or words, layout={"width": "auto"})
