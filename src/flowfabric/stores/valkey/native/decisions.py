"""Sends commands to the functions that decide them, as many as possible in one call."""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.signals import DeliverSignalArgs
from flowfabric.core.commands import ClaimCandidateArgs
from flowfabric.core.records import kind_of
from flowfabric.core.registry import RULES
from flowfabric.stores.base import DECLINED, Commit, Decided
from flowfabric.stores.valkey.client import SlotIsMoving
from flowfabric.stores.valkey.native.admitting import CheckAdmission
from flowfabric.stores.valkey.native.appending import AppendFrame
from flowfabric.stores.valkey.native.claiming import ClaimExecution, ClaimRelatedExecution, is_signalled
from flowfabric.stores.valkey.native.completing import CompleteExecution, CompleteMember
from flowfabric.stores.valkey.native.creating import CreateExecution
from flowfabric.stores.valkey.native.failing import FailExecution
from flowfabric.stores.valkey.native.function import AlongEdges, Asked, Effects
from flowfabric.stores.valkey.native.members import Members
from flowfabric.stores.valkey.native.releasing import GiveAdmissionBack, ReleaseAdmission
from flowfabric.stores.valkey.native.renewing import RenewLease
from flowfabric.stores.valkey.native.reporting import RecordSpend, ReportUsage, ReportUsageAdmin
from flowfabric.stores.valkey.native.resolving import ResolveDependency
from flowfabric.stores.valkey.native.signalling import DeliverSignal
from flowfabric.stores.valkey.native.signatures import SIGNATURES

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.core.records import Key, Record
    from flowfabric.core.work import Envelope, Remembered
    from flowfabric.stores.valkey.keys import Keys
    from flowfabric.stores.valkey.native.function import Argument, Function, FurtherFunction
    from flowfabric.stores.valkey.native.members import Member
    from flowfabric.stores.valkey.store import ValkeyStore

R = TypeVar("R")

COMMANDS_MAX: Final = 64
"""How many commands one call decides, unless they have an order. The server does nothing else meanwhile, for
some milliseconds at most."""
EDGES_MAX: Final = 64
"""How many edges the members of one call have behind them, for the same reason: each is as much work as a
command. The last one of a call may have more."""

NAMED_MAX: Final = 1_024
"""For how many functions and namespaces the keys of calls are remembered."""

ASKS: Final = b"?"
"""What the reply begins with to a command for which a function needs more keys."""
FAILED: Final = b"!"
"""What the reply begins with to a command that a function could not decide."""

log = logging.getLogger("flowfabric.stores")


def is_decided(reply: Any) -> bool:
    """Whether a function has decided a command: it has neither declined nor failed, and asks for nothing."""
    return bool(reply) and not (isinstance(reply, bytes) and reply.startswith((ASKS, FAILED)))


class Statistics(msgspec.Struct):
    """Counters since the store was opened, by the names of the functions."""

    accepted: dict[str, int] = {}
    declined: dict[str, int] = {}
    failed: dict[str, int] = {}

    def count(self, counter: dict[str, int], name: str, more: int = 1) -> None:
        """Count one more, or several."""
        counter[name] = counter.get(name, 0) + more


