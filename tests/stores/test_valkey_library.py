"""What holds for the text of every function on the server."""

import re
from importlib.resources import files
from typing import Any

import pytest

from flowfabric import errors
from flowfabric.core.records import RECORD_TYPES
from flowfabric.stores.valkey.library import PARTS, library
from flowfabric.stores.valkey.native.signatures import SIGNATURES
from flowfabric.stores.valkey.words import WORDS
from tests.valkey import server

FOLDER = files("flowfabric.stores.valkey").joinpath("functions")
READING = {"GET", "MGET", "EXISTS", "GETRANGE", "HMGET", "TIME", "XREVRANGE", "ZRANGE", "XLEN"}
WRITERS = {"commit", "log", "trim", "shared", "deciding"}
"""The files that write. What decides a command only says what is to be written."""

_CALL = re.compile(r"server\.p?call\(\s*'([A-Z]+)'")
_TEXT = re.compile(r"'([^'\n]*)'|\"([^\"\n]*)\"")
_NAMED = re.compile(r"\b(?:call\.key|item\.key|key|call|item)\.([a-z_]+)|\b(?:call\.)?key\['([a-z_:]+)'\]")


def text_of(part: str) -> str:
    """A file of the library without its comments."""
    lines = FOLDER.joinpath(f"{part}.lua").read_text(encoding="utf-8").splitlines()
    return "\n".join(line.partition("--")[0] for line in lines)


def words_in(value: Any) -> set[str]:
    """All words among some values."""
    if isinstance(value, dict):
        return {word for part in value.values() for word in words_in(part)}
    return {str(value)} if isinstance(value, str) and len(value) > 1 else set()


def test_every_file_of_the_folder_is_a_part_of_the_library() -> None:
    assert {entry.name.removesuffix(".lua") for entry in FOLDER.iterdir()} == set(PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_no_state_no_index_no_kind_and_no_error_code_is_spelled_out(part: str) -> None:
    states = words_in({name: value for name, value in WORDS.items() if name not in ("SIGNATURES", "INDEX")})
    forbidden = states | set(WORDS["INDEX"].values()) | set(RECORD_TYPES) | set(errors.all_codes())
    spelled = {one or other for one, other in _TEXT.findall(text_of(part))}
    # Some events and some values of a head have the names of other things.
    assert spelled & forbidden <= {"lease", "attempt", "created", "attached"} | set(SIGNATURES)


@pytest.mark.parametrize("part", sorted(set(PARTS) - WRITERS))
def test_what_decides_does_not_write(part: str) -> None:
    assert set(_CALL.findall(text_of(part))) <= READING


def test_in_the_common_part_only_the_writing_section_writes() -> None:
    text = FOLDER.joinpath("deciding.lua").read_text(encoding="utf-8")
    before, _, _ = text.partition("-- Writing\n")
    assert set(_CALL.findall(before)) <= READING


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_function_uses_no_name_that_its_signature_does_not_have(name: str) -> None:
    signature = SIGNATURES[name]
    known = {name for names in signature.names.values() for name in names}
    made = {"key", "now", "packed_now", "mark", "offset", "clock", "version", "last", "put_out", "written"}
    gathered = {"records", "edited", "executions", "parts", "packed_instants"}
    used = {one or other for one, other in _NAMED.findall(text_of(name))}
    assert used <= known | made | gathered


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_function_has_every_name_once(name: str) -> None:
    signature = SIGNATURES[name]
    for names in signature.names.values():
        assert len(set(names)) == len(names)


def test_the_library_is_as_the_server_takes_it() -> None:
    answer = server().ask("FUNCTION", "LOAD", "REPLACE", library().source)
    assert answer.startswith(b"$"), answer
