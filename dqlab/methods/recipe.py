"""Recipes: one method per moment, composed with `|`."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, get_args, get_type_hints

from dqlab.errors import DqlabError, InvalidInputError, NotApplicableError, UnknownNameError
from dqlab.formats import parse
from dqlab.layers import Policy
from dqlab.methods.method import MOMENTS, Method
from dqlab.methods.registry import find
from dqlab.models.families import Family, Sampler


@dataclass(frozen=True)
class Recipe:
    """Which method acts at which moment; moments not named behave as plain rounding.

    Attributes:
        methods: the methods taking part, in the order they were combined.
        owners: moment -> the method that acts there.

    """

    methods: tuple[Method, ...]
    owners: dict[str, Method] = field(default_factory=dict)

    def __or__(self, other: "Recipe | str") -> "Recipe":
        """Both; raises InvalidInputError where both act at one moment and neither adds to it."""
        other = as_recipe(other)
        owners = self.owners | other.owners
        for moment in (m for m in MOMENTS if m in self.owners and m in other.owners):
            owners[moment] = _together(self.owners[moment], other.owners[moment], moment)
        return Recipe(self.methods + other.methods, owners)

    def only(self, *moments: str) -> "Recipe":
        """Act at the given moments alone; at none, which is plain rounding, if none is given.

        Raises:
            InvalidInputError: if a moment is named at which nothing acts.

        """
        _known(moments)
        if idle := [m for m in moments if m not in self.owners]:
            raise InvalidInputError(
                f"{self.slug} does not act at the moment {idle[0]!r}; it acts at "
                f"{', '.join(self.owners) or 'none: it is plain rounding'}."
            )
        return self._keep({m: o for m, o in self.owners.items() if m in moments})

    def without(self, *moments: str) -> "Recipe":
        """Act everywhere but at the given moments; plain rounding, if nothing is left."""
        _known(moments)
        return self._keep({m: o for m, o in self.owners.items() if m not in moments})

    def _keep(self, owners: dict[str, Method]) -> "Recipe":
        acting = {m.slug for owner in owners.values() for m in _stack(owner)}
        methods = tuple(m for m in self.methods if m.slug in acting)
        return Recipe(methods or (find("rtn")(),), owners)

    def __getattr__(self, name: str) -> Any:
        """`recipe.fit`, `recipe.ranges`...: the owner's, or plain behaviour."""
        for moment, names in MOMENTS.items():
            if name in names:
                return getattr(self.owners.get(moment, find("rtn")()), name)
        raise AttributeError(name)

    @property
    def slug(self) -> str:
        """Such as "q-diffusion | ptqd"."""
        return " | ".join(m.slug for m in self.methods)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: method slugs, their options where not the default, and who acts when."""
        owners = {
            moment: " + ".join(m.slug for m in _stack(owner))
            for moment, owner in self.owners.items()
        }
        options = [
            {k: plain_option(m.options[k]) for k in sorted(m.options)} for m in self.methods
        ]
        return {"methods": [m.slug for m in self.methods], "options": options, "moments": owners}

    def paper_policy(self, family: Family) -> Policy:
        """The policy of the method that places, or of the one it adds to.

        Raises:
            InvalidInputError: if that states none.

        """
        owner = self.owners.get("place")
        for method in reversed(_stack(owner) if owner else []):
            if (found := method.policy(family)) is not None:
                return found
        raise InvalidInputError(
            f"policy='paper': {self.slug} states no sites and bits of its own for a "
            f"{family.name}. Choose 'common' or pass a Policy."
        )

    def check(self, family: Family, weights: Any, activations: Any) -> None:
        """Refuse models and bit-widths that a method is not defined for."""
        for method in self.methods:
            if reason := method.unfit(family):
                raise NotApplicableError(
                    f"{method.slug} does not apply to a {family.name}: {reason}"
                )
            for name, bits in (("weights", weights), ("activations", activations)):
                _check_bits(method, name, bits)

    def check_sampler(self, pipe: Any, sampler: Sampler) -> None:
        """Refuse a pipeline whose sampler the recipe's correction, if any, cannot work around."""
        if "correct" in self.owners:
            self.owners["correct"].check_sampler(pipe, sampler)


def _stack(owner: Method) -> list[Method]:
    """The method that acts at a moment and the one it adds to, that one first."""
    return [m for m in (owner.beneath, owner) if m is not None]


