"""The cells of a notebook that a few of them need: whatever defines the names they use."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def names(code: str) -> tuple[set[str], set[str]]:
    """What a cell uses from cells before it, and what it defines."""
    used, defined = set(), set()
    for statement in ast.parse(code).body:
        loads, stores = _touched(statement)
        used |= loads - defined
        defined |= stores
    return used, defined


def _touched(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """Names a statement reads, less those it brings along, and names it binds."""
    loads, stores, local = set(), set(), set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name):
            (loads if isinstance(node.ctx, ast.Load) else stores).add(node.id)
        elif isinstance(node, ast.alias):
            stores.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.arg):
            local.add(node.arg)
        elif isinstance(node, ast.comprehension):
            local |= {n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)}
        if isinstance(node, SCOPES):
            stores.add(node.name)
    if isinstance(statement, ast.AugAssign):
        loads |= stores
    elif not isinstance(statement, ast.Assign | ast.AnnAssign):
        local |= stores  # a loop's variable, a function's own names
    return loads - local, stores


def needed(cells: Sequence[str], targets: Iterable[int], always: Iterable[int] = ()) -> list[int]:
    """Numbers of the cells to run, in order, so that `targets` find the names they use.

    A name comes from the last cell before that binds it. What a cell changes without binding it,
    as `x.append` does, is not seen: notebooks here return new values.
    """
    seen = [names(cell) for cell in cells]
    chosen, waiting = set(always), set(targets) | set(always)
    while waiting:
        number = waiting.pop()
        chosen.add(number)
        for name in seen[number][0]:
            source = next((i for i in reversed(range(number)) if name in seen[i][1]), number)
            waiting |= {source} - chosen
    return sorted(chosen)
