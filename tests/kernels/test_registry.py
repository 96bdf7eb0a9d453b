"""Choosing between implementations, and what every family of operations must have."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dqlab.kernels import registry
from dqlab.kernels.registry import NoImplementationError, explain, implements, named, select

FAMILIES = sorted((Path(__file__).resolve().parents[2] / "kernels").glob("*/__init__.py"))


@pytest.fixture(autouse=True)
def operation(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One operation with a fast way for even numbers and a slow one for positive numbers."""
    monkeypatch.setattr(registry, "_TABLE", {})
    implements("half", "fast", lambda x: "x is odd" if x % 2 else None)(lambda x: ("fast", x))
    implements("half", "slow", lambda x: "x is not above 0" if x <= 0 else None)(
        lambda x: ("slow", x)
    )


@pytest.mark.parametrize(("x", "name"), [(4, "fast"), (3, "slow"), (-2, "fast")])
def test_the_first_that_takes_the_call_is_chosen(x: int, name: str) -> None:
    assert select("half", x).run(x) == (name, x)


def test_refusals_are_explained() -> None:
    assert explain("half", 3) == {"fast": "x is odd", "slow": None}
    with pytest.raises(NoImplementationError) as error:
        select("half", -1)
    assert "fast: x is odd; slow: x is not above 0" in str(error.value)


@pytest.mark.parametrize(
    ("asked", "known"),
    [(("half", "best"), "fast, slow"), (("twice", "a"), "half")],
)
def test_unknown_names_list_the_known_ones(asked: tuple[str, str], known: str) -> None:
    with pytest.raises(NoImplementationError, match=known):
        named(*asked)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda path: path.parent.name)
def test_every_family_has_schema_reference_and_readme(family: Path) -> None:
    for name in ("op.py", "reference.py", "README.md"):
        assert (family.parent / name).is_file()
    assert (family.parent / "README.md").read_text().split("## ")[1].startswith("The physics")
