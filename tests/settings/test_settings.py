"""One order of precedence, errors that say where a value came from, and nothing that goes unnoticed."""

from pathlib import Path

import pytest

from flowfabric.engine.scanners.duties import DUTIES, with_intervals
from flowfabric.errors import InvalidInput
from flowfabric.server.settings import read_settings
from flowfabric.settings import (
    CHOOSES_THE_STORE,
    COMMON,
    EVERYTHING,
    INTERVALS,
    REPLACED,
    WORKER,
    fill_environment,
    read_file,
    read_values,
    require_chosen_store,
    unread_variables,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "flowfabric.toml"


def test_one_file_serves_servers_and_workers(file: Path) -> None:
    file.write_text('concurrency = 4\nlanes = ["a", "b"]\nstreams_max = 7\nlog_format = "json"\n')
    worker = read_values((*COMMON, *WORKER), {}, {}, read_file(file))
    assert (worker["concurrency"], worker["lanes"], worker["log_format"]) == (4, ("a", "b"), "json")
    assert read_settings({}, {}, file).options.streams_max == 7


def test_a_flag_wins_over_a_variable_and_that_over_the_file(file: Path) -> None:
    file.write_text('lease_ttl = "10s"\n')
    told, environment = read_file(file), {"FF_LEASE_TTL": "20s"}
    assert read_values(WORKER, {}, {}, told)["lease_ttl"] == 10_000
    assert read_values(WORKER, {}, environment, told)["lease_ttl"] == 20_000
    assert read_values(WORKER, {"lease_ttl": 30_000}, environment, told)["lease_ttl"] == 30_000


def test_an_empty_variable_is_none(file: Path) -> None:
    file.write_text("concurrency = 4\n")
    assert read_values(WORKER, {}, {"FF_WORKER_CONCURRENCY": ""}, read_file(file))["concurrency"] == 4


def test_an_older_name_is_read_where_the_newer_one_is_absent() -> None:
    assert read_settings({}, {"FF_MAX_CONCURRENT_TAIL": "3"}, None).options.streams_max == 3
    both = {"FF_MAX_CONCURRENT_TAIL": "3", "FF_MAX_CONCURRENT_STREAM_OPS": "5"}
    assert read_settings({}, both, None).options.streams_max == 5


def test_a_key_that_is_no_setting_is_refused_with_the_one_that_is_meant(file: Path) -> None:
    file.write_text("stream_max = 7\n")
    with pytest.raises(InvalidInput, match="did you mean streams_max"):
        read_file(file)


@pytest.mark.scenario("BOOT-004")
@pytest.mark.parametrize(
    ("variable", "value", "advice"),
    [
        ("FF_WAITPOINT_HMAC_SECRET", "abc", "hexadecimal"),
        ("FF_WAITPOINT_HMAC_SECRET", "zz", "hexadecimal"),
        ("FF_LOG_FORMAT", "yaml", "text, json"),
        ("FF_LOG_LEVEL", "loud", "debug"),
        ("FF_METRICS", "perhaps", "on or off"),
        ("FF_METRICS_LISTEN_ADDR", "9464", "127.0.0.1"),
        ("FF_RETENTION", "soon", "duration"),
        ("FF_LEASE_EXPIRY_INTERVAL_MS", "often", "whole number"),
        ("FF_SHUTDOWN_TIMEOUT_MS", "-1", "whole number"),
    ],
)
def test_a_wrong_value_is_refused_with_its_variable_and_what_to_write(
    variable: str, value: str, advice: str
) -> None:
    with pytest.raises(InvalidInput, match=advice) as refused:
        read_settings({}, {variable: value}, None)
    assert variable in str(refused.value)


@pytest.mark.scenario("BOOT-004")
@pytest.mark.parametrize("text", ["", " , ", ","])
def test_lanes_are_not_none_at_all(text: str) -> None:
    if not text:
        assert read_values(WORKER, {}, {"FF_WORKER_LANES": text}, {})["lanes"] is None
        return
    with pytest.raises(InvalidInput, match="FF_WORKER_LANES"):
        read_values(WORKER, {}, {"FF_WORKER_LANES": text}, {})


def test_a_wrong_secret_is_not_repeated() -> None:
    with pytest.raises(InvalidInput) as refused:
        read_settings({}, {"FF_WAITPOINT_HMAC_SECRET": "hunter2hunter2x"}, None)
    assert "hunter2" not in str(refused.value) + repr(refused.value)


def test_a_wrong_value_of_the_file_names_the_file(file: Path) -> None:
    file.write_text('log_format = "yaml"\n')
    with pytest.raises(InvalidInput, match="log_format in the settings file"):
        read_settings({}, {}, file)


def test_what_a_file_says_is_found_in_the_environment_unless_that_speaks() -> None:
    environment = {"FF_URL": "memory://"}
    fill_environment({"url": "sqlite:///other.db", "namespace": "tenant"}, environment)
    assert environment == {"FF_URL": "memory://", "FF_NAMESPACE": "tenant"}


def test_a_variable_that_nobody_reads_is_told() -> None:
    told = unread_variables({"FF_LISTEN_ADR": "x", "FF_LANES": "a", "FF_URL": "u", "PATH": "/", "FF_X": "1"})
    assert set(told) == {"FF_LISTEN_ADR", "FF_LANES", "FF_X"}
    assert "FF_LISTEN_ADDR" in told["FF_LISTEN_ADR"]


@pytest.mark.parametrize("variable", CHOOSES_THE_STORE)
def test_a_variable_that_means_another_store_is_no_reason_to_use_the_default_one(variable: str) -> None:
    with pytest.raises(InvalidInput, match="FF_URL") as refused:
        require_chosen_store({variable: "valkey"}, None)
    assert variable in str(refused.value)
    require_chosen_store({variable: "valkey"}, "valkey://localhost")
    require_chosen_store({}, None)


def test_every_setting_has_names_of_its_own() -> None:
    for names in (
        [setting.name for setting in EVERYTHING],
        [setting.variable for setting in EVERYTHING] + list(REPLACED),
    ):
        assert len(set(names)) == len(names)


# Intervals


def test_every_interval_is_that_of_duties_that_exist() -> None:
    names = {duty.name for duty in DUTIES}
    assert {duty for _, duties in INTERVALS.values() for duty in duties} <= names


@pytest.mark.scenario("BOOT-007")
def test_an_interval_is_read_in_its_unit_and_nought_turns_the_duty_off() -> None:
    environment = {
        "FF_LEASE_EXPIRY_INTERVAL_MS": "20",
        "FF_ATTEMPT_TIMEOUT_INTERVAL_S": "3",
        "FF_UNBLOCK_INTERVAL_S": "0",
    }
    intervals = read_settings({}, environment, None).intervals
    assert intervals == {"lease_expiry": 100, "attempt_timeout": 3_000, "unblock": None}
    changed = {duty.name: duty.interval_ms for duty in with_intervals(DUTIES, intervals)}
    assert changed["lease_expiry"] == 100
    assert changed["attempt_timeout"] == 3_000
    assert changed["delayed_promoter"] == 750
    assert "unblock" not in changed
    assert len(changed) == len(DUTIES) - 1
