"""The state machine: what is legal, and how its words follow from the record."""

import itertools
from typing import Any

import pytest

from flowfabric.contracts.states import (
    AttemptLifecycle,
    AttemptState,
    AttemptType,
    BlockingReason,
    EligibilityState,
    LifecyclePhase,
    OwnershipState,
    PublicState,
    TerminalOutcome,
)
from flowfabric.core.records import Attempt, Blocker, Execution, Lease
from flowfabric.core.state import (
    SITUATIONS,
    TRANSITIONS,
    Situation,
    blocking_detail,
    blocking_reason,
    eligibility_state,
    is_eligible,
    is_terminal,
    ownership_state,
    public_state,
    situation_of,
    state_vector,
    state_vector_or_none,
)
from flowfabric.core.vocabulary import BlockerKind, Continuation, LeaseState

LIVE = [situation for situation, legal in SITUATIONS.items() if legal.outcome is TerminalOutcome.NONE]
ENDED = [situation for situation in SITUATIONS if situation not in LIVE]


def execution(**fields: Any) -> Execution:
    defaults: dict[str, Any] = {
        "execution_id": "{fp:1}:x",
        "namespace": "n",
        "lane_id": "l",
        "execution_kind": "k",
        "priority": 0,
        "creator_identity": "",
        "created_at": 1,
        "last_transition_at": 1,
        "last_mutation_at": 1,
    }
    return Execution(**defaults | fields)


def leased(state=LeaseState.HELD, **fields):
    lease = Lease(
        lease_id="l",
        epoch=1,
        worker_id="w",
        worker_instance_id="w1",
        acquired_at=1,
        expires_at=2,
        ttl_ms=1,
        state=state,
        **fields,
    )
    attempt = Attempt(
        attempt_id="a",
        attempt_index=0,
        attempt_type=AttemptType.INITIAL,
        state=AttemptLifecycle.STARTED,
        started_at=1,
        worker_id="w",
        worker_instance_id="w1",
    )
    return execution(
        phase=LifecyclePhase.ACTIVE, lease=lease, attempt=attempt, continuation=Continuation.NONE
    )


def blocker(kind, reason=BlockingReason.PAUSED_BY_OPERATOR, **fields):
    return Blocker(kind=kind, reason=reason, **fields)


def ended(outcome):
    return execution(phase=LifecyclePhase.TERMINAL, outcome=outcome)


class TestPublicState:
    @pytest.mark.scenario("LIFE-030")
    @pytest.mark.parametrize(
        ("kind", "shown"),
        [
            (BlockerKind.OPERATOR, PublicState.WAITING),
            (BlockerKind.LANE, PublicState.WAITING),
            (BlockerKind.ROUTE, PublicState.WAITING),
            (BlockerKind.DEPENDENCIES, PublicState.WAITING_CHILDREN),
            (BlockerKind.TIME, PublicState.DELAYED),
            (BlockerKind.BUDGET, PublicState.RATE_LIMITED),
            (BlockerKind.QUOTA, PublicState.RATE_LIMITED),
        ],
    )
    def test_of_blocked_work(self, kind, shown):
        assert public_state(execution(blockers=(blocker(kind),))) is shown

    @pytest.mark.scenario("LIFE-030")
    @pytest.mark.parametrize("state", list(LeaseState))
    def test_of_active_work_whatever_became_of_its_lease(self, state):
        assert public_state(leased(state)) is PublicState.ACTIVE

    @pytest.mark.scenario("LIFE-030")
    def test_of_work_that_waits_or_is_suspended(self):
        assert public_state(execution()) is PublicState.WAITING
        assert public_state(execution(phase=LifecyclePhase.SUSPENDED)) is PublicState.SUSPENDED

    @pytest.mark.scenario("LIFE-030")
    @pytest.mark.parametrize(
        ("outcome", "shown"),
        [
            (TerminalOutcome.SUCCESS, PublicState.COMPLETED),
            (TerminalOutcome.FAILED, PublicState.FAILED),
            (TerminalOutcome.CANCELLED, PublicState.CANCELLED),
            (TerminalOutcome.EXPIRED, PublicState.EXPIRED),
            (TerminalOutcome.SKIPPED, PublicState.SKIPPED),
        ],
    )
    def test_of_work_that_has_ended(self, outcome, shown):
        assert public_state(ended(outcome)) is shown
        assert is_terminal(ended(outcome))


