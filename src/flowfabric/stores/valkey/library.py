"""The functions that run on the server, as one library.

The library is put together from the files in ``functions`` when it is needed. Its name, and those of its
functions, end with a digest of its text. So programs of several versions work on one server side by
side, each with the functions it was made with, and loading a library again changes nothing.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric.stores.valkey.words import written

if TYPE_CHECKING:
    from flowfabric.stores.valkey.connection import Command
    from flowfabric.stores.valkey.keys import Range

STEPS: Final = (
    "shared",
    "packing",
    "requests",
    "rows",
    "deciding",
    "leases",
    "claiming",
    "joins",
    "completing",
)
"""The files of the library from which others use something, in the order in which they need each other."""
FUNCTIONS: Final = (
    "commit",
    "log",
    "trim",
    "scopes",
    "append_frame",
    "check_admission_and_record",
    "claim_execution",
    "claim_related_execution",
    "complete_execution",
    "complete_member",
    "create_execution",
    "deliver_signal",
    "fail_execution",
    "release_admission",
    "renew_lease",
    "report_usage",
    "resolve_dependency",
)
"""The files that stand for themselves. Each is a block, since one has no more than 200 local names."""
PARTS: Final = (*STEPS, *FUNCTIONS)
"""All files of the library."""
DIGEST_CHARS: Final = 12


class Library(msgspec.Struct, frozen=True):
    """The text of the library, and what it is told apart by."""

    digest: str
    source: str

    @property
    def name(self) -> str:
        """The name under which the server knows it."""
        return f"flowfabric_{self.digest}"

    def function(self, name: str) -> str:
        """The name under which the server knows a function of this library."""
        return f"ff_{name}_{self.digest}"


def list_scopes(index: str, wanted: Range, limit: int) -> Command:
    """The command that lists the scopes of an index whose rows are in a range."""
    return ("FCALL_RO", library().function("list_scopes"), 1, index, wanted.start, wanted.end, limit)


@cache
def library() -> Library:
    """The library of this program."""
    folder = files(__package__).joinpath("functions")
    steps, functions = (
        [folder.joinpath(f"{part}.lua").read_text(encoding="utf-8") for part in parts]
        for parts in (STEPS, FUNCTIONS)
    )
    body = "\n".join((written(), *steps, *(f"do\n{function}end" for function in functions)))
    digest = hashlib.sha256(body.encode()).hexdigest()[:DIGEST_CHARS]
    register = (
        "local function register(name, callback, flags)\n"
        "  server.register_function{\n"
        f"    function_name = 'ff_' .. name .. '_{digest}', callback = callback, flags = flags}}\n"
        "end\n"
    )
    return Library(digest=digest, source=f"#!lua name=flowfabric_{digest}\n{register}\n{body}")
