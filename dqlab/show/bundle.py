"""One output for every reader: plotly JSON when live, PNG on a page, a sentence for all."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import math
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from dqlab.errors import InvalidInputError

PLOTLY, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"
PALETTE = 256  # colours; makes a picture three times smaller, to no visible effect
CHART_PALETTE = 32  # enough for a colour scale, a few looks and their smoothed edges
_QUICK: ContextVar[bool] = ContextVar("quick", default=False)
SCALE = 2  # device pixels per CSS pixel, so that text is sharp on dense screens


@dataclass(frozen=True, eq=False)
class Picture:
    """A finished figure: PNG bytes, the sentence that says what it shows, optional plotly JSON.

    `size` is (width, height) in CSS pixels; `facts` holds the numbers the sentence was made of.
    The last line of a cell displays it; nbval compares its sentence.
    """

    png: bytes
    sentence: str
    size: tuple[int, int]
    plotly: dict[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        data: dict[str, Any] = {"text/plain": self.sentence}
        if self.plotly is None:
            data["image/png"] = _base64(self.png)
        else:
            # JupyterLab's plotly extension shows the PNG until the mouse is over it, and takes
            # its size from the pixels, not from the metadata.
            data |= {"image/png": _base64(at_css_size(self.png, self.size)), PLOTLY: self.plotly}
        return data, {"image/png": image_metadata(self.size, self.sentence)}

    def __repr__(self) -> str:
        return self.sentence

    def html(self) -> str:
        """A `<figure>` with alt text and caption, for pages that drop an output's alt metadata."""
        words = html.escape(self.sentence)
        return f"<figure>{self.img()}<figcaption>{words}</figcaption></figure>"

    def img(self) -> str:
        """An `<img>` element with the picture inside and the sentence as its alt text."""
        width, height = self.size
        return (
            f'<img alt="{html.escape(self.sentence)}" width="{width}" height="{height}" '
            f'style="max-width:100%;height:auto" src="data:image/png;base64,{_base64(self.png)}">'
        )

    def save(self, path: str | Path) -> Path:
        """Write the PNG to `path` and return it."""
        target = Path(path)
        target.write_bytes(self.png)
        return target


@dataclass(frozen=True, eq=False)
class Live:
    """A widget with its stand-in: live with a kernel, picture and words without one."""

    widget: Any
    words: str
    picture: Picture | None = None
    page: str | None = None

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        data = {WIDGET: self.widget._repr_mimebundle_()[WIDGET], "text/plain": self.words}
        if self.page is not None:
            data["text/html"] = self.page
        if self.picture is None:
            return data, {}
        data["image/png"] = _base64(self.picture.png)
        return data, {"image/png": image_metadata(self.picture.size, self.words)}

    def __repr__(self) -> str:
        return self.words


@dataclass(frozen=True, eq=False)
class Page:
    """A piece of HTML with plain words beside it (cards, source code, tables)."""

    html: str
    words: str

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        return {"text/html": self.html, "text/plain": self.words}, {}

    def __repr__(self) -> str:
        return self.words


def image_metadata(size: tuple[int, int], alt: str) -> dict[str, Any]:
    """Metadata of an image/png output: size in CSS pixels and alternative text."""
    return {"width": size[0], "height": size[1], "alt": alt}


