"""The tree of errors and its wire codes."""

from __future__ import annotations

import copy

import pytest

from flowfabric import errors

CODES = """
stale_lease lease_expired lease_revoked execution_not_active no_active_lease active_attempt_exists
use_claim_resumed_execution not_a_resumed_execution execution_not_leaseable lease_conflict
invalid_claim_grant claim_grant_expired no_eligible_execution budget_exceeded budget_soft_exceeded
execution_not_suspended already_suspended waitpoint_closed waitpoint_not_found target_not_signalable
waitpoint_pending_use_buffer_script duplicate_signal payload_too_large signal_limit_exceeded
invalid_waitpoint_key invalid_token invalid_lease_for_suspend resume_condition_not_met
waitpoint_not_pending pending_waitpoint_expired invalid_waitpoint_for_execution
waitpoint_already_exists waitpoint_not_open execution_not_terminal max_replays_exhausted
stream_closed stale_owner_cannot_append retention_limit_exceeded execution_not_eligible
execution_not_in_eligible_set grant_already_exists execution_not_reclaimable invalid_dependency
stale_graph_revision execution_already_in_flow cycle_detected flow_not_found execution_not_in_flow
dependency_already_exists self_referencing_edge flow_already_terminal deps_not_satisfied
not_blocked_by_deps not_runnable terminal invalid_blocking_reason ok_already_applied
attempt_not_found attempt_not_in_created_state attempt_not_started attempt_already_terminal
execution_not_found execution_not_eligible_for_attempt replay_not_allowed max_retries_exhausted
stream_not_found stream_already_closed invalid_frame_type invalid_offset unauthorized
budget_not_found invalid_budget_scope budget_attach_conflict budget_override_not_allowed
quota_policy_not_found rate_limit_exceeded concurrency_limit_exceeded quota_attach_conflict
invalid_quota_spec invalid_input capability_mismatch invalid_capabilities invalid_policy_json
waitpoint_not_token_bound invalid_kid invalid_secret_hex invalid_grace_ms rotation_conflict
invalid_tag_key fence_required partial_fence_triple token_expired missing_token
hmac_secret_not_initialized invalid_secret invalid_keys_missing_hmac corruption
already_member_of_different_flow invariant_violation invalid_args
additional_waitpoint_binding_malformed use_pending_with_extras_unsupported idempotency_conflict
journal_mismatch store_unreachable store_timeout store_corrupt store_full
""".split()  # noqa: SIM905 - a list of a hundred lines would hide the tests

FAMILIES = [
    errors.InvalidInput,
    errors.NotFound,
    errors.Conflict,
    errors.StateRefusal,
    errors.Contention,
    errors.LimitExceeded,
    errors.Unavailable,
    errors.RunEnded,
    errors.StoreError,
]


@pytest.mark.parametrize("code", CODES)
def test_every_wire_code_maps_to_one_class_and_back(code):
    kind = errors.error_for_code(code)
    assert kind is not None
    assert kind.code == code


def test_an_unknown_code_maps_to_nothing():
    assert errors.error_for_code("no_such_code") is None


@pytest.mark.parametrize("code", errors.all_codes())
def test_every_class_is_in_exactly_one_family(code):
    kind = errors.error_for_code(code)
    assert kind is not None
    assert sum(issubclass(kind, family) for family in FAMILIES) == 1


@pytest.mark.parametrize("code", errors.all_codes())
def test_every_message_says_what_happened_and_what_to_do(code):
    kind = errors.error_for_code(code)
    assert kind is not None
    assert kind.default_message.count(".") + kind.default_message.count(":") >= 2
    assert str(kind()) == kind.default_message


def test_contention_may_be_retried_and_a_refusal_may_not():
    assert errors.Contention.retryable
    assert errors.LeaseConflict.retryable
    assert errors.StoreUnreachable.retryable
    assert not errors.StaleLease.retryable
    assert not errors.InvalidInput.retryable


def test_details_are_text_and_appear_in_the_message():
    error = errors.ExecutionNotActive(
        terminal_outcome="success", lease_epoch=3, lifecycle_phase="terminal", attempt_id=""
    )
    assert error.details["lease_epoch"] == "3"
    assert "lifecycle_phase='terminal'" in str(error)


def test_invalid_input_names_field_value_and_rule():
    error = errors.InvalidInput(field="tags", value="{}", rule="at least one tag")
    assert (error.field, error.value, error.rule) == ("tags", "{}", "at least one tag")
    assert str(error) == "tags: at least one tag, got {}. Correct tags and send the request again."


def test_a_missing_execution_is_named():
    assert errors.ExecutionNotFound("{fp:1}:x").details == {"execution_id": "{fp:1}:x"}
    assert errors.ExecutionNotFound(execution_id="{fp:1}:x").details == {"execution_id": "{fp:1}:x"}


@pytest.mark.parametrize("code", errors.all_codes())
def test_a_copy_of_an_error_keeps_message_and_details(code):
    kind = errors.error_for_code(code)
    assert kind is not None
    error = kind(field="a", rule="b")
    duplicate = copy.copy(error)
    assert (type(duplicate), str(duplicate), duplicate.details) == (kind, str(error), error.details)
