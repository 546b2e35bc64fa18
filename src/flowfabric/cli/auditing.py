"""``audit``: check the invariants of everything stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric.audit import AuditReport, audit
from flowfabric.cli.exits import OK, REFUSED
from flowfabric.cli.output import print_fields, print_json, print_note, print_table
from flowfabric.cli.session import open_engine, run
from flowfabric.urls import is_server

if TYPE_CHECKING:
    from argparse import Namespace

AUDIT: Final = "/v1/admin/audit"


def run_audit(arguments: Namespace) -> int:
    """Carry out ``audit``."""
    return run(_audit(arguments))


async def _audit(arguments: Namespace) -> int:
    async with open_engine(arguments, everywhere=arguments.everywhere) as engine:
        if is_server(arguments.url):
            # Only the server reaches the store; its library may be absent where no server is named.
            from flowfabric.remote import HttpEngine

            assert isinstance(engine, HttpEngine)
            report = msgspec.json.decode(await engine.ask(AUDIT), type=AuditReport)
        else:
            report = await audit(engine, namespace=None if arguments.everywhere else arguments.namespace)
    if arguments.json:
        print_json(report)
    else:
        _print_report(report)
    return REFUSED if report.violations else OK


def _print_report(report: AuditReport) -> None:
    print_fields([(f"checked {name}", str(count)) for name, count in sorted(report.checked.items())])
    if not report.complete:
        print_note("there are more violations than are shown")
    if not report.violations:
        print("no invariant is violated")
        return
    rows = [[violation.invariant, violation.subject, violation.detail] for violation in report.violations]
    print_table(["INVARIANT", "SUBJECT", "DETAIL"], rows, flexible=2)
