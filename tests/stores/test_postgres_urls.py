"""Which URLs name a PostgreSQL store, and what they choose."""

from pathlib import Path
from typing import cast

import pytest

from flowfabric.errors import InvalidInput
from flowfabric.stores.postgres import PostgresStore
from flowfabric.stores.postgres.connections import Settings
from flowfabric.stores.postgres.schema import MIGRATIONS
from flowfabric.urls import apply_migrations, pending_migrations, require_store, store_for
from tests.postgres import schema_of, server


def settings_of(url: str) -> Settings:
    return cast("PostgresStore", store_for(url)).settings


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_both_schemes_name_a_postgres_store(scheme: str) -> None:
    assert settings_of(f"{scheme}://me@db.example:6000/work") == Settings(
        url="postgresql://me@db.example:6000/work"
    )


def test_our_options_are_ours_and_the_others_go_to_the_driver() -> None:
    found = settings_of(
        "postgresql://me@pool/work?sslmode=require&schema=tasks&pooler=on&connections=3&timeout_ms=500"
        "&direct_url=postgresql%3A%2F%2Fme%40db%2Fwork"
    )
    assert found == Settings(
        url="postgresql://me@pool/work?sslmode=require",
        direct_url="postgresql://me@db/work",
        schema="tasks",
        connections_max=3,
        timeout_ms=500,
        pooler=True,
    )


@pytest.mark.parametrize(
    ("options", "listens_at"),
    [
        ("", "postgresql://db/work"),
        ("?listen=off", None),
        ("?pooler=on", None),
        ("?pooler=on&direct_url=postgresql://direct/work", "postgresql://direct/work"),
    ],
)
def test_where_changes_are_heard(options: str, listens_at: str | None) -> None:
    assert settings_of(f"postgresql://db/work{options}").listen_url == listens_at


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        ("shema=a", "unknown option 'shema'; known: connections, direct_url"),
        ("schema=pg_work", "no pg_ name"),
        ("schema=Work", "small letters"),
        ("schema=", "1 to 48"),
        ("connections=0", "above 0"),
        ("timeout_ms=soon", "whole number"),
        ("pooler=yes", "on or off"),
        ("listen=", "on or off"),
    ],
)
def test_an_option_that_cannot_be_is_refused_without_showing_the_password(option: str, rule: str) -> None:
    with pytest.raises(InvalidInput, match=rule) as raised:
        store_for(f"postgresql://me:s3cret@db/work?{option}")
    assert "s3cret" not in str(raised.value)


def test_migrations_go_through_the_url(tmp_path: Path) -> None:
    url = server().url(schema=schema_of(tmp_path))
    require_store(url)
    names = tuple(f"{migration.number} {migration.name}" for migration in MIGRATIONS)
    assert pending_migrations(url) == names
    assert apply_migrations(url) == names
    assert pending_migrations(url) == apply_migrations(url) == ()
