"""Which URLs name a Valkey store, and what they choose."""

from pathlib import Path
from typing import cast

import pytest

from flowfabric.errors import InvalidInput
from flowfabric.stores.valkey import Settings, ValkeyStore
from flowfabric.stores.valkey.library import library
from flowfabric.urls import apply_migrations, pending_migrations, require_store, store_for
from tests.valkey import Server, prefix_of


def settings_of(url: str) -> Settings:
    return cast("ValkeyStore", store_for(url)).settings


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("valkey://", Settings()),
        ("valkey://cache.example", Settings(host="cache.example")),
        ("valkey://host:7000/3", Settings(host="host", port=7000, database=3)),
        ("valkey://[::1]:7000", Settings(host="::1", port=7000)),
        ("valkeys://host?ca_file=/etc/ca.pem", Settings(host="host", tls=True, ca_file="/etc/ca.pem")),
        (
            "valkeys://host?cert_file=/etc/own.pem&key_file=/etc/own.key",
            Settings(host="host", tls=True, cert_file="/etc/own.pem", key_file="/etc/own.key"),
        ),
        ("valkey://ann:p%40ss@host", Settings(host="host", username="ann", password="p@ss")),
        ("valkey://:secret@host", Settings(host="host", password="secret")),
        (
            "valkey+cluster://host:7000?seeds=other:7001,third:7002&shards=64",
            Settings(
                host="host", port=7000, cluster=True, seeds=(("other", 7001), ("third", 7002)), shards=64
            ),
        ),
        ("valkeys+cluster://host", Settings(host="host", cluster=True, tls=True)),
        ("valkey:///1?socket=/run/vk.sock", Settings(socket="/run/vk.sock", database=1)),
        (
            "valkey://host?prefix=tasks&durability=D2&replicas=1&timeout_ms=500",
            Settings(host="host", prefix="tasks", durability="D2", replicas=1, timeout_ms=500),
        ),
    ],
)
def test_a_url_chooses_server_database_and_options(url: str, settings: Settings) -> None:
    assert settings_of(url) == settings


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("valkey://host?prefx=a", "unknown option 'prefx'; known: ca_file, cert_file"),
        ("valkey://host?prefix={a}", "prefix must be 1 to 48 small letters"),
        ("valkey://host?prefix=", "prefix must be 1 to 48 small letters"),
        ("valkey://host?durability=D3", "durability must be one of D0, D1, D2"),
        ("valkey://host?replicas=some", "replicas must be a whole number"),
        ("valkey://host?timeout_ms=0", "timeout_ms must be a whole number above 0"),
        ("valkey://host/work", "the database must be a number"),
        ("valkey://host:port", "the port must be a number"),
        ("valkey+cluster://host?seeds=other", "seeds must look like host:6379"),
        ("valkey+cluster://host?shards=0", "shards must be a whole number above 0"),
        ("valkey://host:99999", "the port must be a number"),
    ],
)
def test_what_cannot_be_is_refused_without_showing_the_password(url: str, rule: str) -> None:
    with pytest.raises(InvalidInput, match=rule) as raised:
        store_for(url.replace("://", "://ann:s3cret@"))
    assert "s3cret" not in str(raised.value)


def test_settings_show_neither_user_nor_password() -> None:
    shown = repr(settings_of("valkeys://ann:s3cret@[::1]:7000/2?prefix=tasks"))
    assert shown == "Settings(valkeys://[::1]:7000/2 (prefix tasks))"


@pytest.mark.scenario("BOOT-002")
def test_migrating_loads_the_library_once(spare: Server, tmp_path: Path) -> None:
    url = spare.url(prefix=prefix_of(tmp_path))
    require_store(url)
    assert pending_migrations(url) == (f"functions {library().digest}",)
    assert apply_migrations(url) == (f"functions {library().digest}",)
    assert pending_migrations(url) == apply_migrations(url) == ()
