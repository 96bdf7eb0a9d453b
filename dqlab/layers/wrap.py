"""How a model is wrapped: every Conv, Linear and attention gets quantizers at its operands.

A wrapped module keeps its place, name, parameters and `isinstance` relations: its class becomes
a subclass of what it was (`QuantizedConv2d` is a `Conv2d`), so code that inspects layers goes
on working and `copy.deepcopy` copies the whole model consistently.
"""

from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dqlab.errors import InvalidInputError
from dqlab.formats import Range
from dqlab.layers.context import StepContext
from dqlab.layers.quantizer import Quantizer
from dqlab.layers.split import MARK, SplitQuantizer

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
DIVISOR, SHIFT = "channel_divisor", "channel_shift"
"""Buffers of a layer whose input channels are shifted and divided first: `dqlab.layers.smooth`."""
TABLE = "answer_table"
"""Child of a layer whose answers are known beforehand; see `dqlab.layers.table`."""
CONVOLUTIONS = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)
ATTENTION_OPERANDS = ("q", "k", "v", "p")


class QuantizedLayer(nn.Module):
    """Mixed into a Conv or Linear: quantizes its input and its weight, then computes as before."""

    input_quantizer: nn.Module
    weight_quantizer: nn.Module
    frozen: bool
    """The weight already lies on its grid, so only the input is quantized at run time."""

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output on quantized operands; the argument has torch's name for it."""
        y = self.operate(self.input_quantizer(self._rewritten(input)), self.quantized_weight())
        table = getattr(self, TABLE, None)
        return y if table is None else table(y)

    def _rewritten(self, x: Tensor) -> Tensor:
        """(x - shift) / divisor by channel; zero padding is put around x before the shift."""
        S, delta = getattr(self, DIVISOR, None), getattr(self, SHIFT, None)
        places = [1] * (self.weight.ndim - 2)
        if delta is not None:
            if places:
                x = nn.functional.pad(x, self._reversed_padding_repeated_twice)
            x = x - delta.reshape(-1, *places)
        return x if S is None else x / S.reshape(-1, *places)

    def quantized_weight(self) -> Tensor:
        """The weight as the layer uses it."""
        return self.weight if self.frozen else self.weight_quantizer(self.weight)

    def operate(self, x: Tensor, weight: Tensor) -> Tensor:
        """The plain convolution or product."""
        if isinstance(self, nn.Linear):
            return nn.functional.linear(x, weight, self.bias)
        if getattr(self, SHIFT, None) is not None:  # x is padded already
            convolve = CONVOLUTIONS[self.weight.ndim - 3]
            return convolve(x, weight, self.bias, self.stride, 0, self.dilation, self.groups)
        return self._conv_forward(x, weight, self.bias)

    @torch.no_grad()
    def freeze(self) -> None:
        """Put the weight on its grid for good."""
        self.weight.copy_(self.quantized_weight())
        self.frozen = True

    def _codes_range(self) -> Range | None:
        quantizer = self.weight_quantizer
        return None if quantizer.format is None or not self.frozen else quantizer.range

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        """Frozen weights are stored as integer codes."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if found := self._codes_range():
            weight = destination.pop(prefix + "weight").detach()
            codes = self.weight_quantizer.format.encode(weight.float(), found)
            destination[prefix + "weight_codes"] = _smallest(codes)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Decode integer codes, with the range stored beside them."""
        codes = state_dict.pop(prefix + "weight_codes", None)
        if codes is not None:
            quantizer = self.weight_quantizer
            quantizer._load_from_state_dict(
                dict(state_dict), prefix + "weight_quantizer.", {}, False, [], [], []
            )
            weight = quantizer.format.decode(codes, quantizer.range)
            state_dict[prefix + "weight"] = weight.to(self.weight.dtype)
            self.frozen = True
        super()._load_from_state_dict(state_dict, prefix, *args)


