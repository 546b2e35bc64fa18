"""Feeds on every store: what subscribers get, from where, in which order, and what they are refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from flowfabric import errors
from flowfabric.contracts.events import (
    FROM_START,
    CompletionEvent,
    EventsPage,
    Family,
    LeaseChange,
    LeaseEvent,
    ListEventsArgs,
    SignalEvent,
    SignalResult,
    TagChange,
    TagEvent,
    TailEventsArgs,
)
from flowfabric.contracts.executions import SetExecutionTagArgs
from flowfabric.contracts.handles import BackendTag
from flowfabric.contracts.leases import RevokeLeaseArgs
from flowfabric.contracts.states import TerminalOutcome
from flowfabric.contracts.suspensions import CreatePendingWaitpointArgs
from flowfabric.engine.cursors import format_event_cursor
from flowfabric.engine.notifier import feed_topic
from flowfabric.testing.bed import NAMESPACE, TTL_MS, Bed
from flowfabric.testing.conformance.base import StoreSuite
from flowfabric.testing.conformance.situations import Place, bring, seed_key, signal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from flowfabric.contracts.base import Command

COMPLETIONS = frozenset({Family.COMPLETION})
MEDIA, NEWS = {"team.name": "media"}, {"team.name": "news"}
IN_TIME = 10
"""Seconds after which a test that should have been woken fails."""


async def taken(feed: AsyncIterator[Any], count: int) -> list[Any]:
    """The next events of a feed, which must come without anybody waiting for long."""
    async with asyncio.timeout(IN_TIME):
        return [await anext(feed) for _ in range(count)]


async def ids_of(feed: AsyncIterator[Any], count: int) -> list[str]:
    """The executions of the next events."""
    return [event.execution_id for event in await taken(feed, count)]


async def kept(
    bed: Bed, *families: str, after: str = FROM_START, namespace: str | None = None, **fields: Any
) -> list[Any]:
    """The events behind a place that are there already."""
    chosen = frozenset(map(Family, families)) or frozenset(Family)
    args = TailEventsArgs(families=chosen, after=after, limit=1_000, **fields)
    return list((await bed.execute(args, namespace=namespace)).events)


async def ended(bed: Bed, **fields: Any) -> str:
    """Create, claim and complete an execution."""
    claim = await bed.start(**fields)
    await bed.complete(claim)
    return claim.execution_id


async def pending_place(bed: Bed) -> Place:
    """An execution with a waitpoint that no suspension uses yet."""
    claim = await bed.start()
    created = await bed.execute(
        CreatePendingWaitpointArgs(
            execution_id=claim.execution_id,
            lease_id=claim.lease_id,
            lease_epoch=claim.lease_epoch,
            attempt_id=claim.attempt_id,
            attempt_index=claim.attempt_index,
            waitpoint_id=bed.new_id(),
            waitpoint_key="wpk:early",
            expires_in_ms=60_000,
        )
    )
    return Place(
        execution_id=claim.execution_id,
        waitpoint_id=created.waitpoint_id,
        token=created.waitpoint_token,
    )


def tail(after: str = FROM_START, **fields: Any) -> Command[EventsPage]:
    """The arguments that read completions."""
    return TailEventsArgs(**{"families": COMPLETIONS, "after": after, **fields})


class FeedConformance(StoreSuite):
    """Feeds."""

    @pytest.mark.scenario("SUB-001")
    async def test_two_subscribers_both_get_every_end_and_leaving_leaves_nothing_behind(
        self, bed: Bed
    ) -> None:
        tasks = asyncio.all_tasks()
        async with bed.engine.subscribe_completion() as one, bed.engine.subscribe_completion() as other:
            first = await ended(bed)
            for feed in (one, other):
                [event] = await taken(feed, 1)
                assert (event.execution_id, event.outcome) == (first, TerminalOutcome.SUCCESS)
        second = await ended(bed)
        await bed.store.last_event()  # what a store still carries to its log is there by then
        assert asyncio.all_tasks() <= tasks
        async with bed.engine.subscribe_completion(after=one.cursor) as again:
            assert await ids_of(again, 1) == [second]

    async def test_a_subscriber_is_woken_by_what_it_waits_for(self, bed: Bed) -> None:
        async with bed.engine.subscribe_completion() as feed:
            waiting = asyncio.ensure_future(anext(feed))
            await asyncio.sleep(0)
            execution_id = await ended(bed)
            async with asyncio.timeout(IN_TIME):
                assert (await waiting).execution_id == execution_id

    async def test_every_way_to_end_has_its_word(self, bed: Bed) -> None:
        for situation in ("completed", "failed", "cancelled", "expired", "skipped"):
            await bring(bed, situation, 1)
        told = {event.outcome for event in await kept(bed, "completion")}
        assert told == set(TerminalOutcome) - {TerminalOutcome.NONE}

    @pytest.mark.scenario("SUB-002")
    async def test_a_namespace_and_a_tag_hide_all_others(self, bed: Bed) -> None:
        ours = await ended(bed, tags=MEDIA)
        await ended(bed, tags=NEWS)
        await ended(bed)
        foreign = bed.creation(namespace="other", tags=MEDIA)
        await bed.execute(foreign, namespace="other")
        await bed.execute(bed.claiming(foreign.execution_id), namespace="other")
        for family in ("completion", "lease", "tag"):
            found = await kept(bed, family, tag=("team.name", "media"))
            assert {event.execution_id for event in found} == {ours}
        found = await kept(bed, namespace="other")
        assert {event.execution_id for event in found} == {foreign.execution_id}

    async def test_one_execution_can_be_followed(self, bed: Bed) -> None:
        await ended(bed)
        followed = await ended(bed)
        found = await kept(bed, execution_id=followed)
        assert {event.execution_id for event in found} == {followed}

    @pytest.mark.scenario("SUB-003")
    async def test_a_burst_after_one_wake_up_comes_whole_and_in_order(self, bed: Bed) -> None:
        claims = [await bed.start() for _ in range(5)]
        async with bed.engine.subscribe_completion() as feed:
            await asyncio.gather(*(bed.complete(claim) for claim in claims))
            assert await ids_of(feed, 5) == [claim.execution_id for claim in claims]

    @pytest.mark.scenario("SUB-004")
    async def test_a_cursor_goes_on_behind_its_event_and_none_begins_now(self, bed: Bed) -> None:
        await ended(bed)
        async with bed.engine.subscribe_completion() as feed:
            made = [await ended(bed) for _ in range(3)]
            _, second, _ = await taken(feed, 3)
        resumed = bed.engine.subscribe_completion(after=second.cursor)
        assert await ids_of(resumed, 1) == made[2:]

    @pytest.mark.scenario("SUB-005")
    async def test_a_slow_subscriber_misses_nothing(self, bed: Bed) -> None:
        async with bed.engine.subscribe_completion() as feed:
            made = [await ended(bed) for _ in range(130)]
            events = await taken(feed, len(made))
        assert [event.execution_id for event in events] == made
        cursors = [event.cursor for event in events]
        assert sorted(set(cursors)) == cursors

    async def test_the_history_of_a_lease_is_typed(self, bed: Bed) -> None:
        claim = await bed.start()
        async with bed.engine.subscribe_lease_history(after=FROM_START) as feed:
            await bed.renew(claim)
            await bed.execute(RevokeLeaseArgs(execution_id=claim.execution_id, reason="moved"))
            again = await bed.claim(claim.execution_id, worker_instance_id="worker-2")
            await bed.complete(again)
            told = await taken(feed, 5)
        assert [(event.change, event.lease_epoch, event.worker_instance_id) for event in told] == [
            (LeaseChange.ACQUIRED, 1, "worker-1"),
            (LeaseChange.RENEWED, 1, "worker-1"),
            (LeaseChange.REVOKED, 1, "worker-1"),
            (LeaseChange.RECLAIMED, 2, "worker-2"),
            (LeaseChange.RELEASED, 2, "worker-2"),
        ]
        assert all(isinstance(event, LeaseEvent) for event in told)
        assert (told[1].expires_at, told[2].reason) == (bed.clock.now_ms + TTL_MS, "moved")
        assert (told[3].previous_epoch, told[3].previous_worker_instance_id) == (1, "worker-1")

    async def test_signals_say_what_they_did_and_a_repeated_one_did_nothing(self, bed: Bed) -> None:
        await seed_key(bed)
        [waiting] = await bring(bed, "suspended", 1)
        for place in (await pending_place(bed), waiting):
            sent = signal(bed, place)
            await bed.execute(sent)
            await bed.unchanging(sent)
        told = await kept(bed, "signal")
        assert [(type(event), event.effect) for event in told] == [
            (SignalEvent, SignalResult.BUFFERED),
            (SignalEvent, SignalResult.SATISFIED),
        ]

    async def test_tags_are_told_when_they_come(self, bed: Bed) -> None:
        async with bed.engine.subscribe_instance_tags() as feed:
            execution_id = await bed.create(tags=MEDIA)
            await bed.execute(SetExecutionTagArgs(execution_id=execution_id, key="a.b", value="c"))
            first, second = await taken(feed, 2)
        assert isinstance(first, TagEvent)
        assert (first.change, first.changed) == (TagChange.ATTACHED, MEDIA)
        assert (second.changed, second.tags) == ({"a.b": "c"}, {**MEDIA, "a.b": "c"})

    @pytest.mark.scenario("SUB-008")
    async def test_a_cursor_of_another_kind_of_store_or_a_damaged_one_is_refused(self, bed: Bed) -> None:
        await ended(bed)
        page = await bed.execute(tail())
        assert bytes.fromhex(page.next_cursor)[0] == 0x04
        foreign = format_event_cursor(BackendTag.POSTGRES, 1)
        assert bytes.fromhex(foreign)[0] == 0x02
        damaged = page.next_cursor[:-1] + ("0" if page.next_cursor[-1] != "0" else "1")
        beyond = format_event_cursor(BackendTag.MEMORY, 10_000)
        for cursor in (foreign, damaged, beyond, "x", page.next_cursor + "00"):
            refusal = await bed.refused(tail(cursor))
            assert isinstance(refusal, errors.InvalidEventCursor)

    @pytest.mark.scenario("SUB-010")
    async def test_a_subscriber_is_not_woken_for_others(self, bed: Bed) -> None:
        """Neither those of another namespace nor those of another family cost it a look."""
        with bed.engine.notifier.subscribe(feed_topic(Family.COMPLETION, NAMESPACE)) as ours:
            await bed.execute(bed.creation(namespace="other"), namespace="other")
            claim = await bed.start()
            assert not ours.event.is_set()
            await bed.complete(claim)
            assert ours.event.is_set()

    async def test_what_was_trimmed_unread_is_refused_and_never_skipped(self, bed: Bed) -> None:
        async with bed.engine.subscribe_completion() as late, bed.engine.subscribe_completion() as punctual:
            first = await ended(bed)
            assert await ids_of(punctual, 1) == [first]
            await bed.store.trim_events(await bed.store.last_event())
            with pytest.raises(errors.EventsTrimmed):
                await taken(late, 1)
            second = await ended(bed)
            assert await ids_of(punctual, 1) == [second]
        oldest = bed.engine.subscribe_completion(after=FROM_START)
        assert await ids_of(oldest, 1) == [second]

    async def test_a_quiet_feed_does_not_fall_behind(self, bed: Bed) -> None:
        """Its cursor moves on with the log, so that trimming what is not in the feed does no harm."""
        page = await bed.execute(tail())
        await bed.create()
        moved = await bed.execute(tail(page.next_cursor))
        assert moved.events == ()
        await bed.store.trim_events(await bed.store.last_event())
        assert await bed.execute(tail(moved.next_cursor)) == moved

    async def test_the_history_of_an_execution_comes_in_pages(self, bed: Bed) -> None:
        execution_id = await ended(bed, tags=MEDIA)
        whole = await bed.execute(ListEventsArgs(execution_id=execution_id))
        assert (whole.next_cursor, whole.trimmed) == (None, False)
        found: list[Any] = []
        cursor: str | None = None
        for _ in whole.events:
            page = await bed.execute(ListEventsArgs(execution_id=execution_id, limit=1, cursor=cursor))
            found += page.events
            cursor = page.next_cursor
        assert cursor is None
        assert tuple(found) == whole.events
        assert isinstance(found[-1], CompletionEvent)

    async def test_a_history_says_that_its_beginning_is_gone(self, bed: Bed) -> None:
        claim = await bed.start()
        await bed.store.trim_events(await bed.store.last_event())
        await bed.complete(claim)
        history = await bed.execute(ListEventsArgs(execution_id=claim.execution_id))
        assert history.trimmed
        assert isinstance(history.events[-1], CompletionEvent)

    async def test_the_audit_does_not_miss_what_was_trimmed(self, bed: Bed) -> None:
        claim = await bed.start()
        await ended(bed)
        await bed.store.trim_events(await bed.store.last_event())
        await bed.renew(claim)
        await bed.check()
