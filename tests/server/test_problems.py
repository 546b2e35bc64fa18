"""Statuses and envelopes of errors."""

import pytest

from flowfabric import errors
from flowfabric.remote.problems import error_of
from flowfabric.server.problems import problem_of

CLASSES = {
    "invalid_input": (400, None, None),
    "invalid_token": (400, None, None),
    "capability_mismatch": (400, None, None),
    "signal_limit_exceeded": (400, None, None),
    "unauthorized": (403, None, None),
    "execution_not_found": (404, None, None),
    "flow_not_found": (404, None, None),
    "budget_not_found": (404, None, None),
    "waitpoint_not_found": (409, "contention", True),
    "cycle_detected": (409, "cycle_detected", False),
    "rotation_conflict": (409, "rotation_conflict", False),
    "idempotency_conflict": (409, "conflict", False),
    "contention": (409, "contention", True),
    "stale_graph_revision": (409, "contention", True),
    "lease_conflict": (409, "contention", True),
    "execution_not_active": (409, "contention", True),
    "execution_not_eligible": (409, "contention", True),
    "execution_not_terminal": (409, "execution_not_terminal", False),
    "max_replays_exhausted": (409, "max_replays_exhausted", False),
    "flow_already_terminal": (409, "flow_already_terminal", False),
    "budget_exceeded": (409, "budget_exceeded", False),
    "stale_lease": (409, "state_conflict", False),
    "lease_expired": (409, "already_satisfied", False),
    "lease_revoked": (409, "already_satisfied", False),
    "rate_limit_exceeded": (429, "rate_limit_exceeded", True),
    "concurrency_limit_exceeded": (429, "concurrency_limit_exceeded", True),
    "resource_exhausted": (429, "resource_exhausted", True),
    "retry_exhausted": (500, "retry_exhausted", False),
    "unavailable": (503, "unavailable", False),
    "store_unreachable": (500, "transport", True),
    "store_timeout": (500, "timeout", True),
    "store_corrupt": (500, "protocol", False),
    "store_full": (500, "other", False),
}


@pytest.mark.scenario("HTTP-012")
@pytest.mark.parametrize("code", CLASSES)
def test_a_code_has_its_status_kind_and_advice(code: str) -> None:
    kind = errors.error_for_code(code)
    assert kind is not None
    problem = problem_of(kind())
    found = (problem.status, problem.body.get("kind"), problem.body.get("retryable"))
    assert found == CLASSES[code]
    assert ("kind" in problem.body) == (CLASSES[code][1] is not None)


@pytest.mark.parametrize("code", errors.all_codes())
def test_every_error_arrives_as_itself(code: str) -> None:
    kind = errors.error_for_code(code)
    assert kind is not None
    error = errors.rebuilt(kind, "What happened.", {"field": "a", "rule": "b"})
    problem = problem_of(error)
    arrived = error_of(problem.status, problem.body)
    assert type(arrived) is kind
    if not problem.is_fault:
        assert (arrived.message, arrived.details) == ("What happened.", {"field": "a", "rule": "b"})


def test_what_a_store_says_stays_in_the_log() -> None:
    problem = problem_of(errors.StoreUnreachable("password authentication failed for secret@host", dsn="x"))
    assert b"secret" not in problem.encode()
    assert problem.body["details"] == {}


@pytest.mark.parametrize("code", ["rate_limit_exceeded", "unavailable"])
def test_whoever_should_wait_is_told_how_long(code: str) -> None:
    kind = errors.error_for_code(code)
    assert kind is not None
    assert problem_of(kind()).headers["Retry-After"].isdigit()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, errors.Unauthorized),
        (404, errors.Unavailable),
        (413, errors.PayloadTooLarge),
        (502, errors.StoreUnreachable),
        (503, errors.StoreUnreachable),
        (504, errors.StoreTimeout),
    ],
)
def test_an_answer_from_something_in_between_is_an_error_too(
    status: int, kind: type[errors.FlowFabricError]
) -> None:
    assert type(error_of(status, "<html>")) is kind
