"""One URL names one store."""

import pytest

from flowfabric.errors import InvalidInput, StoreUnreachable
from flowfabric.stores.memory import MemoryStore
from flowfabric.stores.sqlite import SqliteStore
from flowfabric.urls import apply_migrations, pending_migrations, require_store, store_for


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///work.db", "work.db"),
        ("sqlite:////var/lib/work.db", "/var/lib/work.db"),
        ("sqlite://:memory:", ":memory:"),
        ("sqlite:///a folder/work.db", "a folder/work.db"),
    ],
)
def test_a_sqlite_url_names_a_file(url, path):
    store = store_for(url)
    assert isinstance(store, SqliteStore)
    assert store.path == path


def test_memory_names_a_store_in_this_process():
    assert isinstance(store_for("memory://"), MemoryStore)


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("", "must look like sqlite:///work.db"),
        ("work.db", "must look like sqlite:///work.db"),
        ("sqlite:work.db", "must look like sqlite:///work.db"),
        ("mysql://host/db", "the scheme must be sqlite, postgresql, valkey or memory"),
        ("sqlite://", "name a file, as in sqlite:///work.db"),
        ("sqlite:///", "name a file, as in sqlite:///work.db"),
        ("sqlite://work.db", "name a file, as in sqlite:///work.db"),
        ("sqlite:///work.db?synchronous=OFF", "synchronous must be FULL or NORMAL"),
        ("sqlite:///work.db?mode=ro", "unknown option 'mode'; known: synchronous"),
    ],
)
def test_a_url_that_names_no_store_is_refused_with_what_to_write(url, rule):
    with pytest.raises(InvalidInput) as caught:
        store_for(url)
    assert (caught.value.field, caught.value.rule) == ("url", rule)


def test_what_a_url_keeps_secret_is_not_repeated():
    with pytest.raises(InvalidInput) as caught:
        store_for("mysql://ann:hunter2@host/db?password=hunter2")
    assert "hunter2" not in str(caught.value) + repr(caught.value.details)


@pytest.mark.parametrize("url", ["memory://", "sqlite://:memory:"])
def test_a_store_in_memory_is_always_there_and_up_to_date(url):
    require_store(url)
    assert pending_migrations(url) == apply_migrations(url) == ()


def test_a_file_that_is_not_there_is_refused_and_not_made(tmp_path):
    url = f"sqlite:///{tmp_path}/work.db"
    for look in (require_store, pending_migrations):
        with pytest.raises(StoreUnreachable, match="there is no file"):
            look(url)
    assert list(tmp_path.iterdir()) == []


def test_migrations_are_pending_until_they_are_applied(tmp_path):
    url = f"sqlite:///{tmp_path}/work.db"
    (tmp_path / "work.db").touch()
    pending = pending_migrations(url)
    assert pending
    assert apply_migrations(url) == pending
    assert pending_migrations(url) == ()
    require_store(url)
