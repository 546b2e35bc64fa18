"""Admitting work, and binding idempotency keys to it."""

import pytest

from flowfabric import errors
from flowfabric.contracts.executions import CreateExecutionArgs, ExecutionCreated, ExecutionDuplicate
from flowfabric.contracts.policy import ExecutionPolicy, RoutingRequirements, TimeoutPolicy
from flowfabric.contracts.states import PublicState
from flowfabric.core.commands import ReserveIdempotencyKeyArgs, SettleReservationArgs
from flowfabric.core.records import Payload, Reservation
from flowfabric.core.rules.creation import RESERVATION_GRACE_MS, request_digest, reservation_identity
from tests.core.harness import LANE, NAMESPACE, START_MS, new_execution_id

WINDOW_MS = 90_000


def create(execution_id, **fields):
    defaults = {
        "execution_id": execution_id,
        "namespace": NAMESPACE,
        "lane_id": LANE,
        "execution_kind": "kind",
        "input_payload": b"input",
        "priority": 0,
        "creator_identity": "tests",
    }
    return CreateExecutionArgs(**defaults | fields)


def reserve(key, digest=b"digest", **fields):
    defaults = {
        "namespace": NAMESPACE,
        "idempotency_key": key,
        "execution_id": new_execution_id(),
        "digest": digest,
        "window_ms": WINDOW_MS,
    }
    return ReserveIdempotencyKeyArgs(**defaults | fields)


class TestCreate:
    @pytest.mark.scenario("LIFE-001")
    def test_a_fresh_execution_waits_for_a_worker(self, book):
        execution_id = book.create()
        assert book.vector(execution_id) == (
            "runnable",
            "unowned",
            "eligible_now",
            "waiting_for_worker",
            "none",
            "pending_first_attempt",
            "waiting",
        )
        assert book.indexes(execution_id) == {"created", "eligible"}
        assert book.names() == ["created"]

    def test_the_answer_names_the_public_state(self, book):
        execution_id = new_execution_id()
        waiting = ExecutionCreated(execution_id=execution_id, public_state=PublicState.WAITING)
        assert book.run(create(execution_id)) == waiting
        execution_id = new_execution_id()
        delayed = ExecutionCreated(execution_id=execution_id, public_state=PublicState.DELAYED)
        assert book.run(create(execution_id, delay_until=book.now + 1)) == delayed

    def test_the_input_is_kept_with_its_digest(self, book):
        execution_id = book.create(input_payload=b"\x00\xff")
        assert book.get(Payload, execution_id).data == b"\x00\xff"
        assert len(book.execution(execution_id).input_sha256) == 32

    @pytest.mark.scenario("LIFE-027")
    def test_an_instant_to_come_delays(self, book):
        execution_id = book.create(delay_until=START_MS + 1)
        assert book.vector(execution_id)[2:] == (
            "not_eligible_until_time",
            "waiting_for_delay",
            "none",
            "pending_first_attempt",
            "delayed",
        )
        assert book.indexes(execution_id) == {"created", "delayed", "due_delay"}
        assert book.execution(execution_id).blockers[0].detail.startswith("delayed until ")

    @pytest.mark.parametrize("until", [START_MS, START_MS - 1, 0])
    def test_an_instant_that_has_passed_delays_nothing(self, book, until):
        assert book.indexes(book.create(delay_until=until)) == {"created", "eligible"}

    def test_the_delay_of_the_policy_applies_where_the_command_has_none(self, book):
        policy = ExecutionPolicy(delay_until=START_MS + 5)
        assert "delayed" in book.indexes(book.create(policy=policy))
        assert "eligible" in book.indexes(book.create(policy=policy, delay_until=START_MS))

    @pytest.mark.scenario("PRIO-002")
    @pytest.mark.parametrize(("asked", "stored"), [(10_000, 9_000), (-5, 0), (50, 50)])
    def test_the_priority_is_clamped(self, book, asked, stored):
        assert book.execution(book.create(priority=asked)).priority == stored

    def test_the_priority_of_the_policy_applies_where_the_command_has_none(self, book):
        policy = ExecutionPolicy(priority=7)
        assert book.execution(book.create(policy=policy)).priority == 7
        assert book.execution(book.create(policy=policy, priority=8)).priority == 8

    @pytest.mark.scenario("TIME-004")
    def test_a_deadline_is_indexed(self, book):
        execution_id = book.create(execution_deadline_at=START_MS + 9)
        assert ("due_deadline", "", START_MS + 9, execution_id) in book.rows(execution_id)

    def test_the_deadline_of_the_policy_counts_from_the_creation(self, book):
        policy = ExecutionPolicy(timeout_policy=TimeoutPolicy(execution_deadline_ms=100))
        assert book.execution(book.create(policy=policy)).deadline_at == START_MS + 100
        given = book.create(policy=policy, execution_deadline_at=START_MS + 7)
        assert book.execution(given).deadline_at == START_MS + 7

    def test_required_capabilities_are_part_of_where_workers_look(self, book):
        routing = RoutingRequirements(required_capabilities=("gpu", "linux"))
        execution_id = book.create(policy=ExecutionPolicy(routing_requirements=routing))
        [scope] = [row[1] for row in book.rows(execution_id) if row[0] == "eligible"]
        assert scope.endswith("\x1fgpu\x1flinux\x1f")

    @pytest.mark.scenario("LIFE-013")
    def test_the_same_id_again_answers_duplicate_and_changes_nothing(self, book):
        execution_id = book.create()
        with book.unchanged():
            outcome = book.run(create(execution_id, input_payload=b"other"))
        assert outcome == ExecutionDuplicate(execution_id=execution_id)

    def test_an_id_of_another_namespace_is_refused(self, book):
        execution_id = book.create()
        with book.refuses(errors.InvalidInput):
            book.run(create(execution_id, namespace="other"), namespace="other")

    def test_another_namespace_than_the_callers_is_refused(self, book):
        with book.refuses(errors.InvalidInput) as refusal:
            book.run(create(new_execution_id(), namespace="other"))
        assert refusal[0].field == "namespace"

    def test_the_same_request_gets_the_first_answer(self, book):
        execution_id = new_execution_id()
        first = book.run(create(execution_id), request_id="r")
        with book.unchanged():
            assert book.run(create(execution_id), request_id="r") == first


