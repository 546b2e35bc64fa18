"""Finding work for a worker: reads what is claimable, then claims it, in one commit.

Only scopes that the worker can serve are read, so work that needs other capabilities neither
blocks nor slows it, and lanes without work cost nothing. What another worker took meanwhile, or
holds a grant for, is passed over; the search goes on behind it.
"""

from __future__ import annotations

import heapq
import logging
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from flowfabric import errors
from flowfabric.contracts.ids import ExecutionId, LaneId, partition_of
from flowfabric.contracts.leases import (
    ClaimBatchArgs,
    ClaimBatchResult,
    ClaimedWork,
    ClaimForWorkerArgs,
    ClaimForWorkerOutcome,
    ClaimGrant,
    IssueClaimGrantArgs,
    NoWork,
    WorkGranted,
)
from flowfabric.contracts.partitions import Partition
from flowfabric.core.commands import CandidateClaimed, ClaimCandidateArgs, ClaimCandidateResult
from flowfabric.core.indexes import ELIGIBLE, SEPARATOR, scope_of
from flowfabric.core.records import Execution, key_for
from flowfabric.engine.admission import NO_HEADROOM, claim_admitted
from flowfabric.engine.operations import operation
from flowfabric.minting import new_attempt_id, new_lease_id

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from flowfabric.core.work import Envelope
    from flowfabric.engine.engine import Engine

log = logging.getLogger("flowfabric.engine")

PAGES_MAX: Final = 8
"""How many pages of candidates one call looks at when others turn out to be taken."""
PAGE_ROWS: Final = 64
"""How many candidates every page but the first has; the first has as many as are wanted."""
SCOPES_PER_PAGE: Final = 1_000

PASSED_OVER: Final = (
    errors.StateRefusal,
    errors.NotFound,
    errors.Contention,
    errors.CapabilityMismatch,
    *NO_HEADROOM,
)
"""Refusals that say: not this one, try the next."""


class Candidate(NamedTuple):
    """A claimable execution, as an index shows it. Sorts by claiming order."""

    order: int
    execution_id: ExecutionId
    lane_id: LaneId
    scope: str


class Search:
    """Walks over what is claimable for one worker, the most urgent first."""

    def __init__(
        self, engine: Engine, namespace: str | None, lanes: Iterable[LaneId], capabilities: Collection[str]
    ) -> None:
        self._engine = engine
        self._namespace = namespace or ""
        self._lanes = tuple(lanes)
        self._capabilities = frozenset(capabilities)
        self._behind: dict[str, tuple[int, str]] = {}

    async def next(self, limit: int) -> list[Candidate]:
        """The next candidates; fewer than ``limit`` when there are no more."""
        pages = [
            await self._page(lane, scope, limit) for lane in self._lanes for scope in await self._scopes(lane)
        ]
        found = list(islice(heapq.merge(*pages), limit))
        for candidate in found:
            self._behind[candidate.scope] = (candidate.order, candidate.execution_id)
        return found

    async def _scopes(self, lane: LaneId) -> list[str]:
        """The lane's scopes whose requirements the worker meets."""
        prefix = scope_of(self._namespace, lane) + SEPARATOR
        found: list[str] = []
        after: str | None = None
        while True:
            scopes = await self._engine.store.index_scopes(
                ELIGIBLE, prefix, after=after, limit=SCOPES_PER_PAGE
            )
            found += [scope for scope in scopes if self._capabilities.issuperset(_required(scope))]
            if len(scopes) < SCOPES_PER_PAGE:
                return found
            after = scopes[-1]

    async def _page(self, lane: LaneId, scope: str, limit: int) -> list[Candidate]:
        behind = self._behind.get(scope)
        rows = await self._engine.store.read_index(ELIGIBLE, scope, after=behind, limit=limit)
        return [Candidate(order, execution_id, lane, scope) for order, execution_id in rows]


def _required(scope: str) -> list[str]:
    required = scope.rpartition(SEPARATOR)[2]
    return required.split(",") if required else []