def _smallest(codes: Tensor) -> Tensor:
    """The same integers in the narrowest type that holds them."""
    low, high = int(codes.min()), int(codes.max())
    for dtype in (torch.uint8, torch.int8, torch.int16):
        info = torch.iinfo(dtype)
        if info.min <= low and high <= info.max:
            return codes.to(dtype)
    return codes


class QuantizedAttention(nn.Module):
    """Mixed into an attention module: its softmax(QK')V becomes explicit and quantizable.

    It computes `scaled_dot_product_attention` as the two products it stands for, with a
    quantizer on Q, K, V and on the softmax output P.
    """

    def forward(self, *args, **kwargs):
        """The module's own forward, its attention made explicit.

        Raises:
            InvalidInputError: if it attended in another way, past the quantizers.

        """
        with _Explicit(self) as explicit:
            output = super().forward(*args, **kwargs)
        if not explicit.used:
            raise InvalidInputError(
                f"{self.q_quantizer.site.removesuffix('.q')} attended without calling "
                "scaled_dot_product_attention, so its operands were not quantized. Set back the "
                "attention processor or backend the model was quantized with."
            )
        return output

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask, causal, scale) -> Tensor:
        """`[B, H, L, D]` each; mask broadcast to `[B, H, L, S]`, boolean (keep) or additive."""
        q, k, v = self.q_quantizer(query), self.k_quantizer(key), self.v_quantizer(value)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        scores = (q * scale) @ k.transpose(-2, -1)
        if causal:
            keep = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~keep, -torch.inf)
        if mask is None:
            return self.p_quantizer(scores.softmax(-1)) @ v
        keeps = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -torch.inf) if keeps else scores + mask
        # A row with nothing to attend to answers zero, as scaled_dot_product_attention does.
        empty = scores.amax(-1, keepdim=True) == -torch.inf
        return self.p_quantizer(scores.softmax(-1).masked_fill(empty, 0.0)) @ v


class _Explicit(TorchFunctionMode):
    """Within it, scaled_dot_product_attention goes through `owner.attend`."""

    def __init__(self, owner: QuantizedAttention):
        super().__init__()
        self.owner, self.used = owner, False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.used = True
        return _attend(self.owner, *args, **kwargs)


def _attend(
    owner: QuantizedAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The signature of scaled_dot_product_attention; dropout is off in every denoiser here."""
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(repeats, -3) for t in (key, value))
    return owner.attend(query, key, value, attn_mask, is_causal, scale)


@cache
def _quantized_class(mixin: type, cls: type) -> type:
    body: dict[str, Any] = {"__module__": cls.__module__}
    if mixin is QuantizedAttention:
        # A denoiser that attends by itself is still asked which arguments it takes.
        @wraps(cls.forward)
        def forward(self, *args, **kwargs):
            return mixin.forward(self, *args, **kwargs)

        body["forward"] = forward
    return type(f"Quantized{cls.__name__}", (mixin, cls), body)


def wrap_layer(module: nn.Module, path: str, context: StepContext) -> None:
    """Give a Conv or Linear its quantizers, in place."""
    module.__class__ = _quantized_class(QuantizedLayer, type(module))
    module.frozen = False
    input_dim = -1 if isinstance(module, nn.Linear) else 1
    for operand, dim in (("input", input_dim), ("weight", 1)):
        module.add_module(f"{operand}_quantizer", _site(module, f"{path}.{operand}", context, dim))


def _site(module: nn.Module, site: str, context: StepContext, dim: int) -> nn.Module:
    if sizes := getattr(module, MARK, None):
        return SplitQuantizer(site, context, sizes, dim, module.weight.ndim)
    return Quantizer(site, context)


def wrap_attention(module: nn.Module, path: str, context: StepContext) -> None:
    """Give an attention module its quantizers, in place."""
    module.__class__ = _quantized_class(QuantizedAttention, type(module))
    for operand in ATTENTION_OPERANDS:
        module.add_module(f"{operand}_quantizer", Quantizer(f"{path}.{operand}", context))


def quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """Every quantizer of a wrapped model by site name."""
    return {m.site: m for m in model.modules() if isinstance(m, Quantizer)}
