"""An engine over the store in memory, with a clock that only moves when a test says so."""

from typing import Any

from flowfabric.contracts.executions import CreateExecutionArgs
from flowfabric.contracts.ids import ExecutionId, LeaseFence
from flowfabric.core.commands import CandidateClaimed, ClaimCandidateArgs
from flowfabric.engine.engine import Engine
from flowfabric.stores.base import Commit, Loaded
from flowfabric.stores.memory import MemoryStore
from tests.core.harness import INSTANCE, LANE, NAMESPACE, START_MS, TTL_MS, WORKER, new_execution_id, new_id


class SetClockStore(MemoryStore):
    """The store in memory; notes what is asked of it, and its clock stands still."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = START_MS
        self.loads = 0
        self.frame_reads = 0
        self.commits: list[Commit] = []

    async def now(self) -> int:
        return self.now_ms

    async def load(self, keys: Any) -> Loaded:
        self.loads += 1
        return await super().load(keys)

    async def commit(self, commit: Commit) -> int:
        self.commits.append(commit)
        return await super().commit(commit)

    async def read_frames(self, stream: str, **bounds: Any) -> Any:
        self.frame_reads += 1
        return await super().read_frames(stream, **bounds)


class Stage:
    """A running engine and what tests do with it."""

    def __init__(self) -> None:
        self.store = SetClockStore()
        self.engine = Engine(self.store, namespace=NAMESPACE)

    async def start_execution(self, **fields: Any) -> tuple[ExecutionId, LeaseFence]:
        """Create an execution and claim it. Returns its id and the fence."""
        created = CreateExecutionArgs(
            execution_id=new_execution_id(),
            namespace=NAMESPACE,
            lane_id=LANE,
            execution_kind="kind",
            input_payload=b"input",
            priority=0,
            creator_identity="tests",
            **fields,
        )
        await self.engine.execute(created)
        return created.execution_id, await self.claim(created.execution_id)

    async def claim(self, execution_id: ExecutionId) -> LeaseFence:
        """Claim an execution whichever way it has to be claimed. Returns the fence."""
        claimed = await self.engine.execute(
            ClaimCandidateArgs(
                execution_id=execution_id,
                lane_id=LANE,
                worker_id=WORKER,
                worker_instance_id=INSTANCE,
                worker_capabilities=frozenset(),
                lease_id=new_id(),
                attempt_id=new_id(),
                lease_ttl_ms=TTL_MS,
            )
        )
        assert isinstance(claimed, CandidateClaimed)
        return claimed.work.fence