def figure_png(figure: Figure, colours: int = PALETTE) -> bytes:
    """PNG bytes of a matplotlib figure; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba", dpi=figure.dpi)
    size = tuple(round(inches * figure.dpi) for inches in figure.get_size_inches())
    return encode_png(Image.frombytes("RGBA", size, buffer.getvalue()), colours)


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """While inside, pictures are for a live widget: large but soon, and without a plotly twin."""
    token = _QUICK.set(True)
    try:
        yield
    finally:
        _QUICK.reset(token)


def is_quick() -> bool:
    """Whether pictures are now drawn for a live widget."""
    return _QUICK.get()


def encode_png(image: Image.Image, colours: int | None = None) -> bytes:
    """PNG bytes of an image: lossless, or with a palette of its `colours` most frequent ones."""
    if colours is not None and not is_quick():
        image = _with_palette(image.convert("RGBA"), colours)
    buffer = io.BytesIO()
    effort = {"compress_level": 1} if is_quick() else {"optimize": True}
    image.save(buffer, format="png", **effort)
    return buffer.getvalue()


def at_css_size(png: bytes, size: tuple[int, int]) -> bytes:
    """The picture at one pixel per CSS pixel."""
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    return encode_png(image.resize(size, Image.Resampling.BOX), PALETTE)


def _with_palette(image: Image.Image, colours: int) -> Image.Image:
    """Every pixel in the nearest of at most `colours` colours; large areas stay exact."""
    pixels = np.ascontiguousarray(image).view(np.uint32).ravel()
    # Runs of one colour, of which a chart has few for its size, are far quicker to sort.
    starts = np.flatnonzero(np.diff(pixels, prepend=~pixels[:1]))
    lengths = np.diff(starts, append=pixels.size)
    found, index = np.unique(pixels[starts], return_inverse=True)
    counts = np.bincount(index, weights=lengths)
    kept, nearest = _palette(found.view(np.uint8).reshape(-1, 4), counts, colours)
    indexed = Image.frombytes("P", image.size, np.repeat(nearest[index], lengths).tobytes())
    indexed.putpalette(found[kept].tobytes(), "RGBA")
    return indexed


def _palette(shades: np.ndarray, counts: np.ndarray, colours: int) -> tuple[list, np.ndarray]:
    """Indices of the kept shades, and for every shade [N, 4] the number of the nearest kept one.

    Each next shade kept is the one whose pixels are worst served so far, so that a thin line
    keeps its colour beside large areas.
    """
    points = shades.astype(np.float32)
    error, nearest = np.full(len(points), np.inf), np.zeros(len(points), dtype=np.uint8)
    kept: list[int] = [int(counts.argmax())]
    while True:
        distance = ((points - points[kept[-1]]) ** 2).sum(axis=1)
        closer = distance < error
        error[closer], nearest[closer] = distance[closer], len(kept) - 1
        if len(kept) == colours or not error.any():
            return kept, nearest
        kept.append(int((error * counts).argmax()))


def fewer_colours(pixels: np.ndarray, colours: int = 208) -> np.ndarray:
    """Images [..., W, 3] in [0, 1] with a shared palette: a strip becomes three times smaller."""
    if is_quick():
        return pixels
    flat = np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8).reshape(-1, pixels.shape[-2], 3)
    sheet = Image.fromarray(flat).quantize(colours, kmeans=2, dither=Image.Dither.NONE)
    return np.asarray(sheet.convert("RGB")).reshape(pixels.shape) / 255.0


def stack(pictures: list[Picture], sentence: str, gap: int = 12) -> Picture:
    """Pictures below one another as one picture, for the stops of a slider."""
    if not pictures:
        raise InvalidInputError("There is no picture to stack: pass at least one.")
    images = [Image.open(io.BytesIO(p.png)).convert("RGBA") for p in pictures]
    width = max(p.size[0] for p in pictures)
    height = sum(p.size[1] for p in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new("RGBA", (width * SCALE, height * SCALE))
    colours = max(len(image.getcolors(PALETTE) or range(PALETTE)) for image in images)
    top = 0
    for image, picture in zip(images, pictures, strict=True):
        sheet.paste(image, (0, top))
        top += (picture.size[1] + gap) * SCALE
    return Picture(encode_png(sheet, colours), sentence, (width, height))


def round_significant(value: Any, digits: int = 4) -> Any:
    """Numbers, arrays and nested containers at `digits` significant digits, as plain Python.

    Float noise between machines stays below that, so plotly JSON can be compared exactly.
    NaN and infinity become None, which plotly draws as a gap.
    """
    if isinstance(value, Mapping):
        return {k: round_significant(v, digits) for k, v in value.items()}
    if hasattr(value, "tolist"):
        return round_significant(value.tolist(), digits)
    if isinstance(value, list | tuple):
        return [round_significant(v, digits) for v in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value


def number(value: float, digits: int = 2) -> str:
    """A number for a sentence: `digits` significant digits, no exponent between 0.001 and 1e6."""
    value = float(value)
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    rounded = float(f"{value:.{digits}g}")
    if not 1e-3 <= abs(rounded) < 1e6:
        return f"{rounded:.{digits - 1}e}"
    return np.format_float_positional(rounded, trim="-")


def percent(share: float) -> str:
    """A share in [0, 1] in per cent, for a sentence: "31 %"."""
    return f"{number(100 * share)} %"


def _base64(png: bytes) -> str:
    return base64.b64encode(png).decode("ascii")
