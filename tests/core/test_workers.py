"""The registry's rules: what is on record, what a death leaves behind, and whose leases it reaches."""

from typing import Any

import pytest

from flowfabric.contracts.workers import (
    DeregisterWorkerArgs,
    HeartbeatWorkerArgs,
    MarkWorkerDeadArgs,
    RegisterWorkerArgs,
    WorkerMarkedDead,
    WorkerNotRegistered,
    WorkerRegistered,
)
from flowfabric.core.commands import ExpireWorkerArgs, RevokeDeadWorkersLeaseArgs
from flowfabric.core.events import Family
from flowfabric.core.records import WorkerDeath, WorkerRegistration, worker_identity
from flowfabric.core.state import Situation
from flowfabric.errors import InvalidCapabilities
from tests.core.harness import INSTANCE, LANE, NAMESPACE, START_MS, TTL_MS, WORKER

NAMED: Any = {"worker_instance_id": INSTANCE, "namespace": NAMESPACE}
IDENTITY = worker_identity(NAMESPACE, INSTANCE)


def register(book, **fields):
    defaults = {**NAMED, "worker_id": WORKER, "lanes": (LANE,), "ttl_ms": TTL_MS}
    return book.run(RegisterWorkerArgs(**{**defaults, **fields}))


def death_at(book, instant):
    return book.find(WorkerDeath, f"{IDENTITY}/{instant}")


def revocation(execution_id, **fields):
    defaults = {"worker_instance_id": INSTANCE, "died_at": START_MS, "reason": "gone"}
    return RevokeDeadWorkersLeaseArgs(execution_id=execution_id, **{**defaults, **fields})


def test_lanes_and_capabilities_are_kept_each_once(book):
    register(book, lanes=("b", "a", "b"), capabilities=frozenset({"gpu", "big"}))
    worker = book.get(WorkerRegistration, IDENTITY)
    assert (worker.lanes, worker.capabilities) == (("b", "a"), ("big", "gpu"))


def test_a_malformed_capability_is_refused(book):
    with book.refuses(InvalidCapabilities):
        register(book, capabilities=frozenset({"no comma, please"}))


def test_a_death_is_owed_told_and_takes_the_worker_off_the_record(book):
    register(book)
    mark = MarkWorkerDeadArgs(**NAMED, reason="power")
    assert book.run(mark, actor="ana") == WorkerMarkedDead()
    assert book.find(WorkerRegistration, IDENTITY) is None
    assert (death_at(book, START_MS).reason, death_at(book, START_MS).silent_ms) == ("power", None)
    [event] = [event for event in book.events if event.family is Family.OPERATOR]
    assert (event.name, event.data["actor"], event.data["reason"]) == ("worker_dead", "ana", "power")


def test_leaving_owes_nothing(book):
    register(book)
    book.run(DeregisterWorkerArgs(**NAMED))
    assert death_at(book, START_MS) is None
    assert book.names(Family.OPERATOR) == []


@pytest.mark.parametrize(("waited_ms", "action"), [(TTL_MS - 1, "kept"), (TTL_MS, "expired")])
def test_a_worker_is_silent_from_its_expiry_on(book, waited_ms, action):
    register(book)
    book.advance(waited_ms)
    assert book.run(ExpireWorkerArgs(worker_identity=IDENTITY)).action == action


def test_who_registers_after_a_silence_is_new_and_the_silent_one_is_dead(book):
    register(book)
    book.advance(TTL_MS)
    assert book.run(HeartbeatWorkerArgs(**NAMED)) == WorkerNotRegistered()
    assert register(book) == WorkerRegistered(next_expiry_ms=book.now + TTL_MS)
    assert death_at(book, book.now).silent_ms == TTL_MS


def test_a_lease_of_the_dead_is_revoked_with_the_reason(book):
    execution_id, _ = book.start()
    assert book.run(revocation(execution_id)).action == "revoked"
    assert book.situation(execution_id) is Situation.LEASE_REVOKED
    assert book.lease(execution_id).revoke_reason == "worker dead: gone"


@pytest.mark.parametrize(
    ("fields", "action"),
    [
        ({"died_at": START_MS - 1}, "kept"),
        ({"silent_ms": 1}, "kept"),
        ({"worker_instance_id": "another"}, "gone"),
    ],
)
def test_a_newer_lease_one_that_shows_life_and_one_of_another_worker_are_left_alone(book, fields, action):
    execution_id, _ = book.start()
    with book.unchanged():
        assert book.run(revocation(execution_id, **fields)).action == action


def test_a_lease_that_has_run_out_is_left_to_its_own_duty(book):
    execution_id, _ = book.start()
    book.advance(TTL_MS)
    with book.unchanged():
        assert book.run(revocation(execution_id, died_at=book.now)).action == "gone"
