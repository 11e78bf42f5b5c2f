"""What the loop makes sure of before it verifies a proposal, whichever drafter made it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

from specplug.arguments import shown
from specplug.budget import Budget
from specplug.engine_calls import is_failure
from specplug.sampling import NoDraftError, NoNumbersError
from specplug.types import (
    Drafter,
    DrafterError,
    Float64Array,
    Int64Array,
    Proposal,
    SpecplugError,
)

_TOTAL = 1e-3  # that probabilities in half precision may miss 1 by; they are divided by their sum
_EXACT = 1e-9


def propose(
    drafter: Drafter, context: Int64Array, budget: Budget, *, vocab_size: int, drawn: bool
) -> Proposal:
    """What a drafter proposes, cut to what the round may draft; see :func:`within`.

    Raises:
        DrafterError: the drafter failed, or broke its contract.
    """
    with drafting(drafter, "propose"):
        try:
            made = drafter.propose(context, budget)
        except NoDraftError:  # after a draft: the target will say so if it gets there
            return Proposal()
    name = _name(drafter)
    return within(budget, made, drafter=name, vocab_size=vocab_size, drawn=drawn)


@contextmanager
def drafting(drafter: Drafter, what: str) -> Iterator[None]:
    """A drafter runs: what it raises, if not a :class:`SpecplugError`, is its failure by its name;
    so are scores of its own engine that are not numbers.

    Args:
        drafter: which.
        what: the method of it.
    """
    try:
        yield
    except BaseException as error:
        if not is_failure(error):
            raise
        if isinstance(error, SpecplugError) and not isinstance(error, NoNumbersError):
            raise
        raise DrafterError(
            f"drafter {_name(drafter)!r} failed in {what}: {type(error).__name__}: {error}"
        ) from error


def _name(drafter: Drafter) -> str:
    return str(getattr(drafter, "name", type(drafter).__name__))


def within(
    budget: Budget, proposal: object, *, drafter: str, vocab_size: int, drawn: bool
) -> Proposal:
    """A proposal cut to what a round may draft; see :meth:`specplug.types.Drafter.propose`.

    Where the budget has no branches, a tree becomes the chain of each token's first continuation;
    then tokens beyond the budget's number are left out. Of what is left, everything is checked.

    Args:
        budget: of the round.
        proposal: what the drafter returned.
        drafter: its name, for errors.
        vocab_size: token ids are below it.
        drawn: whether the acceptance rule reads what tokens were drawn from; else that is dropped.

    Raises:
        DrafterError: it is no proposal, or one that breaks the contract.
    """

    def broken(what: str) -> NoReturn:
        raise DrafterError(f"drafter {drafter!r} broke its contract: {what}")

    if not isinstance(proposal, Proposal):
        broken(f"it proposed {shown(proposal)}, which is no Proposal")
    tokens = _list("tokens", proposal.tokens, broken)
    parts: dict[str, list[Any] | None] = {}
    for name in ("parents", "reaches", "probabilities"):
        given = getattr(proposal, name)
        parts[name] = None if given is None else _list(name, given, broken)
        if given is not None and len(given) != len(tokens):
            broken(f"{len(tokens)} tokens have {len(given)} {name}")
    parents, reaches, rows = parts["parents"], parts["reaches"], parts["probabilities"]
    if not drawn:
        rows = None
    if parents is not None:
        for node, parent in enumerate(parents):
            if not _is_whole(parent) or not -1 <= parent < node:
                broken(f"the parent of token {node} is {shown(parent)}: it must be in [-1, {node})")
    kept = _kept(parents, len(tokens), budget)
    if len(kept) < len(tokens) or (parents is not None and not budget.branching):
        tokens = [tokens[node] for node in kept]
        if parents is not None:
            parents = [parents[node] for node in kept] if budget.branching else None
        reaches = [reaches[node] for node in kept] if reaches is not None else None
        rows = [rows[node] for node in kept] if rows is not None else None
    for token in tokens:
        if not _is_whole(token) or not 0 <= token < vocab_size:
            broken(f"token id {shown(token)} is not in [0, {vocab_size})")
    for reach in reaches or ():
        if not isinstance(reach, float | int | np.number) or not 0 <= reach <= 1:
            broken(f"the chance {shown(reach)} of a token is not in [0, 1]")
    siblings = _earlier_siblings(tokens, parents, broken)
    if rows is not None:
        rows = [
            None if row is None else _row(node, row, tokens, siblings[node], vocab_size, broken)
            for node, row in enumerate(rows)
        ]
    return Proposal(
        tuple(map(int, tokens)),
        rows,
        tuple(map(int, parents)) if parents is not None else None,
        tuple(map(float, reaches)) if reaches is not None else None,
    )


def _list(name: str, values: Any, broken: Any) -> list[Any]:
    if isinstance(values, np.ndarray):
        values = list(values) if values.ndim > 1 else values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        broken(f"{name} {shown(values)} are no sequence")
    return list(values)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _kept(parents: list[int] | None, count: int, budget: Budget) -> Sequence[int]:
    """The indices of the tokens that the budget has room for; a parent is before its children."""
    if parents is None or budget.branching:
        return range(min(count, budget.most))
    path: list[int] = []
    for node, parent in enumerate(parents):
        if parent == (path[-1] if path else -1):
            path.append(node)
    return path[: budget.most]


def _earlier_siblings(tokens: list[int], parents: list[int] | None, broken: Any) -> list[list[int]]:
    """The tokens before each that follow the same one."""
    if parents is None:
        return [[]] * len(tokens)
    found: list[list[int]] = []
    following: dict[int, list[int]] = {}
    for token, parent in zip(tokens, parents, strict=True):
        before = following.setdefault(parent, [])
        if token in before:
            broken(f"token id {token} follows token {parent} twice")
        found.append([*before])
        before.append(token)
    return found


def _row(
    node: int, row: Any, tokens: list[int], siblings: list[int], vocab_size: int, broken: Any
) -> Float64Array:
    """What a token was drawn from, f64[V], whose sum is 1."""
    whose = f"the probabilities of token {node}"
    if not isinstance(row, np.ndarray) or row.shape != (vocab_size,) or row.dtype.kind != "f":
        broken(f"{whose} are {shown(row)}: they must be an array of {vocab_size} numbers")
    total = float(row.sum(dtype=np.float64))
    if not row.min() >= 0 or not abs(total - 1) <= _TOTAL:  # NaN is neither
        broken(f"{whose} have the sum {total:.6g} and the least {row.min():.6g}: they must be 1, 0")
    if not row[tokens[node]] > 0:
        broken(f"{whose} give {tokens[node]}, which was drawn from them, no chance")
    if any(row[sibling] != 0 for sibling in siblings):
        broken(f"{whose} give a chance to an earlier sibling, which is to be left out")
    made: Float64Array = row.astype(np.float64, copy=False)
    return made if abs(total - 1) <= _EXACT else made / total
