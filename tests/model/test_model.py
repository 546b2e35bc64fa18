"""The model itself: it knows every command, and it finds what is broken."""

import asyncio
import itertools
from random import Random
from typing import Any

import pytest

from flowfabric import errors
from flowfabric.contracts.executions import CompleteExecutionArgs, ExpireExecutionArgs, ExpireReason
from flowfabric.contracts.ids import LeaseFence
from flowfabric.contracts.keyring import WaitpointToken
from flowfabric.core.indexes import DUE_LEASE
from flowfabric.stores.memory import MemoryStore
from flowfabric.testing import StoreAround
from flowfabric.testing.model import (
    Coverage,
    Divergence,
    Failed,
    Pass,
    Restart,
    Send,
    Step,
    Together,
    codes_to_see,
    kinds_without_generator,
    replay,
    run_model,
)
from flowfabric.testing.model.coverage import NEVER_HERE, command_kinds
from flowfabric.testing.model.draw import GENERATORS
from flowfabric.testing.model.run import Case
from flowfabric.testing.model.steps import write_program

EXECUTION_ID = "{fp:7}:00000000-0000-4000-8000-000000000001"
UUID = "00000000-0000-4000-8000-000000000002"


class ForgetfulStore(StoreAround):
    """Adds no row to the index of leases that run out."""

    async def commit(self, commit):
        commit.rows_added = [row for row in commit.rows_added if row[0] != DUE_LEASE]
        commit.rows_removed = [row for row in commit.rows_removed if row[0] != DUE_LEASE]
        return await self.inner.commit(commit)


def forgetful(path):
    return ForgetfulStore(MemoryStore())


async def found_in(make_store, folder):
    with pytest.raises(Failed) as caught:
        await run_model(make_store, folder, seed="any", steps=600)
    return caught.value


def test_every_command_has_a_generator():
    """A command without one is named here. Write it in ``flowfabric/testing/model/generators``."""
    assert not kinds_without_generator()


def test_every_generator_has_a_name_of_its_own():
    names = [one.name for one in GENERATORS]
    assert len(set(names)) == len(names)


def test_what_a_run_never_sees_is_a_code_that_there_is():
    assert set(errors.all_codes()) >= NEVER_HERE.keys()


def test_the_codes_to_see_are_those_that_rules_raise():
    assert {"stale_lease", "cycle_detected", "invalid_kid", "contention", "events_trimmed"} <= codes_to_see()
    assert codes_to_see().isdisjoint({"store_corrupt", "run_failed", "flow_fabric_error"})


async def test_a_store_that_forgets_an_index_row_is_found_with_a_short_program(tmp_path):
    failed = await found_in(forgetful, tmp_path)
    assert "due_lease" in str(failed)
    assert len(failed.program) <= 3, failed


async def test_the_program_that_is_printed_fails_again(tmp_path):
    failed = await found_in(forgetful, tmp_path)
    names: dict[str, Any] = {"make_store": forgetful}
    exec(write_program(failed.program), names)  # noqa: S102 - the program was written by the line itself
    with pytest.raises(Divergence):
        await names["test_found_by_the_model"](tmp_path)


async def test_a_rule_that_breaks_is_found(tmp_path, monkeypatch):
    from flowfabric.core.registry import RULES

    def broken(work, args):
        raise KeyError("a defect")

    monkeypatch.setattr(RULES[CompleteExecutionArgs], "decide", broken)
    failed = await found_in(lambda path: MemoryStore(), tmp_path)
    assert "broke the engine" in str(failed)


def test_a_program_is_written_as_it_is_read():
    program: list[Step] = [
        Send(
            command=CompleteExecutionArgs(
                execution_id=EXECUTION_ID,
                fence=LeaseFence(lease_id=UUID, lease_epoch=1, attempt_id=UUID),
                attempt_index=0,
                result_payload=b"\x00",
            ),
            request_id="r",
            namespace="tenant",
        ),
        Together(
            sends=(
                Send(
                    command=ExpireExecutionArgs(
                        execution_id=EXECUTION_ID, expire_reason=ExpireReason.ATTEMPT_TIMEOUT
                    ),
                    request_id="s",
                ),
            )
        ),
        Pass(milliseconds=5, duties=True),
        Restart(),
    ]
    source = write_program(program)
    lines = source.split("        [\n")[1].split("        ],")[0]
    names: dict[str, Any] = {}
    exec("\n".join(line for line in source.splitlines() if line.startswith("from ")), names)  # noqa: S102
    assert eval(f"[{lines}]", names) == program  # noqa: S307 - written two lines above


def test_a_token_is_written_in_full():
    """It is a test's token, and hidden it could not be sent again."""
    from flowfabric.testing.model.steps import _source

    assert _source(WaitpointToken("k1:ab")) == "WaitpointToken(value='k1:ab')"


def test_the_same_seed_draws_the_same_program():
    async def program(folder):
        seen = Coverage()
        case = Case(Random("seed"), seen)
        return list(itertools.islice(iter(lambda: case.next(0), None), 20))

    first, second = asyncio.run(program(0)), asyncio.run(program(1))
    assert first == second


async def test_a_program_that_does_no_harm_passes(tmp_path):
    await replay(lambda path: MemoryStore(), tmp_path, [Pass(milliseconds=1, duties=True), Restart()])


def test_a_run_says_what_it_has_not_seen():
    seen = Coverage()
    assert seen.missing_kinds() == set(command_kinds())
    assert "never seen, codes: " in seen.report()
