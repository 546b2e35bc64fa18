"""Finding work for a worker: reads what is claimable, then claims it, in one commit.

Only scopes that the worker can serve are read, so work that needs other capabilities neither
blocks nor slows it, and lanes without work cost nothing (see ``reach``). Lanes and namespaces share
the claims (see ``turns``). What another worker took meanwhile, or holds a grant for, is passed
over; the search goes on behind it. Where other processes take much of it, a search does not begin with
the first that there is, as all of them would (see ``crowding``).

A store in several places is asked first where there is work as far as it knows, and everywhere only
if that did not give what was wanted. So no claim goes without work that is there, and those of a busy
store ask nobody in vain.
"""

from __future__ import annotations

import heapq
import logging
from collections import deque
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
from flowfabric.core.commands import CandidateClaimed, ClaimCandidateArgs, ClaimCandidateResult, HoldBackArgs
from flowfabric.core.indexes import ELIGIBLE, SEPARATOR
from flowfabric.core.records import Execution, Lane, key_for, lane_identity
from flowfabric.engine.admission import NO_HEADROOM, claim_admitted, hold_back
from flowfabric.engine.operations import operation
from flowfabric.engine.reach import Reach
from flowfabric.minting import new_attempt_id, new_lease_id

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from flowfabric.core.work import Envelope
    from flowfabric.engine.engine import Engine
    from flowfabric.stores.base import EligibleReads, Reads, Store

log = logging.getLogger("flowfabric.engine")

PAGES_MAX: Final = 8
"""How many pages of candidates one call looks at when others turn out to be taken, besides its window."""
PAGE_ROWS: Final = 64
"""How many candidates every page but the first has; the first has as many as are wanted."""
WINDOW_ROWS_MAX: Final = 512
"""How many candidates a search looks at to choose some of them, unless more are wanted."""
NEAR_MS: Final = 1_000
"""Candidates may change places if they differ by no more waiting, nor by priority that counts as more."""
SCOPES_PER_READ: Final = 32
SCOPES_MAX: Final = 64
"""About how many scopes one call looks at; with more of them, the next call looks at others."""
SCOPE_READS_MAX: Final = 64
"""How many reads one call makes to find these scopes, most of them one."""

PASSED_OVER: Final = (
    errors.StateRefusal,
    errors.NotFound,
    errors.Contention,
    errors.CapabilityMismatch,
    *NO_HEADROOM,
)
"""Refusals that say: not this one, try the next."""


LOST: Final = (
    errors.ExecutionNotEligible,
    errors.ExecutionNotReclaimable,
    errors.NotFound,
    errors.Contention,
)
"""Refusals that say: somebody else was faster."""

Group = tuple[str, LaneId]
"""A namespace and a lane of it."""


class Candidate(NamedTuple):
    """A claimable execution, as an index shows it. Sorts by claiming order."""

    order: int
    execution_id: ExecutionId
    group: Group
    scope: str