@operation(ClaimBatchArgs)
async def claim_batch(engine: Engine, args: ClaimBatchArgs, envelope: Envelope) -> ClaimBatchResult:
    """Claim up to ``limit`` executions for one worker, the most urgent of all its lanes first.

    A fault after some were claimed ends the search and is left to the next call: what was claimed
    would otherwise wait for its lease to lapse.
    """
    search = Search(engine, envelope.namespace, args.lanes, args.worker_capabilities)
    claims: list[ClaimedWork] = []
    try:
        await _claim_found(engine, search, args, envelope, claims)
    except errors.FlowFabricError as error:
        if not claims:
            raise
        log.warning("the search for work ended early, with %d claimed: %s", len(claims), error)
    return ClaimBatchResult(claims=tuple(claims))


async def _claim_found(
    engine: Engine, search: Search, args: ClaimBatchArgs, envelope: Envelope, claims: list[ClaimedWork]
) -> None:
    """Claim what the search finds, page by page, until the limit is reached or there is no more.

    A damaged record keeps only its own work from being claimed. It is told if nothing else was found.
    """
    size = args.limit
    damaged: list[errors.StoreCorrupt] = []
    for _ in range(PAGES_MAX):
        page = await search.next(size)
        untried = iter(page)
        while candidates := list(islice(untried, args.limit - len(claims))):
            commands = [_claim_of(candidate, args) for candidate in candidates]
            damaged += _take(await claim_admitted(engine, commands, envelope), claims)
        if len(page) < size or len(claims) == args.limit:
            break
        size = max(args.limit - len(claims), PAGE_ROWS)
    if damaged and not claims:
        raise damaged[0]


def _take(
    answers: list[ClaimCandidateResult | Exception], claims: list[ClaimedWork]
) -> list[errors.StoreCorrupt]:
    """Note what was claimed. Raises what says more than «not this one»; returns what is damaged."""
    claims += [answer.work for answer in answers if isinstance(answer, CandidateClaimed)]
    for answer in answers:
        if isinstance(answer, Exception) and not isinstance(answer, (*PASSED_OVER, errors.StoreCorrupt)):
            raise answer
    return [answer for answer in answers if isinstance(answer, errors.StoreCorrupt)]


def _claim_of(candidate: Candidate, args: ClaimBatchArgs) -> ClaimCandidateArgs:
    return ClaimCandidateArgs(
        execution_id=candidate.execution_id,
        lane_id=candidate.lane_id,
        worker_id=args.worker_id,
        worker_instance_id=args.worker_instance_id,
        worker_capabilities=args.worker_capabilities,
        lease_id=new_lease_id(),
        attempt_id=new_attempt_id(),
        lease_ttl_ms=args.lease_ttl_ms,
        policies=args.policies,
    )


@operation(ClaimForWorkerArgs)
async def claim_for_worker(
    engine: Engine, args: ClaimForWorkerArgs, envelope: Envelope
) -> ClaimForWorkerOutcome:
    """Reserve the most urgent execution of a lane that this worker can run."""
    search = Search(engine, envelope.namespace, (args.lane_id,), args.worker_capabilities)
    for _ in range(PAGES_MAX):
        candidates = await search.next(PAGE_ROWS)
        for candidate in candidates:
            if await _grant(engine, candidate, args, envelope):
                return WorkGranted(grant=await _grant_of(engine, candidate.execution_id))
        if len(candidates) < PAGE_ROWS:
            break
    return NoWork()


async def _grant(engine: Engine, candidate: Candidate, args: ClaimForWorkerArgs, envelope: Envelope) -> bool:
    command = IssueClaimGrantArgs(
        execution_id=candidate.execution_id,
        lane_id=args.lane_id,
        worker_id=args.worker_id,
        worker_instance_id=args.worker_instance_id,
        worker_capabilities=args.worker_capabilities,
        grant_ttl_ms=args.grant_ttl_ms,
    )
    try:
        await engine.execute(command, namespace=envelope.namespace)
    except PASSED_OVER:
        return False
    return True


async def _grant_of(engine: Engine, execution_id: ExecutionId) -> ClaimGrant:
    loaded = await engine.store.load([key_for(Execution, execution_id)])
    execution = loaded.rows[0][2]
    assert isinstance(execution, Execution)
    return ClaimGrant(
        execution_id=execution_id,
        partition_key=Partition(index=partition_of(execution_id)).key,
        grant_key=f"{execution.key}/grant",
        expires_at_ms=loaded.now if execution.grant is None else execution.grant.expires_at,
    )
