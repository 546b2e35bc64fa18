"""Which servers are opened, which are refused, and what is told about them."""

import re
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hiredis import ReplyError

from flowfabric import errors
from flowfabric.stores.clock import StoreClock
from flowfabric.stores.valkey import Settings, ValkeyStore
from flowfabric.stores.valkey import library as library_module
from flowfabric.stores.valkey.client import Client
from flowfabric.stores.valkey.faults import connection_error, server_error
from flowfabric.stores.valkey.library import library
from flowfabric.stores.valkey.opening import attest, warn_of_risks
from tests.stores.builders import counter, creation, record_of, version_of
from tests.valkey import Server, server


async def refused(store: ValkeyStore, error: type[Exception], words: str) -> None:
    """Opening fails, says why, and leaves no connection open."""
    with pytest.raises(error, match=words):
        await store.open()
    with pytest.raises(errors.StoreUnreachable, match="is not open"):
        await store.now()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ValkeyStore]:
    """An open store."""
    made = server().store(tmp_path)
    await made.open()
    yield made
    await made.close()


class TestDurability:
    @pytest.mark.parametrize(
        ("appendonly", "appendfsync", "level"),
        [("no", "always", "D0"), ("yes", "no", "D1"), ("yes", "everysec", "D1"), ("yes", "always", "D2")],
    )
    async def test_the_append_only_file_decides(
        self, spare: Server, tmp_path: Path, appendonly: str, appendfsync: str, level: str
    ) -> None:
        spare.configure("appendfsync", appendfsync)
        spare.configure("appendonly", appendonly)
        store = spare.store(tmp_path, durability="D0")
        durability = await store.open()
        await store.close()
        assert (durability.level, durability.store) == (level, "valkey")
        assert durability.settings["appendfsync"] == appendfsync
        assert durability.settings["maxmemory-policy"] == "noeviction"

    async def test_more_than_it_gives_is_refused(self, tmp_path: Path) -> None:
        store = server().store(tmp_path, durability="D2")
        await refused(store, errors.StoreUnusable, "level D1, but D2 is required.*appendfsync=no")

    async def test_memory_alone_is_refused_by_default(self, spare: Server, tmp_path: Path) -> None:
        spare.configure("appendonly", "no")
        await refused(spare.store(tmp_path), errors.StoreUnusable, "level D0, but D1 is required")

    async def test_a_server_that_evicts_is_refused_whatever_is_asked_for(
        self, spare: Server, tmp_path: Path
    ) -> None:
        spare.configure("maxmemory-policy", "allkeys-lru")
        await refused(
            spare.store(tmp_path, durability="D0"), errors.StoreUnusable, "maxmemory-policy=allkeys-lru"
        )

    async def test_fewer_replicas_than_are_waited_for_are_refused(self, tmp_path: Path) -> None:
        store = server().store(tmp_path, replicas=1)
        await refused(store, errors.StoreUnusable, "has 0 replicas, but commits are to wait for 1")


class FakeClient(Client):
    """Answers INFO with what the test says."""

    def __init__(self, **info: str) -> None:
        super().__init__(Settings())
        fitting = {"valkey_version": "9.1.2", "server_mode": "standalone", "role": "master"}
        self._info = {**fitting, "connected_slaves": "0", **info}

    async def read_everywhere(self, *commands: Any) -> list[tuple[str, list[Any]]]:
        if commands[0][0] == "CONFIG":
            return [("valkey://host", [[b"maxmemory-policy", b"noeviction"]])]
        lines = (f"{name}:{value}" for name, value in self._info.items())
        return [("valkey://host", ["\r\n".join(lines).encode()])]


