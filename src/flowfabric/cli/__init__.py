"""The ``flowfabric`` command: run workers, submit work, look at it, and operate it.

``parser`` states the whole surface: every verb with its options. Each verb is carried out by a
function in the module of its group, which is imported only when its verb is asked for. Results go
to standard output, everything else to standard error, so that output can be piped.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from flowfabric.cli.exits import run_guarded
from flowfabric.cli.parser import parse_arguments
from flowfabric.cli.reference import render_cli_reference

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main", "render_cli_reference"]


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command line and return the exit code.

    Args:
        argv: the words after ``flowfabric``; those of the process when absent.
    """
    try:
        arguments = parse_arguments(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    module, _, name = arguments.carried_out_by.partition(":")
    return run_guarded(lambda: getattr(import_module(module), name)(arguments))
