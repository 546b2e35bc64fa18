"""Two engines in lockstep, one over the memory store and one over the store under test.

Every step goes to both. Their answers must be equal, or their refusals, and so must everything the
step has touched: records, index rows, events and frames. Now and then, and at the end, everything
that both hold is compared, and audited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias
from unittest import mock

import msgspec

from flowfabric import errors, minting
from flowfabric.contracts.backend import BackendCapabilities
from flowfabric.core.records import Record
from flowfabric.core.registry import RULES
from flowfabric.engine.operations import operation_for
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing.bed import NAMESPACE, Bed
from flowfabric.testing.dump import differences, dump
from flowfabric.testing.faults import unnumbered
from flowfabric.testing.model.steps import Pass, Restart, Send, Step, Together, sends_of
from flowfabric.testing.stores import RecordingStore

if TYPE_CHECKING:
    from flowfabric.stores.base import Commit
    from flowfabric.testing.clock import ClockedStore
    from flowfabric.testing.dump import Dump

Sharing: TypeAlias = "Callable[[Any], str]"
"""What events must have in common to have an order that stores must share."""
OpenStore: TypeAlias = "Callable[[], ClockedStore]"
"""Makes an unopened store over the same data each time."""

PAGE: Final = 500
AUDIT_EVERY_STEPS: Final = 10


class Divergence(AssertionError):
    """The store under test did not do what the memory store did, or both broke an invariant."""


class _Watched(RecordingStore):
    """Remembers what was committed, and lets the store decide and find work by itself where it can."""

    def __init__(self, inner: ClockedStore) -> None:
        super().__init__(inner)
        for name in ("native", "eligible_reads"):
            if hasattr(inner, name):
                setattr(self, name, getattr(inner, name))


class Side:
    """One of the two engines."""

    def __init__(self, open_store: OpenStore) -> None:
        self._open_store = open_store
        self.store = _Watched(open_store())
        self.bed = Bed(self.store, namespace=NAMESPACE)

    async def take(self, step: Step) -> list[Any]:
        """Carry out a step. Returns the answers of its commands; a refusal is an answer."""
        if isinstance(step, Restart):
            await self._restart()
        elif isinstance(step, Pass) and step.duties:
            await self.bed.advance(step.milliseconds)
        elif isinstance(step, Pass):
            self.bed.clock.advance(step.milliseconds)
        elif isinstance(step, Send):
            return [await self._send(step)]
        return []

    async def _restart(self) -> None:
        """A store that only lives in memory is closed and opened again; another one is made anew."""
        durability = self.bed.engine.durability
        if durability is None or durability.level != "D0":
            self.store = _Watched(self._open_store())
        await self.bed.restart(self.store)

    async def _send(self, send: Send) -> Any:
        engine = self.bed.engine
        if send.namespace is None:
            return (await engine.execute_unbounded([send.command]))[0]
        try:
            return await engine.execute(
                send.command, request_id=send.request_id, namespace=send.namespace, actor="model"
            )
        except Exception as refusal:  # noqa: BLE001 - it is what the other side has to answer as well
            return refusal

    async def send_together(self, sends: Sequence[Send]) -> list[Any]:
        """Send commands of one caller at once."""
        return await self.bed.engine.execute_many(
            [send.command for send in sends],
            request_ids=[send.request_id for send in sends],
            namespace=sends[0].namespace,
            actor="model",
        )

    def take_commits(self) -> list[Commit]:
        """What was committed since this was asked for last."""
        commits, self.store.commits = self.store.commits, []
        return commits

    async def view(self, touched: Touched, after_event: int, sharing: Sharing) -> Dump:
        """What the store holds of what was touched, and the events that are new."""
        loaded = await self.store.load(sorted(touched.keys)) if touched.keys else None
        return {
            "records": unnumbered(
                {key: _plain(record) for key, _, record in (loaded.rows if loaded else ())}
            ),
            "rows": {
                f"{index} {scope!r}": await self.store.read_index(index, scope, limit=PAGE)
                for index, scope in sorted(touched.scopes)
            },
            "frames": {
                stream: _plain(await self.store.read_frames(stream, limit=PAGE))
                for stream in sorted(touched.streams)
            },
            "events": _grouped(_plain(await self.store.read_events(after_event, limit=PAGE)), sharing),
            "log": {"trimmed": await self.store.trimmed_events(), "last": await self.store.last_event()},
        }


class Touched:
    """What some commits have changed."""

    def __init__(self, commits: list[Commit]) -> None:
        self.keys = {change.key for commit in commits for change in commit.changes}
        self.scopes = {
            (index, scope)
            for commit in commits
            for index, scope, _, _ in (*commit.rows_removed, *commit.rows_added)
        }
        self.streams = {frame.stream for commit in commits for frame in commit.appends}
        self.streams |= {trim.stream for commit in commits for trim in commit.trims}


class Lockstep:
    """Both sides. Use it as an async context manager.

    Args:
        open_store: makes the store under test, unopened, over the same data each time.
    """

    def __init__(self, open_store: OpenStore) -> None:
        self.model = Side(MemoryStore)
        self.subject = Side(open_store)
        self.taken = 0
        self._events = 0
        self._decides = hasattr(self.subject.store, "native")
        self._sharing = _execution_of if self._decides else _partition_of

    async def __aenter__(self) -> Self:
        await self.model.bed.__aenter__()
        await self.subject.bed.__aenter__()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.subject.bed.__aexit__(*raised)
        await self.model.bed.__aexit__(*raised)

    async def take(self, step: Step) -> tuple[list[Any], list[Commit]]:
        """Let both sides take a step, and compare. Returns the model's answers and commits.

        Raises:
            Divergence: they differ, or an invariant is broken.
        """
        self.taken += 1
        expected, answers = await (
            self._take_together(step) if isinstance(step, Together) else self._take_one(step)
        )
        commits = self.model.take_commits()
        _require_same(step, expected, answers)
        _require_quiet_refusal(step, expected, commits)
        await self._compare_touched(Touched(commits + self.subject.take_commits()))
        if self.taken % AUDIT_EVERY_STEPS == 0:
            await self._audit()
        return expected, commits

    async def _take_one(self, step: Step) -> tuple[list[Any], list[Any]]:
        with same_ids(self.taken):
            expected = await self.model.take(step)
        with same_ids(self.taken):
            return expected, await self.subject.take(step)

    async def _take_together(self, step: Together) -> tuple[list[Any], list[Any]]:
        """Send commands at once, but for those that would meet in an order of chance."""
        expected: dict[int, Any] = {}
        answers: dict[int, Any] = {}
        for part in self._sent_at_once(step.sends):
            sends = [step.sends[number] for number in part]
            with same_ids(self.taken):
                expected |= zip(part, await self.model.send_together(sends), strict=True)
            with same_ids(self.taken):
                answers |= zip(part, await self.subject.send_together(sends), strict=True)
        order = range(len(step.sends))
        return [expected[number] for number in order], [answers[number] for number in order]

    def _sent_at_once(self, sends: Sequence[Send]) -> list[list[int]]:
        """The numbers of commands whose order the store under test keeps if they are sent at once.

        Those are decided in one place, and if the store decides some kinds by itself, of one kind.
        """
        if len(sends) == 1:
            return [[0]]  # which may be several commands to the engine
        parts: dict[tuple[int, object], list[int]] = {}
        for number, send in enumerate(sends):
            key = next(iter(RULES[type(send.command)].reads(send.command)), "")
            kind = type(send.command) if self._decides else None
            parts.setdefault((self.subject.store.place_of(key), kind), []).append(number)
        return list(parts.values())

    async def finish(self) -> None:
        """Compare everything that both hold, and audit it.

        What is equal is audited once, on the quicker side.

        Raises:
            Divergence: both sides do not hold the same, or an invariant is broken.
        """
        held, expected = await dump(self.subject.store), await dump(self.model.store)
        for found in (held, expected):
            found["events"] = _grouped(found["events"], self._sharing)
            found["records"] = unnumbered(found["records"])
        changed = differences(held, expected)
        if changed:
            raise Divergence("the store differs from the model:\n" + "\n".join(changed))
        await self._audit()

    async def _compare_touched(self, touched: Touched) -> None:
        held, expected = [
            await side.view(touched, self._events, self._sharing) for side in (self.subject, self.model)
        ]
        changed = differences(held, expected)
        if changed:
            raise Divergence("the store differs from the model:\n" + "\n".join(changed))
        self._events = expected["log"]["last"]

    async def _audit(self) -> None:
        try:
            await self.model.bed.check()
        except AssertionError as broken:
            raise Divergence(f"an invariant is broken:\n{broken}") from broken


def _require_same(step: Step, expected: list[Any], answers: list[Any]) -> None:
    for send, ours, theirs in zip(sends_of(step), expected, answers, strict=True):
        if isinstance(ours, Exception) and not isinstance(ours, errors.FlowFabricError):
            raise Divergence(f"{send.command} broke the engine") from ours
        if _comparable(ours) != _comparable(theirs):
            raise Divergence(f"{send.command}\nis answered {theirs!r}\nand by the model {ours!r}")


def _comparable(answer: Any) -> Any:
    if isinstance(answer, errors.FlowFabricError):
        return type(answer), answer.code, answer.details, answer.message
    if isinstance(answer, BackendCapabilities):
        return answer.operations, answer.supports  # which store it is differs, of course
    return (type(answer), str(answer)) if isinstance(answer, Exception) else answer


def _require_quiet_refusal(step: Step, answers: list[Any], commits: list[Commit]) -> None:
    """One rule that refuses commits nothing. An operation of several commands may have begun."""
    if not isinstance(step, Send) or not isinstance(answers[0], Exception) or not commits:
        return
    if operation_for(step.command) is None:
        raise Divergence(f"{step.command}\nwas refused and changed {[c.key for c in commits[0].changes]}")


@contextmanager
def same_ids(seed: int) -> Iterator[None]:
    """Let everything that is minted meanwhile follow from a number."""
    with mock.patch.object(minting, "_draw", partial(Random(seed).randbytes, 16)):
        yield


def _grouped(events: list[Any], sharing: Sharing) -> list[Any]:
    """Events without their places, in their order as far as it must be the same."""
    return sorted((stored["event"] for stored in events), key=sharing)


def _partition_of(event: Any) -> str:
    return str(event["execution_id"]).partition(":")[2].partition("}")[0]


def _execution_of(event: Any) -> str:
    """For stores that decide some commands of a batch by themselves, beside the others."""
    return str(event["execution_id"])


def _plain(value: Record | list[Any] | None) -> Any:
    return msgspec.to_builtins(value, builtin_types=(bytes,))
