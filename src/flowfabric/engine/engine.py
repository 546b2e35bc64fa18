"""The one door: commands in, answers out.

Commands are gathered into batches (write combining: while one batch is in flight, the next one
fills). A batch is loaded, decided and committed as one. A refused command never fails its batch;
a conflict runs again only the commands that touched the changed records.

The rules this module keeps:

- An answer is given after the commit that made it true, never before.
- One command changes the records of one partition; the commit may hold many commands.
- A store fault fails every command of the batch with that fault. Whether it took effect is
  learned by asking again with the same request id.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, Unpack

import msgspec

from flowfabric import errors
from flowfabric.contracts.check import check
from flowfabric.contracts.events import Family, TailEventsArgs
from flowfabric.contracts.handles import BackendTag
from flowfabric.contracts.limits import NAME_CHARS_MAX
from flowfabric.core.registry import RULES, Rule
from flowfabric.core.work import Envelope, Missing, Work, WorkingSet
from flowfabric.engine import catalog as _catalog  # noqa: F401 - importing it registers what can be done
from flowfabric.engine.commits import affected_by, build_commit, remember_outcome, repeated_outcome
from flowfabric.engine.deliveries import owed_by
from flowfabric.engine.feeds import Feed
from flowfabric.engine.lanes import KnownLanes
from flowfabric.engine.notifier import Notifier, topics_of
from flowfabric.engine.operations import operation_for
from flowfabric.engine.turns import Turns
from flowfabric.stores.base import Conflict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.contracts.events import AnyEvent, CompletionEvent, LeaseEvent, SignalEvent, TagEvent
    from flowfabric.core.records import Key
    from flowfabric.engine.feeds import FeedOptions
    from flowfabric.engine.layers import Door, Layer
    from flowfabric.stores.base import Durability, Ledger, Store

R = TypeVar("R")

BATCH_MAX: Final = 256
BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
"""How many bytes of payloads go into one batch; one command may have more. All others wait while a
store writes them, and a commit of all the largest payloads would outlast the store's patience."""
CONFLICTS_MAX: Final = 8
ROUNDS_MAX: Final = 1_100
"""How often the rules of one batch may ask for records that are not loaded yet. One that makes many
records may ask once for each."""
DELIVERY_ROUNDS_MAX: Final = 8
"""How many steps of what a commit owes are done before it is answered; a scanner does the rest."""
ATTEST_S: Final = 60
"""How often the store is asked again what an acknowledged commit survives."""
WATCH_MS: Final = 1_000
"""How long one look for changes by other processes takes at most, and the pause after a fault."""

log = logging.getLogger("flowfabric.engine")

_BACKENDS: Final = {tag.lower(): tag for tag in BackendTag}
"""The tags that handles carry, by the names that stores give themselves."""

_NO_WORK: Final = Work(WorkingSet(), Envelope(request_id=""))


def first_reads(rule: Rule, command: Command[Any]) -> tuple[Key, ...]:
    """The records that a rule is sure to read, the subject first."""
    subject = rule.subject(command)
    return rule.reads(command) if subject is None else (subject, *rule.reads(command))


class Ticket:
    """One command on its way through a batch."""

    __slots__ = ("answer", "command", "conflicts", "envelope", "error", "group", "rule", "settled", "work")

    def __init__(self, command: Command[Any], rule: Rule, envelope: Envelope, group: Group) -> None:
        self.command = command
        self.rule = rule
        self.envelope = envelope
        self.group = group
        self.conflicts = 0
        self.work: Work = _NO_WORK
        self.answer: Any = None
        self.error: Exception | None = None
        self.settled = False

    def first_reads(self) -> tuple[Key, ...]:
        """The records that the command is sure to read, the one it is about first."""
        return first_reads(self.rule, self.command)

    def settle(self, error: Exception | None = None) -> None:
        """Give the ticket its answer, or this error. What is settled stays as it is."""
        if self.settled:
            return
        self.settled = True
        self.error = error or self.error
        self.group.settle()


class Group:
    """Commands that were submitted together and are answered together.

    Args:
        future: gets the answers; None if nobody waits for them.
    """

    __slots__ = ("future", "open", "tickets")

    def __init__(self, future: asyncio.Future[list[Any]] | None = None) -> None:
        self.future = future
        self.tickets: list[Ticket] = []
        self.open = 0

    def settle(self) -> None:
        """Count one ticket as done, and answer when all are."""
        self.open -= 1
        if self.open == 0 and self.future is not None and not self.future.done():
            self.future.set_result([ticket.error or ticket.answer for ticket in self.tickets])


