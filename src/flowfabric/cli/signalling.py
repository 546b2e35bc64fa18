"""``approve``, ``signal``, ``token`` and ``link``: telling a waiting execution what it waits for.

Without a token the server looks one up, which is for operators: whoever can open the store may
do that. With a token nothing is looked up, so a wrong one is refused like anyone else's.
"""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Final

from flowfabric import errors
from flowfabric.cli.exits import OK, UsageError
from flowfabric.cli.output import print_json, print_note
from flowfabric.cli.session import open_engine, run
from flowfabric.cli.values import json_payload
from flowfabric.contracts.ids import ExecutionId, WaitpointId
from flowfabric.contracts.keyring import WaitpointToken
from flowfabric.contracts.reads import DescribeExecutionArgs
from flowfabric.contracts.signals import (
    DeliverApprovalSignalArgs,
    DeliverSignalArgs,
    SignalDuplicate,
    SignalEffect,
)
from flowfabric.contracts.suspensions import ListPendingWaitpointsArgs, ReadWaitpointTokenArgs
from flowfabric.minting import new_signal_id
from flowfabric.run import Run
from flowfabric.urls import is_server

if TYPE_CHECKING:
    from argparse import Namespace

    from flowfabric.contracts.signals import DeliverSignalResult
    from flowfabric.contracts.suspensions import PendingWaitpointInfo
    from flowfabric.engine.interface import AnyEngine

EFFECTS: Final = {
    SignalEffect.RESUME_CONDITION_SATISFIED: "the execution goes on",
    SignalEffect.APPENDED_TO_WAITPOINT: "recorded; the execution waits for more",
    SignalEffect.NO_OP: "recorded; it changed nothing",
    SignalEffect.SIGNAL_IGNORED_NOT_IN_CONDITION: "ignored: the execution does not wait for it",
    SignalEffect.SIGNAL_IGNORED_MATCHER_FAILED: "ignored: the execution waits for another signal",
    SignalEffect.APPENDED_TO_WAITPOINT_DUPLICATE: "this source has signalled before; it counts once",
    SignalEffect.BUFFERED_FOR_PENDING_WAITPOINT: "kept until the execution waits for it",
}


def approve(arguments: Namespace) -> int:
    """Carry out ``approve``."""
    payload = json_payload(arguments.payload, "the payload")
    return run(_approve(arguments, payload))


async def _approve(arguments: Namespace, payload: bytes) -> int:
    async with open_engine(arguments) as engine:
        snapshot = await engine.execute(DescribeExecutionArgs(execution_id=arguments.execution_id))
        if snapshot is None:
            raise errors.ExecutionNotFound(arguments.execution_id)
        waitpoint = await find_waitpoint(engine, arguments.execution_id, arguments.signal)
        outcome = await engine.execute(
            DeliverApprovalSignalArgs(
                execution_id=arguments.execution_id,
                lane_id=snapshot.lane_id,
                waitpoint_id=waitpoint.waitpoint_id,
                signal_name=arguments.signal,
                idempotency_suffix=waitpoint.waitpoint_id,
                source_identity=arguments.identity or _user_name(),
                payload=payload,
                payload_encoding="json",
            )
        )
    return _report(outcome, as_json=arguments.json)


def send_signal(arguments: Namespace) -> int:
    """Carry out ``signal``."""
    if arguments.token is not None and arguments.waitpoint is None:
        raise UsageError(
            "--token needs --waitpoint: a token does not say which waitpoint it is for. Add --waitpoint ID."
        )
    payload = None if arguments.payload is None else json_payload(arguments.payload, "the payload")
    return run(_send_signal(arguments, payload))


