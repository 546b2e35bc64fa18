"""Rules that the code keeps so that it stays safe, and the page that names a test for every threat."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from flowfabric.contracts.executions import CreateExecutionArgs
from flowfabric.contracts.reads import (
    DescribeExecutionArgs,
    ListExecutionSummariesArgs,
    ReadExecutionContextArgs,
)
from flowfabric.engine.engine import Engine
from flowfabric.urls import store_for
from tests.project.tree import ROOT

SOURCES = sorted((ROOT / "src" / "flowfabric").rglob("*.py"))
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
RUNS_CODE = {"cloudpickle", "dill", "jsonpickle", "marshal", "pickle", "shelve", "yaml"}
SECRET = re.compile(r"(^|_)(token|secret|mac|signature|password)$")
DIGEST_OF_SECRET = re.compile(r"(^|_)(token|secret|mac|signature|password|digest|sha256)$")
HOLD_DIGESTS_OF_SECRETS = {"access.py", "tokens.py", "links.py"}
"""Elsewhere a digest is one of content, which is no secret."""
EXECUTION = "{fp:7}:00000000-0000-4000-8000-000000000001"
STATEMENT = re.compile(r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM|WHERE|ORDER BY)\b")


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def compared_secrets(tree: ast.AST, secret: re.Pattern[str] = SECRET) -> Iterator[str]:
    """Where a secret is compared with ``==``, which takes longer the more of it is right."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            sides = [node.left, *node.comparators]
            names = [getattr(side, "attr", getattr(side, "id", "")) for side in sides]
            if any(secret.search(name) for name in names) and not any(
                isinstance(side, ast.Constant) for side in sides
            ):
                yield f"{node.lineno}: {ast.unparse(node)}"


def swallowed(text: str) -> Iterator[str]:
    """Where everything is caught, and neither raised again, nor logged, nor explained."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = "BaseException" if node.type is None else ast.unparse(node.type)
        if not {"Exception", "BaseException"} & set(re.findall(r"\w+", caught)):
            continue
        calls = [getattr(one.func, "attr", "") for one in ast.walk(node) if isinstance(one, ast.Call)]
        raises = any(isinstance(one, ast.Raise) for one in ast.walk(node))
        if not raises and "exception" not in calls and "#" not in lines[node.lineno - 1]:
            yield f"{node.lineno}: {lines[node.lineno - 1].strip()}"


def filled_in(tree: ast.AST) -> Iterator[str]:
    """What is put into the text of a statement by formatting."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            fixed = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
            if STATEMENT.search(fixed):
                yield from (
                    ast.unparse(part.value) for part in node.values if isinstance(part, ast.FormattedValue)
                )


def found_in(paths: list[Path], look: Callable[[str], Iterable[str]]) -> list[str]:
    return [f"{path.name}:{what}" for path in paths for what in look(path.read_text(encoding="utf-8"))]


def test_nothing_can_turn_bytes_into_code() -> None:
    assert found_in(SOURCES, lambda text: RUNS_CODE & set(imported(ast.parse(text)))) == []


def test_secrets_are_compared_in_constant_time() -> None:
    assert found_in(SOURCES, lambda text: compared_secrets(ast.parse(text))) == []
    holders = [path for path in SOURCES if path.name in HOLD_DIGESTS_OF_SECRETS]
    assert len(holders) > len(HOLD_DIGESTS_OF_SECRETS) - 1
    assert found_in(holders, lambda text: compared_secrets(ast.parse(text), DIGEST_OF_SECRET)) == []


def test_no_fault_is_swallowed_on_the_way_to_a_client() -> None:
    served = [path for path in SOURCES if {"server", "remote"} & set(path.parts)]
    assert found_in(served, swallowed) == []


