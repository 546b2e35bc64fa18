"""``flow``: submitting from a file, listing, looking, cancelling."""

import json
from typing import Any

import pytest

from tests.cli.conftest import Shell

FLOW = {
    "kind": "nightly",
    "members": {
        "mail": {"kind": "mail", "after": {"any_of": ["report", "short"]}},
        "report": {"kind": "report", "after": ["left", "right"]},
        "short": {
            "kind": "short",
            "after": {"quorum": 1, "of": ["left", "right"], "cancel_remaining": False},
        },
        "left": {"kind": "fetch", "input": 1, "lane": "net", "tags": {"team.name": "media"}},
        "right": {"kind": "fetch", "input": 2, "delay": "1h"},
    },
}


def submit(shell: Shell, flow: Any = FLOW, *words: str) -> Any:
    """Submit a flow from a file; the JSON document that was printed."""
    (shell.folder / "flow.json").write_text(json.dumps(flow))
    return shell.json("flow", "submit", "flow.json", *words)


def test_a_flow_is_submitted_from_a_file_with_its_members_in_any_order(shell: Shell) -> None:
    made = submit(shell)
    assert set(made["members"]) == set(FLOW["members"])
    assert shell.state(made["members"]["left"]) == "waiting"
    assert shell.state(made["members"]["right"]) == "delayed"
    assert shell.state(made["members"]["mail"]) == "waiting_children"


def test_the_flow_is_drawn(shell: Shell) -> None:
    drawn = shell.out("flow", "show", submit(shell)["flow_id"])
    lines = [" ".join(line.split()) for line in drawn.split("\n\n")[1].splitlines()]
    assert lines == [
        "MEMBER STATE AFTER",
        "#0 fetch waiting",
        "#1 fetch delayed",
        "#2 report waiting_children #0 #1: all of 2 (0 succeeded, pending)",
        "#3 short waiting_children #0 #1: 1 of 2 (0 succeeded, pending)",
        "#4 mail waiting_children #2 #3: any of 2 (0 succeeded, pending)",
    ]


def test_showing_gives_the_graph_as_json_too(shell: Shell) -> None:
    made = submit(shell)
    shown = shell.json("flow", "show", made["flow_id"])
    assert shown["flow"]["public_flow_state"] == "running"
    ids = made["members"]
    after = {member["execution_id"]: member["after"] for member in shown["members"]}
    assert set(after[ids["mail"]]) == {ids["report"], ids["short"]}


def test_members_come_in_pages(shell: Shell) -> None:
    flow_id = submit(shell)["flow_id"]
    first = shell.json("flow", "members", flow_id, "--limit", "3")
    rest = shell.json("flow", "members", flow_id, "--cursor", str(first["next_cursor"]))
    assert [member["position"] for member in first["members"] + rest["members"]] == [0, 1, 2, 3, 4]
    assert rest["next_cursor"] is None
    assert "--cursor 2" in shell.err or shell.out("flow", "members", flow_id, "--limit", "3")


def test_flows_are_listed_in_pages(shell: Shell) -> None:
    ids = {submit(shell)["flow_id"] for _ in range(3)}
    first = shell.json("flow", "list", "--limit", "2")
    rest = shell.json("flow", "list", "--cursor", first["next_cursor"])
    assert {flow["flow_id"] for flow in first["flows"] + rest["flows"]} == ids
    assert shell.json("flow", "list", "--namespace", "elsewhere")["flows"] == []
    assert "nightly" in shell.out("flow", "list")


def test_cancelling_reaches_the_members(shell: Shell) -> None:
    made = submit(shell)
    assert "with its 5 members" in shell.out("flow", "cancel", made["flow_id"], "--reason", "enough")
    assert {shell.state(member) for member in made["members"].values()} == {"cancelled"}
    assert "enough" in shell.out("flow", "show", made["flow_id"])


def test_a_key_finds_the_first_flow(shell: Shell) -> None:
    first, second = [submit(shell, FLOW, "--idempotency-key", "today") for _ in range(2)]
    assert (first["flow_id"], first["duplicate"]) == (second["flow_id"], False)
    assert second["duplicate"]
    assert second["members"] == first["members"]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a": {"kind": "a", "after": "b"}, "b": {"kind": "b", "after": "a"}}, "comes after itself"),
        ({"a": {"kind": "a", "after": "nobody"}}, "one that is not there"),
        ({"a": {"kind": "a", "after": {"of": ["b"]}}, "b": {"kind": "b"}}, "'after' is a name"),
        ({"a": {"kind": "a", "colour": "red"}}, "colour"),
        ({"a": {"kind": "a", "delay": "soon"}}, "not a duration"),
        ({"a": {}}, "kind"),
    ],
)
def test_a_file_that_holds_no_flow_is_refused(shell: Shell, members: Any, words: str) -> None:
    (shell.folder / "flow.json").write_text(json.dumps({"kind": "nightly", "members": members}))
    code, printed = shell.run("flow", "submit", "flow.json")
    assert (code, printed) == (2, "")
    assert words in shell.err
    assert not (shell.folder / "work.db").exists()


@pytest.mark.parametrize("words", [["submit"], ["show"], ["list", "something"]])
def test_an_action_says_what_it_needs(shell: Shell, words: list[str]) -> None:
    code, _ = shell.run("flow", *words)
    assert code == 2
    assert f"'flow {words[0]}'" in shell.err


def test_a_flow_that_is_not_there_is_not_found(shell: Shell) -> None:
    submit(shell)
    for action in ("show", "members", "cancel"):
        code, _ = shell.run("flow", action, "00000000-0000-4000-8000-000000000000")
        assert code == 1
        assert "[flow_not_found]" in shell.err
