"""``migrate``: bring the store's schema up to date, or say what is pending."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric.cli.exits import OK, REFUSED, UsageError
from flowfabric.cli.output import print_json
from flowfabric.errors import InvalidInput
from flowfabric.urls import apply_migrations, pending_migrations

if TYPE_CHECKING:
    from argparse import Namespace


def migrate(arguments: Namespace) -> int:
    """Carry out ``migrate``."""
    try:
        found = pending_migrations(arguments.url) if arguments.check else apply_migrations(arguments.url)
    except InvalidInput as error:
        raise UsageError(str(error)) from error
    word = "pending" if arguments.check else "applied"
    if arguments.json:
        print_json({word: list(found)})
    elif found:
        print("\n".join(f"{word}: {name}" for name in found))
    else:
        print("the schema is up to date")
    return REFUSED if arguments.check and found else OK
