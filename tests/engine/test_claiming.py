"""Ids that a caller leaves to the engine."""

import pytest

from flowfabric import errors
from tests.core import requests
from tests.core.harness import new_id
from tests.engine.stage import Stage


@pytest.fixture
async def stage():
    stage = Stage()
    async with stage.engine:
        yield stage


async def waiting(stage):
    """An execution that an operator may claim: its attempt gave the lease up."""
    execution_id, fence = await stage.start_execution()
    await stage.engine.execute(requests.delay(execution_id, fence, 0))
    return execution_id


async def test_a_claim_without_ids_gets_fresh_ones(stage):
    command = requests.grant_and_claim(await waiting(stage), lease_id=None, attempt_id=None)
    claimed = await stage.engine.execute(command)
    assert claimed.lease_id
    assert claimed.lease_epoch == 2


async def test_an_id_that_is_given_is_kept(stage):
    lease_id = new_id()
    command = requests.grant_and_claim(await waiting(stage), lease_id=lease_id, attempt_id=None)
    assert (await stage.engine.execute(command)).lease_id == lease_id


async def test_a_repeated_request_gets_the_ids_of_the_first(stage):
    command = requests.grant_and_claim(await waiting(stage), lease_id=None, attempt_id=None)
    first = await stage.engine.execute(command, request_id="r")
    assert await stage.engine.execute(command, request_id="r") == first


async def test_a_refusal_comes_through(stage):
    execution_id, _ = await stage.start_execution()
    with pytest.raises(errors.LeaseConflict):
        await stage.engine.execute(requests.grant_and_claim(execution_id, lease_id=None))
