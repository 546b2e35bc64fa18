"""How a suspension says which journal entry it is: ``journal:<kind>:<ordinal>:<name>``.

The text travels in the suspension's ``continuation_metadata_pointer``. Whoever suspends without a
journal may put anything else there, so a text of another form is simply not a pointer.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from flowfabric.contracts.journal import JournalKind
from flowfabric.contracts.limits import NAME_CHARS_MAX, U32_MAX

_POINTER: Final = re.compile(
    rf"journal:(?P<kind>wait|sleep):(?P<ordinal>[0-9]{{1,10}}):(?P<name>.{{1,{NAME_CHARS_MAX}}})"
)


class JournalPointer(NamedTuple):
    """The place of one entry in the journal."""

    kind: JournalKind
    ordinal: int
    name: str


def journal_pointer(kind: JournalKind, ordinal: int, name: str) -> str:
    """Write a pointer.

    >>> journal_pointer(JournalKind.WAIT, 0, "approval")
    'journal:wait:0:approval'
    """
    return f"journal:{kind}:{ordinal}:{name}"


def parse_journal_pointer(text: str | None) -> JournalPointer | None:
    """Read a pointer, or None if the text is not one. Only waits and sleeps end a suspension.

    >>> parse_journal_pointer("journal:wait:2:review:legal")
    JournalPointer(kind=<JournalKind.WAIT: 'wait'>, ordinal=2, name='review:legal')
    >>> parse_journal_pointer("checkpoint-17") is None
    True
    """
    found = _POINTER.fullmatch(text or "")
    if found is None or int(found["ordinal"]) > U32_MAX:
        return None
    return JournalPointer(JournalKind(found["kind"]), int(found["ordinal"]), found["name"])