OUR_NAMES = {
    "_ALL_KEYS",
    "_CLOCK_MS",
    "_select_of('record', 'data', 1)",
    "begin",
    "bound",
    "column",
    "columns",
    "condition",
    "end",
    "name",
    "names",
    "now",
    "order",
    "order_by",
    "place",
    "places",
    "quoted(settings.schema)",
    "row",
    "rows",
    "schema",
    "self._statements.schema",
    "self.schema",
    "source",
    "spared",
    "table",
    "values.bind(limit)",
    "wait_ms",
    "where",
    "with_values",
}
"""What may be put into the text of a statement: names of tables and columns, and parts made of those."""


def test_statements_are_made_of_our_own_names_only() -> None:
    stores = [path for path in SOURCES if {"sqlite", "postgres"} & set(path.parts)]
    filled = {what for path in stores for what in filled_in(ast.parse(path.read_text(encoding="utf-8")))}
    assert filled - OUR_NAMES == set()


@pytest.mark.parametrize(
    ("look", "text"),
    [
        (lambda text: RUNS_CODE & set(imported(ast.parse(text))), "from yaml import load"),
        (lambda text: list(compared_secrets(ast.parse(text))), "if given == entry.token: pass"),
        (lambda text: list(swallowed(text)), "try:\n    f()\nexcept (OSError, Exception):\n    pass"),
        (lambda text: list(filled_in(ast.parse(text))), 'sql = f"SELECT a FROM t WHERE key = {key}"'),
    ],
    ids=["import", "compare", "swallow", "statement"],
)
def test_each_rule_sees_what_breaks_it(look: Callable[[str], Iterable[str]], text: str) -> None:
    assert look(text)


LIKE_SQL = [
    "'; DROP TABLE record; --",
    "' OR '1'='1",
    '" OR ""="',
    "%' ESCAPE '\\",
    "$1; SELECT pg_sleep(9)",
    "?1",
    "\\'; --",
    "{fp:1}",
    "ünïcödé✓",
]


@pytest.mark.parametrize("text", LIKE_SQL)
async def test_text_that_looks_like_sql_is_kept_as_it_is(tmp_path: Path, text: str) -> None:
    """Every free text of an execution, by name and by value, on a store that speaks SQL."""
    async with Engine(store_for(f"sqlite:///{tmp_path}/work.db")) as engine:
        creation = CreateExecutionArgs(
            execution_id=EXECUTION,
            namespace=text,
            lane_id="default",
            execution_kind=text,
            input_payload=text.encode(),
            priority=0,
            creator_identity=text,
            tags={"team.name": text},
            partition_id=7,
        )
        await engine.execute(creation, namespace=text, request_id="r-1", actor=text)
        found = await engine.execute(DescribeExecutionArgs(execution_id=EXECUTION), namespace=text)
        assert found is not None
        assert (found.namespace, found.tags["team.name"]) == (text, text)
        context = await engine.execute(ReadExecutionContextArgs(execution_id=EXECUTION), namespace=text)
        assert context.input_payload == text.encode()
        assert (await engine.execute(ListExecutionSummariesArgs(), namespace=text)).total_returned == 1
        assert (await engine.execute(ListExecutionSummariesArgs(), namespace="other")).total_returned == 0


def test_every_package_is_pinned_by_its_hash() -> None:
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        entries = path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
        wanted = [entry for entry in entries if entry.strip() and not entry.startswith("#")]
        assert wanted
        assert [entry for entry in wanted if "--hash=sha256:" not in entry] == []
        assert "://" not in path.read_text(encoding="utf-8")


def test_the_page_names_tests_that_there_are() -> None:
    named = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", PAGE)
    assert len(named) >= 40
    for file, function in named:
        texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob(file)]
        assert texts, file
        assert not function or any(f"def {function}(" in text for text in texts), function


def test_every_threat_has_a_defence_and_a_test() -> None:
    rows = [line.strip("|").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 26
    for threat, defence, tests in rows:
        assert threat.strip()
        assert defence.strip()
        assert "`test_" in tests
