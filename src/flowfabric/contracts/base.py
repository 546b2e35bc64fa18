"""The shapes every contract has: a command, the outcomes it can have, and plain values.

A command is frozen data that says what is asked; it names its result type, so that
``await engine.execute(command)`` is typed. An outcome is frozen data that says what
happened; its tag is the variant's name on the wire. All three are frozen and take their
fields by keyword, without saying so in every class.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar, dataclass_transform

import msgspec

Result = TypeVar("Result", covariant=True)


class FrozenMeta(msgspec.StructMeta):
    """Makes every struct of the contracts frozen and keyword-only.

    They are plain values and cannot be in a cycle, so the garbage collector need not look at them.
    """

    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> Any:
        """Create the class with these options set."""
        options = {"frozen": True, "kw_only": True, "gc": False, **options}
        return super().__new__(mcls, name, bases, namespace, **options)


# The decorator tells type checkers what the metaclass does; msgspec needs no telling.
@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Command(msgspec.Struct, Generic[Result], frozen=True, kw_only=True, metaclass=FrozenMeta):
    """What a caller asks the engine to do. ``Result`` is what ``Engine.execute`` returns."""

    def validate(self) -> None:
        """Check the rules that span several fields.

        Raises:
            InvalidInput: a combination of fields is not allowed.
        """


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Outcome(msgspec.Struct, frozen=True, kw_only=True, metaclass=FrozenMeta):
    """What happened. Subclasses set ``tag`` to the variant's name on the wire."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Value(msgspec.Struct, frozen=True, kw_only=True, metaclass=FrozenMeta):
    """A part of a command or an outcome, or what a read returns."""