class TestRefusals:
    @pytest.mark.parametrize(
        ("info", "error", "words"),
        [
            ({"valkey_version": ""}, errors.StoreUnusable, "is not a Valkey server"),
            ({"valkey_version": "7.2.5"}, errors.StoreUnusable, r"Valkey 7\.2\.5; 8 or newer"),
            ({"server_mode": "cluster"}, errors.StoreUnusable, "part of a cluster"),
            ({"role": "slave"}, errors.StoreUnreachable, "Connect to the primary"),
        ],
    )
    async def test_a_server_that_does_not_fit(
        self, info: dict[str, str], error: type[Exception], words: str
    ) -> None:
        with pytest.raises(error, match=words):
            await attest(FakeClient(**info), "D0")

    async def test_a_server_that_is_not_there(self, tmp_path: Path) -> None:
        store = ValkeyStore(Settings(socket=str(tmp_path / "none"), password="s3cret"))
        with pytest.raises(errors.StoreUnreachable) as raised:
            await store.open()
        assert "s3cret" not in f"{raised.value}{raised.value!r}{store.settings!r}"

    async def test_a_password_that_is_missing_or_wrong(self, spare: Server, tmp_path: Path) -> None:
        spare.configure("requirepass", "s3cret")
        await refused(spare.store(tmp_path), errors.StoreUnusable, "answered NOAUTH. Put user and password")
        wrong = spare.store(tmp_path, password="guess")
        await refused(wrong, errors.StoreUnusable, "answered WRONGPASS")
        right = spare.store(tmp_path, username="default", password="s3cret")
        await right.open()
        await right.close()

    async def test_a_server_that_takes_no_more_connections(self, spare: Server, tmp_path: Path) -> None:
        spare.configure("maxclients", "2")
        with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
            one.connect(spare.socket)
            two.connect(spare.socket)
            await refused(spare.store(tmp_path), errors.StoreUnreachable, "takes (no )?more connections")

    @pytest.mark.slow
    async def test_a_server_that_became_a_replica_does_not_answer_from_the_past(
        self, spare: Server, store: ValkeyStore, tmp_path: Path
    ) -> None:
        other = spare.store(tmp_path)
        await other.open()
        await other.commit(creation(counter()))
        spare.ask("REPLICAOF", "127.0.0.1", str(server().listen()))
        for call in (other.load([counter().key]), other.commit(creation(counter(2))), other.last_event()):
            with pytest.raises(errors.StoreUnreachable, match="It is a replica"):
                await call
        spare.ask("REPLICAOF", "NO", "ONE")
        assert await other.now() > 0
        await other.close()

    async def test_a_user_without_the_right_to_read_the_settings(self, spare: Server, tmp_path: Path) -> None:
        spare.ask("ACL", "SETUSER", "ann", "on", ">pass", "~*", "&*", "+@all", "-config")
        store = spare.store(tmp_path, username="ann", password="pass")
        await refused(store, errors.StoreUnusable, "Allow the user CONFIG GET")

    async def test_a_layout_of_a_newer_program(self, store: ValkeyStore, tmp_path: Path) -> None:
        await store._client.write(0, ("HSET", store._shards.home.state, "layout", 99))
        await refused(server().store(tmp_path), errors.StoreUnusable, "has layout 99, but this program knows")

    async def test_a_clock_that_a_test_has_moved(self, store: ValkeyStore, tmp_path: Path) -> None:
        await store.set_clock_offset(5_000)
        await refused(server().store(tmp_path), errors.StoreUnusable, "5000 ms off by a test")
        allowed = ValkeyStore(store.settings, allow_clock_offset=True)
        await allowed.open()
        await allowed.close()


