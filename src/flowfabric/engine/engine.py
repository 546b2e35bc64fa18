"""The one door: commands in, answers out.

What rules decide goes into batches (see ``batches`` and ``cycle``), queries share their loads (see
``questions``), and operations take several of both.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import msgspec

from flowfabric import errors
from flowfabric.contracts.check import check
from flowfabric.contracts.handles import BackendTag
from flowfabric.contracts.limits import NAME_CHARS_MAX
from flowfabric.core.registry import RULES
from flowfabric.core.work import Envelope
from flowfabric.engine import catalog as _catalog  # noqa: F401 - importing it registers what can be done
from flowfabric.engine.batches import Batches
from flowfabric.engine.courier import Courier
from flowfabric.engine.crowding import Crowding
from flowfabric.engine.cycle import Cycle
from flowfabric.engine.endings import Endings
from flowfabric.engine.feeds import Subscribing
from flowfabric.engine.known import Known
from flowfabric.engine.lanes import KnownLanes
from flowfabric.engine.notifier import Notifier
from flowfabric.engine.operations import operation_for
from flowfabric.engine.pursuits import Pursuits
from flowfabric.engine.questions import Questions
from flowfabric.engine.recent import RecentRecords
from flowfabric.engine.turns import Turns
from flowfabric.engine.underway import UnderWay
from flowfabric.engine.watches import watch_durability, watch_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.engine.layers import Door, Layer
    from flowfabric.engine.observing import Observer
    from flowfabric.stores.base import Durability, Store

R = TypeVar("R")

_BACKENDS: Final = {tag.lower(): tag for tag in BackendTag}
"""The tags that handles carry, by the names that stores give themselves."""

log = logging.getLogger("flowfabric.engine")


class Inside:
    """The door behind all layers."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def execute(
        self,
        command: Command[R],
        *,
        request_id: str | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> R:
        """Carry out one command."""
        self._engine.require_running()
        return await self._engine.carry_out(command, self._engine.envelope(request_id, namespace, actor))

    async def execute_many(
        self,
        commands: Sequence[Command[R]],
        *,
        request_ids: Sequence[str | None] | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> list[R | Exception]:
        """Carry out many commands."""
        self._engine.require_running()
        ids = request_ids if request_ids is not None else [None] * len(commands)
        envelopes = [self._engine.envelope(request_id, namespace, actor) for request_id in ids]
        return await self._engine.carry_out_many(list(zip(commands, envelopes, strict=True)))


class Engine(Subscribing):
    """Executes commands against one store.

    Args:
        store: where everything is kept. The engine opens and closes it.
        namespace: the namespace of commands that do not name another.
        layers: what wraps the door, the innermost first: ``lambda door: Traced(door, tracer)``.
        actor: whose commands those are that name nobody, for the operator log.
        observer: is told of commits, sweeps and the like.
    """

    def __init__(
        self,
        store: Store,
        *,
        namespace: str | None = None,
        layers: Iterable[Layer] = (),
        observer: Observer | None = None,
        actor: str = "",
    ) -> None:
        self.store = store
        self.actor = actor
        self.namespace = namespace
        self.observer = observer
        self._door: Door = Inside(self)
        for layer in layers:
            self._door = layer(self._door)
        self.notifier = Notifier()
        self.endings = Endings(store, self.notifier)
        self.lanes = KnownLanes()
        self.turns = Turns()
        self.pursuits = Pursuits()
        self.crowding = Crowding()
        self.durability: Durability | None = None
        self._backend = BackendTag.MEMORY
        self.recent = RecentRecords()
        self._under_way = UnderWay()
        known = Known(self.lanes, self.recent, self._under_way)
        self._courier = Courier(store, known, self.notifier, self._unbounded_envelope, observer=observer)
        self._batches = Batches(
            Cycle(store, known, self.notifier, self._courier, observer=observer),
            at_once=store.batches_at_once,
        )
        self._questions = Questions(store, self.recent)
        self._watches: list[asyncio.Task[None]] = []
        self._closing = False
        self._request_prefix = ""
        self._request_numbers = itertools.count()

    async def start(self) -> Durability:
        """Open the store. Returns what an acknowledged command survives."""
        self.durability = await self.store.open()
        if self.observer is not None:
            self.observer.attested(self.durability)
        self._backend = _BACKENDS.get(self.durability.store, BackendTag.MEMORY)
        self._closing = False
        self.recent.clear()
        self._under_way.clear()
        # Not before: engines that were made before a fork would mint the same ids, and one
        # process would be given the answers of another, leases among them.
        self._request_prefix = secrets.token_hex(8)
        self.notifier.open()
        self.endings.open()
        self._watches = [
            asyncio.create_task(
                watch_store(self.store, self.notifier, self.endings), name="flowfabric watch"
            ),
            asyncio.create_task(self.endings.watch(), name="flowfabric endings"),
            asyncio.create_task(watch_durability(self.attest), name="flowfabric durability"),
        ]
        return self.durability

    async def stop(self) -> None:
        """Finish the commands in flight and close the store."""
        self._closing = True
        await self._batches.drain()
        self.notifier.close()
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        self._watches = []
        await self.store.close()

    async def attest(self) -> Durability:
        """Ask the store again what an acknowledged commit survives, and report a change.

        Raises:
            StoreError: the store cannot be reached.
        """
        before, self.durability = self.durability, await self.store.attest()
        if self.observer is not None:
            self.observer.attested(self.durability)
        if before is not None and before.level != self.durability.level:
            log.error(
                "acknowledged commits survive level %s now, and %s before: the settings of the store were "
                "changed (%s). Change them back, or restart to be refused or to accept it.",
                self.durability.level,
                before.level,
                self.durability.settings,
            )
        return self.durability

    @property
    def waiting(self) -> int:
        """How many commands wait for the next batch."""
        return self._batches.waiting

    async def now(self) -> int:
        """The store's clock, in milliseconds."""
        return await self.store.now()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def execute(
        self,
        command: Command[R],
        *,
        request_id: str | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> R:
        """Carry out one command and return its outcome.

        Args:
            command: what to do.
            request_id: repeat it to ask again after a lost answer; minted when absent.
            namespace: the only namespace the command may see or change.
            actor: who asks, for the record.

        Raises:
            InvalidInput: a field, the request id or the actor breaks a rule; nothing was changed.
            FlowFabricError: the refusal of the command's rule; nothing was changed.
            Contention: other writers kept changing the same records; try again.
            StoreError: the store failed. Ask again with the same ``request_id``.
        """
        return await self._door.execute(command, request_id=request_id, namespace=namespace, actor=actor)

    async def execute_many(
        self,
        commands: Sequence[Command[R]],
        *,
        request_ids: Sequence[str | None] | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> list[R | Exception]:
        """Carry out many commands; each has its own outcome, or the exception that refused it.

        Raises:
            InvalidInput: a request id or the actor breaks a rule; nothing was sent.
        """
        return await self._door.execute_many(
            commands, request_ids=request_ids, namespace=namespace, actor=actor
        )

    async def carry_out(self, command: Command[R], envelope: Envelope) -> R:
        """Carry out one command behind all layers."""
        carry_out = operation_for(command)
        if carry_out is not None:
            check(command)
            answer: R = await carry_out(self, command, envelope)
            return answer
        rule = RULES[type(command)]
        if rule.is_query:
            check(command)
            found: R = await self._questions.answer(rule, command, envelope)
            return found
        [decided] = await self._batches.decide([(command, envelope)])
        if isinstance(decided, Exception):
            raise decided
        outcome: R = decided
        return outcome

    async def carry_out_many(self, asked: Sequence[tuple[Command[R], Envelope]]) -> list[R | Exception]:
        """Carry out many commands behind all layers."""
        if all(operation_for(command) is None for command, _ in asked):
            return await self.decide(asked)
        return await asyncio.gather(*(self._attempt(command, envelope) for command, envelope in asked))

    async def _attempt(self, command: Command[R], envelope: Envelope) -> R | Exception:
        """One command's outcome, or the exception that refused it."""
        try:
            return await self.carry_out(command, envelope)
        except Exception as refusal:  # noqa: BLE001 - it is this command's answer
            return refusal

    async def execute_unbounded(
        self, commands: Sequence[Command[Any]], *, actor: str = "scanner"
    ) -> list[Any]:
        """Carry out the engine's own commands, which may concern any namespace."""
        self.require_running()
        envelopes = [self._unbounded_envelope(actor) for _ in commands]
        return await self.carry_out_many(list(zip(commands, envelopes, strict=True)))

    async def decide(self, asked: Sequence[tuple[Command[Any], Envelope]]) -> list[Any]:
        """Have the rules of some commands decide them, in one batch as far as possible."""
        return await self._batches.decide(asked)

    def require_running(self) -> None:
        """Refuse commands before the engine is started and once it is stopping."""
        if self._closing or self.durability is None:
            raise errors.Unavailable("The engine is not running. Start it before sending commands.")

    def envelope(self, request_id: str | None, namespace: str | None, actor: str) -> Envelope:
        """What travels with a command besides its arguments."""
        actor = actor or self.actor
        if request_id:
            _check_name("request_id", request_id)
        if actor:
            _check_name("actor", actor)
        return Envelope(
            request_id=request_id or f"{self._request_prefix}-{next(self._request_numbers)}",
            # The empty name is no namespace's, so it must not lift the bounds.
            namespace=self.namespace if namespace is None else namespace,
            actor=actor,
            random=random.random(),  # noqa: S311 - spreads retries, guards nothing
            backend=self._backend,
        )

    def _unbounded_envelope(self, actor: str) -> Envelope:
        """What travels with a command of the engine's own, which may concern any namespace."""
        return msgspec.structs.replace(self.envelope(None, None, actor), namespace=None)


def _check_name(field: str, name: str) -> None:
    """Refuse what could not be stored: it would fail the whole batch that it is committed with.

    Raises:
        InvalidInput: the name is too long, or has control characters or lone surrogates.
    """
    if len(name) > NAME_CHARS_MAX or not name.isprintable():
        rule = f"at most {NAME_CHARS_MAX} printable characters"
        raise errors.InvalidInput(field=field, value=ascii(name[:64]), rule=rule)
