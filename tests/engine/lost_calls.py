"""What the scenarios of lost calls share: small steps of a caller, the stores, and the comparison."""

import itertools
from collections.abc import Callable
from pathlib import Path

from flowfabric.contracts.executions import (
    CompleteExecutionArgs,
    FailExecutionArgs,
)
from flowfabric.contracts.flows import (
    GroupPolicy,
    NewEdge,
    SubmitFlowArgs,
)
from flowfabric.contracts.keyring import SeedWaitpointHmacSecretArgs
from flowfabric.contracts.streams import AppendFrameArgs
from flowfabric.stores.memory import MemoryStore
from flowfabric.stores.sqlite import SqliteStore
from flowfabric.testing.bed import INSTANCE, LANE, NAMESPACE, WORKER
from flowfabric.testing.clock import ClockedStore
from flowfabric.testing.conformance.situations import (
    KID,
    SECRET_HEX,
    Place,
    suspension,
)
from flowfabric.testing.faults import disturbed
from tests import postgres, valkey

DELAY_MS = 5_000
places = itertools.count()

STORES: dict[str, Callable[[Path], ClockedStore]] = {
    "memory": lambda path: MemoryStore(),
    "sqlite": lambda path: SqliteStore(":memory:"),
    # One connection: each of them is a process of the server, which has every statement to prepare.
    "postgres": lambda path: postgres.server().store(
        path / str(next(places)), listen=False, connections_max=1
    ),
    "valkey": lambda path: valkey.server().store(path / str(next(places))),
    "valkey-cluster": lambda path: valkey.cluster().store(path / str(next(places)), shards=4),
}


async def lost(store, folder, scenario):
    """What each lost call has left that no lost call leaves. Empty if all is well.

    A read that fails never reaches the store, so reads are failed on the memory store only.
    """
    found = {}
    faults = disturbed(lambda: STORES[store](folder), scenario, changes_only=store != "memory")
    async for one in faults:
        if one.differences:
            found[str(one.fault)] = one.differences
    return found


async def created(caller, **fields):
    """Create an execution. Returns its id."""
    creation = caller.bed.creation(**fields)
    return (await caller.ask(creation)).execution_id


async def claimed(caller, execution_id):
    """Claim what may be claimed."""
    return (await caller.ask(caller.bed.claiming(execution_id))).work


async def started(caller, **fields):
    """Create an execution and claim it."""
    return await claimed(caller, await created(caller, **fields))


def held(claim):
    """The fields of a command by the holder of a claim."""
    return {
        "execution_id": claim.execution_id,
        "fence": claim.fence,
        "attempt_index": claim.attempt_index,
    }


def owned(claim):
    """The fields of a command that names the parts of the fence one by one."""
    fence = claim.fence
    return {
        "execution_id": claim.execution_id,
        "lease_id": fence.lease_id,
        "lease_epoch": fence.lease_epoch,
        "attempt_id": fence.attempt_id,
    }


def written(claim, payload, **fields):
    """A frame of the holder's."""
    return AppendFrameArgs(
        **owned(claim),
        attempt_index=claim.attempt_index,
        frame_type="token",
        payload=payload,
        **fields,
    )


def kept_for_worker(execution_id):
    return {
        "execution_id": execution_id,
        "lane_id": LANE,
        "worker_id": WORKER,
        "worker_instance_id": INSTANCE,
    }


async def completed(caller, claim):
    await caller.ask(CompleteExecutionArgs(**held(claim), result_payload=b"result"))


async def failed(caller, claim, category="error"):
    await caller.ask(FailExecutionArgs(**held(claim), failure_reason="it broke", failure_category=category))


async def with_key(caller):
    await caller.ask(SeedWaitpointHmacSecretArgs(kid=KID, secret_hex=SECRET_HEX))


async def suspended(caller, claim, **fields):
    """Suspend what was claimed. Returns the place with its token."""
    place = Place(execution_id=claim.execution_id, claim=claim)
    details = (await caller.ask(suspension(caller.bed, place, **fields))).details
    place.waitpoint_id, place.token = details.waitpoint_id, details.waitpoint_token
    return place


def edge(caller, upstream, downstream):
    return NewEdge(
        edge_id=caller.bed.new_id(),
        upstream_execution_id=upstream,
        downstream_execution_id=downstream,
        data_passing_ref="input",
    )


async def submitted(caller, count, edges, groups=()):
    """A sealed flow of so many members. Returns its id and theirs."""
    bed = caller.bed
    members = [bed.creation() for _ in range(count)]
    ids = [member.execution_id for member in members]
    flow = SubmitFlowArgs(
        flow_id=bed.new_flow_id(),
        flow_kind="dag",
        namespace=NAMESPACE,
        executions=tuple(members),
        edges=tuple(edge(caller, ids[upstream], ids[downstream]) for upstream, downstream in edges),
        groups=tuple(
            GroupPolicy(downstream_execution_id=ids[place], policy=policy) for place, policy in groups
        ),
    )
    await caller.ask(flow)
    return flow.flow_id, ids
