"""What a handler may raise to say how its failure is to be treated."""

from __future__ import annotations


class Fatal(Exception):
    """This failure is final: no retry, whatever the policy says."""


class Retry(Exception):
    """This failure may pass: retry if the policy has a retry left.

    Args:
        message: what went wrong.
        category: matched against the policy's retryable categories.
    """

    def __init__(self, message: str = "", *, category: str = "transient") -> None:
        super().__init__(message)
        self.category = category
