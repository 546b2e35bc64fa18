"""Sends commands to the functions that decide them, as many as possible in one call."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric import errors
from flowfabric.core.records import kind_of
from flowfabric.core.registry import RULES
from flowfabric.stores.base import DECLINED, Commit, Decided
from flowfabric.stores.valkey.native.appending import AppendFrame
from flowfabric.stores.valkey.native.claiming import ClaimExecution
from flowfabric.stores.valkey.native.completing import CompleteExecution
from flowfabric.stores.valkey.native.creating import CreateExecution
from flowfabric.stores.valkey.native.function import Asked, Effects
from flowfabric.stores.valkey.native.renewing import RenewLease
from flowfabric.stores.valkey.native.reporting import RecordSpend, ReportUsage, ReportUsageAdmin
from flowfabric.stores.valkey.native.signatures import SIGNATURES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.core.records import Key, Record
    from flowfabric.core.work import Envelope, Remembered
    from flowfabric.stores.valkey.keys import Keys
    from flowfabric.stores.valkey.native.function import Argument, Function
    from flowfabric.stores.valkey.store import ValkeyStore

COMMANDS_MAX: Final = 64
"""How many commands one call decides, unless they have an order. The server does nothing else meanwhile, for
about a millisecond."""

FAILED: Final = b"!"
"""What the reply begins with to a command that a function could not decide."""

log = logging.getLogger("flowfabric.stores")


class Statistics(msgspec.Struct):
    """Counters since the store was opened, by the names of the functions."""

    accepted: dict[str, int] = {}
    declined: dict[str, int] = {}
    failed: dict[str, int] = {}

    def count(self, counter: dict[str, int], name: str) -> None:
        """Count one more."""
        counter[name] = counter.get(name, 0) + 1


class Decisions:
    """Decides on the server what a function there can decide.

    Args:
        store: whose connection, shards and clock are used.
    """

    def __init__(self, store: ValkeyStore) -> None:
        self._store = store
        self.statistics = Statistics()

    def takes(self, command: Command[Any], envelope: Envelope) -> bool:
        """Whether there is a function for this command. It may still decline it."""
        return envelope.namespace is not None and type(command) in FUNCTIONS

    async def decide(self, asked: Sequence[tuple[Command[Any], Envelope]], remembered: Remembered) -> Decided:
        """Decide what can be decided, in as few calls as possible, all on their way at the same time."""
        decided = Decided(
            answers=[DECLINED] * len(asked),
            effects=Commit(
                now=0,
                changes=[],
                relied_on=[],
                rows_removed=[],
                rows_added=[],
                events=[],
                appends=[],
                trims=[],
            ),
        )
        calls: dict[tuple[Any, ...], list[tuple[int, Asked]]] = {}
        seen = await self._look_before(asked, remembered)
        left: set[Key] = set()
        for place, (command, envelope) in enumerate(asked):
            function, one = FUNCTIONS[type(command)], Asked(command, envelope, seen)
            subject, sharing = function.subject(command), function.sharing(one, remembered)
            if sharing is None or subject in left or not self._is_current(one, remembered):
                # What comes behind it and is about the same record must not overtake it.
                left.add(subject)
            else:
                shard = self._store.shard_of(subject)
                calls.setdefault((function.name, shard.shard, sharing), []).append((place, one))
        await asyncio.gather(*(self._calls(alike, remembered, decided) for alike in calls.values()))
        return decided

    def orders(self, command: Command[Any]) -> bool:
        """Whether commands like this one are decided in their order if they are about one record."""
        function = FUNCTIONS.get(type(command))
        return function is not None and SIGNATURES[function.name].in_order

    async def _look_before(
        self, asked: Sequence[tuple[Command[Any], Envelope]], remembered: Remembered
    ) -> dict[Key, tuple[int, Record | None]]:
        """What functions observe, and what they rely on in other shards, as it is right before the calls.

        Nothing if a record is damaged: the rules find out whom that concerns.
        """
        wanted: set[Key] = set()
        for command, envelope in asked:
            function = FUNCTIONS[type(command)]
            observed = SIGNATURES[function.name].observes
            if observed:
                wanted.update(key for key in _reads(command) if kind_of(key) in observed)
            relied_on = function.relied_on(Asked(command, envelope))
            if relied_on and self._is_elsewhere(relied_on, command) and remembered.recall(relied_on):
                wanted.add(relied_on)
        if not wanted:
            return {}
        try:
            loaded = await self._store.load(wanted)
        except errors.StoreCorrupt:
            return {}
        return {key: (version, record) for key, version, record in loaded.rows}

    def _is_elsewhere(self, key: Key, command: Command[Any]) -> bool:
        """Whether a record is in another shard than the one that a command is about."""
        subject = FUNCTIONS[type(command)].subject(command)
        return self._store.shard_of(key) is not self._store.shard_of(subject)

    def _is_current(self, asked: Asked, remembered: Remembered) -> bool:
        """Whether what a command relies on in another shard is as it is remembered."""
        relied_on = FUNCTIONS[type(asked.command)].relied_on(asked)
        if relied_on is None or not self._is_elsewhere(relied_on, asked.command):
            return True
        known, found = remembered.recall(relied_on), asked.seen.get(relied_on)
        return known is not None and found is not None and known[0] == found[0]

    async def _calls(self, alike: list[tuple[int, Asked]], remembered: Remembered, decided: Decided) -> None:
        """Decide commands that may share calls. Those with an order share one, as they would a commit."""
        size = len(alike) if self.orders(alike[0][1].command) else COMMANDS_MAX
        parts = [alike[start : start + size] for start in range(0, len(alike), size)]
        await asyncio.gather(*(self._call(part, remembered, decided) for part in parts))

    async def _call(self, part: list[tuple[int, Asked]], remembered: Remembered, decided: Decided) -> None:
        """Decide some commands that share a call. A fault is the answer to each of them."""
        places, asked = [place for place, _ in part], [one for _, one in part]
        function = FUNCTIONS[type(asked[0].command)]
        shard = self._store.shard_of(function.subject(asked[0].command))
        keys, arguments = self._written(function, shard, asked, remembered)
        try:
            now, replies = await self._store.invoke_native(shard, function.name, keys, arguments)
        except errors.FlowFabricError as error:
            for place in places:
                decided.answers[place] = error
            return
        effects = Effects(
            now=now,
            events=decided.effects.events,
            rows=decided.effects.rows_added,
            frames=decided.effects.appends,
        )
        decided.effects.now = max(decided.effects.now, now)
        for place, one, reply in zip(places, asked, replies, strict=True):
            if self._is_accepted(function.name, reply):
                decided.answers[place] = function.answer(one, reply, effects)

    def _is_accepted(self, name: str, reply: Any) -> bool:
        statistics = self.statistics
        if isinstance(reply, bytes) and reply.startswith(FAILED):
            statistics.count(statistics.failed, name)
            log.warning("%s could not decide a command, the rule does: %s", name, reply[1:].decode())
            return False
        statistics.count(statistics.accepted if reply else statistics.declined, name)
        return bool(reply)

    def _written(
        self, function: Function, shard: Keys, asked: list[Asked], remembered: Remembered
    ) -> tuple[list[str], list[Argument]]:
        """The keys and arguments of a call, in the order of the function's signature."""
        signature, first = SIGNATURES[function.name], asked[0]
        namespace = first.envelope.namespace
        assert namespace is not None
        keys = list(shard.named(signature, namespace))
        arguments: list[Argument] = [*self._store.call_arguments(), namespace, len(asked)]
        relied_on = function.relied_on(first)
        if relied_on is not None:
            # What lives in another shard was compared right before the call.
            here = self._store.shard_of(relied_on) is shard
            keys.append(shard.record(relied_on) if here else shard.state)
            arguments.append(_version(first, relied_on, remembered) if here else "")
        arguments += function.shared(first)
        for one in asked:
            item_keys, item_arguments = function.item(shard, one)
            keys += item_keys
            arguments += item_arguments
        assert len(keys) == len(signature.keys) + len(asked) * len(signature.item_keys)
        assert len(arguments) == len(signature.arguments) + len(asked) * len(signature.item_arguments)
        return keys, arguments


def _reads(command: Command[Any]) -> tuple[Key, ...]:
    """What the rule of a command is sure to read."""
    return RULES[type(command)].reads(command)


def _version(asked: Asked, key: Key, remembered: Remembered) -> str:
    """The version in which a record was seen, or is remembered."""
    found = asked.seen.get(key) or remembered.recall(key)
    assert found is not None, "a command that relies on it would have been left to the rule"
    return str(found[0])


FUNCTIONS: Final[dict[type[Command[Any]], Function]] = {
    function.command_type: function
    for function in (
        AppendFrame(),
        ClaimExecution(),
        CompleteExecution(),
        CreateExecution(),
        RecordSpend(),
        RenewLease(),
        ReportUsage(),
        ReportUsageAdmin(),
    )
}
"""The functions by the commands that they decide."""
