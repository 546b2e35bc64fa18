"""What a run has seen: commands, error codes, and steps from one situation to another.

A run that has not seen everything is invalid, not green.
"""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flowfabric import errors
from flowfabric.core.registry import RULES
from flowfabric.core.state import TRANSITIONS, Situation
from flowfabric.engine.layers import operation_name
from flowfabric.engine.operations import OPERATIONS
from flowfabric.testing.model.draw import GENERATORS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flowfabric.contracts.base import Command

NEVER_HERE: Final = {
    "active_attempt_exists": "only a damaged record has an attempt that runs without a lease",
    "corruption": "a handle's bytes are read before a command is made of it",
    "flow_too_large": "takes more members or edges than a case has",
    "handle_from_other_backend": "a handle is read before a command is made of it",
    "invalid_secret": "only a damaged key ring has a key without a secret",
    "limit_exceeded": "takes more open waitpoints than a case has",
    "transaction_outdated": "what a transaction of the user's own is told, which is no command",
    "unavailable": "what an engine says that was stopped",
    "waitpoint_not_token_bound": "only a waitpoint of another program has no token",
}
"""Codes that no command gets in a run, and why."""

_SOURCES: Final = Path(__file__).parents[2]
_NOT_OF_A_RULE: Final = (errors.StoreError, errors.RunEnded)


def command_kinds() -> dict[str, type[Command[Any]]]:
    """Every command that the engine carries out, by name."""
    return {operation_name(found): found for found in (*RULES, *OPERATIONS)}


def kinds_without_generator() -> set[str]:
    """The commands that the model does not know yet."""
    return command_kinds().keys() - {operation_name(one.command_type) for one in GENERATORS}


@cache
def codes_to_see() -> frozenset[str]:
    """Every code that a rule, an operation or a contract raises, and that a run can meet."""
    named = {name for path in _raising_modules() for name in _raised_in(ast.parse(path.read_text("utf-8")))}
    found = {getattr(errors, name, None) for name in named}
    codes = {
        error.code
        for error in found
        if isinstance(error, type)
        and issubclass(error, errors.FlowFabricError)
        and not issubclass(error, _NOT_OF_A_RULE)
        and error is not errors.FlowFabricError
    }
    return frozenset(codes - NEVER_HERE.keys())


def _raising_modules() -> Iterable[Path]:
    for folder in ("core", "engine", "contracts"):
        yield from sorted((_SOURCES / folder).rglob("*.py"))


def _raised_in(module: ast.Module) -> Iterator[str]:
    """The names of the errors that a module makes: ``errors.StaleLease(...)``, or imported ones."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call | ast.Raise):
            made = node.func if isinstance(node, ast.Call) else node.exc
            if isinstance(made, ast.Attribute):
                yield made.attr
            elif isinstance(made, ast.Name):
                yield made.id


class Coverage:
    """Counts over all cases of a run."""

    def __init__(self) -> None:
        self.steps = 0
        self.cases = 0
        self.restarts = 0
        self.accepted: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.transitions: Counter[tuple[Situation | None, Situation | None]] = Counter()

    def note(self, command: Command[Any], answer: Any) -> None:
        """Count one answer."""
        kind = operation_name(type(command))
        if isinstance(answer, errors.FlowFabricError):
            self.refused[kind] += 1
            self.codes[answer.code] += 1
        else:
            self.accepted[kind] += 1

    def missing_kinds(self) -> set[str]:
        """Commands of which none was accepted."""
        return {kind for kind in command_kinds() if not self.accepted[kind]}

    def missing_codes(self) -> frozenset[str]:
        """Codes that no command was refused with."""
        return codes_to_see() - self.codes.keys()

    def missing_transitions(self) -> set[tuple[Situation, Situation]]:
        """Steps of the state machine that were not taken."""
        known = {(before, after) for before, afters in TRANSITIONS.items() for after in afters}
        return known - set(self.transitions)

    def report(self) -> str:
        """The figures, for people."""
        accepted, refused = self.accepted.total(), self.refused.total()
        pairs = sum(len(afters) for afters in TRANSITIONS.values())
        lines = [
            f"{self.steps} steps in {self.cases} cases, {self.restarts} restarts",
            f"{accepted} commands accepted, {refused} refused",
            f"{len(command_kinds()) - len(self.missing_kinds())} of {len(command_kinds())} kinds of commands",
            f"{len(codes_to_see()) - len(self.missing_codes())} of {len(codes_to_see())} error codes",
            f"{pairs - len(self.missing_transitions())} of {pairs} steps from situation to situation",
        ]
        lines += [f"  {kind}: {self._counts(kind)}" for kind in sorted(command_kinds())]
        lines += [f"  {code}: {count}" for code, count in sorted(self.codes.items())]
        for name, missing in (
            ("commands", self.missing_kinds()),
            ("codes", self.missing_codes()),
            ("transitions", {f"{before} -> {after}" for before, after in self.missing_transitions()}),
        ):
            lines += [f"never seen, {name}: {', '.join(sorted(missing))}"] if missing else []
        return "\n".join(lines)

    def _counts(self, kind: str) -> str:
        return f"{self.accepted[kind]} accepted, {self.refused[kind]} refused"