def _together(mine: Method, theirs: Method, moment: str) -> Method:
    """The one that adds to what the other does at `moment`, at work on it."""
    for upper, lower in ((theirs, mine), (mine, theirs)):
        if moment in upper.adds and upper.beneath is None and moment not in lower.adds:
            return upper.on(lower)
    first, second = _stack(mine)[0].slug, _stack(theirs)[0].slug
    raise InvalidInputError(
        f"{first} and {second} both act at the moment {moment!r}. Drop it from one: "
        f"recipe({first!r}).without({moment!r}) | recipe({second!r})."
    )


def plain_option(value: Any) -> Any:
    """An option as JSON has it; its `repr` where JSON has nothing like it."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return repr(value)


def title(described: dict[str, Any]) -> str:
    """A recipe as `Recipe.to_dict` has it in words: "q-diffusion(split=False) | ptqd"."""
    options = described.get("options") or [{}] * len(described["methods"])  # none in older saves
    return " | ".join(
        slug + (f"({', '.join(f'{k}={v!r}' for k, v in own.items())})" if own else "")
        for slug, own in zip(described["methods"], options, strict=True)
    )


def _check_bits(method: Method, name: str, bits: Any) -> None:
    known = [(type(b), b) for b in method.bits[name]]
    if isinstance(bits, int | float) and (type(bits), bits) not in known:
        allowed = ", ".join(map(str, method.bits[name]))
        raise InvalidInputError(
            f"{name}={bits!r} is not a bit-width {method.slug} is defined for; choose one of "
            f"{allowed}, or a format name such as 'fp8'."
        )
    if bits is not None and not isinstance(bits, int | float):
        try:
            parse(bits)
        except DqlabError as error:
            raise type(error)(f"{name}={bits!r}: {error}") from error


def _known(moments: tuple[str, ...]) -> None:
    for moment in moments:
        if moment not in MOMENTS:
            raise UnknownNameError(f"No moment {moment!r}; there are {', '.join(MOMENTS)}.")


def recipe(name: str, **options: Any) -> Recipe:
    """The recipe of one method.

    Args:
        name: slug ("q-diffusion") or module name ("q_diffusion").
        options: the method's own settings, see its docstring.

    Raises:
        UnknownNameError: if there is no such method.
        InvalidInputError: if it has no such option, or takes no value of that kind.

    """
    cls = find(name)
    parameters = inspect.signature(cls).parameters
    try:
        inspect.signature(cls).bind(**options)
    except TypeError as error:
        raise InvalidInputError(
            f"{cls.slug} cannot take the options {options}: {error}. Its own are "
            f"{', '.join(parameters) or 'none'}."
        ) from error
    _check_types(cls, options)
    method = cls(**options)
    method.options = {k: v for k, v in options.items() if not _default(parameters, k, v)}
    return Recipe((method,), dict.fromkeys(method.acts(), method))


def _check_types(cls: type, options: dict[str, Any]) -> None:
    """Hold options against the method's annotations, as far as those can be checked."""
    hints = get_type_hints(cls.__init__)
    for name, value in options.items():
        if name in hints and not _fits(value, hints[name]):
            raise InvalidInputError(
                f"{cls.slug}: {name}={value!r} is a {type(value).__name__}; it takes "
                f"{inspect.formatannotation(hints[name])}."
            )


def _fits(value: Any, hint: Any) -> bool:
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if not all(isinstance(kind, type) for kind in kinds):
        return True
    allowed = {int, *kinds} if float in kinds else set(kinds)
    return isinstance(value, tuple(allowed - {int})) or (int in allowed and type(value) is int)


def _default(parameters: Mapping[str, inspect.Parameter], name: str, value: Any) -> bool:
    usual = parameters[name].default if name in parameters else inspect.Parameter.empty
    return type(usual) is type(value) and plain_option(usual) == plain_option(value)


def as_recipe(given: "str | Recipe") -> Recipe:
    """A recipe from a method name, or the recipe itself."""
    if isinstance(given, Recipe):
        return given
    if isinstance(given, str):
        return recipe(given)
    raise InvalidInputError(
        f"Expected a method name or a recipe, got {type(given).__name__}. Try dqlab.recipe('rtn')."
    )
