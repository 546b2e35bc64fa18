"""Which roles may carry out which operation. What is not named here, only an admin may do."""

from __future__ import annotations

from typing import Final

from flowfabric.server.access import Role

_READS: Final = frozenset({Role.READ})
_SUBMITS: Final = frozenset({Role.SUBMIT})
_WORKS: Final = frozenset({Role.WORKER})
_SIGNALS: Final = frozenset({Role.SIGNAL})
_OPERATES: Final = frozenset({Role.OPERATOR})

_GROUPS: Final[dict[frozenset[Role], tuple[str, ...]]] = {
    _READS: (
        "capabilities",
        "describe_edge",
        "describe_execution",
        "describe_flow",
        "describe_lane",
        "evaluate_flow_eligibility",
        "explain_execution",
        "get_execution_namespace",
        "get_execution_result",
        "get_execution_tag",
        "get_flow_tag",
        "list_attempts",
        "list_edges",
        "list_execution_summaries",
        "list_executions",
        "list_expired_leases",
        "list_flow_members",
        "list_flows",
        "list_events",
        "list_lanes",
        "list_pending_waitpoints",
        "list_signals",
        "list_suspended",
        "list_waitpoint_hmac_kids",
        "list_workers",
        "observe_signals",
        "ping",
        "read_current_attempt_index",
        "read_exec_core_fields",
        "read_execution_context",
        "read_execution_info",
        "read_execution_state",
        "read_frames",
        "read_journal",
        "read_parent_results",
        "read_run",
        "read_state_vector",
        "read_summary",
        "read_total_attempt_count",
        "resolve_execution_flow_id",
        "scan_eligible",
        "server_time",
        "tail_events",
        "tail_frames",
    ),
    _SUBMITS: (
        "add_edges",
        "add_execution_to_flow",
        "apply_dependency_to_child",
        "cancel_execution",
        "cancel_flow",
        "create_execution",
        "create_flow",
        "set_edge_group_policy",
        "set_execution_tag",
        "set_execution_tags",
        "set_flow_tag",
        "set_flow_tags",
        "stage_dependency_edge",
        "submit_flow",
    ),
    _WORKS: (
        "append_frame",
        "claim_batch",
        "claim_execution",
        "claim_for_worker",
        "claim_resumed_execution",
        "complete_execution",
        "create_pending_waitpoint",
        "delay_execution",
        "deregister_worker",
        "fail_execution",
        "heartbeat_worker",
        "issue_claim_grant",
        "issue_grant_and_claim",
        "issue_reclaim_grant",
        "move_to_waiting_children",
        "reclaim_execution",
        "record_sleep",
        "record_step",
        "register_worker",
        "renew_lease",
        "suspend_execution",
        "update_progress",
    ),
    _SIGNALS: ("buffer_signal", "deliver_signal"),
    _OPERATES: (
        "ack_cancel_member",
        "cancel_flow_header",
        "cascade_completion",
        "change_priority",
        "close_waitpoint",
        "deliver_approval_signal",
        "expire_execution",
        "expire_suspension",
        "mark_lease_expired",
        "mark_worker_dead",
        "promote_blocked_to_eligible",
        "promote_delayed",
        "read_waitpoint_token",
        "replay_execution",
        "resolve_dependency",
        "resume_execution",
        "revoke_lease",
        "set_lane_state",
    ),
    frozenset({Role.ADMIN}): (
        "rotate_waitpoint_hmac_secret",
        "rotate_waitpoint_hmac_secret_all",
        "seed_waitpoint_hmac_secret",
        "trim_retention",
    ),
}

NEEDED: Final[dict[str, frozenset[Role]]] = {
    operation: roles for roles, operations in _GROUPS.items() for operation in operations
}


def roles_for(operation: str) -> frozenset[Role]:
    """The roles of which one is needed for an operation."""
    return NEEDED.get(operation, frozenset({Role.ADMIN}))