class Question:
    """One query on its way to its answer."""

    __slots__ = ("command", "envelope", "future", "rule")

    def __init__(
        self, rule: Rule, command: Command[Any], envelope: Envelope, future: asyncio.Future[Any]
    ) -> None:
        self.rule = rule
        self.command = command
        self.envelope = envelope
        self.future = future

    def first_reads(self) -> tuple[Key, ...]:
        """The records that the query is sure to read."""
        return first_reads(self.rule, self.command)

    def settle(self, working_set: WorkingSet) -> tuple[Key, ...]:
        """Answer, or return the keys of the records that are still missing."""
        if self.future.done():
            return ()
        try:
            self.future.set_result(self.rule.decide(Work(working_set, self.envelope), self.command))
        except Missing as missing:
            return missing.keys
        except Exception as refusal:  # noqa: BLE001 - one broken query must not fail those beside it
            self.future.set_exception(refusal)
        return ()


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


class Engine:
    """Executes commands against one store.

    Args:
        store: where everything is kept. The engine opens and closes it.
        namespace: the namespace of commands that do not name another.
        layers: what wraps the door, the innermost first: ``lambda door: Traced(door, tracer)``.
    """

    def __init__(self, store: Store, *, namespace: str | None = None, layers: Iterable[Layer] = ()) -> None:
        self.store = store
        self.namespace = namespace
        self._door: Door = Inside(self)
        for layer in layers:
            self._door = layer(self._door)
        self.notifier = Notifier()
        self.lanes = KnownLanes()
        self.turns = Turns()
        self.durability: Durability | None = None
        self._backend = BackendTag.MEMORY
        self._queue: list[Ticket] = []
        self._questions: list[Question] = []
        self._asking: asyncio.Task[None] | None = None
        self._pump: asyncio.Task[None] | None = None
        self._watches: list[asyncio.Task[None]] = []
        self._closing = False
        self._request_prefix = ""
        self._request_numbers = itertools.count()

    async def start(self) -> Durability:
        """Open the store. Returns what an acknowledged command survives."""
        self.durability = await self.store.open()
        self._backend = _BACKENDS.get(self.durability.store, BackendTag.MEMORY)
        self._closing = False
        # Not before: engines that were made before a fork would mint the same ids, and one
        # process would be given the answers of another, leases among them.
        self._request_prefix = secrets.token_hex(8)
        self.notifier.open()
        self._watches = [
            asyncio.create_task(self._watch_store(), name="flowfabric watch"),
            asyncio.create_task(self._watch_durability(), name="flowfabric durability"),
        ]
        return self.durability

    async def stop(self) -> None:
        """Finish the commands in flight and close the store."""
        self._closing = True
        if self._pump is not None:
            await asyncio.wait([self._pump])  # unlike a plain await, it never cancels the pump
        self.notifier.close()
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        self._watches = []
        await self.store.close()

    async def _watch_store(self) -> None:
        """Wake those who wait in this process whenever another process has changed the store."""
        while True:
            try:
                if await self.store.wait_for_change(WATCH_MS):
                    self.notifier.publish_foreign_change()
            except errors.StoreError as error:
                log.warning("cannot look for changes by other processes, trying again: %s", error)
                await asyncio.sleep(WATCH_MS / 1_000)
            except Exception:  # a watch that ended unseen would leave everyone here asleep
                log.exception("looking for changes by other processes failed unexpectedly")
                await asyncio.sleep(WATCH_MS / 1_000)

    async def _watch_durability(self) -> None:
        """Keep ``durability`` true: the owner of a server may change what commits survive."""
        while True:
            await asyncio.sleep(ATTEST_S)
            try:
                await self.attest()
            except errors.StoreError as error:
                log.warning("cannot learn what a commit survives, trying again: %s", error)
            except Exception:  # a watch that ended unseen would leave the old answer standing
                log.exception("learning what a commit survives failed unexpectedly")

    async def attest(self) -> Durability:
        """Ask the store again what an acknowledged commit survives, and report a change.

        Raises:
            StoreError: the store cannot be reached.
        """
        before, self.durability = self.durability, await self.store.attest()
        if before is not None and before.level != self.durability.level:
            log.error(
                "acknowledged commits survive level %s now, and %s before: the settings of the store were "
                "changed (%s). Change them back, or restart to be refused or to accept it.",
                self.durability.level,
                before.level,
                self.durability.settings,
            )
        return self.durability

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

    def subscribe(
        self, *families: Family | str, namespace: str | None = None, **options: Unpack[FeedOptions]
    ) -> Feed[AnyEvent]:
        """The events of some families, or of all: ``async for event in engine.subscribe("lease")``.

        Args:
            families: ``completion``, ``lease``, ``signal``, ``tag``, ``execution``, ``operator``.
            namespace: the only namespace whose events are read.
            options: see ``FeedOptions``.

        Raises:
            ValueError: there is no such family.
        """
        chosen = frozenset(map(Family, families)) or frozenset(Family)
        return Feed(self, TailEventsArgs(families=chosen, **options), namespace)

    def subscribe_completion(
        self, *, namespace: str | None = None, **options: Unpack[FeedOptions]
    ) -> Feed[CompletionEvent]:
        """How executions end; see ``subscribe``."""
        return Feed(self, TailEventsArgs(families=frozenset({Family.COMPLETION}), **options), namespace)

    def subscribe_lease_history(
        self, *, namespace: str | None = None, **options: Unpack[FeedOptions]
    ) -> Feed[LeaseEvent]:
        """What becomes of leases; see ``subscribe``."""
        return Feed(self, TailEventsArgs(families=frozenset({Family.LEASE}), **options), namespace)

    def subscribe_signal_delivery(
        self, *, namespace: str | None = None, **options: Unpack[FeedOptions]
    ) -> Feed[SignalEvent]:
        """Which signals are received, and what they do; see ``subscribe``."""
        return Feed(self, TailEventsArgs(families=frozenset({Family.SIGNAL}), **options), namespace)

    def subscribe_instance_tags(
        self, *, namespace: str | None = None, **options: Unpack[FeedOptions]
    ) -> Feed[TagEvent]:
        """Which executions get tags, and lose them; see ``subscribe``."""
        return Feed(self, TailEventsArgs(families=frozenset({Family.TAG}), **options), namespace)

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
            found: R = await self._answer(rule, command, envelope)
            return found
        [decided] = await self.decide([(command, envelope)])
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

    async def _answer(self, rule: Rule, command: Command[Any], envelope: Envelope) -> Any:
        """Decide a query. It changes nothing, so it waits for no commit; it shares its load."""
        question = Question(rule, command, envelope, asyncio.get_running_loop().create_future())
        self._questions.append(question)
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._answer_questions())
        return await question.future

    async def _answer_questions(self) -> None:
        """Answer all queries that have come up, with one load for all of them."""
        questions, self._questions, self._asking = self._questions, [], None
        try:
            await self._load_and_answer(questions)
        except Exception as error:  # noqa: BLE001 - every asker gets the fault that stopped the load
            for question in questions:
                if not question.future.done():
                    question.future.set_exception(error)

    async def _load_and_answer(self, questions: list[Question]) -> None:
        working_set = WorkingSet()
        wanted = {key for question in questions for key in question.first_reads()}
        for _ in range(ROUNDS_MAX):
            loaded = await self.store.load(wanted)
            working_set.put_loaded(loaded.now, loaded.rows)
            wanted = {key for question in questions for key in question.settle(working_set)}
            if not wanted:
                return
        raise AssertionError(f"queries still ask for records after {ROUNDS_MAX} rounds: {sorted(wanted)[:3]}")

    async def decide(self, asked: Sequence[tuple[Command[Any], Envelope]]) -> list[Any]:
        """Have the rules of some commands decide them, in one batch as far as possible."""
        if not asked:
            return []
        answers: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        group = Group(answers)
        group.tickets += [
            Ticket(command, RULES[type(command)], envelope, group) for command, envelope in asked
        ]
        for ticket in group.tickets:
            try:
                check(ticket.command)
            except errors.FlowFabricError as error:
                ticket.error = error
        self._enqueue(group)
        return await answers

    def require_running(self) -> None:
        """Refuse commands before the engine is started and once it is stopping."""
        if self._closing or self.durability is None:
            raise errors.Unavailable("The engine is not running. Start it before sending commands.")

    def envelope(self, request_id: str | None, namespace: str | None, actor: str) -> Envelope:
        """What travels with a command besides its arguments."""
        _check_name("request_id", request_id or "")
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
        return msgspec.structs.replace(self.envelope(None, None, actor), namespace=None)

    def _enqueue(self, group: Group) -> None:
        waiting = [ticket for ticket in group.tickets if ticket.error is None]
        group.open = len(waiting) or 1
        if not waiting:
            group.settle()
            return
        self._queue.extend(waiting)
        if self._pump is None:
            self._pump = asyncio.get_running_loop().create_task(self._run_batches())

    async def _run_batches(self) -> None:
        try:
            while self._queue:
                size = _batch_size(self._queue)
                batch, self._queue = self._queue[:size], self._queue[size:]
                await self._run_batch(batch)
        finally:
            self._pump = None

    async def _run_batch(self, batch: list[Ticket], debts: list[Command[Any]] | None = None) -> None:
        """Give every ticket of the batch its answer, those of each place together.

        Args:
            batch: the tickets.
            debts: takes what the commits owe to other records; it is done here if there is no such list.
        """
        parts = _by_place(batch, self.store)
        if len(parts) == 1:
            await self._run_part(batch, debts)
        else:
            await asyncio.gather(*(self._run_part(part, debts) for part in parts))

    async def _run_part(self, batch: list[Ticket], debts: list[Command[Any]] | None) -> None:
        """Load, decide and commit until every ticket has its answer."""
        working_set = WorkingSet(self.lanes)
        try:
            while batch:
                await decide_batch(self.store, batch, working_set)
                batch = await self._commit(batch, working_set, debts)
        except errors.StoreCorrupt as error:
            await self._run_apart([ticket for ticket in batch if not ticket.settled], error, debts)
        except errors.FlowFabricError as error:
            for ticket in batch:
                ticket.settle(error)
        except Exception as error:  # noqa: BLE001 - a value that cannot be stored, or a fault of ours
            await self._run_apart([ticket for ticket in batch if not ticket.settled], error, debts)
        except asyncio.CancelledError:
            for ticket in batch:
                ticket.settle(errors.Unavailable("The engine was cancelled. Whether it acted is not known."))
            raise

    async def _run_apart(
        self, batch: list[Ticket], error: Exception, debts: list[Command[Any]] | None
    ) -> None:
        """Run each ticket alone, so that what is damaged fails only the one that needs it."""
        if len(batch) == 1:
            batch[0].settle(error)
            return
        for ticket in batch:
            await self._run_part([ticket], debts)

    async def _commit(
        self, batch: list[Ticket], working_set: WorkingSet, debts: list[Command[Any]] | None
    ) -> list[Ticket]:
        """Commit what the batch changed, settle it, and return the tickets that must run again."""
        commit = build_commit([ticket.work for ticket in batch], working_set)
        if commit is not None:
            try:
                await self.store.commit(commit)
            except Conflict as conflict:
                return await self._retry(batch, working_set, conflict, debts)
            self.notifier.publish(topics_of(commit))
            if debts is not None:
                debts += owed_by(commit)
            elif owed := owed_by(commit):
                await self._deliver(owed)
        for ticket in batch:
            ticket.settle()
        return []

    async def _deliver(self, owed: list[Command[Any]]) -> None:
        """Do what a commit owes to other records, and what follows from that, up to a bound."""
        for _ in range(DELIVERY_ROUNDS_MAX):
            if not owed:
                return
            batch, owed = owed[:BATCH_MAX], owed[BATCH_MAX:]
            await self._run_deliveries(batch, owed)

    async def _run_deliveries(self, commands: list[Command[Any]], debts: list[Command[Any]]) -> None:
        group = Group()
        group.tickets += [
            Ticket(command, RULES[type(command)], self._unbounded_envelope("engine"), group)
            for command in commands
        ]
        group.open = len(group.tickets)
        await self._run_batch(list(group.tickets), debts)
        for ticket in group.tickets:
            if ticket.error is not None:
                log.warning("%s is left to the scanners: %s", type(ticket.command).__name__, ticket.error)

    async def _retry(
        self,
        batch: list[Ticket],
        working_set: WorkingSet,
        conflict: Conflict,
        debts: list[Command[Any]] | None,
    ) -> list[Ticket]:
        """Commit the tickets that the conflict did not touch; return the others, to run again."""
        self.lanes.forget(conflict.keys)
        affected = affected_by(conflict.keys, [ticket.work for ticket in batch])
        again = [ticket for ticket, touched in zip(batch, affected, strict=True) if touched]
        rest = [ticket for ticket, touched in zip(batch, affected, strict=True) if not touched]
        for ticket in again:
            ticket.conflicts += 1
            if ticket.conflicts >= CONFLICTS_MAX:
                ticket.settle(errors.Contention(record=min(conflict.keys), tries=CONFLICTS_MAX))
        again = [ticket for ticket in again if ticket.conflicts < CONFLICTS_MAX]
        if rest:
            again += await self._commit(rest, working_set, debts)
        working_set.clear()
        patience_ms = max((ticket.conflicts for ticket in again), default=0)
        await asyncio.sleep(random.random() * patience_ms / 1_000)  # noqa: S311 - spreads retries
        return again


