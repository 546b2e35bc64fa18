"""Random histories of commands: whatever happens in whatever order, what must hold holds.

The harness checks after every command that the execution is in a legal situation, got there by a
legal step, and stands in exactly one primary index. Here its attempts, epochs and events are
checked over the whole history.
"""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flowfabric import errors
from flowfabric.contracts.ids import LeaseFence
from flowfabric.contracts.policy import ExecutionPolicy, FixedBackoff, RetryPolicy, TimeoutPolicy
from flowfabric.contracts.states import LifecyclePhase, TerminalOutcome
from flowfabric.core.commands import CandidateClaimed, EndReclaimGraceArgs, ExpireLeaseArgs
from flowfabric.core.events import Family
from flowfabric.core.records import PastAttempt
from flowfabric.core.state import is_terminal
from flowfabric.core.vocabulary import LeaseState
from tests.core import requests
from tests.core.harness import START_MS, TTL_MS, Rulebook

POLICIES = (
    None,
    ExecutionPolicy(max_reclaim_count=1, max_replay_count=2),
    ExecutionPolicy(
        retry_policy=RetryPolicy(max_retries=2, backoff=FixedBackoff(delay_ms=0)),
        timeout_policy=TimeoutPolicy(attempt_timeout_ms=TTL_MS // 2, max_reclaim_count=2),
    ),
    ExecutionPolicy(
        retry_policy=RetryPolicy(max_retries=1, backoff=FixedBackoff(delay_ms=1_000)),
        timeout_policy=TimeoutPolicy(execution_deadline_ms=5 * TTL_MS),
    ),
)


def fence_of(lease, attempt):
    return LeaseFence(lease_id=lease.lease_id, lease_epoch=lease.epoch, attempt_id=attempt.attempt_id)


class Histories(RuleBasedStateMachine):
    """One execution, its present holder, former holders, operators and scanners."""

    def __init__(self):
        super().__init__()
        self.book = Rulebook()
        self.execution_id = ""
        self.fences = []
        self.epochs = []

    # What may happen

    def attempt(self, command):
        """Send a command. Being refused is part of the history, and changes nothing."""
        before = self.book.snapshot()
        try:
            return self.book.run(command)
        except errors.FlowFabricError:
            assert self.book.snapshot() == before
            return None

    @precondition(lambda self: not self.execution_id)
    @rule(
        policy=st.sampled_from(POLICIES), wait=st.sampled_from([0, 500]), dependencies=st.sampled_from([0, 1])
    )
    def create(self, policy, wait, dependencies):
        self.execution_id = self.book.create(policy=policy, delay_until=START_MS + wait)
        execution = self.book.execution(self.execution_id)
        execution.unresolved_dependencies = dependencies
        self.book.put(execution)

    @precondition(lambda self: self.execution_id)
    @rule(milliseconds=st.sampled_from([1, 1_000, TTL_MS // 2, TTL_MS]))
    def time_passes(self, milliseconds):
        self.book.advance(milliseconds)

    @precondition(lambda self: self.execution_id)
    @rule()
    def claim_from_the_index(self):
        lease = self.book.execution(self.execution_id).lease
        # Once the grace is over the claim needs no scanner to have said so.
        graced = lease is not None and (lease.reclaimable_at or self.book.now + 1) <= self.book.now
        offered = graced or "eligible" in self.book.indexes(self.execution_id)
        outcome = self.attempt(requests.candidate(self.execution_id))
        assert offered or outcome is None, "claimed what no index offers"
        if isinstance(outcome, CandidateClaimed):
            self.note_lease()

    @precondition(lambda self: self.execution_id)
    @rule(index=st.integers(0, 4))
    def claim_with_a_grant(self, index):
        self.attempt(requests.grant(self.execution_id))
        for command in (
            requests.claim(self.execution_id, expected_attempt_index=index),
            requests.claim_resumed(self.execution_id, current_attempt_index=index),
        ):
            if self.attempt(command) is not None:
                self.note_lease()

    @precondition(lambda self: self.execution_id)
    @rule()
    def claim_at_once(self):
        if self.attempt(requests.grant_and_claim(self.execution_id)) is not None:
            self.note_lease()

    @precondition(lambda self: self.execution_id)
    @rule()
    def reclaim(self):
        self.attempt(requests.reclaim_grant(self.execution_id))
        epoch = self.book.execution(self.execution_id).lease_epoch
        self.attempt(requests.reclaim(self.execution_id))
        if self.book.execution(self.execution_id).lease_epoch > epoch:
            self.note_lease()

    @precondition(lambda self: self.fences)
    @rule(data=st.data())
    def the_last_holder_acts(self, data):
        self.act(data, *self.fences[-1])

    @precondition(lambda self: len(self.fences) > 1)
    @rule(data=st.data())
    def a_former_holder_acts(self, data):
        self.act(data, *data.draw(st.sampled_from(self.fences[:-1])))

    def act(self, data, fence, index):
        command = data.draw(
            st.sampled_from(
                [
                    requests.renew(self.execution_id, fence, attempt_index=index),
                    requests.progress(self.execution_id, fence, progress_pct=index % 100),
                    requests.complete(self.execution_id, fence, attempt_index=index, result_payload=b"r"),
                    requests.fail(self.execution_id, fence, attempt_index=index),
                    requests.delay(self.execution_id, fence, self.book.now, attempt_index=index),
                    requests.delay(self.execution_id, fence, self.book.now + 700, attempt_index=index),
                    requests.wait_for_children(self.execution_id, fence, attempt_index=index),
                    requests.cancel(self.execution_id, fence),
                ]
            )
        )
        current = self.holds(fence)
        before = self.book.snapshot()
        self.attempt(command)
        assert current or self.book.snapshot() == before, "a former holder changed something"

    @precondition(lambda self: self.execution_id)
    @rule(data=st.data())
    def an_operator_acts(self, data):
        self.attempt(
            data.draw(
                st.sampled_from(
                    [
                        requests.cancel(self.execution_id),
                        requests.revoke(self.execution_id),
                        requests.prioritise(self.execution_id, 7),
                        requests.replay(self.execution_id),
                        requests.replay(self.execution_id, keep_journal=True),
                    ]
                )
            )
        )

    @precondition(lambda self: self.execution_id)
    @rule(milliseconds=st.sampled_from([500, TTL_MS // 2, TTL_MS, 5 * TTL_MS]))
    def time_passes_and_the_scanners_sweep(self, milliseconds):
        self.book.advance(milliseconds)
        for command in (
            requests.promote(self.execution_id),
            requests.timeout(self.execution_id),
            requests.mark_expired(self.execution_id),
            requests.deadline(self.execution_id),
        ):
            self.attempt(command)

    @precondition(lambda self: self.execution_id)
    @rule(data=st.data())
    def a_scanner_acts(self, data):
        self.attempt(
            data.draw(
                st.sampled_from(
                    [
                        requests.mark_expired(self.execution_id),
                        ExpireLeaseArgs(execution_id=self.execution_id, reclaim_grace_ms=1_500),
                        EndReclaimGraceArgs(execution_id=self.execution_id),
                        requests.promote(self.execution_id),
                        requests.timeout(self.execution_id),
                        requests.deadline(self.execution_id),
                    ]
                )
            )
        )

    def note_lease(self):
        lease, attempt = self.book.lease(self.execution_id), self.book.attempt(self.execution_id)
        assert lease.state is LeaseState.HELD
        self.fences.append((fence_of(lease, attempt), attempt.attempt_index))
        self.epochs.append(lease.epoch)

    def holds(self, fence):
        lease = self.book.execution(self.execution_id).lease
        return lease is not None and lease.lease_id == fence.lease_id

    # What must hold

    @invariant()
    def epochs_grow_by_one_with_every_lease(self):
        assert self.epochs == list(range(1, len(self.epochs) + 1))

    @invariant()
    def attempt_indices_have_no_gaps(self):
        if not self.execution_id:
            return
        execution = self.book.execution(self.execution_id)
        past = [key for key in self.book.data if key.startswith(f"{PastAttempt.KIND}/")]
        numbers = sorted(int(key.rpartition("/")[2]) for key in past)
        assert numbers == list(range(max(execution.attempt_count - 1, 0)))
        if execution.attempt is not None:
            assert execution.attempt.attempt_index == execution.attempt_count - 1

    @invariant()
    def past_attempts_have_ended_and_the_present_one_only_with_cause(self):
        for key in [key for key in self.book.data if key.startswith(f"{PastAttempt.KIND}/")]:
            past = self.book.get(PastAttempt, key.partition("/")[2]).attempt
            assert past.ended_at is not None
            assert past.stream_closed_at is not None

    @invariant()
    def an_end_is_clean_and_told_once_per_generation(self):
        if not self.execution_id:
            return
        execution = self.book.execution(self.execution_id)
        told = [event.data["generation"] for event in self.book.events if event.family is Family.COMPLETION]
        ends = execution.replay_count + is_terminal(execution)
        assert told == list(range(ends))
        if is_terminal(execution):
            assert (execution.lease, execution.grant, execution.blockers) == (None, None, ())
            assert execution.completed_at is not None
            assert self.book.indexes(self.execution_id) == {"created", "retention", "terminal"}
        else:
            assert (execution.completed_at, execution.outcome) == (None, TerminalOutcome.NONE)

    @invariant()
    def timers_match_the_record(self):
        if not self.execution_id:
            return
        execution = self.book.execution(self.execution_id)
        indexes = self.book.indexes(self.execution_id)
        held = execution.lease is not None and execution.lease.state is LeaseState.HELD
        assert ("due_lease" in indexes) == held
        assert ("worker_leases" in indexes) == held
        timed = execution.attempt is not None and execution.attempt.timeout_at is not None
        assert ("due_attempt" in indexes) == timed
        assert held or not timed
        deadline = execution.deadline_at is not None and execution.phase is not LifecyclePhase.TERMINAL
        assert ("due_deadline" in indexes) == deadline

    @invariant()
    def limits_are_kept(self):
        if not self.execution_id:
            return
        execution = self.book.execution(self.execution_id)
        policy = execution.policy or ExecutionPolicy()
        assert execution.retry_count <= (policy.retry_policy.max_retries if policy.retry_policy else 0)
        assert execution.reclaim_count <= policy.reclaim_cap
        assert execution.replay_count <= policy.max_replay_count


Histories.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestHistories = pytest.mark.slow(Histories.TestCase)
