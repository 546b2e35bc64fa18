"""Which rule answers which command.

``@rule`` binds a command type to the function that decides it. ``subject`` names the record that
the command is about: it is loaded first, and it remembers the last request and its outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args

import msgspec

from flowfabric.contracts.base import Command
from flowfabric.core.records import Execution, Key, key_for

if TYPE_CHECKING:
    from flowfabric.core.work import Work

C = TypeVar("C", bound=Command[Any])
R = TypeVar("R")


class Rule:
    """A command type with the function that decides it."""

    __slots__ = (
        "acts_anew",
        "command_type",
        "decide",
        "is_query",
        "makes",
        "outcome_decoder",
        "reads",
        "restore",
        "result_type",
        "shorten",
        "subject",
    )

    def __init__(
        self,
        command_type: type[Command[Any]],
        decide: Callable[[Work, Any], Any],
        subject: Callable[[Any], Key | None],
        reads: Callable[[Any], tuple[Key, ...]],
        makes: Callable[[Any], tuple[Key, ...]],
        *,
        is_query: bool,
        acts_anew: bool,
        shorten: Callable[[Any], Any],
        restore: Callable[[Work, Any, Any], Any],
    ) -> None:
        self.command_type = command_type
        self.decide = decide
        self.subject = subject
        self.reads = reads
        self.makes = makes
        self.is_query = is_query
        self.acts_anew = acts_anew
        self.shorten = shorten
        self.restore = restore
        self.result_type = result_type_of(command_type)
        self.outcome_decoder = msgspec.msgpack.Decoder(self.result_type)


RULES: Final[dict[type[Command[Any]], Rule]] = {}

ACTING_ANEW: Final[set[str]] = set()
"""The names of the commands whose rules are registered with ``acts_anew``."""

EARLIER_REQUESTS_MAX: Final = 8
"""How many of their answers a record keeps besides the last one. A task has no more frames than these on
their way at a time, so each of them is written once however many replies are lost."""


def result_type_of(command_type: type[Command[Any]]) -> Any:
    """The ``Result`` in ``class SomeArgs(Command[Result])``."""
    for base in command_type.__orig_bases__:  # type: ignore[attr-defined]
        arguments = get_args(base)
        if arguments:
            return arguments[0]
    raise TypeError(f"{command_type.__name__} does not name its result: class X(Command[Result])")


def execution_subject(command: Any) -> Key:
    """The subject of every command that names one execution."""
    return key_for(Execution, command.execution_id)


def no_subject(command: Any) -> None:
    """For queries, and for commands that are idempotent by themselves."""


def no_reads(command: Any) -> tuple[Key, ...]:
    """Nothing to load besides the subject."""
    return ()


def whole(outcome: R) -> R:
    """The outcome as it is."""
    return outcome


def as_remembered(work: Work, command: Any, outcome: R) -> R:
    """The outcome as it was remembered."""
    return outcome


def rule(
    command_type: type[C],
    *,
    subject: Callable[[C], Key | None] = execution_subject,
    reads: Callable[[C], tuple[Key, ...]] = no_reads,
    makes: Callable[[C], tuple[Key, ...]] = no_reads,
    query: bool = False,
    acts_anew: bool = False,
    shorten: Callable[[Any], Any] = whole,
    restore: Callable[[Work, C, Any], Any] = as_remembered,
) -> Callable[[Callable[[Work, C], R]], Callable[[Work, C], R]]:
    """Register the decorated function as the rule of ``command_type``.

    Args:
        command_type: the command it decides.
        subject: the key of the record the command is about. It keeps the last request id and
            outcome whenever the rule changes it.
        reads: keys that the rule is sure to read, so that they are loaded together.
        makes: keys of records that it creates, and that are hardly ever there before. They are taken
            as absent and not loaded, until a commit finds out otherwise.
        query: True if the rule never changes anything, so that it need not wait for a commit.
        acts_anew: True if the command has an effect again when it is repeated after another one.
            Then its answer is kept for some time beside those of later commands.
        shorten: takes out of an outcome what is on record anyway, before the outcome is remembered.
        restore: puts it back when the request is repeated.
    """

    def register(decide: Callable[[Work, C], R]) -> Callable[[Work, C], R]:
        assert command_type not in RULES, f"{command_type.__name__} already has a rule"
        RULES[command_type] = Rule(
            command_type,
            decide,
            subject,
            reads,
            makes=makes,
            is_query=query,
            acts_anew=acts_anew,
            shorten=shorten,
            restore=restore,
        )
        if acts_anew:
            ACTING_ANEW.add(command_type.__name__)
        return decide

    return register