class Search:
    """Walks over what is claimable for one worker, most urgent first and all lanes in turn.

    Args:
        engine: for whose workers.
        reads: what tells of work.
        namespace: whose work; None for that of all.
        lanes: which the worker serves.
        capabilities: what it offers.
        window: how many times as much as is wanted is looked at first, to begin somewhere in it.
    """

    def __init__(
        self,
        engine: Engine,
        reads: Reads,
        namespace: str | None,
        lanes: Iterable[LaneId],
        capabilities: Collection[str],
        *,
        window: int = 1,
    ) -> None:
        self._engine = engine
        self._reads = reads
        self._reach = Reach(namespace, lanes, capabilities)
        self._worker = (namespace, self._reach.lanes, self._reach.capabilities)
        self._scopes: dict[str, Group] | None = None
        self._behind: dict[str, tuple[int, str]] = {}
        self._window = window
        self.is_over = False
        """Whether the last candidates were all that there are."""

    async def next(self, limit: int) -> list[Candidate]:
        """The next candidates, in the order to claim them, without those that others are claiming here.

        There may be fewer than ``limit`` although the search is not over.
        """
        if self._scopes is None:
            self._scopes = await self._open_scopes()
        pages: dict[Group, list[list[Candidate]]] = {}
        rows = self._rows(limit) + self._engine.pursuits.further(limit)
        self.is_over = True
        for scope, group in self._scopes.items():
            page = await self._page(scope, group, rows)
            self.is_over = self.is_over and len(page) < rows
            if page:
                pages.setdefault(group, []).append(page)
        # From here until the candidates are claimed nothing is awaited, so no two claims choose the same.
        free = {group: self._free(own) for group, own in pages.items()}
        waiting = {group: candidates for group, candidates in free.items() if candidates}
        fewer = sum(map(len, waiting.values())) <= limit
        self.is_over = self.is_over and fewer
        if self._window > 1 and not fewer:
            return self._share_from_window(waiting, limit)
        chosen = self._share(waiting, limit)
        self._behind.update((one.scope, (one.order, one.execution_id)) for one in chosen)
        return chosen

    def _share_from_window(self, waiting: dict[Group, deque[Candidate]], limit: int) -> list[Candidate]:
        """Candidates from somewhere among these. What comes next is looked for from the first on again."""
        self._window = 1
        for candidates in waiting.values():
            near = _near_first(candidates)
            place = self._engine.crowding.place(len(near), limit)
            candidates.extendleft([*reversed(near[:place]), *reversed(near[place:])])
        return self._share(waiting, limit)

    def _rows(self, limit: int) -> int:
        """How many rows of each scope are looked at. All scopes together have no more than one window."""
        assert self._scopes is not None
        if not self._scopes:
            return limit
        window = min(limit * self._window, WINDOW_ROWS_MAX)
        return max(limit, window // len(self._scopes))

    def _free(self, pages: list[list[Candidate]]) -> deque[Candidate]:
        """The candidates of a group that nobody is claiming here, in claiming order."""
        pursuits = self._engine.pursuits
        return deque(one for one in heapq.merge(*pages) if one.execution_id not in pursuits)

    @property
    def windows(self) -> int:
        """How many pages do not go on behind those before them."""
        return int(self._window > 1)

    def give_up(self) -> None:
        """Let the next search go on behind what this one has looked at in vain."""
        self._engine.turns.keep_passed(self._behind)

    def _share(self, waiting: dict[Group, deque[Candidate]], limit: int) -> list[Candidate]:
        """The first candidates of all groups, each group's in its own order."""
        found: list[Candidate] = []
        heads = {group: candidates[0][:2] for group, candidates in waiting.items()}
        while heads and len(found) < limit:
            group = self._engine.turns.choose(self._worker, heads)
            found.append(waiting[group].popleft())
            if waiting[group]:
                heads[group] = waiting[group][0][:2]
            else:
                del heads[group]
        return found

    async def _page(self, scope: str, group: Group, limit: int) -> list[Candidate]:
        if scope not in self._behind:
            passed = self._engine.turns.take_passed(scope)
            if passed is not None:
                self._behind[scope] = passed
        rows = await self._reads.read_index(ELIGIBLE, scope, after=self._behind.get(scope), limit=limit)
        return [Candidate(order, execution_id, group, scope) for order, execution_id in rows]

    async def _open_scopes(self) -> dict[str, Group]:
        """The scopes to look at, without those of lanes that give no work."""
        scopes = {scope: _group_of(scope) for scope in await self._walk()}
        keys = {group: key_for(Lane, lane_identity(*group)) for group in set(scopes.values())}
        doubtful = self._engine.lanes.closed(keys.values())
        if not doubtful:
            return scopes
        self._engine.lanes.learn((await self._engine.store.load(doubtful)).rows)
        closed = set(self._engine.lanes.closed(doubtful))
        return {scope: group for scope, group in scopes.items() if keys[group] not in closed}

    async def _walk(self) -> list[str]:
        """The scopes within reach; where there are very many, another part of them each time."""
        place = self._engine.turns.take_place(self._worker)
        found = await self._walk_from(place or self._reach.start)
        return found if found or place is None else await self._walk_from(self._reach.start)

    async def _walk_from(self, place: str | None) -> list[str]:
        found: list[str] = []
        for _ in range(SCOPE_READS_MAX):
            page = await self._reads.index_scopes(
                ELIGIBLE, self._reach.prefix, after=place, limit=SCOPES_PER_READ
            )
            found += [scope for scope in page if self._reach.serves(scope)]
            place = self._reach.behind(page[-1]) if len(page) == SCOPES_PER_READ else None
            if place is None:
                return found
            if len(found) >= SCOPES_MAX:
                break
        assert place is not None
        self._engine.turns.keep_place(self._worker, place)
        return found


def _near_first(candidates: deque[Candidate]) -> list[Candidate]:
    """Take those out that are about as urgent as the first one: less urgent work never goes before it."""
    least = candidates[0].order + NEAR_MS
    near: list[Candidate] = []
    while candidates and candidates[0].order <= least:
        near.append(candidates.popleft())
    return near


def _ways_to_look(store: Store) -> Iterator[Reads]:
    """Ways to look for work, each for when the ones before it did not give what was wanted."""
    reads: Callable[..., EligibleReads] | None = getattr(store, "eligible_reads", None)
    if reads is None:
        yield store
        return
    trusting = reads(trusting=True)
    yield trusting
    if trusting.has_trusted:
        yield reads(trusting=False)


def _group_of(scope: str) -> Group:
    namespace, lane_id, _ = scope.split(SEPARATOR, 2)
    return namespace, lane_id


@operation(ClaimBatchArgs)
async def claim_batch(engine: Engine, args: ClaimBatchArgs, envelope: Envelope) -> ClaimBatchResult:
    """Claim up to ``limit`` executions for one worker, the most urgent first and all lanes in turn.

    A fault after some were claimed ends the search and is left to the next call: what was claimed
    would otherwise wait for its lease to lapse.
    """
    claims: list[ClaimedWork] = []
    try:
        with engine.pursuits.wanting(args.limit):
            await _claim_wanted(engine, args, envelope, claims)
    except errors.FlowFabricError as error:
        if not claims:
            raise
        log.warning("the search for work ended early, with %d claimed: %s", len(claims), error)
    return ClaimBatchResult(claims=tuple(claims))


async def _claim_wanted(
    engine: Engine, args: ClaimBatchArgs, envelope: Envelope, claims: list[ClaimedWork]
) -> None:
    """Claim up to the limit.

    A damaged record keeps only its own work from being claimed. It is told if nothing else was found.
    """
    damaged: list[errors.StoreCorrupt] = []
    for reads in _ways_to_look(engine.store):
        window = engine.crowding.window
        search = Search(
            engine, reads, envelope.namespace, args.lanes, args.worker_capabilities, window=window
        )
        damaged += await _claim_found(engine, search, args, envelope, claims)
        if len(claims) == args.limit:
            break
    if damaged and not claims:
        raise damaged[0]


async def _claim_found(
    engine: Engine, search: Search, args: ClaimBatchArgs, envelope: Envelope, claims: list[ClaimedWork]
) -> list[errors.StoreCorrupt]:
    """Claim what the search finds, page by page, until the limit is reached or there is no more.

    Returns what was found damaged.
    """
    size = args.limit - len(claims)
    damaged: list[errors.StoreCorrupt] = []
    lost = False
    for _ in range(PAGES_MAX + search.windows):
        page = await search.next(size)
        untried = list(page)
        while untried and len(claims) < args.limit:
            wanted = args.limit - len(claims)
            untried = [candidate for candidate in untried if candidate.execution_id not in engine.pursuits]
            commands, untried = (
                [_claim_of(candidate, args) for candidate in untried[:wanted]],
                untried[wanted:],
            )
            with engine.pursuits.claiming([command.execution_id for command in commands]):
                answers = await claim_admitted(engine, commands, envelope)
            lost = lost or _has_lost(engine, commands, answers)
            damaged += _take(engine, answers, claims)
            if untried and any(isinstance(answer, NO_HEADROOM) for answer in answers):
                untried = await _with_headroom(engine, untried, args, envelope)
        if search.is_over or len(claims) == args.limit:
            break
        size = max(args.limit - len(claims), PAGE_ROWS)
    else:
        search.give_up()
    engine.crowding.note(lost=lost)
    return damaged


def _has_lost(
    engine: Engine, commands: list[ClaimCandidateArgs], answers: list[ClaimCandidateResult | Exception]
) -> bool:
    """Whether another process was faster at some of it. Another worker of this engine is none."""
    return any(
        isinstance(answer, LOST) and not engine.pursuits.has_claimed(command.execution_id)
        for command, answer in zip(commands, answers, strict=True)
    )


async def _with_headroom(
    engine: Engine, untried: list[Candidate], args: ClaimBatchArgs, envelope: Envelope
) -> list[Candidate]:
    """The candidates without those for which there is no headroom, which are held back.

    Where there was none for one, there is none for many as a rule, and to find out one by one, a
    commit for each, would keep the worker waiting for what it has claimed already.
    """
    holding = [HoldBackArgs(execution_id=one.execution_id, policies=args.policies) for one in untried]
    blocked = await hold_back(engine, holding, envelope)
    return [candidate for candidate in untried if candidate.execution_id not in blocked]


def _take(
    engine: Engine, answers: list[ClaimCandidateResult | Exception], claims: list[ClaimedWork]
) -> list[errors.StoreCorrupt]:
    """Note what was claimed. Raises what says more than «not this one»; returns what is damaged."""
    found = [answer.work for answer in answers if isinstance(answer, CandidateClaimed)]
    engine.pursuits.note_claimed(work.execution_id for work in found)
    claims += found
    for answer in answers:
        if isinstance(answer, Exception) and not isinstance(answer, (*PASSED_OVER, errors.StoreCorrupt)):
            raise answer
    return [answer for answer in answers if isinstance(answer, errors.StoreCorrupt)]


def _claim_of(candidate: Candidate, args: ClaimBatchArgs) -> ClaimCandidateArgs:
    return ClaimCandidateArgs(
        execution_id=candidate.execution_id,
        lane_id=candidate.group[1],
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
    for reads in _ways_to_look(engine.store):
        search = Search(engine, reads, envelope.namespace, (args.lane_id,), args.worker_capabilities)
        granted = await _grant_found(engine, search, args, envelope)
        if granted is not None:
            return WorkGranted(grant=await _grant_of(engine, granted))
    return NoWork()


async def _grant_found(
    engine: Engine, search: Search, args: ClaimForWorkerArgs, envelope: Envelope
) -> ExecutionId | None:
    """Reserve what the search finds first and nobody else has, if there is anything."""
    for _ in range(PAGES_MAX):
        for candidate in await search.next(PAGE_ROWS):
            if await _grant(engine, candidate, args, envelope):
                return candidate.execution_id
        if search.is_over:
            return None
    search.give_up()
    return None


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
