"""From what went wrong to one line on standard error and an exit code.

The rule this module keeps: no traceback reaches a user unless ``FF_DEBUG`` is set, and every
failure says what happened, its code, and what to do.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

OK: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
STORE: Final = 3
TIMED_OUT: Final = 4
INTERRUPTED: Final = 130

EXIT_CODES: Final = {
    OK: "done",
    REFUSED: "refused, an execution did not complete, migrations are pending, or an invariant is violated",
    USAGE: "the command line is wrong",
    STORE: "the store cannot be reached, is corrupt, is full, or was written by a newer version",
    TIMED_OUT: "the time given by --timeout was over first",
    INTERRUPTED: "interrupted from the keyboard",
}


class UsageError(Exception):
    """The command line asks for something that cannot be. The message says what to write instead."""


def run_guarded(carry_out: Callable[[], int]) -> int:
    """Run a verb and turn whatever it raises into a line and an exit code."""
    try:
        code = carry_out()
        sys.stdout.flush()
    except BrokenPipeError:
        return _reader_is_gone()
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last place that can say it in words
        if os.environ.get("FF_DEBUG"):
            traceback.print_exc()
        print_failure(error)
        return exit_code_of(error)
    return code


def _reader_is_gone() -> int:
    """Whoever read our output has had enough, which is no failure; nothing more can be written."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return OK


def print_failure(error: Exception, *, subject: str = "") -> None:
    """Say on standard error what went wrong, in one line, and with what where there are several."""
    named = f"{subject}: " if subject else ""
    print(f"error: {named}{describe_failure(error)}", file=sys.stderr)


def describe_failure(error: Exception) -> str:
    """What happened and what to do, with the code in brackets."""
    code = failure_code(error)
    text = str(error)
    if code == "internal_error":
        text = f"unexpected {type(error).__name__}: {text}. Set FF_DEBUG=1 to see where it comes from."
    return f"{' '.join(text.split())} [{code}]"


def failure_code(error: Exception) -> str:
    """The wire code of an error, or a word of our own for what is not the engine's."""
    from flowfabric.errors import FlowFabricError

    match error:
        case FlowFabricError():
            return error.code
        case UsageError():
            return "usage"
        case TimeoutError():
            return "timeout"
        case _:
            return "internal_error"


def failure_to_wire(error: Exception) -> dict[str, Any]:
    """An error as ``--json`` shows it in place of an outcome."""
    details = getattr(error, "details", {})
    return {"error": {"code": failure_code(error), "message": str(error), "details": details}}


def exit_code_of(error: Exception) -> int:
    """The exit code that tells this kind of failure apart."""
    from flowfabric.errors import StoreError

    match error:
        case UsageError():
            return USAGE
        case StoreError():
            return STORE
        case TimeoutError():
            return TIMED_OUT
        case _:
            return REFUSED
