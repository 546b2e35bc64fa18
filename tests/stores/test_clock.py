"""The store's clock and its mark."""

import logging
from typing import Any

import pytest

from flowfabric.stores.clock import STEP_BACK_MS_MAX, TOLD_MS_MAX, ClockStep, StoreClock, ToldTime
from tests.stores.builders import commit, event

NOW = 1_700_000_000_000


def clock_at(now_ms: int, steps: list[ClockStep] | None = None) -> StoreClock:
    return StoreClock(lambda: now_ms, None if steps is None else steps.append)


def test_the_host_clock_is_read_when_it_is_ahead_of_the_mark() -> None:
    assert clock_at(NOW).read(NOW - 1) == NOW


def test_a_small_step_back_is_waited_for_at_the_mark() -> None:
    steps: list[ClockStep] = []
    assert clock_at(NOW, steps).read(NOW + STEP_BACK_MS_MAX) == NOW + STEP_BACK_MS_MAX
    assert steps == []


def test_a_large_step_back_is_believed_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    steps: list[ClockStep] = []
    clock, mark = clock_at(NOW, steps), NOW + STEP_BACK_MS_MAX + 1
    with caplog.at_level(logging.WARNING):
        assert [clock.read(mark), clock.read(mark)] == [NOW, NOW]
    assert steps == [ClockStep(mark_ms=mark, clock_ms=NOW)]
    assert clock.steps == 1
    assert "went back by 60001 ms" in caplog.text


def test_the_offset_counts_before_the_mark() -> None:
    assert clock_at(NOW).read(NOW, -5) == NOW
    assert clock_at(NOW).read(NOW, 5) == NOW + 5


def test_what_a_server_told_is_carried_on_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monotonic_s = 5.0
    monkeypatch.setattr("time.monotonic", lambda: monotonic_s)
    clock, told = StoreClock(), ToldTime()
    assert told.now(clock) is None
    told.tell(NOW - 50, 7, NOW)
    assert told.now(clock) == NOW + 7
    monotonic_s += 0.020_5
    assert told.now(clock) == NOW + 7 + 20
    monotonic_s += TOLD_MS_MAX / 1_000
    assert told.now(clock) is None


def test_what_a_server_told_is_never_before_the_mark_and_can_be_forgotten() -> None:
    clock, told = StoreClock(), ToldTime()
    told.tell(NOW + 5_000, 0, NOW)
    assert told.now(clock) == NOW + 5_000
    told.forget()
    assert told.now(clock) is None


async def test_a_commit_leaves_its_mark_and_the_clock_never_reads_less(store: Any) -> None:
    store.clock = clock_at(NOW)
    await store.commit(commit(events=[event()]))
    store.clock = clock_at(NOW - 5_000)
    assert await store.now() == NOW
    assert (await store.load([])).now == NOW


async def test_after_a_large_step_back_the_next_commit_lowers_the_mark(store: Any) -> None:
    store.clock = clock_at(NOW)
    await store.commit(commit(events=[event()]))
    steps: list[ClockStep] = []
    store.clock = clock_at(NOW - 3_600_000, steps)
    await store.commit(commit(events=[event()]))
    assert await store.now() == NOW - 3_600_000
    assert len(steps) == 1
    store.clock = clock_at(NOW - 3_601_000)
    assert await store.now() == NOW - 3_600_000