async def _send_signal(arguments: Namespace, payload: bytes | None) -> int:
    async with open_engine(arguments) as engine:
        waitpoint_id, presented = arguments.waitpoint, arguments.token
        if waitpoint_id is None:
            waitpoint_id = (await find_waitpoint(engine, arguments.execution_id, arguments.name)).waitpoint_id
        if presented is None:
            held = await read_token(engine, arguments.execution_id, waitpoint_id)
        else:
            held = WaitpointToken(presented)
        outcome = await engine.execute(
            DeliverSignalArgs(
                execution_id=arguments.execution_id,
                waitpoint_id=waitpoint_id,
                signal_id=new_signal_id(),
                signal_name=arguments.name,
                signal_category="",
                source_type="operator" if presented is None else "external",
                source_identity=arguments.identity or _user_name(),
                payload=payload,
                payload_encoding=None if payload is None else "json",
                idempotency_key=arguments.idempotency_key,
                waitpoint_token=held,
            )
        )
    return _report(outcome, as_json=arguments.json)


def token(arguments: Namespace) -> int:
    """Carry out ``token``."""
    return run(_token(arguments))


async def _token(arguments: Namespace) -> int:
    async with open_engine(arguments) as engine:
        waitpoint_id = arguments.waitpoint
        if waitpoint_id is None:
            waitpoint_id = (await find_waitpoint(engine, arguments.execution_id, None)).waitpoint_id
        held = await read_token(engine, arguments.execution_id, waitpoint_id)
    if arguments.json:
        print_json(
            {"execution_id": arguments.execution_id, "waitpoint_id": waitpoint_id, "waitpoint_token": held}
        )
    else:
        print(held.value)
    return OK


def link(arguments: Namespace) -> int:
    """Carry out ``link``."""
    return run(_link(arguments))


async def _link(arguments: Namespace) -> int:
    async with open_engine(arguments) as engine:
        waiting = Run[object](lambda: engine, arguments.execution_id, arguments.namespace)
        try:
            made = await waiting.waitpoint_link(
                arguments.name,
                question=arguments.question,
                choices=dict(arguments.choices),
                public_url=arguments.public_url or (arguments.url if is_server(arguments.url) else None),
            )
        except errors.InvalidInput as error:
            raise UsageError(str(error)) from error
    if arguments.json:
        print_json({"execution_id": arguments.execution_id, "link": made})
    else:
        print(made)
    return OK


async def find_waitpoint(
    engine: AnyEngine, execution_id: ExecutionId, signal_name: str | None
) -> PendingWaitpointInfo:
    """The open waitpoint that takes this signal; one that asks for it by name is preferred.

    Raises:
        WaitpointNotFound: no open waitpoint takes it.
        UsageError: several do, and none asks for it by name.
    """
    page = await engine.execute(ListPendingWaitpointsArgs(execution_id=execution_id))
    by_name = [entry for entry in page.entries if signal_name in entry.required_signal_names]
    by_key = [entry for entry in page.entries if not by_name and entry.waitpoint_key == signal_name]
    any_name = [entry for entry in page.entries if signal_name is None or not entry.required_signal_names]
    found = by_name or by_key or any_name
    if not found:
        raise errors.WaitpointNotFound(execution_id=execution_id, signal_name=signal_name or "any")
    if len(found) > 1:
        known = ", ".join(f"{entry.waitpoint_id} ({entry.waitpoint_key})" for entry in found)
        raise UsageError(f"several waitpoints of {execution_id} are open; name one of them: {known}.")
    return found[0]


async def read_token(
    engine: AnyEngine, execution_id: ExecutionId, waitpoint_id: WaitpointId
) -> WaitpointToken:
    """The token of an open waitpoint.

    Raises:
        WaitpointNotFound: it is closed, or there is none.
    """
    held = await engine.execute(ReadWaitpointTokenArgs(execution_id=execution_id, waitpoint_id=waitpoint_id))
    if held is None:
        raise errors.WaitpointNotFound(execution_id=execution_id, waitpoint_id=waitpoint_id)
    return held


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def _report(outcome: DeliverSignalResult, *, as_json: bool) -> int:
    if as_json:
        print_json(outcome)
    elif isinstance(outcome, SignalDuplicate):
        print_note("this signal was received before; nothing was changed")
        print(outcome.existing_signal_id)
    else:
        print_note(EFFECTS[outcome.effect])
        print(outcome.signal_id)
    return OK