def _batch_size(queue: list[Ticket]) -> int:
    """How many of the tickets fit into one batch."""
    payload_bytes = 0
    for size, ticket in enumerate(queue[:BATCH_MAX]):
        payload_bytes += sum(
            len(getattr(ticket.command, field) or b"") for field in _payload_fields(type(ticket.command))
        )
        if size and payload_bytes > BATCH_BYTES_MAX:
            return size
    return min(len(queue), BATCH_MAX)


@cache
def _payload_fields(command_type: type[Command[Any]]) -> tuple[str, ...]:
    """The fields that hold bytes."""
    found = msgspec.inspect.type_info(command_type)
    assert isinstance(found, msgspec.inspect.StructType)
    return tuple(field.name for field in found.fields if _holds_bytes(field.type))


def _holds_bytes(found: msgspec.inspect.Type) -> bool:
    if isinstance(found, msgspec.inspect.UnionType):
        return any(_holds_bytes(one) for one in found.types)
    return isinstance(found, msgspec.inspect.BytesType)


def _check_name(field: str, name: str) -> None:
    """Refuse what could not be stored: it would fail the whole batch that it is committed with.

    Raises:
        InvalidInput: the name is too long, or has control characters or lone surrogates.
    """
    if len(name) > NAME_CHARS_MAX or not name.isprintable():
        rule = f"at most {NAME_CHARS_MAX} printable characters"
        raise errors.InvalidInput(field=field, value=ascii(name[:64]), rule=rule)