class Decisions:
    """Decides on the server what a function there can decide.

    Args:
        store: whose connection, shards and clock are used.
    """

    def __init__(self, store: ValkeyStore) -> None:
        self._store = store
        self._members = Members()
        self.statistics = Statistics()

    def takes(self, command: Command[Any]) -> bool:
        """Whether there is a function for this command. It may still decline it."""
        return type(command) in FUNCTIONS

    def forget(self) -> None:
        """Remember nothing of what was met, as in a new process."""
        self._members.clear()

    def leaves(self, command: Command[Any], known: Record) -> bool:
        """Whether the rule is as quick, or the function would decline."""
        is_left = LEFT.get(type(command))
        return is_left is not None and is_left(known)

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
        prepared = await self._prepared(asked, remembered)
        further = await self._round(list(enumerate(prepared)), remembered, decided)
        if further:
            seen = await self._look(self._relied_on_elsewhere([one for _, one in further], remembered))
            further = [(place, replace(one, seen=seen)) for place, one in further]
            for _, one in await self._round(further, remembered, decided):  # something changes meanwhile
                self.statistics.count(self.statistics.declined, _function_of(one).name)
        return decided

    async def _round(
        self, asked: Sequence[tuple[int, Asked]], remembered: Remembered, decided: Decided
    ) -> list[tuple[int, Asked]]:
        """Decide what can be decided. Returns what may be decided when it is asked again, with more keys."""
        calls: dict[tuple[Any, ...], list[tuple[int, Asked]]] = {}
        left: set[Key] = set()
        for place, one in asked:
            function = _function_of(one)
            subject = function.subject(one)
            known = bool(one.namespace) or not SIGNATURES[function.name].families
            sharing = function.sharing(one, remembered) if known else None
            if sharing is None or subject in left or not self._is_current(one, remembered):
                # What comes behind it and is about the same record must not overtake it.
                left.add(subject)
            else:
                shard = self._store.shard_of(subject)
                calls.setdefault((function.name, shard.shard, sharing), []).append((place, one))
        return await _gathered([self._calls(alike, remembered, decided) for alike in calls.values()])

    def looks_at(self, command: Command[Any]) -> Sequence[Key]:
        """What is observed for a command, besides what it is about."""
        if type(command) not in OBSERVED:
            return ()
        subject = RULES[type(command)].subject(command)
        return [key for key in _observed(command) if key != subject]

    def orders(self, command: Command[Any]) -> bool:
        """Whether commands like this one are decided in their order if they are about one record."""
        function = FUNCTIONS.get(type(command))
        return function is not None and SIGNATURES[function.name].in_order

    async def _prepared(
        self, asked: Sequence[tuple[Command[Any], Envelope]], remembered: Remembered
    ) -> list[Asked]:
        """The commands with what has to be known of them before the calls."""
        owners = {
            owner
            for command, envelope in asked
            if envelope.namespace is None and (owner := FUNCTIONS[type(command)].owner(command)) is not None
        }
        observed = {key for command, _ in asked if type(command) in OBSERVED for key in _observed(command)}
        seen = await self._look(owners | observed)
        prepared = [
            Asked(
                command,
                envelope,
                _owned_namespace(command, seen) if envelope.namespace is None else envelope.namespace,
                seen,
                self._members,
                member := self._member(command),
                wanted=b"" if member is None else FURTHER[type(command)].foreseen(member),
            )
            for command, envelope in asked
        ]
        seen.update(await self._look(self._relied_on_elsewhere(prepared, remembered)))
        return prepared

    def _member(self, command: Any) -> Member | None:
        """The member that a command is about, if that matters to its function and is remembered."""
        return self._members.recall(command.execution_id) if type(command) in FURTHER else None

    def _relied_on_elsewhere(self, asked: Sequence[Asked], remembered: Remembered) -> set[Key]:
        """What functions rely on in other shards."""
        wanted: set[Key] = set()
        if self._store.is_one_shard:
            return wanted
        for one in asked:
            relied_on = FUNCTIONS[type(one.command)].relied_on(one)
            if relied_on and self._is_elsewhere(relied_on, one) and remembered.recall(relied_on):
                wanted.add(relied_on)
        return wanted

    async def _look(self, wanted: set[Key]) -> dict[Key, tuple[int, Record | None]]:
        """Versions and records. Nothing if they cannot be read: the rules find out whom that concerns.

        A damaged record, or a server that is down, must not fail commands that are about other records, and
        least of all those that were decided before this look.
        """
        if not wanted:
            return {}
        try:
            loaded = await self._store.load(wanted)
        except errors.StoreError:
            return {}
        return {key: (version, record) for key, version, record in loaded.rows}

    def _is_elsewhere(self, key: Key, asked: Asked) -> bool:
        """Whether a record is in another shard than the one that a command is about."""
        subject = FUNCTIONS[type(asked.command)].subject(asked)
        return self._store.shard_of(key) is not self._store.shard_of(subject)

    def _is_current(self, asked: Asked, remembered: Remembered) -> bool:
        """Whether what a command relies on in another shard is as it is remembered."""
        if self._store.is_one_shard:
            return True
        relied_on = FUNCTIONS[type(asked.command)].relied_on(asked)
        if relied_on is None or not self._is_elsewhere(relied_on, asked):
            return True
        found = asked.seen.get(relied_on)
        if kind_of(relied_on) in SIGNATURES[FUNCTIONS[type(asked.command)].name].observes:
            return found is not None
        known = remembered.recall(relied_on)
        return known is not None and found is not None and known[0] == found[0]

    async def _calls(
        self, alike: list[tuple[int, Asked]], remembered: Remembered, decided: Decided
    ) -> list[tuple[int, Asked]]:
        """Decide commands that may share calls. Those with an order share one, as they would a commit."""
        if self.orders(alike[0][1].command):
            alike = [(place, replace(one, place=ahead)) for ahead, (place, one) in enumerate(alike)]
            return await self._call(alike, remembered, decided)
        return await _gathered([self._call(part, remembered, decided) for part in _parts(alike)])

    async def _call(
        self, part: list[tuple[int, Asked]], remembered: Remembered, decided: Decided
    ) -> list[tuple[int, Asked]]:
        """Decide some commands that share a call. A fault is the answer to each of them."""
        places, asked = [place for place, _ in part], [one for _, one in part]
        function = _function_of(asked[0])
        relied_on = function.relied_on(asked[0])
        if relied_on is not None and _found(asked[0], relied_on, remembered) is None:
            return []  # another batch has found out meanwhile that it is not what it was
        shard = self._store.shard_of(function.subject(asked[0]))
        keys, arguments = self._written(function, shard, asked, remembered)
        try:
            now, replies = await self._store.invoke_native(shard, function.name, keys, arguments)
        except errors.StoreFull:
            return []  # nothing was changed, and the rules know what still goes through
        except SlotIsMoving:
            # A function names every key that it may touch, also some that are not there. The rule names
            # fewer, so it may do what the function cannot until the slot has moved.
            for _ in places:
                self.statistics.count(self.statistics.declined, function.name)
            return []
        except errors.FlowFabricError as error:
            for place in places:
                decided.answers[place] = error
            return []
        effects = Effects(
            now=now,
            events=decided.effects.events,
            rows=decided.effects.rows_added,
            frames=decided.effects.appends,
            changes=decided.effects.changes,
        )
        decided.effects.now = max(decided.effects.now, now)
        further: list[tuple[int, Asked]] = []
        accepted = 0
        for place, one, reply in zip(places, asked, replies, strict=True):
            if is_decided(reply):
                accepted += 1
                decided.answers[place] = function.answer(one, reply, effects)
            elif _asks_for_more(one, reply):
                further.append((place, replace(one, wanted=reply.removeprefix(ASKS))))
            else:
                self._note_undecided(function.name, reply)
        if accepted:
            self.statistics.count(self.statistics.accepted, function.name, accepted)
        return further

    def _note_undecided(self, name: str, reply: Any) -> None:
        """Count what is left to the rule, and tell why if the function has failed."""
        if isinstance(reply, bytes) and reply.startswith(FAILED):
            self.statistics.count(self.statistics.failed, name)
            log.warning("%s could not decide a command, the rule does: %s", name, reply[1:].decode())
        else:
            self.statistics.count(self.statistics.declined, name)

    def _written(
        self, function: Function, shard: Keys, asked: list[Asked], remembered: Remembered
    ) -> tuple[list[str], list[Argument]]:
        """The keys and arguments of a call, in the order of the function's signature."""
        signature, first = SIGNATURES[function.name], asked[0]
        keys = list(_named_keys(shard, function.name, first.namespace))
        arguments: list[Argument] = [*self._store.call_arguments(shard), first.namespace, len(asked)]
        relied_on = function.relied_on(first)
        if relied_on is not None:
            # What lives in another shard was compared right before the call.
            here = self._store.shard_of(relied_on) is shard
            keys.append(shard.record(relied_on) if here else shard.state)
            found = _found(first, relied_on, remembered)
            assert found is not None, "what relies on it would have been left to the rule"
            arguments.append(found[0] if here else "")
        arguments += function.shared(first)
        for one in asked:
            item_keys, item_arguments = function.item(shard, one)
            assert signature.names_all(item_keys, item_arguments)
            keys += item_keys
            arguments += item_arguments
        return keys, arguments


