"""Single facts of an execution."""

import pytest

from flowfabric.contracts.reads import (
    GetExecutionNamespaceArgs,
    ReadCurrentAttemptIndexArgs,
    ReadExecCoreFieldsArgs,
    ReadTotalAttemptCountArgs,
    ResolveExecutionFlowIdArgs,
)
from flowfabric.core.rules.points import core_fields
from tests.core import requests
from tests.core.harness import INSTANCE, NAMESPACE, START_MS, TTL_MS, WORKER, new_execution_id


def fields(book, execution_id, *names):
    return book.run(ReadExecCoreFieldsArgs(execution_id=execution_id, fields=names)).fields


def test_attempts_are_counted_from_the_first_claim_on(book):
    execution_id = book.create()
    index, count = (
        command(execution_id=execution_id)
        for command in (ReadCurrentAttemptIndexArgs, ReadTotalAttemptCountArgs)
    )
    assert (book.run(index), book.run(count)) == (0, 0)
    fence = book.claim(execution_id)
    assert (book.run(index), book.run(count)) == (0, 1)
    book.run(requests.revoke(execution_id))
    book.claim(execution_id, worker_instance_id=fence.lease_id)
    assert (book.run(index), book.run(count)) == (1, 2)


def test_the_namespace_and_the_flow_of_an_execution(book):
    execution_id = book.create()
    assert book.run(GetExecutionNamespaceArgs(execution_id=execution_id)) == NAMESPACE
    assert book.run(ResolveExecutionFlowIdArgs(execution_id=execution_id)) is None


def test_fields_are_text_by_the_names_that_are_asked_for(book):
    execution_id, fence = book.start()
    asked = (
        "public_state",
        "current_worker_instance_id",
        "current_attempt_id",
        "lease_expires_at",
        "flow_id",
    )
    assert fields(book, execution_id, *asked, "no_such_field") == {
        "public_state": "active",
        "current_worker_instance_id": INSTANCE,
        "current_attempt_id": fence.attempt_id,
        "lease_expires_at": str(START_MS + TTL_MS),
        "flow_id": None,
        "no_such_field": None,
    }


def test_a_revoked_lease_tells_when_and_why(book):
    execution_id, _ = book.start()
    book.run(requests.revoke(execution_id, reason="stuck"))
    found = fields(book, execution_id, "lease_revoked_at", "lease_expired_at", "lease_revoke_reason")
    assert found == {
        "lease_revoked_at": str(START_MS),
        "lease_expired_at": None,
        "lease_revoke_reason": "stuck",
    }


@pytest.mark.parametrize("namespace", ["other", NAMESPACE])
def test_what_does_not_exist_or_is_of_another_namespace_has_no_fields(book, namespace):
    execution_id = book.create() if namespace == "other" else new_execution_id()
    ask = ReadExecCoreFieldsArgs(execution_id=execution_id, fields=("lane_id",))
    assert book.run(ask, namespace=namespace) is None


def test_every_field_can_be_read_in_every_kind_of_record(book):
    execution_id, _ = book.start(delay_until=None)
    names = tuple(core_fields(book.execution(execution_id)))
    found = fields(book, execution_id, *names)
    assert found["current_worker_id"] == WORKER
    assert set(found) == set(names)