async def decide_batch(store: Ledger, batch: Sequence[Ticket], working_set: WorkingSet) -> None:
    """Run the rules of the batch, loading whatever they turn out to need."""
    wanted = _first_reads(batch) - working_set.loaded.keys()
    for _ in range(ROUNDS_MAX):
        if wanted or not working_set.now:
            loaded = await store.load(wanted)
            working_set.put_loaded(loaded.now, loaded.rows)
        working_set.current.clear()
        wanted = {key for ticket in batch for key in _decide_one(ticket, working_set)}
        if not wanted:
            return
    raise AssertionError(f"rules still ask for records after {ROUNDS_MAX} rounds: {sorted(wanted)[:3]}")


def _first_reads(batch: Sequence[Ticket]) -> set[str]:
    return {key for ticket in batch for key in ticket.first_reads()}


def _by_place(batch: list[Ticket], store: Store) -> list[list[Ticket]]:
    """The tickets by the place in which their commands write: that of the first record they read."""
    parts: dict[int, list[Ticket]] = {}
    for ticket in batch:
        key = next(iter(ticket.first_reads()), "")
        parts.setdefault(store.place_of(key), []).append(ticket)
    return list(parts.values())


def _decide_one(ticket: Ticket, working_set: WorkingSet) -> tuple[str, ...]:
    """Run one rule. Returns the keys of the records it needs and that are not loaded."""
    work = Work(working_set, ticket.envelope)
    ticket.work, ticket.error = work, None
    try:
        repeated = repeated_outcome(ticket.rule, ticket.command, work)
        if repeated is not None:
            ticket.answer = repeated
            return ()
        ticket.answer = ticket.rule.decide(work, ticket.command)
        remember_outcome(ticket.rule, ticket.command, work, ticket.answer)
    except Missing as missing:
        return missing.keys
    except Exception as refusal:  # noqa: BLE001 - a broken rule must not fail the commands beside it
        work.discard()
        ticket.error = refusal
        return ()
    working_set.absorb(work)
    return ()