def _parts(alike: list[tuple[int, Asked]]) -> list[list[tuple[int, Asked]]]:
    """What goes out in one call each, of commands that may share one."""
    function = EDGES_COUNTED.get(_function_of(alike[0][1]).name)
    if function is None:
        return [alike[start : start + COMMANDS_MAX] for start in range(0, len(alike), COMMANDS_MAX)]
    parts: list[list[tuple[int, Asked]]] = [[]]
    edges = 0
    for place, one in alike:
        if len(parts[-1]) == COMMANDS_MAX or edges >= EDGES_MAX:
            parts.append([])
            edges = 0
        parts[-1].append((place, one))
        edges += function.edges(one)
    return parts


@lru_cache(NAMED_MAX)
def _named_keys(shard: Keys, function: str, namespace: str) -> tuple[str, ...]:
    """The keys of a function that are the same for all calls in a shard and a namespace."""
    return tuple(shard.named(SIGNATURES[function], namespace))


async def _gathered(asking: list[Coroutine[Any, Any, list[R]]]) -> list[R]:
    """What some coroutines return, in their order. One alone takes no task of its own."""
    if len(asking) == 1:
        return await asking[0]
    return [one for found in await asyncio.gather(*asking) for one in found]


def _asks_for_more(asked: Asked, reply: Any) -> bool:
    """Whether a function asks for something else than it was given."""
    asks = isinstance(reply, bytes) and reply.startswith(ASKS)
    return asks and reply.removeprefix(ASKS) != asked.wanted


