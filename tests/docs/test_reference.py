"""The documentation says what is: generated pages are up to date, and what it shows works."""

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from docs import build
from flowfabric import FlowFabric, errors
from flowfabric.contracts.states import PublicState
from flowfabric.engine.layers import operation_name
from flowfabric.engine.scanners.duties import DUTIES
from flowfabric.settings import EVERYTHING, OTHERS, REPLACED
from tests.project.tree import ROOT
from tests.worker.stage import until_state, working

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def rows(page: str) -> list[list[str]]:
    """The cells of every table row of a page, heads left out."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [
        row for row, after in zip(cells, [*cells[1:], []], strict=True) if not {*row, *after[:1]} & {"---"}
    ]


def snippets(text: str, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(text) if found == language]


# Generated pages


@pytest.mark.slow
def test_every_generated_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_page_is_reported_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "REFERENCE", tmp_path)
    monkeypatch.setattr(build, "PAGES", {"errors.md": build.render_errors})
    (tmp_path / "errors.md").write_text("stale")
    assert build.main(["--check"]) == 1
    assert "errors.md is not up to date" in capsys.readouterr().out
    assert (tmp_path / "errors.md").read_text() == "stale"
    assert build.main([]) == 0
    assert build.main(["--check"]) == 0


@pytest.mark.slow
def test_every_operation_has_a_row_without_an_empty_cell() -> None:
    found = rows(build.render_operations().partition("## Other names")[0])
    assert [row[1] for row in found] == [f"`{command.__name__}`" for command in build.public_commands()]
    assert [row for row in found if not all(cell.strip("`") for cell in row)] == []


def test_every_test_that_stands_for_an_invariant_is_there() -> None:
    page = (ROOT / "docs" / "invariants.md").read_text(encoding="utf-8")
    folders = [ROOT / "tests", ROOT / "src" / "flowfabric" / "testing" / "conformance"]
    code = "".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert named
    assert named - set(re.findall(r"def (test_\w+)", code)) == set()


def test_every_name_of_an_operation_is_answered_to() -> None:
    names = build.operation_names()
    operations = {operation_name(command) for command in build.public_commands()}
    answered = operations | names["aliases"].keys() | names["duties"].keys() | names["functions"].keys()
    assert set(names["names"]) - answered == set()
    assert len(set(names["names"])) == len(names["names"])


def test_what_answers_to_another_name_is_there() -> None:
    names = build.operation_names()
    assert set(names["aliases"].values()) <= {operation_name(one) for one in build.public_commands()}
    assert set(names["duties"].values()) <= {duty.name for duty in DUTIES}
    for place in names["functions"].values():
        module, _, path = place.partition(":")
        assert callable(attrgetter(path)(import_module(module)))


def test_a_name_is_no_alias_of_something_else_once_it_is_an_operation() -> None:
    names = build.operation_names()
    operations = {operation_name(command) for command in build.public_commands()}
    others = {*names["aliases"], *names["duties"], *names["functions"]}
    assert others <= set(names["names"])
    assert not others & operations


def test_every_error_has_a_row_without_an_empty_cell_unless_it_is_a_family() -> None:
    found = rows(build.render_errors())
    assert [row[0] for row in found] == [f"`{code}`" for code in errors.all_codes()]
    families = {f"`{family.__name__}`" for family in errors.FlowFabricError.__subclasses__()}
    assert [row for row in found if "" in row and row[1] not in families] == []


@pytest.mark.slow
def test_every_environment_variable_that_is_read_is_among_the_settings() -> None:
    read = {
        name
        for folder in ("src", "bench")
        for path in (ROOT / folder).rglob("*.py")
        for name in variables_read(ast.parse(path.read_text(encoding="utf-8")))
    }
    known = {setting.variable for setting in EVERYTHING} | OTHERS.keys()
    assert read <= known
    assert OTHERS.keys() <= read


def variables_read(tree: ast.AST) -> Iterator[str]:
    """What is asked of ``os.environ`` or ``os.getenv`` by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv"):
            yield ast.literal_eval(node.args[0])
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            yield ast.literal_eval(node.slice)


def test_every_setting_has_a_row() -> None:
    page = build.render_configuration()
    for setting in EVERYTHING:
        assert f"`{setting.variable}`" in page
        assert f"`{setting.name}`" in page


def test_every_variable_of_other_engines_is_read_or_has_an_answer() -> None:
    page = build.render_configuration()
    for name, instead in REPLACED.items():
        assert f"| `{name}` | {instead} |" in page
        assert (
            set(re.findall(r"`(FF_\w+)`", instead)) <= {one.variable for one in EVERYTHING} | REPLACED.keys()
        )


# What the pages show


@pytest.mark.parametrize("code", snippets(README, "python"), ids=lambda code: code.split("\n")[0])
def test_every_snippet_of_the_readme_compiles(code: str) -> None:
    compile(code, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.scenario("BOOT-012")
async def test_the_ten_lines_of_the_readme_do_what_it_says() -> None:
    """The handler runs twice, its step once; it is submitted and awaited as the second snippet does it."""
    written: list[str] = []

    def write_summary(text: str) -> str:
        written.append(text)
        return text[:6]

    handler_code, submission_code = snippets(README, "python")[:2]
    names: dict[str, Any] = {"write_summary": write_summary}
    in_memory = re.sub(r'FlowFabric\(".*?"\)', 'FlowFabric("memory://")', handler_code)
    exec(compile(in_memory, "README.md", "exec", dont_inherit=True), names)  # noqa: S102
    app: FlowFabric = names["ff"]
    shown: list[Any] = []
    names["print"] = shown.append
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    async with app, working(app):
        await approve_once_suspended(app, names["summarize"])
        submitting = eval(compile(submission_code, "README.md", "exec", flags=flags), names)  # noqa: S307
        assert inspect.iscoroutine(submitting)
        await submitting
    assert shown == [{"summary": "a long", "approved": True}]
    assert written == ["a long text"]


async def approve_once_suspended(app: FlowFabric, handler: Any) -> None:
    """Submit what the README submits, under its key, and answer as a reviewer would."""
    run = await app.submit(handler, "a long text", idempotency_key="doc-42")
    await until_state(run, PublicState.SUSPENDED)
    await run.signal("review", {"approved": True})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    links = [link.partition("#")[0] for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8")))]
    relative = [link for link in links if link and "://" not in link and not link.startswith("mailto:")]
    assert [link for link in relative if not (page.parent / link).exists()] == []
