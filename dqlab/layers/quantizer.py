"""The quantizer at one site: a format, a range, and taps that can watch the tensor pass."""

from collections.abc import Callable

from torch import Tensor, nn

from dqlab.errors import InvalidInputError
from dqlab.formats import Format, Range
from dqlab.layers.context import StepContext

Tap = Callable[[Tensor], None]
RUN_TIME = ("sample", "token")
"""What a range that is measured at run time covers; see `Quantizer.measured`."""


class Quantizer(nn.Module):
    """Simulates one number format on the tensor at one site.

    A quantizer without a range, or with `active` off, passes its input on untouched, so that
    the wrapped model starts out as the full-precision one.

    Attributes:
        site: its name, `<module path>.<operand>`.
        format: the number format, or None for full precision.
        scale, zero_point: the range: scalar, per output channel `[C, 1, ...]`, per sampling step
            `[T]` if `per_step`, or per video frame `[F]`.
        frames: F if the range is one per frame, else 0.
        measured: None, or what one range measured at run time covers, min-max: a whole "sample"
            (what a range per tensor is for one picture), or a "token", one row of the last
            dimension. No range is stored then.
        taps: functions called with the unquantized tensor on every pass.

    """

    def __init__(self, site: str, context: StepContext):
        super().__init__()
        self.site, self.context = site, context
        self.format: Format | None = None
        self.per_step, self.frames = False, 0
        self.measured: str | None = None
        self.active = True
        self.taps: list[Tap] = []
        self.register_buffer("scale", None)
        self.register_buffer("zero_point", None)

    @property
    def range(self) -> Range | None:
        """The whole range (all steps of a table), or None before one is set."""
        return None if self.scale is None else Range(self.scale, self.zero_point)

    def pieces(self, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
        """Itself beside the whole of `x`; a split site lists its parts."""
        return [(self, x)]

    def set_range(self, found: Range, per_step: bool = False, frames: int = 0) -> None:
        """Use `found` from now on; its first axis is the sampling step if `per_step`.

        It is the frame if there are `frames`.
        """
        if not bool(found.scale.isfinite().all()):
            raise InvalidInputError(
                f"The range found for {self.site} is not finite: the values seen there hold NaN "
                "or infinity. Check the weights and the calibration set."
            )
        self.scale, self.zero_point = found.scale, found.zero_point
        self.per_step, self.frames, self.measured = per_step, frames, None

    def measure(self, over: str) -> None:
        """Measure the range at run time from now on; `over` is one of `RUN_TIME`.

        Raises:
            InvalidInputError: if it is something else.

        """
        if over not in RUN_TIME:
            raise InvalidInputError(
                f"{self.site}: a range cannot be measured over {over!r}; choose one of "
                f"{', '.join(RUN_TIME)}."
            )
        self.scale = self.zero_point = None
        self.per_step, self.frames, self.measured = False, 0, over

    def current(self, x: Tensor) -> Range:
        """The range for `x`; one per row (step, frame) or token is shaped to broadcast."""
        if self.measured:
            dims = -1 if self.measured == "token" else tuple(range(1, x.ndim))
            return self.format.params(x.amin(dims, keepdim=True), x.amax(dims, keepdim=True))
        if self.frames:
            rows = self.context.frames_of(len(x), self.frames, self.site)
        elif self.per_step:
            rows = self.context.steps_of(len(x), self.site)
        else:
            return self.range
        return self.range.index(rows.to(self.scale.device), x.ndim)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`; same shape and dtype."""
        for tap in self.taps:
            tap(x)
        placed = self.measured or self.scale is not None
        if self.format is None or not placed or not self.active:
            return x
        return self.format.fake_quant(x, self.current(x))

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Accept ranges of any shape: a fresh quantizer has none to compare with."""
        for name in ("scale", "zero_point"):
            if (stored := state_dict.get(prefix + name)) is not None:
                setattr(self, name, stored.clone())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Site and format."""
        return f"{self.site}, {self.format.name if self.format else 'full precision'}"