class TestWarnings:
    @pytest.mark.parametrize(
        ("settings", "version", "words"),
        [
            (Settings(host="db.example"), "9.1.2", "can be read on the way"),
            (Settings(host="192.0.2.1"), "9.1.2", "can be read on the way"),
            (Settings(), "8.1.3", "CVE-2025-49844.*Upgrade to 8.1.4"),
            (Settings(), "8.0.5", "CVE-2025-49844.*Upgrade to 8.0.6"),
        ],
    )
    def test_a_risk_is_told_of(
        self, settings: Settings, version: str, words: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        warn_of_risks(settings, version)
        assert len(caplog.messages) == 1
        assert re.search(words, caplog.messages[0])

    @pytest.mark.parametrize(
        "settings",
        [
            Settings(),
            Settings(host="127.0.0.2"),
            Settings(host="::1"),
            Settings(host="db.example", tls=True),
            Settings(host="db.example", socket="/run/valkey"),
        ],
    )
    def test_no_risk_no_words(self, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
        for version in ("8.0.6", "8.1.4", "8.2.0", "9.0.0"):
            warn_of_risks(settings, version)
        assert caplog.messages == []


class TestLifecycle:
    async def test_a_store_that_is_not_open_says_so(self, tmp_path: Path) -> None:
        store = server().store(tmp_path)
        for call in (store.now(), store.load(["a/b"]), store.commit(creation(counter()))):
            with pytest.raises(errors.StoreUnreachable, match="is not open"):
                await call
        await store.close()

    async def test_opening_an_open_store_is_refused_and_harmless(self, store: ValkeyStore) -> None:
        with pytest.raises(errors.StoreUnusable, match="is open already"):
            await store.open()
        assert await store.now() > 0

    async def test_the_time_is_the_servers(self, store: ValkeyStore) -> None:
        [[seconds, _]] = await store._client.read(0, ("TIME",))
        assert 0 <= await store.now() - int(seconds) * 1_000 < 60_000
        store.clock = StoreClock(lambda: 5)
        assert await store.now() == 5

    async def test_stores_with_other_prefixes_and_databases_share_nothing(self, tmp_path: Path) -> None:
        first = server().store(tmp_path)
        others = [server().store(tmp_path / "other"), server().store(tmp_path, database=1)]
        for store in (first, *others):
            await store.open()
        await first.commit(creation(counter()))
        assert [await version_of(store, counter().key) for store in others] == [0, 0]
        for store in (first, *others):
            await store.close()

    @pytest.mark.slow
    async def test_a_killed_server_is_unreachable_and_then_has_everything_it_acknowledged(
        self, spare: Server, tmp_path: Path
    ) -> None:
        store = spare.store(tmp_path)
        await store.open()
        for number in range(20):
            await store.commit(creation(counter(number)))
        spare.stop(signal.SIGKILL)
        for call in (store.now(), store.commit(creation(counter(99))), store.wait_for_change(1)):
            with pytest.raises(errors.StoreUnreachable):
                await call
        spare.start()
        assert await record_of(store, counter(19).key) == counter(19)
        await store.commit(creation(counter(99)))
        assert await store.wait_for_change(10) in (True, False)
        await store.close()


class TestLibrary:
    async def test_a_server_that_lost_the_library_is_given_it_again_and_the_commit_succeeds(
        self, spare: Server, tmp_path: Path
    ) -> None:
        store = spare.store(tmp_path)
        await store.open()
        await store.commit(creation(counter(1)))
        spare.ask("FUNCTION", "FLUSH")
        await store.commit(creation(counter(2)))
        assert store._client.reloads == 1
        assert await version_of(store, counter(2).key) == 2
        await store.close()

    async def test_a_library_of_another_version_works_beside_this_one(
        self, spare: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = spare.store(tmp_path)
        await old.open()
        newer = library().source.replace(library().digest, "0123456789ab")
        assert spare.ask("FUNCTION", "LOAD", newer) == b"$23"
        assert spare.ask("FUNCTION", "LOAD", library().source).startswith(b"-ERR")
        await old.commit(creation(counter()))
        assert old._client.reloads == 0
        await old.close()

    def test_whatever_counts_on_leaps_over_what_may_be_lost(self) -> None:
        """A counter that is written without it would repeat numbers after a failover."""
        counting = re.compile(r"'HSET'[^)]*'(commits|events|put_out)'", re.DOTALL)
        texts = [path.read_text() for path in Path(library_module.__file__).parent.rglob("*.lua")]
        found = [text for text in texts if counting.search(text)]
        assert found
        assert [text for text in found if "leap_over_lost(" not in text] == []

    def test_its_name_follows_from_its_text(self) -> None:
        assert f"#!lua name={library().name}\n" in library().source
        assert library().function("commit") == f"ff_commit_{library().digest}"


class TestWhatFaultsMean:
    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            ("OOM command not allowed", errors.StoreFull),
            ("MISCONF errors writing to the AOF file", errors.StoreFull),
            ("READONLY you can't write against a read only replica", errors.StoreUnreachable),
            ("LOADING the dataset is in memory", errors.StoreUnreachable),
            ("BUSY a script is running", errors.StoreUnreachable),
            ("REDIRECT host:7000", errors.StoreUnreachable),
            ("UNBLOCKED force unblock", errors.StoreUnreachable),
            ("ERR max number of clients reached", errors.StoreUnreachable),
            ("DENIED Valkey is running in protected mode", errors.StoreUnusable),
            ("ERR unknown command 'FUNCTION'", errors.StoreUnusable),
            ("ERR DB index is out of range", errors.StoreUnusable),
            ("ERR SELECT is not allowed in cluster mode", errors.StoreUnusable),
            ("ERR AUTH <password> called without any password", errors.StoreUnusable),
            ("NOPERM this user may not", errors.StoreUnusable),
            ("WRONGTYPE against the wrong kind", errors.StoreCorrupt),
            ("FFORDER behind", errors.StoreCorrupt),
            ("ERR something secret", errors.StoreError),
        ],
    )
    def test_an_answer_has_one_meaning_and_is_not_quoted(self, answer: str, error: type) -> None:
        found = server_error(ReplyError(answer), "valkey://host")
        assert type(found) is error
        assert answer.partition(" ")[2] not in str(found)

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            (TimeoutError(), errors.StoreTimeout),
            (ConnectionResetError(), errors.StoreUnreachable),
            (FileNotFoundError("/secret"), errors.StoreUnreachable),
        ],
    )
    def test_after_a_broken_connection_the_outcome_is_unknown(self, fault: Exception, error: type) -> None:
        found = connection_error(fault, "valkey://host")
        assert type(found) is error
        assert "It may have acted" in str(found)
        assert "secret" not in str(found)
