"""The users of ``docs/valkey-users.acl``: what they need they have, and nothing else."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowfabric import errors
from flowfabric.stores.valkey import ValkeyStore
from flowfabric.stores.valkey.library import library
from flowfabric.testing.conformance import ProtocolConformance
from flowfabric.urls import apply_migrations, pending_migrations
from tests.stores.builders import counter, creation
from tests.valkey import Cluster, Server, prefix_of

USERS = Path(__file__).parents[2] / "docs" / "valkey-users.acl"
WORKER = {"username": "worker", "password": "change-this-password"}
DEPLOYER = "deployer:change-this-one-too@"


def add_users(on: Server) -> None:
    """Give a server the users of the file; only the prefix is that of the tests."""
    for line in USERS.read_text().replace("{ff:", "{test_").replace("&ff:", "&test_").splitlines():
        if line.startswith("user ") and not line.startswith("user default"):
            assert on.ask("ACL", "SETUSER", *shlex.split(line)[1:]) == b"+OK"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A server with the users of the file, and with the library."""
    made = Server()
    add_users(made)
    assert made.ask("FUNCTION", "LOAD", library().source).startswith(b"$")
    yield made
    made.remove()


@pytest.fixture
def spare() -> Iterator[Server]:
    """One with the users, and without the library."""
    made = Server()
    add_users(made)
    yield made
    made.remove()


class TestAsWorker(ProtocolConformance):
    """What every store promises, kept by a user with the least rights."""

    @pytest.fixture(autouse=True)
    def _guarded(self, guarded: Server) -> None:
        self.server = guarded

    def make_store(self, path: Path) -> ValkeyStore:
        return self.server.store(path, **WORKER)


@pytest.mark.slow
async def test_a_cluster_needs_no_other_rights(tmp_path: Path) -> None:
    cluster = Cluster()
    try:
        for one in cluster.servers:
            add_users(one)
            assert one.ask("FUNCTION", "LOAD", library().source).startswith(b"$")
        store = cluster.store(tmp_path, shards=4, **WORKER)
        await store.open()
        await store.commit(creation(counter()))
        assert await store.last_event() == 0
        assert not await store.wait_for_change(1)
        await store.close()
    finally:
        cluster.remove()


async def test_a_worker_without_the_functions_says_who_has_to_do_what(spare: Server, tmp_path: Path) -> None:
    with pytest.raises(errors.StoreUnusable, match="Run `flowfabric migrate` as a user who may"):
        await spare.store(tmp_path, **WORKER).open()


def test_a_deployer_loads_the_functions(spare: Server, tmp_path: Path) -> None:
    url = spare.url(prefix=prefix_of(tmp_path)).replace("valkey://", f"valkey://{DEPLOYER}")
    assert apply_migrations(url) == (f"functions {library().digest}",)
    assert pending_migrations(url) == ()


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("worker", ("FUNCTION", "LOAD", "REPLACE", "x")),
        ("worker", ("FLUSHALL",)),
        ("worker", ("CONFIG", "SET", "save", "")),
        ("worker", ("GET", "theirs")),
        ("worker", ("SCAN", "0")),
        ("worker", ("KEYS", "*")),
        ("worker", ("EVAL", "return 1", "0")),
        ("worker", ("PUBLISH", "theirs", "x")),
        ("worker", ("ACL", "LIST")),
        ("deployer", ("GET", "{test_0}state")),
        ("deployer", ("FCALL", "x", "0")),
        ("deployer", ("FUNCTION", "FLUSH")),
    ],
)
def test_nobody_may_do_more_than_is_needed(guarded: Server, user: str, command: tuple[str, ...]) -> None:
    assert b"no permissions" in guarded.ask_all("ACL", "DRYRUN", user, *command)
