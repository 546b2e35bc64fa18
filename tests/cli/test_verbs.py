"""Every verb on a real store, without a worker: what it prints, and what it answers when it cannot."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Shell

NOBODY = "{fp:7}:01997b3e-0000-7000-8000-000000000000"


def test_submit_prints_the_id_and_list_shows_it(shell: Shell) -> None:
    execution_id = shell.submit("greet", "ada", "--priority", "5", "--tag", "team.name=media")
    header, row = shell.out("list").splitlines()
    assert header.split() == ["EXECUTION", "STATE", "KIND", "LANE", "PRIORITY", "CREATED"]
    assert row.split()[:5] == [execution_id, "waiting", "greet", "default", "5"]


def test_submit_answers_with_the_contracts_outcome(shell: Shell) -> None:
    created = shell.json("submit", "greet", "1")
    assert set(created) == {"Created"}
    assert created["Created"]["public_state"] == "waiting"


def test_submitting_again_with_a_key_finds_the_first_submission(shell: Shell) -> None:
    first = shell.submit("greet", 1, "--idempotency-key", "k")
    assert shell.submit("greet", 1, "--idempotency-key", "k") == first
    assert "submitted before" in shell.err
    assert shell.json("submit", "greet", "1", "--idempotency-key", "k") == {
        "Duplicate": {"execution_id": first}
    }


def test_other_content_under_a_key_is_refused_and_nothing_is_submitted(shell: Shell) -> None:
    shell.submit("greet", 1, "--idempotency-key", "k")
    code, printed = shell.run("submit", "greet", "2", "--idempotency-key", "k")
    assert (code, printed) == (1, "")
    assert shell.err.startswith("error: ")
    assert shell.err.endswith("[idempotency_conflict]\n")
    assert shell.json("list")["total_returned"] == 1


def test_a_delay_is_kept(shell: Shell) -> None:
    execution_id = shell.submit("greet", 1, "--delay", "1h")
    shown = shell.json("show", execution_id)
    assert shown["execution"]["public_state"] == "delayed"
    assert shown["explanation"]["code"] == "not_due"


def test_many_are_submitted_from_a_file_in_its_order(shell: Shell) -> None:
    (shell.folder / "many.jsonl").write_text("\n".join(str(number) for number in range(7)) + "\n")
    printed = shell.out("submit", "greet", "--many", "many.jsonl").splitlines()
    assert len(set(printed)) == 7
    _, lines = shell.run("submit", "greet", "--many", "many.jsonl", "--json")
    assert [set(json.loads(line)) for line in lines.splitlines()] == [{"Created"}] * 7
    assert shell.json("list", "--limit", "100")["total_returned"] == 14


def test_a_file_with_a_wrong_line_submits_nothing(shell: Shell) -> None:
    (shell.folder / "many.jsonl").write_text("1\n{\n")
    assert shell.run("submit", "greet", "--many", "many.jsonl")[0] == 2
    assert "line 2" in shell.err
    assert not (shell.folder / "work.db").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["submit", "greet", "{"],
        ["submit", "greet", "@absent.json"],
        ["submit", "greet", "1", "--many", "x"],
        ["submit", "greet", "1", "--timeout", "1s"],
        ["signal", NOBODY, "go", "--token", "k1:00"],
        ["worker", "cli_app"],
        ["worker", "no_such_module:ff"],
        ["worker", "cli_app:not_an_app"],
        ["workers", "dead"],
        ["workers", "list", "somebody"],
    ],
)
def test_what_cannot_be_asked_ends_with_code_2(shell: Shell, words: list[str]) -> None:
    assert shell.run(*words)[0] == 2
    assert shell.err.startswith("error: ")
    assert shell.err.endswith("[usage]\n")
    assert shell.err.count("\n") == 1


@pytest.mark.parametrize("url", ["nonsense", "mysql://somewhere/db", "sqlite://", "sqlite:///x.db?color=red"])
def test_a_url_that_names_no_store_is_a_wrong_command_line(shell: Shell, url: str) -> None:
    assert shell.run("list", url=url)[0] == 2
    assert shell.run("migrate", url=url)[0] == 2
    assert shell.err.startswith("error: url: ")


def test_a_value_that_the_engine_refuses_ends_with_code_1(shell: Shell) -> None:
    assert shell.run("submit", "greet", "1", "--tag", "NoDot=x")[0] == 1
    assert shell.err.startswith("error: tags")
    assert shell.err.endswith("[invalid_tag_key]\n")


def test_a_list_goes_on_behind_its_cursor(shell: Shell) -> None:
    ids = [shell.submit("greet", number) for number in range(3)]
    first = shell.json("list", "--limit", "2")
    assert [entry["execution_id"] for entry in first["executions"]] == [ids[2], ids[1]]
    second = shell.json("list", "--limit", "2", "--cursor", first["next_cursor"])
    assert [entry["execution_id"] for entry in second["executions"]] == [ids[0]]
    shell.out("list", "--limit", "2")
    assert first["next_cursor"] in shell.err


def test_a_list_can_be_narrowed(shell: Shell) -> None:
    here = shell.submit("greet", 1, "--lane", "here")
    shell.submit("greet", 1, "--lane", "there")
    assert [entry["execution_id"] for entry in shell.json("list", "--lane", "here")["executions"]] == [here]
    assert shell.json("list", "--state", "completed")["executions"] == []


def test_another_namespace_sees_nothing(shell: Shell) -> None:
    execution_id = shell.submit("greet", 1)
    assert shell.json("list", "--namespace", "other")["executions"] == []
    assert shell.run("show", execution_id, "--namespace", "other")[0] == 1
    assert shell.err.endswith("[execution_not_found]\n")


def test_show_says_what_a_waiting_execution_waits_for(shell: Shell) -> None:
    execution_id = shell.submit("greet", "ada", "--tag", "team.name=media")
    printed = shell.out("show", execution_id)
    assert "No live worker on record claims from lane 'default'." in printed
    assert "Start a worker that claims from lane 'default'." in printed
    assert "team.name=media" in printed
    assert "timeline" in printed


def test_show_in_json_has_everything(shell: Shell) -> None:
    shown = shell.json("show", shell.submit("greet", "ada"))
    assert set(shown) == {
        "execution", "snapshot", "run", "explanation", "required_capabilities", "attempts", "waitpoints",
        "journal", "timeline",
    }  # fmt: skip
    assert shown["execution"]["state_vector"]["eligibility_state"] == "eligible_now"
    assert [event["name"] for event in shown["timeline"]] == ["created"]


def test_explain_gives_the_reason_and_what_would_change_it(shell: Shell) -> None:
    execution_id = shell.submit("greet", "ada", "--delay", "1h")
    sentence, change = shell.out("explain", execution_id).splitlines()
    assert sentence.startswith("It is not due before ")
    assert change.startswith("What would change it: Time passes")
    assert shell.json("explain", execution_id)["code"] == "not_due"


def test_workers_of_a_store_without_any_are_an_empty_list(shell: Shell) -> None:
    shell.submit("greet", "ada")
    assert shell.out("workers", "list").split()[0] == "INSTANCE"
    assert shell.json("workers", "list")["workers"] == []


def test_a_worker_that_is_not_on_record_cannot_be_marked_as_dead(shell: Shell) -> None:
    shell.submit("greet", "ada")
    assert shell.run("workers", "dead", "nobody") == (1, "")
    assert "no worker nobody is on record" in shell.err
    assert shell.json("workers", "dead", "nobody") == "NotRegistered"


def test_cancel_answers_for_each_id(shell: Shell) -> None:
    execution_id = shell.submit("greet", 1)
    code, printed = shell.run("cancel", execution_id, NOBODY, "--reason", "no longer needed")
    assert code == 1
    assert printed == f"cancelled {execution_id}, which was runnable\n"
    assert shell.err.startswith(f"error: {NOBODY}: ")
    assert shell.json("show", execution_id)["run"]["cancellation_reason"] == "no longer needed"


def test_cancel_in_json_prints_one_line_for_each_id(shell: Shell) -> None:
    execution_id = shell.submit("greet", 1)
    code, printed = shell.run("cancel", execution_id, NOBODY, "--json")
    cancelled, refused = (json.loads(line) for line in printed.splitlines())
    assert code == 1
    assert cancelled["Cancelled"]["public_state"] == "cancelled"
    assert refused["error"]["code"] == "execution_not_found"


def test_an_ended_execution_can_be_replayed_and_a_waiting_one_not(shell: Shell) -> None:
    execution_id = shell.submit("greet", 1)
    assert shell.run("replay", execution_id)[0] == 1
    assert shell.state(execution_id) == "waiting"
    shell.out("cancel", execution_id)
    assert shell.json("replay", execution_id) == {"Replayed": {"public_state": "waiting"}}
    shell.out("cancel", execution_id)
    assert (
        shell.out("replay", execution_id, "--keep-journal")
        == f"replayed {execution_id}, which is waiting now"
    )


@pytest.mark.parametrize("words", [["show"], ["explain"], ["tail"], ["approve"], ["token"]])
def test_an_execution_that_is_not_there_is_named(shell: Shell, words: list[str]) -> None:
    shell.submit("greet", 1)
    code, printed = shell.run(*words, NOBODY)
    assert (code, printed) == (1, "")
    assert NOBODY in shell.err
    assert shell.err.endswith("[execution_not_found]\n")


def test_nothing_that_waits_is_nothing_to_approve(shell: Shell) -> None:
    execution_id = shell.submit("ask", "ada")
    for words in (["approve", execution_id], ["signal", execution_id, "go"], ["token", execution_id]):
        assert shell.run(*words)[0] == 1
        assert shell.err.endswith("[waitpoint_not_found]\n")


def test_waiting_longer_than_the_timeout_ends_with_code_4(shell: Shell) -> None:
    code, _ = shell.run("submit", "greet", "1", "--wait", "--timeout", "10ms")
    assert code == 4
    assert shell.err.endswith("[timeout]\n")
    assert shell.json("list")["total_returned"] == 1


def test_the_tail_of_an_execution_that_ended_without_frames_is_empty(shell: Shell) -> None:
    execution_id = shell.submit("greet", 1)
    shell.out("cancel", execution_id)
    assert shell.out("tail", execution_id) == ""


def test_a_sound_store_passes_the_audit(shell: Shell) -> None:
    shell.submit("greet", 1)
    assert "no invariant is violated" in shell.out("audit")
    report = shell.json("audit", "--everywhere")
    assert report["violations"] == []
    assert sum(report["checked"].values()) > 0


def test_the_audit_fails_when_an_invariant_is_violated(shell: Shell) -> None:
    import apsw

    execution_id = shell.submit("greet", 1)
    connection = apsw.Connection(str(shell.folder / "work.db"))
    connection.execute("DELETE FROM index_row WHERE name = 'eligible'")
    connection.close()
    code, printed = shell.run("audit")
    assert code == 1
    assert execution_id in printed
    assert shell.json("audit")["violations"] != []


def test_migrate_makes_a_store_and_has_nothing_to_do_afterwards(shell: Shell) -> None:
    assert shell.out("migrate").startswith("applied: 1 ")
    assert shell.out("migrate") == "the schema is up to date"
    assert shell.json("migrate") == {"applied": []}
    assert shell.json("migrate", "--check") == {"pending": []}


def test_a_pending_migration_is_told_and_not_applied(shell: Shell) -> None:
    (shell.folder / "work.db").write_bytes(b"")
    assert shell.run("migrate", "--check")[0] == 1
    assert shell.run("migrate", "--check")[1].startswith("pending: 1 ")
    assert (shell.folder / "work.db").read_bytes() == b""


def test_a_lane_is_paused_and_active_again(shell: Shell) -> None:
    execution_id = shell.submit("greet", "ada", "--delay", "1h")
    assert shell.json("lane", "pause", "default", "--reason", "upgrade") == {
        "Set": {"namespace": "default", "lane_id": "default", "state": "paused", "previous": "active"}
    }
    explained = shell.json("show", execution_id)["explanation"]
    assert explained["code"] == "lane_not_open"
    assert explained["sentence"].endswith("lane default is paused: upgrade.")
    header, row = shell.out("lane", "list").splitlines()
    assert header.split() == ["LANE", "STATE", "SET", "REASON"]
    assert (row.split()[:2], row.split()[-1]) == (["default", "paused"], "upgrade")
    assert shell.out("lane", "resume", "default") == "lane default is active now; it was paused"
    assert shell.out("lane", "resume", "default") == "lane default was active already"
    assert shell.json("show", execution_id)["explanation"]["code"] == "not_due"


def test_a_drained_lane_refuses_submissions(shell: Shell) -> None:
    shell.submit("greet", "ada")
    assert "draining" in shell.out("lane", "drain", "default", "other")
    code, _ = shell.run("submit", "greet", "1")
    assert code == 1
    assert shell.err.endswith("[lane_closed]\n")
    states = {lane["lane_id"]: lane["state"] for lane in shell.json("lane", "list")["details"]}
    assert states == {"default": "draining", "other": "draining"}


def test_lanes_are_listed_page_by_page(shell: Shell) -> None:
    shell.submit("greet", "ada")
    shell.out("lane", "disable", "a", "b")
    assert shell.json("lane", "list", "--limit", "2")["lanes"] == ["a", "b"]
    assert "--cursor 'b'" in (shell.out("lane", "list", "--limit", "2") and shell.err)
    assert shell.json("lane", "list", "--cursor", "b")["lanes"] == ["default"]


def test_a_lane_must_be_named_and_its_name_must_be_possible(shell: Shell) -> None:
    shell.submit("greet", "ada")
    assert shell.run("lane", "pause")[0] == 2
    assert shell.run("lane", "pause", "default", "x" * 65)[0] == 1
    assert shell.err.endswith("[invalid_input]\n")


def test_keys_are_seeded_rotated_and_listed_without_their_secrets(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "ab" * 32
    monkeypatch.setenv("FF_WAITPOINT_HMAC_SECRET", secret)
    assert shell.json("keys", "seed") == {"Seeded": {"kid": "k1"}}
    assert shell.json("keys", "seed") == {"AlreadySeeded": {"kid": "k1", "same_secret": True}}
    monkeypatch.delenv("FF_WAITPOINT_HMAC_SECRET")
    rotated = shell.json("keys", "rotate", "--kid", "k2", "--grace", "1h")
    assert rotated["Rotated"]["new_kid"] == "k2"
    kids = shell.json("keys", "list")
    assert kids["current_kid"] == "k2"
    assert [old["kid"] for old in kids["verifying"]] == ["k1"]
    assert secret not in json.dumps(kids) + shell.out("keys", "list")


def test_a_malformed_secret_is_refused_without_being_shown(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FF_WAITPOINT_HMAC_SECRET", "not-hexadecimal-but-secret")
    assert shell.run("keys", "seed")[0] == 1
    assert "secret_hex" in shell.err
    assert "not-hexadecimal" not in shell.err


def test_a_store_without_keys_says_how_to_get_one(shell: Shell) -> None:
    shell.submit("greet", 1)
    assert shell.out("keys", "list") == ""
    assert "keys seed" in shell.err


# The store cannot be used


@pytest.mark.parametrize(
    "words", [["list"], ["show", NOBODY], ["audit"], ["migrate", "--check"], ["keys", "list"]]
)
def test_looking_at_a_file_that_is_not_there_makes_none(shell: Shell, words: list[str]) -> None:
    assert shell.run(*words)[0] == 3
    assert shell.err.endswith("[store_unreachable]\n")
    assert not (shell.folder / "work.db").exists()


@pytest.mark.parametrize("words", [["list"], ["submit", "greet", "1"], ["migrate"], ["migrate", "--check"]])
def test_a_corrupt_file_ends_with_code_3_and_stays_as_it_is(shell: Shell, words: list[str]) -> None:
    garbage = b"this is no database " * 300
    (shell.folder / "work.db").write_bytes(garbage)
    assert shell.run(*words)[0] == 3
    assert shell.err.count("\n") == 1
    assert "[store_corrupt]" in shell.err
    assert (shell.folder / "work.db").read_bytes() == garbage


@pytest.mark.parametrize("words", [["list"], ["submit", "greet", "1"], ["migrate"], ["migrate", "--check"]])
def test_a_file_of_a_newer_version_is_refused(shell: Shell, words: list[str]) -> None:
    import apsw

    shell.out("migrate")
    connection = apsw.Connection(str(shell.folder / "work.db"))
    connection.execute("INSERT INTO migration VALUES (999, 'later', 'x', 0)")
    connection.close()
    assert shell.run(*words)[0] == 3
    assert "newer version" in shell.err
    assert "[store_unusable]" in shell.err


def test_a_folder_that_is_not_there_ends_with_code_3(shell: Shell) -> None:
    missing = f"sqlite:///{shell.folder / 'absent' / 'work.db'}"
    assert shell.run("submit", "greet", "1", url=missing)[0] == 3
    assert not (shell.folder / "absent").exists()


def test_a_traceback_is_shown_only_when_asked_for(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shell.run("list")[0] == 3
    assert "Traceback" not in shell.err
    monkeypatch.setenv("FF_DEBUG", "1")
    assert shell.run("list")[0] == 3
    assert "Traceback" in shell.err


def test_an_unexpected_failure_is_one_line_too(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: object) -> int:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("flowfabric.cli.listing.list_executions", broken)
    assert shell.run("list")[0] == 1
    assert shell.err == (
        "error: unexpected ZeroDivisionError: by zero. "
        "Set FF_DEBUG=1 to see where it comes from. [internal_error]\n"
    )


def test_a_key_pressed_to_interrupt_ends_with_code_130(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("flowfabric.cli.listing.list_executions", interrupted)
    assert shell.run("list") == (130, "")


def test_an_app_whose_module_fails_is_not_called_missing(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "broken_app.py").write_text("import a_module_that_nobody_has\n")
    assert shell.run("worker", "broken_app:ff")[0] == 1
    assert "a_module_that_nobody_has" in shell.err


def test_events_prints_what_happened_and_where_to_go_on(shell: Shell) -> None:
    first = shell.submit("greet", 1, "--tag", "team.name=media")
    lines = shell.out("events").splitlines()
    assert [line.split("  ")[1:3] for line in lines] == [
        ["execution created", first],
        ["tag attached", first],
    ]
    cursor = shell.err.rsplit(" ", 1)[1].strip()
    second = shell.submit("greet", 2)
    shell.run("cancel", second)
    assert shell.out("events", "--cursor", cursor, "--family", "completion").split("  ")[1:3] == [
        "completion cancelled",
        second,
    ]


def test_events_are_filtered_by_tag_execution_and_namespace(shell: Shell) -> None:
    tagged = shell.submit("greet", 1, "--tag", "team.name=media")
    other = shell.submit("greet", 2)

    def told(*options: str) -> set[str]:
        return {
            json.loads(line).popitem()[1]["execution_id"]
            for line in shell.out("events", "--json", *options).splitlines()
        }

    assert told("--tag", "team.name=media") == {tagged}
    assert told("--execution", other) == {other}
    assert told("--namespace", "nobody") == set()
    assert told("--namespace", "nobody", "--everywhere") == {tagged, other}


def test_log_tells_what_operators_did_and_who_it_was(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "ana")
    execution_id = shell.submit("greet", 1)
    shell.run("pause", execution_id, "--reason", "wait for the fix")
    shell.run("cancel", execution_id)
    lines = [line.split("  ")[1:] for line in shell.out("log").splitlines()]
    assert [line[:2] for line in lines] == [
        ["operator paused", execution_id],
        ["operator cancelled", execution_id],
    ]
    assert all("actor=ana" in line[2] for line in lines)
    assert "reason=wait for the fix" in lines[0][2]
    assert shell.out("log", "--namespace", "other") == ""


def test_events_says_which_families_there_are(shell: Shell) -> None:
    shell.submit("greet", 1)
    code, _ = shell.run("events", "--family", "weather")
    assert code == 2
    assert "completion" in shell.err


def test_events_refuses_a_damaged_cursor(shell: Shell) -> None:
    shell.submit("greet", 1)
    code, printed = shell.run("events", "--cursor", "00ff")
    assert (code, printed) == (1, "")
    assert "[invalid_event_cursor]" in shell.err


def test_a_paused_execution_is_shown_as_such_until_it_is_unpaused(shell: Shell) -> None:
    execution_id = shell.submit("greet", 1)
    assert (
        shell.out("pause", execution_id, "--reason", "on hold") == f"paused {execution_id}, which is waiting"
    )
    assert "on hold" in shell.out("show", execution_id)
    assert set(shell.json("unpause", execution_id)) == {"Unpaused"}


def test_a_budget_is_created_limited_shown_and_reset(shell: Shell) -> None:
    creating = (
        "budget",
        "create",
        "team",
        "--hard",
        "tokens=100",
        "--soft",
        "tokens=80",
        "--reset-every",
        "1d",
    )
    assert shell.out(*creating) == "budget team was created"
    assert set(shell.json(*creating)) == {"AlreadySatisfied"}
    shell.out("budget", "limit", "team", "--hard", "tokens=200")
    shown = shell.json("budget", "show", "team")
    assert (shown["hard_limits"], shown["soft_limits"]) == ({"tokens": 200}, {"tokens": 80})
    assert ["tokens", "0", "80", "200"] in [
        line.split() for line in shell.out("budget", "show", "team").splitlines()
    ]
    assert set(shell.json("budget", "reset", "team")) == {"Reset"}


def test_a_budget_that_is_not_there_is_refused(shell: Shell) -> None:
    shell.submit("greet", 1)
    assert shell.run("budget", "show", "nobody")[0] == 1
    assert shell.err.endswith("[budget_not_found]\n")


def test_a_quota_policy_is_created_and_shown(shell: Shell) -> None:
    shell.out("quota", "create", "llm", "--per", "1m", "--requests", "2", "--concurrent", "1")
    shown = shell.json("quota", "show", "llm")
    assert (shown["max_requests_per_window"], shown["max_concurrent"], shown["active"]) == (2, 1, 0)
    assert "2 in 60 s" in shell.out("quota", "show", "llm")


def test_retention_removes_what_ended_longer_ago_and_says_how_much(shell: Shell) -> None:
    ended, waiting = shell.submit("greet", 1), shell.submit("greet", 2)
    shell.run("cancel", ended)
    assert shell.json("retention")["Trimmed"]["executions"] == 0
    trimmed = shell.json("retention", "--older-than", "0s")["Trimmed"]
    assert (trimmed["executions"], trimmed["flows"], trimmed["more"]) == (1, 0, False)
    assert trimmed["events"] > 0
    assert shell.run("show", ended)[0] == 1
    assert shell.state(waiting) == "waiting"


def test_retention_is_off_where_the_environment_says_so(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.submit("greet", 1)
    monkeypatch.setenv("FF_RETENTION", "off")
    assert shell.run("retention")[0] == 2
    monkeypatch.setenv("FF_RETENTION", "soon")
    assert shell.run("retention")[0] == 2
    assert "soon" in shell.err
    assert shell.run("retention", "--older-than", "1d")[0] == 0


@pytest.mark.scenario("BOOT-008")
def test_lanes_that_share_a_partition_are_told(shell: Shell) -> None:
    shell.submit("greet", "ada")
    shell.out("lane", "disable", "hot")
    apart = shell.out("lane", "collisions").splitlines()
    assert [row.split() for row in apart[1:]] == [["default", "86"], ["hot", "205"]]
    assert shell.err == (
        "clean: 0 of 2 lanes share one of 256 partitions. Every lane has a partition of its own.\n"
    )
    together = shell.json("lane", "collisions", "--partitions", "1")
    assert (together["colliding"], together["severity"]) == (2, "remediate")
    assert together["lanes"][0] == {"lane_id": "default", "partition": 0, "shared_with": ["hot"]}


@pytest.mark.scenario("BOOT-008")
def test_names_of_lanes_are_tried_without_a_store(shell: Shell) -> None:
    rows = shell.out("lane", "collisions", "workers-b", "workers-a").splitlines()[1:]
    assert [row.split() for row in rows] == [["workers-b", "162"], ["workers-a", "193"]]
    assert not (shell.folder / "work.db").exists()


@pytest.mark.scenario("BOOT-008")
@pytest.mark.parametrize(
    "wrong", [("a", "--partitions", "0"), ("a", "--partitions", "65536"), ("a", "\u00e4"), ("",)]
)
def test_collisions_of_what_cannot_be_are_a_wrong_command_line(shell: Shell, wrong: tuple[str, ...]) -> None:
    assert shell.run("lane", "collisions", *wrong) == (2, "")
    assert shell.err.endswith("[usage]\n")
