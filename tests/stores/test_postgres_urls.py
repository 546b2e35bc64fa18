"""Which URLs name a PostgreSQL store, and what they choose."""

import re
from pathlib import Path
from typing import cast

import pytest

from flowfabric.errors import InvalidInput, StoreUnreachable
from flowfabric.stores.postgres import PostgresStore
from flowfabric.stores.postgres.connections import Settings
from flowfabric.stores.postgres.opening import warn_of_risks
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


class TestLinksInClear:
    """Whoever sends a password on a way that others can read is told so, before it is sent."""

    @pytest.fixture(autouse=True)
    def variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("PGHOST", "PGSSLMODE"):
            monkeypatch.delenv(name, raising=False)

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("postgresql://me:word@db.example/work", "at db.example, .*sslmode is prefer"),
            ("postgresql://me@192.0.2.1:6000/work?sslmode=require", "at 192.0.2.1, .*sslmode is require"),
            ("postgresql://[2001:db8::1]:6000/work?sslmode=disable", "at 2001:db8::1, .*is disable"),
            ("postgresql://localhost,one.example,two.example/work", "at one.example, two.example, "),
            ("postgresql:///work?host=db.example", "at db.example, "),
            (
                "postgresql://localhost/work?pooler=on&direct_url=postgresql%3A%2F%2Fdb.example%2Fwork",
                "at db.example, ",
            ),
        ],
    )
    def test_a_link_without_verification_is_told_of(
        self, url: str, words: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        warn_of_risks(settings_of(url))
        [message] = caplog.messages
        assert re.search(words, message)
        assert "word@" not in message

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql:///work",
            "postgresql:///work?host=/run/postgresql",
            "postgresql://%2Frun%2Fpostgresql/work",
            "postgresql://localhost:6000/work",
            "postgresql://[::1]/work",
            "postgresql://127.0.0.1/work",
            "postgresql://db.example/work?sslmode=verify-full",
            "postgresql://db.example/work?sslmode=verify-ca",
        ],
    )
    def test_no_risk_no_words(self, url: str, caplog: pytest.LogCaptureFixture) -> None:
        warn_of_risks(settings_of(url))
        assert caplog.messages == []

    def test_variables_count_where_the_url_says_nothing(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("PGHOST", "db.example")
        warn_of_risks(settings_of("postgresql:///work"))
        assert len(caplog.messages) == 1
        monkeypatch.setenv("PGSSLMODE", "verify-full")
        warn_of_risks(settings_of("postgresql:///work"))
        assert len(caplog.messages) == 1

    async def test_it_is_said_when_the_store_is_opened(self, caplog: pytest.LogCaptureFixture) -> None:
        with pytest.raises(StoreUnreachable):
            await store_for("postgresql://0.0.0.0:1/work").open()
        assert "what is sent to PostgreSQL at 0.0.0.0" in caplog.text
