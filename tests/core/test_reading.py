"""What the reads say about one execution."""

import pytest

from flowfabric import errors
from flowfabric.contracts.reads import (
    AttemptSummary,
    DescribeExecutionArgs,
    ExecutionContext,
    GetExecutionNamespaceArgs,
    GetExecutionResultArgs,
    LeaseSummary,
    ReadCurrentAttemptIndexArgs,
    ReadExecutionContextArgs,
    ReadExecutionInfoArgs,
    ReadExecutionStateArgs,
    ReadStateVectorArgs,
    ReadTotalAttemptCountArgs,
    ResolveExecutionFlowIdArgs,
)
from flowfabric.contracts.runs import ReadRunArgs
from flowfabric.contracts.states import PublicState
from tests.core import requests
from tests.core.harness import INSTANCE, LANE, NAMESPACE, START_MS, TTL_MS, new_execution_id

OPTIONAL = (
    DescribeExecutionArgs,
    ReadExecutionInfoArgs,
    ReadExecutionStateArgs,
    ReadStateVectorArgs,
    GetExecutionResultArgs,
    GetExecutionNamespaceArgs,
    ResolveExecutionFlowIdArgs,
)
REQUIRED = (
    ReadExecutionContextArgs,
    ReadRunArgs,
    ReadCurrentAttemptIndexArgs,
    ReadTotalAttemptCountArgs,
)


@pytest.mark.parametrize("command", OPTIONAL)
def test_what_does_not_exist_or_is_of_another_namespace_reads_as_nothing(book, command):
    assert book.run(command(execution_id=new_execution_id())) is None
    assert book.run(command(execution_id=book.create()), namespace="other") is None


@pytest.mark.parametrize("command", REQUIRED)
def test_a_read_that_must_have_an_execution_refuses_a_foreign_one_like_a_missing_one(book, command):
    foreign = book.create()
    with book.refuses(errors.ExecutionNotFound):
        book.run(command(execution_id=new_execution_id()))
    with book.refuses(errors.ExecutionNotFound):
        book.run(command(execution_id=foreign), namespace="other")


@pytest.mark.parametrize("command", [*OPTIONAL, *REQUIRED])
def test_a_read_changes_nothing(book, command):
    execution_id, _ = book.start()
    with book.unchanged():
        book.run(command(execution_id=execution_id))


def test_a_snapshot_shows_the_attempt_and_the_lease(book):
    execution_id, fence = book.start(tags={"team.name": "blue"})
    book.advance(5)
    book.run(requests.renew(execution_id, fence))
    snapshot = book.run(DescribeExecutionArgs(execution_id=execution_id))
    assert snapshot.current_attempt == AttemptSummary(attempt_id=fence.attempt_id, attempt_index=0)
    assert snapshot.current_lease == LeaseSummary(
        lease_epoch=1,
        worker_instance_id=INSTANCE,
        expires_at=START_MS + 5 + TTL_MS,
        lease_id=fence.lease_id,
        attempt_index=0,
        last_heartbeat_at=START_MS + 5,
    )
    assert (snapshot.blocking_reason, snapshot.blocking_detail) == (None, None)
    assert (snapshot.created_at, snapshot.last_mutation_at) == (START_MS, START_MS + 5)
    assert (snapshot.tags, snapshot.total_attempt_count) == ({"team.name": "blue"}, 1)


def test_a_snapshot_of_waiting_work_has_neither_and_says_what_it_waits_for(book):
    execution_id = book.create()
    snapshot = book.run(DescribeExecutionArgs(execution_id=execution_id))
    assert (snapshot.current_attempt, snapshot.current_lease) == (None, None)
    assert snapshot.blocking_reason == "waiting_for_worker"


def test_a_lease_that_has_lapsed_or_was_revoked_is_not_shown(book):
    execution_id, _ = book.start()
    book.run(requests.revoke(execution_id))
    snapshot = book.run(DescribeExecutionArgs(execution_id=execution_id))
    assert snapshot.current_lease is None
    assert snapshot.current_attempt is not None


def test_the_info_has_the_state_and_the_three_times(book):
    execution_id = book.create(priority=3)
    book.advance(5)
    fence = book.claim(execution_id)
    book.advance(5)
    book.run(requests.complete(execution_id, fence))
    info = book.run(ReadExecutionInfoArgs(execution_id=execution_id))
    assert (info.namespace, info.lane_id, info.priority) == (NAMESPACE, LANE, 3)
    assert (info.created_at, info.started_at, info.completed_at) == (START_MS, START_MS + 5, START_MS + 10)
    assert (info.public_state, info.current_attempt_index) == (PublicState.COMPLETED, 0)
    assert info.state_vector.terminal_outcome == "success"


def test_the_state_and_its_words_agree(book):
    execution_id = book.create()
    for _ in range(2):
        summary = book.run(ReadStateVectorArgs(execution_id=execution_id))
        assert summary.state_vector.public_state is book.run(
            ReadExecutionStateArgs(execution_id=execution_id)
        )
        book.run(requests.cancel(execution_id))
    assert summary.current_attempt_index == 0


def test_the_result_is_that_of_the_latest_generation(book):
    execution_id, fence = book.start()
    read = GetExecutionResultArgs(execution_id=execution_id)
    assert book.run(read) is None
    book.run(requests.complete(execution_id, fence, result_payload=b"one"))
    assert book.run(read) == b"one"
    book.run(requests.replay(execution_id))
    assert book.run(read) is None
    fence = book.claim(execution_id)
    book.run(requests.complete(execution_id, fence, attempt_index=1, result_payload=b"two"))
    assert book.run(read) == b"two"
    assert book.run(ReadRunArgs(execution_id=execution_id)).result == b"two"


def test_a_result_of_no_bytes_is_a_result(book):
    execution_id, fence = book.start()
    book.run(requests.complete(execution_id, fence, result_payload=b""))
    assert book.run(GetExecutionResultArgs(execution_id=execution_id)) == b""


def test_the_context_is_what_the_execution_was_created_with(book):
    execution_id = book.create(input_payload=b"\x00in", tags={"team.name": "blue"})
    context = book.run(ReadExecutionContextArgs(execution_id=execution_id))
    assert context == ExecutionContext(
        input_payload=b"\x00in", execution_kind="kind", tags={"team.name": "blue"}
    )


def test_a_run_shows_why_it_ended(book):
    failed, fence = book.start()
    book.run(requests.fail(failed, fence, failure_reason="it broke", failure_category="permanent"))
    view = book.run(ReadRunArgs(execution_id=failed))
    assert (view.public_state, view.failure_reason, view.failure_category) == (
        PublicState.FAILED,
        "it broke",
        "permanent",
    )
    cancelled = book.create()
    book.run(requests.cancel(cancelled, reason="unwanted"))
    view = book.run(ReadRunArgs(execution_id=cancelled))
    assert (view.cancellation_reason, view.total_attempt_count) == ("unwanted", 0)
