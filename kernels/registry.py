"""Which implementations an operation has, and which calls each of them takes."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Run = Callable[..., Tensor]
Refuses = Callable[..., str | None]


class NoImplementationError(LookupError):
    """No implementation of that name, or none that takes the call."""

    def __str__(self) -> str:
        """Show the sentence itself."""
        return str(self.args[0])


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    `run` takes the operation's arguments. `refuses` takes the same arguments and returns the
    reason why this call is not for it, or None; it must neither compute nor wait for a device.
    """

    name: str
    run: Run
    refuses: Refuses


_TABLE: dict[str, list[Implementation]] = {}


def implements(operation: str, name: str, refuses: Refuses) -> Callable[[Run], Run]:
    """Register an implementation; those registered first are preferred."""

    def register(run: Run) -> Run:
        _TABLE.setdefault(operation, []).append(Implementation(name, run, refuses))
        return run

    return register


def named(operation: str, name: str) -> Implementation:
    """Return one implementation by name, whatever it would refuse.

    Raises:
        NoImplementationError: unknown operation or name; the sentence lists the known ones.
    """
    known = {one.name: one for one in _TABLE.get(operation, [])}
    if name not in known:
        have = ", ".join(known) or f"nothing; operations are {', '.join(_TABLE)}"
        raise NoImplementationError(f"{operation} has no implementation '{name}', it has: {have}.")
    return known[name]


def explain(operation: str, *arguments: object) -> dict[str, str | None]:
    """Say for each implementation, best first, why it refuses a call (None: it takes it)."""
    return {one.name: one.refuses(*arguments) for one in _TABLE.get(operation, [])}


def select(operation: str, *arguments: object) -> Implementation:
    """Return the preferred implementation that takes a call.

    Raises:
        NoImplementationError: every one refuses; the sentence gives each reason.
    """
    reasons = explain(operation, *arguments)
    for name, reason in reasons.items():
        if reason is None:
            return named(operation, name)
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise NoImplementationError(f"nothing can run {operation} on this call ({listed}).")
