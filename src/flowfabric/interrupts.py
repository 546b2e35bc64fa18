"""How a handler leaves without an answer of its own. These pass through ``except Exception``."""

from __future__ import annotations


class Interrupt(BaseException):
    """The handler has stopped for now; its execution goes on later, elsewhere."""


class ExecutionSuspendedInterrupt(Interrupt):
    """The execution waits for a signal, an operator or a time, and its lease is released."""


class LeaseLostInterrupt(Interrupt):
    """The lease is gone: another worker may run this execution now. Nothing may be reported."""
