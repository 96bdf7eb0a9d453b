"""Find methods by name: those shipped here and those installed as plug-ins."""

import importlib
import pkgutil
import warnings
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from dqlab.errors import UnknownNameError

ENTRY_POINT_GROUP = "dqlab.methods"
_FOLDERS = ("unet_", "dit_")


@cache
def all_methods() -> dict[str, type]:
    """Every method class by slug: shipped ones first, then plug-ins."""
    import dqlab.methods as package
    from dqlab.methods.rtn import Rtn

    found: dict[str, type] = {Rtn.slug: Rtn}
    for info in pkgutil.walk_packages(package.__path__, "dqlab.methods."):
        if info.name.split(".")[2].startswith(_FOLDERS) and not info.ispkg:
            method = importlib.import_module(info.name).METHOD
            found[method.slug] = method
    for point in entry_points(group=ENTRY_POINT_GROUP):
        _add_plugin(found, point)
    return found


def _add_plugin(found: dict[str, type], point: EntryPoint) -> None:
    """One plug-in's method; a broken one is left out with a warning, the others go on working."""
    try:
        method = point.load()
        slug = method.slug
    except Exception as error:
        warnings.warn(f"The method plug-in {point.value} is left out: {error}", stacklevel=3)
        return
    if found.setdefault(slug, method) is not method:
        warnings.warn(
            f"The method plug-in {point.value} is left out: its slug {slug!r} is taken by "
            f"{found[slug].__module__}.",
            stacklevel=3,
        )


def find(name: str) -> type:
    """The method class called `name`; dashes and underscores are the same.

    Raises:
        UnknownNameError: with the names there are.

    """
    methods = all_methods()
    slug = str(name).replace("_", "-").lower()
    if slug not in methods:
        raise UnknownNameError(f"No method {name!r}; there are {', '.join(methods)}.")
    return methods[slug]


def describe() -> list[dict[str, Any]]:
    """One JSON-able row per method: slug, title, venue, arxiv, category, moments, kind, models."""
    from dqlab.models.families import FAMILIES

    rows = []
    for slug, cls in all_methods().items():
        paper = cls.paper
        method = cls()
        rows.append(
            {
                "slug": slug,
                "title": paper.title,
                "venue": paper.venue,
                "arxiv": paper.arxiv,
                "category": cls.category,
                "moments": list(method.acts()),
                "kind": cls.kind,
                "applies_to": [f.name for f in FAMILIES if method.unfit(f) is None],
            }
        )
    return rows
