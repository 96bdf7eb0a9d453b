"""Find what a denoiser is made of by running it once: layers, attentions, their order.

Nothing is recognised by class name. Whatever calls `scaled_dot_product_attention` is an
attention, whatever its class or processor. What else multiplies is reported as not covered: a
softmax or a product of its own, a layer with another forward, an attention computed out of sight.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from dqlab.layers.wrap import LAYERS

_SOFTMAX = {torch.softmax, torch.Tensor.softmax, nn.functional.softmax}
_PRODUCTS = {
    "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "addbmm", "einsum",
    "linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "multi_head_attention_forward",
}  # fmt: skip
_NO_FORM = (nn.modules.conv._ConvTransposeNd, nn.Bilinear)


@dataclass
class Anatomy:
    """What one forward pass showed.

    Attributes:
        layers: paths of the Conv and Linear modules, in execution order.
        attentions: paths of the modules that call scaled_dot_product_attention, in order.
        uncovered: what cannot be quantized, as sentences; never skipped silently.
        order: every module path in the order it was first entered.

    """

    layers: list[str] = field(default_factory=list)
    attentions: list[str] = field(default_factory=list)
    uncovered: list[str] = field(default_factory=list)
    order: list[str] = field(default_factory=list)


class _Watch(TorchFunctionMode):
    """Records which module is innermost whenever an attention, softmax or product is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.attentions: dict[str, None] = {}
        self.softmaxes: dict[str, None] = {}
        self.products: dict[str, str] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if self.stack and func is nn.functional.scaled_dot_product_attention:
            self.attentions[self.stack[-1]] = None
        elif self.stack and func in _SOFTMAX:
            self.softmaxes[self.stack[-1]] = None
        elif self.stack and _is_product(func, args):
            self.products[self.stack[-1]] = func.__name__.strip("_")
        return func(*args, **(kwargs or {}))


def _is_product(func: Callable, args: tuple) -> bool:
    """An einsum of one tensor only moves its axes."""
    named = getattr(func, "__name__", "") in _PRODUCTS
    return named and sum(isinstance(leaf, Tensor) for leaf in tree_leaves(args)) > 1


def explore(model: nn.Module, run: Callable[[], object]) -> Anatomy:
    """Run `run` (one forward of `model`) and report what happened inside."""
    found, watch = Anatomy(), _Watch()
    handles = []
    for path, module in model.named_modules():
        handles += _follow(path, module, found, watch)
    try:
        with torch.no_grad(), watch:
            run()
    finally:
        for handle in handles:
            handle.remove()
    found.attentions = list(watch.attentions)
    _list_uncovered(model, found, watch)
    return found


def _follow(path: str, module: nn.Module, found: Anatomy, watch: _Watch) -> list:
    """Keep `watch.stack` at the innermost running module and note first entries."""
    seen: set[str] = set()

    def enter(*_) -> None:
        watch.stack.append(path)
        if path not in seen:
            seen.add(path)
            found.order.append(path)
            if isinstance(module, LAYERS) and _plain(module):
                found.layers.append(path)

    def leave(*_) -> None:
        watch.stack.pop()

    return [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, always_call=True),
    ]


def _plain(module: nn.Module) -> bool:
    """Whether a layer computes what its kind computes: a subclass may do something else."""
    return type(module).forward in {kind.forward for kind in LAYERS}


def _list_uncovered(model: nn.Module, found: Anatomy, watch: _Watch) -> None:
    ran = set(found.layers)
    for path, module in model.named_modules():
        if isinstance(module, LAYERS) and not _plain(module):
            found.uncovered.append(f"{path} ({type(module).__name__}) has a forward of its own")
        elif isinstance(module, LAYERS):
            if path not in ran:
                found.uncovered.append(f"{path} ({type(module).__name__}) did not run")
        elif isinstance(module, _NO_FORM):
            found.uncovered.append(f"{path} ({type(module).__name__}) has no quantized form")
        elif does := _own_work(path, ran, watch):
            found.uncovered.append(f"{path} ({type(module).__name__}) computes {does}")


def _own_work(path: str, ran: set[str], watch: _Watch) -> str | None:
    """What a module that is no layer computes in a way that nothing here can quantize."""
    if path in watch.softmaxes and path not in watch.attentions:
        return "a softmax of its own"
    if path in watch.products:
        return f"a {watch.products[path]} of its own"
    if f"{path}.to_q" in ran and path not in watch.attentions:
        return "its attention out of sight (a kernel or backend of its own)"
    return None
