"""Sends commands to the functions that decide them, as many as possible in one call."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric import errors
from flowfabric.stores.base import DECLINED, Commit, Decided
from flowfabric.stores.valkey.native.claiming import ClaimExecution
from flowfabric.stores.valkey.native.completing import CompleteExecution
from flowfabric.stores.valkey.native.creating import CreateExecution
from flowfabric.stores.valkey.native.function import Asked, Effects
from flowfabric.stores.valkey.native.renewing import RenewLease
from flowfabric.stores.valkey.native.signatures import SIGNATURES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.core.records import Key
    from flowfabric.core.work import Envelope, Remembered
    from flowfabric.stores.valkey.keys import Keys
    from flowfabric.stores.valkey.native.function import Argument, Function
    from flowfabric.stores.valkey.store import ValkeyStore

COMMANDS_MAX: Final = 64
"""How many commands one call decides. The server does nothing else meanwhile, for about a millisecond."""

_FAILED: Final = b"!"
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
        changed = await self._changed_elsewhere(asked, remembered)
        for place, (command, envelope) in enumerate(asked):
            function, one = FUNCTIONS[type(command)], Asked(command, envelope)
            sharing = function.sharing(one, remembered)
            if sharing is not None and function.relied_on(one) not in changed:
                shard = self._store.shard_of(function.subject(command))
                calls.setdefault((function.name, shard.shard, sharing), []).append((place, one))
        await asyncio.gather(
            *(
                self._call(part[start : start + COMMANDS_MAX], remembered, decided)
                for part in calls.values()
                for start in range(0, len(part), COMMANDS_MAX)
            )
        )
        return decided

    async def _changed_elsewhere(
        self, asked: Sequence[tuple[Command[Any], Envelope]], remembered: Remembered
    ) -> frozenset[Key]:
        """What commands rely on in other shards than their own and is not as it is remembered."""
        elsewhere: dict[Key, str] = {}
        for command, envelope in asked:
            function = FUNCTIONS[type(command)]
            key = function.relied_on(Asked(command, envelope))
            if key is None or remembered.recall(key) is None:
                continue
            if self._store.shard_of(key) is not self._store.shard_of(function.subject(command)):
                elsewhere[key] = _version(remembered, key)
        if not elsewhere:
            return frozenset()
        loaded = await self._store.load(elsewhere)
        return frozenset(key for key, version, _ in loaded.rows if str(version) != elsewhere[key])

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
        effects = Effects(now=now, events=decided.effects.events, rows=decided.effects.rows_added)
        decided.effects.now = max(decided.effects.now, now)
        for place, one, reply in zip(places, asked, replies, strict=True):
            if self._is_accepted(function.name, reply):
                decided.answers[place] = function.answer(one, reply, effects)

    def _is_accepted(self, name: str, reply: Any) -> bool:
        statistics = self.statistics
        if isinstance(reply, bytes) and reply.startswith(_FAILED):
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
            arguments.append(_version(remembered, relied_on) if here else "")
        arguments += function.shared(first)
        for one in asked:
            item_keys, item_arguments = function.item(shard, one)
            keys += item_keys
            arguments += item_arguments
        assert len(keys) == len(signature.keys) + len(asked) * len(signature.item_keys)
        assert len(arguments) == len(signature.arguments) + len(asked) * len(signature.item_arguments)
        return keys, arguments


def _version(remembered: Remembered, key: Key) -> str:
    """The version in which a record is remembered."""
    found = remembered.recall(key)
    assert found is not None, "a command that relies on it would have been left to the rule"
    return str(found[0])


FUNCTIONS: Final[dict[type[Command[Any]], Function]] = {
    function.command_type: function
    for function in (ClaimExecution(), CompleteExecution(), CreateExecution(), RenewLease())
}
"""The functions by the commands that they decide."""