class TestReservation:
    def test_a_free_key_is_bound(self, book):
        command = reserve("key")
        assert book.run(command).execution_id == command.execution_id
        bound = book.get(Reservation, reservation_identity(NAMESPACE, "key"))
        assert (bound.expires_at, bound.confirmed) == (START_MS + WINDOW_MS, False)

    def test_the_same_content_gets_the_bound_execution(self, book):
        first = book.run(reserve("key"))
        with book.unchanged():
            assert book.run(reserve("key")) == first

    def test_other_content_is_a_conflict(self, book):
        book.run(reserve("key"))
        with book.refuses(errors.IdempotencyConflict):
            book.run(reserve("key", digest=b"other"))

    def test_namespaces_do_not_share_keys(self, book):
        first = book.run(reserve("key"))
        other = book.run(reserve("key", digest=b"other", namespace="other"), namespace="other")
        assert other.execution_id != first.execution_id

    def test_a_key_of_another_namespace_cannot_be_bound(self, book):
        with book.refuses(errors.InvalidInput):
            book.run(reserve("key", namespace="other"))

    def test_names_that_hold_the_separator_do_not_meet(self):
        identities = {
            reservation_identity(namespace, key).partition("/")[2]
            for namespace, key in [("a", "b/c"), ("a/b", "c"), ("a/3", "b/c"), ("a/3/b", "c")]
        }
        assert len(identities) == 4

    def test_a_key_that_is_bound_to_something_else_meanwhile_creates_nothing(self, book):
        book.run(reserve("key"))
        with book.refuses(errors.Contention):
            book.run(create(new_execution_id(), idempotency_key="key"))

    def test_a_key_that_was_freed_meanwhile_creates_nothing(self, book):
        with book.refuses(errors.Contention):
            book.run(create(new_execution_id(), idempotency_key="key"))

    def test_a_key_is_free_again_at_the_end_of_its_window(self, book):
        book.run(reserve("key"))
        book.advance(WINDOW_MS)
        command = reserve("key", digest=b"other")
        assert book.run(command).execution_id == command.execution_id

    def settle(self, book):
        return book.run(SettleReservationArgs(reservation_id=reservation_identity(NAMESPACE, "key"))).action

    def test_a_reservation_whose_execution_exists_is_confirmed(self, book):
        book.run(reserve("key", execution_id=book.create()))
        assert self.settle(book) == "confirmed"
        with book.unchanged():
            assert self.settle(book) == "kept"

    def test_an_execution_of_another_namespace_confirms_nothing(self, book):
        foreign = create(new_execution_id(), namespace="other")
        book.run(foreign, namespace="other")
        book.run(reserve("key", execution_id=foreign.execution_id))
        book.advance(RESERVATION_GRACE_MS)
        assert self.settle(book) == "closed"
        book.advance(RESERVATION_GRACE_MS)
        assert self.settle(book) == "freed"

    def test_a_key_that_is_about_to_be_freed_creates_nothing_until_it_is_bound_again(self, book):
        reserving = reserve("key")
        book.run(reserving)
        book.advance(RESERVATION_GRACE_MS)
        assert self.settle(book) == "closed"
        with book.refuses(errors.Contention):
            book.run(create(reserving.execution_id, idempotency_key="key"))
        assert book.run(reserving).execution_id == reserving.execution_id
        book.run(create(reserving.execution_id, idempotency_key="key"))
        assert self.settle(book) == "confirmed"

    def test_a_key_that_was_closed_too_soon_is_confirmed(self, book):
        """The execution was on its way when its key was closed."""
        execution_id = new_execution_id()
        book.run(reserve("key", execution_id=execution_id))
        book.advance(RESERVATION_GRACE_MS)
        assert self.settle(book) == "closed"
        book.run(create(execution_id))
        assert self.settle(book) == "confirmed"
        assert book.get(Reservation, reservation_identity(NAMESPACE, "key")).closing_at is None

    def test_a_reservation_that_was_left_alone_is_freed_after_its_grace(self, book):
        book.run(reserve("key"))
        book.advance(RESERVATION_GRACE_MS - 1)
        with book.unchanged():
            assert self.settle(book) == "kept"
        book.advance(1)
        assert self.settle(book) == "closed"
        book.advance(RESERVATION_GRACE_MS - 1)
        with book.unchanged():
            assert self.settle(book) == "kept"
        book.advance(1)
        assert self.settle(book) == "freed"
        assert self.settle(book) == "gone"

    def test_a_confirmed_reservation_goes_at_the_end_of_its_window(self, book):
        book.run(reserve("key", execution_id=book.create()))
        self.settle(book)
        book.advance(WINDOW_MS)
        assert self.settle(book) == "expired"
        assert book.find(Reservation, reservation_identity(NAMESPACE, "key")) is None

    def test_the_digest_ignores_what_a_repeated_request_mints_anew(self):
        one, other = create(new_execution_id()), create(new_execution_id())
        assert request_digest(one) == request_digest(other)

    @pytest.mark.parametrize(
        "change", [{"input_payload": b"x"}, {"lane_id": "x"}, {"priority": 1}, {"tags": {"a.b": "c"}}]
    )
    def test_the_digest_covers_what_is_asked_for(self, change):
        execution_id = new_execution_id()
        assert request_digest(create(execution_id)) != request_digest(create(execution_id, **change))
