"""The key ring: seeding it, rotating it, and what it never forgets."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flowfabric import errors
from flowfabric.contracts.keyring import (
    ListWaitpointHmacKidsArgs,
    RotateWaitpointHmacSecretAllArgs,
    RotateWaitpointHmacSecretAllEntry,
    RotateWaitpointHmacSecretArgs,
    SecretAlreadySeeded,
    SecretRotated,
    SecretSeeded,
    SecretUnchanged,
    SeedWaitpointHmacSecretArgs,
    VerifyingKid,
    WaitpointHmacKids,
)
from flowfabric.core.records import KEYRING_ID, Keyring
from tests.core.harness import Rulebook
from tests.core.waits import OTHER_SECRET_HEX, SECRET_HEX, seed

GRACE_MS = 600_000


def rotate(book: Rulebook, kid: str, secret_hex: str = SECRET_HEX, grace_ms: int = GRACE_MS):
    return book.run(RotateWaitpointHmacSecretArgs(new_kid=kid, new_secret_hex=secret_hex, grace_ms=grace_ms))


def kids(book: Rulebook) -> WaitpointHmacKids:
    return book.run(ListWaitpointHmacKidsArgs())


def ring(book: Rulebook) -> Keyring:
    return book.get(Keyring, KEYRING_ID)


@pytest.mark.scenario("HMAC-018")
def test_the_first_seed_installs_the_key(book):
    outcome = book.run(SeedWaitpointHmacSecretArgs(kid="k1", secret_hex=SECRET_HEX))
    assert outcome == SecretSeeded(kid="k1")
    assert kids(book) == WaitpointHmacKids(current_kid="k1")


@pytest.mark.scenario("HMAC-018")
@pytest.mark.parametrize(("secret_hex", "same"), [(SECRET_HEX, True), (OTHER_SECRET_HEX, False)])
def test_seeding_again_says_whether_the_secret_is_the_same_and_changes_nothing(book, secret_hex, same):
    seed(book)
    with book.unchanged():
        outcome = book.run(SeedWaitpointHmacSecretArgs(kid="k1", secret_hex=secret_hex))
    assert outcome == SecretAlreadySeeded(kid="k1", same_secret=same)


@pytest.mark.scenario("HMAC-018")
def test_seeding_a_key_that_was_never_there_is_refused(book):
    seed(book)
    with book.refuses(errors.InvalidInput):
        seed(book, "k2")


@pytest.mark.parametrize("later_ms", [0, GRACE_MS - 1, GRACE_MS, GRACE_MS * 3])
def test_the_seed_of_the_first_start_still_works_after_rotations(book, later_ms):
    seed(book)
    rotate(book, "k2")
    book.advance(later_ms)
    rotate(book, "k3")
    outcome = book.run(SeedWaitpointHmacSecretArgs(kid="k1", secret_hex=SECRET_HEX))
    assert outcome == SecretAlreadySeeded(kid="k1", same_secret=True)


@pytest.mark.scenario("HMAC-013")
def test_the_first_rotation_of_an_empty_ring_has_no_previous_key(book):
    assert rotate(book, "k1") == SecretRotated(previous_kid=None, new_kid="k1", gc_count=0)
    assert kids(book) == WaitpointHmacKids(current_kid="k1")


@pytest.mark.scenario("HMAC-013")
def test_the_second_rotation_leaves_the_first_key_in_grace(book):
    rotate(book, "k1")
    assert rotate(book, "k2") == SecretRotated(previous_kid="k1", new_kid="k2", gc_count=0)
    verifying = (VerifyingKid(kid="k1", expires_at_ms=book.now + GRACE_MS),)
    assert kids(book) == WaitpointHmacKids(current_kid="k2", verifying=verifying)


def test_keys_past_their_grace_are_not_listed_and_are_removed_and_counted_by_the_next_rotation(book):
    rotate(book, "k1")
    rotate(book, "k2", grace_ms=10)
    book.advance(10)
    assert kids(book).verifying == ()
    assert rotate(book, "k3") == SecretRotated(previous_kid="k2", new_kid="k3", gc_count=1)
    assert [key.kid for key in ring(book).keys] == ["k2", "k3"]


def test_three_keys_in_grace_verify_side_by_side(book):
    for kid in ("a", "b", "c", "d"):
        rotate(book, kid)
        book.advance(1)
    assert [kid.kid for kid in kids(book).verifying] == ["a", "b", "c"]


def test_a_later_rotation_does_not_move_an_expiry(book):
    rotate(book, "a")
    rotate(book, "b", grace_ms=1_000)
    expires_at = book.now + 1_000
    rotate(book, "c", grace_ms=9_000)
    assert VerifyingKid(kid="a", expires_at_ms=expires_at) in kids(book).verifying


def test_rotating_to_the_current_key_changes_nothing(book):
    rotate(book, "k1")
    with book.unchanged():
        assert rotate(book, "k1") == SecretUnchanged(kid="k1")


def test_rotating_back_makes_a_key_in_grace_current_without_an_expiry(book):
    rotate(book, "k1")
    rotate(book, "k2", OTHER_SECRET_HEX)
    assert rotate(book, "k1") == SecretRotated(previous_kid="k2", new_kid="k1", gc_count=0)
    assert [(key.kid, key.expires_at) for key in ring(book).keys] == [
        ("k2", book.now + GRACE_MS),
        ("k1", None),
    ]
    book.advance(GRACE_MS)
    assert rotate(book, "k3").gc_count == 1
    assert [kid.kid for kid in kids(book).verifying] == ["k1"]


def test_rotating_back_to_a_key_past_its_grace_installs_it_again(book):
    rotate(book, "k1")
    rotate(book, "k2", grace_ms=0)
    assert rotate(book, "k1") == SecretRotated(previous_kid="k2", new_kid="k1", gc_count=0)
    assert ring(book).current_kid == "k1"


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("kid", ["k1", "k2"])
def test_a_key_id_never_gets_another_secret(book, kid, removed):
    rotate(book, "k1")
    rotate(book, "k2", grace_ms=10)
    if removed:
        book.advance(10)
        rotate(book, "k3")
    with book.refuses(errors.RotationConflict):
        rotate(book, kid, OTHER_SECRET_HEX)


def test_a_removed_key_leaves_no_secret_behind(book):
    rotate(book, "k1", OTHER_SECRET_HEX)
    rotate(book, "k2", grace_ms=0)
    rotate(book, "k3")
    assert bytes.fromhex(OTHER_SECRET_HEX) not in book.data[ring(book).key]


def test_a_grace_beyond_all_time_is_clamped(book):
    rotate(book, "k1")
    rotate(book, "k2", grace_ms=2**53 - 1)
    assert kids(book).verifying == (VerifyingKid(kid="k1", expires_at_ms=2**53 - 1),)


def test_a_repeated_rotation_request_gets_its_first_answer(book):
    rotate(book, "k1")
    args = RotateWaitpointHmacSecretArgs(new_kid="k2", new_secret_hex=SECRET_HEX, grace_ms=GRACE_MS)
    first = book.run(args, request_id="once")
    with book.unchanged():
        assert book.run(args, request_id="once") == first


def test_rotating_everywhere_answers_with_one_entry_of_partition_0(book):
    seed(book)
    args = RotateWaitpointHmacSecretAllArgs(new_kid="k2", new_secret_hex=SECRET_HEX, grace_ms=GRACE_MS)
    outcome = book.run(args)
    rotated = SecretRotated(previous_kid="k1", new_kid="k2", gc_count=0)
    assert outcome.entries == (RotateWaitpointHmacSecretAllEntry(partition=0, result=rotated),)


def test_rotating_everywhere_names_the_conflict_in_its_entry_and_changes_nothing(book):
    seed(book)
    args = RotateWaitpointHmacSecretAllArgs(new_kid="k1", new_secret_hex=OTHER_SECRET_HEX, grace_ms=0)
    with book.unchanged():
        outcome = book.run(args)
    assert outcome.entries[0].error_code == "rotation_conflict"
    assert outcome.entries[0].result is None


@pytest.mark.parametrize(
    ("kid", "secret_hex", "error"),
    [
        ("", SECRET_HEX, errors.InvalidKid),
        ("a:b", SECRET_HEX, errors.InvalidKid),
        ("k", "abc", errors.InvalidSecretHex),
        ("k", "", errors.InvalidSecretHex),
        ("k", "ab", errors.InvalidSecretHex),
    ],
)
@pytest.mark.scenario("HMAC-018")
def test_a_seed_that_breaks_a_rule_installs_nothing(book, kid, secret_hex, error):
    with book.refuses(error):
        seed(book, kid, secret_hex)


class Rotations(RuleBasedStateMachine):
    """Any order of rotations and waiting, against a dictionary of expiries."""

    def __init__(self) -> None:
        super().__init__()
        self.book = Rulebook()
        self.current: str | None = None
        self.expiries: dict[str, int] = {}

    @rule(kid=st.sampled_from("abcd"), grace_ms=st.integers(0, 50))
    def rotate(self, kid: str, grace_ms: int) -> None:
        outcome = rotate(self.book, kid, grace_ms=grace_ms)
        if kid == self.current:
            assert outcome == SecretUnchanged(kid=kid)
            return
        assert outcome.previous_kid == self.current
        if self.current is not None:
            self.expiries[self.current] = self.book.now + grace_ms
        self.expiries.pop(kid, None)
        self.current = kid

    @rule(kid=st.sampled_from("abcd"))
    def rotate_to_another_secret(self, kid: str) -> None:
        if kid == self.current or kid in self.expiries:
            with self.book.refuses(errors.RotationConflict):
                rotate(self.book, kid, OTHER_SECRET_HEX)

    @rule(milliseconds=st.integers(1, 60))
    def wait(self, milliseconds: int) -> None:
        self.book.advance(milliseconds)

    @invariant()
    def accepted_are_the_current_key_and_those_in_grace(self) -> None:
        listed = kids(self.book)
        in_grace = {kid: at for kid, at in self.expiries.items() if self.book.now < at}
        assert listed.current_kid == self.current
        assert {kid.kid: kid.expires_at_ms for kid in listed.verifying} == in_grace

    @invariant()
    def the_current_key_has_no_expiry(self) -> None:
        if self.current is not None:
            unlimited = [key.kid for key in ring(self.book).keys if key.expires_at is None]
            assert unlimited == [self.current]


TestRotations = Rotations.TestCase
TestRotations.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