def _function_of(asked: Asked) -> Function:
    functions = FURTHER if asked.wanted else FUNCTIONS
    return functions[type(asked.command)]


def _owned_namespace(command: Command[Any], owned: Mapping[Key, tuple[int, Record | None]]) -> str:
    """The namespace of what a command is about; '' if that is not known, since there is no such record."""
    owner = FUNCTIONS[type(command)].owner(command)
    _, named = (0, command) if owner is None else owned.get(owner, (0, None))
    return str(getattr(named, "namespace", ""))


def _observed(command: Command[Any]) -> list[Key]:
    """What the function of a command observes, of what its rule is sure to read."""
    kinds, rule = OBSERVED[type(command)], RULES[type(command)]
    sure = (rule.subject(command), *rule.reads(command))
    return [key for key in sure if key is not None and kind_of(key) in kinds]


def _found(asked: Asked, key: Key, remembered: Remembered) -> tuple[int, Record | None] | None:
    """A record with its version as it was seen, or is remembered."""
    return asked.seen.get(key) or remembered.recall(key)


FUNCTIONS: Final[dict[type[Command[Any]], Function]] = {
    function.command_type: function
    for function in (
        AppendFrame(),
        CheckAdmission(),
        ClaimExecution(),
        CompleteExecution(),
        CreateExecution(),
        DeliverSignal(),
        FailExecution(),
        RecordSpend(),
        GiveAdmissionBack(),
        ReleaseAdmission(),
        RenewLease(),
        ReportUsage(),
        ReportUsageAdmin(),
        ResolveDependency(),
    )
}
"""The functions by the commands that they decide."""
OBSERVED: Final = {
    command_type: kinds
    for command_type, function in FUNCTIONS.items()
    if (kinds := SIGNATURES[function.name].observes)
}
"""The kinds of records that are read before a call, by the commands for which there are any."""
FURTHER: Final[dict[type[Command[Any]], FurtherFunction]] = {
    function.command_type: function for function in (ClaimRelatedExecution(), CompleteMember())
}
"""Those that go on where the first one has asked for more keys."""
EDGES_COUNTED: Final = {
    function.name: function
    for function in (*FUNCTIONS.values(), *FURTHER.values())
    if isinstance(function, AlongEdges)
}
"""The functions whose calls have a bound for their edges, by their names."""

LEFT: Final[dict[type[Command[Any]], Callable[[Any], bool]]] = {
    ClaimCandidateArgs: is_signalled,
    # The function would have to look at it first.
    DeliverSignalArgs: lambda _: True,
}
"""What is left to the rules if the record that a command is about is remembered, and is like this."""