class TestBlockers:
    def test_the_first_in_order_gives_the_words_whatever_the_order_they_came_in(self):
        for first, second in itertools.combinations(BlockerKind, 2):
            for kinds in ((first, second), (second, first)):
                both = execution(blockers=tuple(blocker(kind) for kind in kinds))
                alone = execution(blockers=(blocker(first),))
                assert eligibility_state(both) is eligibility_state(alone)
                assert not is_eligible(both)

    def test_every_kind_has_an_eligibility_of_its_own(self):
        words = {eligibility_state(execution(blockers=(blocker(kind),))) for kind in BlockerKind}
        assert len(words) == len(BlockerKind)

    def test_reason_and_detail_are_the_blockers(self):
        waiting = blocker(BlockerKind.BUDGET, BlockingReason.WAITING_FOR_BUDGET, detail="tokens")
        blocked = execution(blockers=(waiting,))
        assert blocking_reason(blocked) is BlockingReason.WAITING_FOR_BUDGET
        assert blocking_detail(blocked) == "tokens"

    def test_blockers_say_nothing_of_work_that_does_not_wait(self):
        active = leased()
        active.blockers = (blocker(BlockerKind.OPERATOR),)
        assert eligibility_state(active) is EligibilityState.NOT_APPLICABLE
        assert blocking_reason(active) is BlockingReason.NONE


class TestLease:
    @pytest.mark.parametrize(
        ("state", "owned", "detail"),
        [
            (LeaseState.HELD, OwnershipState.LEASED, ""),
            (
                LeaseState.EXPIRED,
                OwnershipState.LEASE_EXPIRED_RECLAIMABLE,
                "lease expired, awaiting reclaim",
            ),
            (LeaseState.REVOKED, OwnershipState.LEASE_REVOKED, "lease revoked: stuck"),
        ],
    )
    def test_ownership_follows_from_the_lease(self, state, owned, detail):
        active = leased(state, revoke_reason="stuck")
        assert ownership_state(active) is owned
        assert blocking_detail(active) == detail

    def test_suspended_work_says_what_it_waits_for(self):
        suspended = execution(
            phase=LifecyclePhase.SUSPENDED, suspended_reason=BlockingReason.WAITING_FOR_APPROVAL
        )
        assert blocking_reason(suspended) is BlockingReason.WAITING_FOR_APPROVAL


class TestSituations:
    def test_each_vector_fits_one_row_at_most(self):
        for one, other in itertools.combinations(SITUATIONS.values(), 2):
            same = (one.phase, one.ownership, one.outcome) == (other.phase, other.ownership, other.outcome)
            overlap = one.eligibility & other.eligibility and one.attempt & other.attempt
            assert not (same and overlap)

    def test_outcome_and_terminal_phase_go_together(self):
        for situation in SITUATIONS.values():
            terminal = situation.phase is LifecyclePhase.TERMINAL
            assert terminal == (situation.outcome is not TerminalOutcome.NONE)

    def test_leased_means_active_and_running(self):
        for situation in SITUATIONS.values():
            running = AttemptState.RUNNING_ATTEMPT in situation.attempt
            assert running == (situation.ownership is OwnershipState.LEASED)
            assert not running or situation.phase is LifecyclePhase.ACTIVE

    @pytest.mark.scenario("LIFE-029")
    def test_a_damaged_record_is_in_no_situation(self):
        assert situation_of(execution(phase=LifecyclePhase.TERMINAL)) is None
        assert state_vector_or_none(execution(phase=LifecyclePhase.TERMINAL)) is None
        assert situation_of(execution(phase=LifecyclePhase.ACTIVE)) is None
        assert situation_of(execution(outcome=TerminalOutcome.FAILED)) is None

    def test_the_vector_has_the_seven_words(self):
        assert len(state_vector(execution()).__struct_fields__) == 7


class TestTransitions:
    def test_every_situation_has_its_steps_and_no_step_stays(self):
        assert set(TRANSITIONS) == set(Situation)
        for situation, steps in TRANSITIONS.items():
            assert situation not in steps
            assert len(set(steps)) == len(steps)

    def test_every_situation_can_be_reached_from_a_fresh_execution(self):
        reached, frontier = {Situation.ELIGIBLE}, [Situation.ELIGIBLE]
        while frontier:
            steps = set(TRANSITIONS[frontier.pop()]) - reached
            reached |= steps
            frontier += steps
        assert reached == set(Situation)

    def test_from_every_live_situation_it_can_be_cancelled_and_expire(self):
        for situation in LIVE:
            assert {Situation.CANCELLED, Situation.EXPIRED} <= set(TRANSITIONS[situation])

    def test_from_an_end_only_a_replay_leads_on(self):
        waiting = {Situation.ELIGIBLE, Situation.BLOCKED}
        for situation in ENDED:
            assert set(TRANSITIONS[situation]) == waiting

    def test_work_is_completed_only_while_it_runs(self):
        before = [situation for situation, steps in TRANSITIONS.items() if Situation.COMPLETED in steps]
        assert before == [Situation.RUNNING]
