"""What functions do on a server, as the server itself tells it."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tests.valkey import Server

KEYLESS = ("INFO", "PUBLISH", "TIME")
END = "monitored until here"
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"')


class Call(NamedTuple):
    """One call of a function: which, the keys it declares, and those that it touches."""

    function: str
    declared: frozenset[str]
    touched: set[str]


@contextmanager
def monitored(server: Server) -> Iterator[list[Call]]:
    """Collects the calls of functions that are made inside the block; they are there behind it."""
    calls: list[Call] = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(server.socket)
        connection.sendall(b"MONITOR\r\n")
        shown = connection.makefile("r", errors="backslashreplace")
        assert shown.readline() == "+OK\n"
        yield calls
        server.ask("ECHO", END)
        for line in iter(shown.readline, ""):
            if END in line:
                return
            _note(line, calls)


def _note(line: str, calls: list[Call]) -> None:
    words = _WORD.findall(line)
    if words[:1] in (["FCALL"], ["FCALL_RO"]):
        count = int(words[2])
        calls.append(Call(words[1], frozenset(words[3 : 3 + count]), set()))
    elif " lua] " in line and words[0] not in KEYLESS:
        calls[-1].touched.update(_keys(words))


def _keys(words: list[str]) -> list[str]:
    """The keys of a command."""
    if words[0] in ("MGET", "EXISTS"):
        return words[1:]
    if words[0] == "MSET":
        return words[1::2]
    return words[1:2]
