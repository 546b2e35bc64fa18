"""Tokens: what they bind, and everything that is not one."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.keyring import WaitpointToken
from flowfabric.core.records import Keyring, SigningKey, Waitpoint
from flowfabric.core.tokens import (
    check_token,
    mac_digest,
    sign_message,
    sign_waitpoint,
    token_message,
    token_of,
    verify_message,
)

NOW = 1_000_000
NAMESPACE = "tenant"
SECRET = bytes(range(32))
MAC = "a" * 64
EXECUTION = "{fp:7}:00000000-0000-4000-8000-000000000001"


def ring_of(*keys: SigningKey) -> Keyring:
    return Keyring(current_kid=keys[-1].kid, keys=keys)


def key_of(kid: str = "k1", secret: bytes = SECRET, expires_at: int | None = None) -> SigningKey:
    return SigningKey(kid=kid, secret=secret, installed_at=0, expires_at=expires_at)


def new_waitpoint(**fields) -> Waitpoint:
    defaults = {
        "execution_id": EXECUTION,
        "waitpoint_id": "00000000-0000-4000-8000-00000000000a",
        "waitpoint_key": "review",
        "attempt_index": 0,
        "state": "active",
        "token_kid": "",
        "token_digest": "",
        "created_at": NOW,
    }
    return Waitpoint(**{**defaults, **fields})


RING = ring_of(key_of())


def signed(**fields) -> tuple[Waitpoint, WaitpointToken]:
    waitpoint = new_waitpoint(**fields)
    return waitpoint, sign_waitpoint(RING, NAMESPACE, waitpoint)


@pytest.mark.parametrize(
    ("secret", "kid", "message", "token"),
    [
        (b"secret-1", "kid-a", b"hello", "d0a1581fa55bac26afe8c11b8e5653a6ad2e10c6e09fa44e3c770eeb72d83d4b"),
        (
            b"super-secret-rotating-key-v1",
            "vllm-demo-2026-05",
            b"exec=abc:waitpoint=wp-42",
            "dd0d4d13715ffab543c1ea9ba0a711311f13a36a740c14d08f7ab4983d3111ef",
        ),
        (b"k", "k0", b"", "b6063576168fc22293d5724cebbbd78beb2ca5cd4d7e34b21e61a132042a5266"),
        (
            b"\xaa" * 64,
            "block-sized-secret",
            b"message",
            "fe800115905f7369d1c2c18fe85c6ae10decd1b0392e4a238ed89e17f84c5fdc",
        ),
        (
            b"k",
            "binary",
            b"\x00\x01\xfe\xff",
            "f98fd661ff642ba9895b6b9297fbc29cb95ceb8782267955cc647576e9bb022a",
        ),
    ],
)
@pytest.mark.scenario("HMAC-019")
def test_signed_messages_match_the_published_vectors(secret, kid, message, token):
    assert sign_message(secret, kid, message) == f"{kid}:{token}"


@pytest.mark.scenario("HMAC-019")
@pytest.mark.parametrize(
    ("kid", "message", "token", "rule"),
    [
        ("k", b"other", sign_message(b"s", "k", b"m"), "signature_mismatch"),
        ("other", b"m", sign_message(b"s", "k", b"m"), "wrong_kid"),
        ("k", b"m", "no token", "malformed"),
    ],
)
def test_a_message_token_says_what_is_wrong_with_it(kid, message, token, rule):
    with pytest.raises(errors.InvalidToken) as refused:
        verify_message(b"s", kid, message, token)
    assert refused.value.rule == rule


def test_a_message_token_verifies():
    verify_message(b"s", "k", b"m", sign_message(b"s", "k", b"m"))


@pytest.mark.scenario("HMAC-001")
def test_a_token_verifies_for_its_own_waitpoint():
    waitpoint, token = signed()
    assert check_token(RING, NAMESPACE, waitpoint, token, NOW) is waitpoint


def test_a_token_is_a_key_id_and_64_lower_case_digits():
    _, token = signed()
    kid, _, mac = token.value.partition(":")
    assert kid == "k1"
    assert len(mac) == 64
    assert set(mac) <= set("0123456789abcdef")


def test_the_waitpoint_keeps_a_digest_and_a_fingerprint_and_never_the_mac():
    waitpoint, token = signed()
    assert waitpoint.token_digest == mac_digest(token.mac)
    assert waitpoint.token_fingerprint == token.mac[:16]
    assert token.mac not in repr(waitpoint)


def test_the_token_can_be_computed_again():
    waitpoint, token = signed()
    assert token_of(RING, NAMESPACE, waitpoint, NOW) == token


@pytest.mark.scenario("HMAC-003")
@pytest.mark.parametrize("position", range(64))
def test_a_flipped_bit_at_any_position_is_refused(position):
    waitpoint, token = signed()
    digits = list(token.mac)
    for bit in (1, 2, 4, 8):
        changed = digits.copy()
        changed[position] = f"{int(digits[position], 16) ^ bit:x}"
        forged = WaitpointToken(f"k1:{''.join(changed)}")
        with pytest.raises(errors.InvalidToken):
            check_token(RING, NAMESPACE, waitpoint, forged, NOW)


@pytest.mark.parametrize(
    "other",
    [
        {"execution_id": "{fp:7}:00000000-0000-4000-8000-000000000002"},
        {"execution_id": "{fp:8}:00000000-0000-4000-8000-000000000001"},
        {"waitpoint_id": "00000000-0000-4000-8000-00000000000b"},
        {"waitpoint_key": "review2"},
        {"created_at": NOW + 1},
    ],
    ids=lambda other: next(iter(other)),
)
@pytest.mark.scenario("HMAC-009")
def test_a_token_opens_no_other_waitpoint(other):
    _, token = signed()
    stranger, _ = signed(**other)
    with pytest.raises(errors.InvalidToken):
        check_token(RING, NAMESPACE, stranger, token, NOW)


def test_a_token_opens_nothing_in_another_namespace():
    waitpoint, token = signed()
    with pytest.raises(errors.InvalidToken):
        check_token(RING, "other", waitpoint, token, NOW)


def test_a_token_is_refused_when_the_stored_digest_is_anothers():
    waitpoint, token = signed()
    waitpoint.token_digest = mac_digest("0" * 64)
    with pytest.raises(errors.InvalidToken):
        check_token(RING, NAMESPACE, waitpoint, token, NOW)


@pytest.mark.scenario("HMAC-002")
def test_an_empty_token_is_missing():
    waitpoint, _ = signed()
    with pytest.raises(errors.MissingToken):
        check_token(RING, NAMESPACE, waitpoint, WaitpointToken(""), NOW)


@pytest.mark.parametrize(
    "shape",
    [
        "k1",
        "k1:",
        ":",
        f":{MAC}",
        f"k1:{MAC[:-1]}",
        f"k1:{MAC}a",
        f"k1:{MAC.upper()}",
        f"k1:k1:{MAC}",
        f"k1:{MAC[:-1]}g",
        f"k1:{MAC}\n",
        f" k1:{MAC}",
        f"k1: {MAC}",
    ],
)
def test_a_token_of_another_shape_is_invalid(shape):
    waitpoint, _ = signed()
    with pytest.raises(errors.InvalidToken):
        check_token(RING, NAMESPACE, waitpoint, WaitpointToken(shape), NOW)


def test_the_digits_in_upper_case_are_not_the_token():
    waitpoint, token = signed()
    with pytest.raises(errors.InvalidToken):
        check_token(RING, NAMESPACE, waitpoint, WaitpointToken(f"k1:{token.mac.upper()}"), NOW)


@pytest.mark.scenario("HMAC-004")
def test_a_key_id_that_was_never_installed_is_invalid():
    waitpoint, token = signed()
    with pytest.raises(errors.InvalidToken):
        check_token(RING, NAMESPACE, waitpoint, WaitpointToken(f"k9:{token.mac}"), NOW)


def test_the_key_id_of_another_key_does_not_verify():
    waitpoint, token = signed()
    ring = ring_of(key_of(), key_of("k2", b"other"))
    with pytest.raises(errors.InvalidToken):
        check_token(ring, NAMESPACE, waitpoint, WaitpointToken(f"k2:{token.mac}"), NOW)


@pytest.mark.scenario("HMAC-005")
def test_a_token_of_a_key_in_grace_verifies():
    waitpoint, token = signed()
    ring = ring_of(key_of(expires_at=NOW + 1), key_of("k2", b"other"))
    assert check_token(ring, NAMESPACE, waitpoint, token, NOW) is waitpoint


@pytest.mark.scenario("HMAC-006")
def test_a_token_of_a_key_past_its_grace_has_expired():
    waitpoint, token = signed()
    ring = ring_of(key_of(expires_at=NOW), key_of("k2", b"other"))
    with pytest.raises(errors.TokenExpired):
        check_token(ring, NAMESPACE, waitpoint, token, NOW)


def test_without_a_key_ring_nothing_verifies_and_nothing_is_signed():
    waitpoint, token = signed()
    with pytest.raises(errors.HmacSecretNotInitialized):
        check_token(None, NAMESPACE, waitpoint, token, NOW)
    with pytest.raises(errors.HmacSecretNotInitialized):
        sign_waitpoint(None, NAMESPACE, new_waitpoint())


@pytest.mark.scenario("HMAC-012")
def test_an_unusable_secret_is_named_as_such():
    waitpoint, token = signed()
    ring = ring_of(key_of(secret=b""))
    with pytest.raises(errors.InvalidSecret):
        check_token(ring, NAMESPACE, waitpoint, token, NOW)
    with pytest.raises(errors.InvalidSecret):
        sign_waitpoint(ring, NAMESPACE, new_waitpoint())


@pytest.mark.scenario("HMAC-010")
def test_an_unknown_waitpoint_is_refused_like_a_wrong_token():
    waitpoint, token = signed()
    wrong = WaitpointToken(f"k1:{'0' * 64}")
    refusals = []
    for known, presented in ((None, token), (None, wrong), (waitpoint, wrong)):
        with pytest.raises(errors.InvalidToken) as refused:
            check_token(RING, NAMESPACE, known, presented, NOW)
        refusals.append((refused.value.code, str(refused.value), refused.value.details))
    assert refusals[0] == refusals[1] == refusals[2]


def test_a_token_made_for_nobody_opens_nothing():
    """What an unknown waitpoint is compared with is public, and must not be a way in."""
    nobody = replace(new_waitpoint(), execution_id="", waitpoint_id="", waitpoint_key="", created_at=0)
    token = sign_waitpoint(RING, NAMESPACE, nobody)
    with pytest.raises(errors.InvalidToken):
        check_token(RING, NAMESPACE, None, token, NOW)


def test_the_token_of_a_removed_key_cannot_be_read_again():
    waitpoint, _ = signed()
    with pytest.raises(errors.TokenExpired) as refused:
        token_of(ring_of(key_of("k2", b"other")), NAMESPACE, waitpoint, NOW)
    assert refused.value.details == {"kid": "k1"}


def test_no_secret_shows_in_a_key_or_in_a_token():
    waitpoint, token = signed()
    assert repr(SECRET) not in repr(RING)
    assert SECRET.hex() not in repr(RING)
    assert token.mac not in f"{token} {token!r} {waitpoint!r}"


parts = st.text(st.characters(codec="utf-8"), max_size=12)


@given(st.lists(parts, max_size=5), st.lists(parts, max_size=5))
def test_two_lists_of_parts_are_never_signed_alike(one, other):
    assert (token_message(*one) == token_message(*other)) == (one == other)


@given(st.text(string.ascii_letters + ":|/", min_size=2, max_size=20), st.data())
def test_moving_the_boundary_between_two_fields_changes_the_message(text, data):
    first, second = data.draw(
        st.lists(st.integers(0, len(text)), min_size=2, max_size=2, unique=True), label="cuts"
    )
    assert token_message(text[:first], text[first:]) != token_message(text[:second], text[second:])


@given(st.text(max_size=100))
def test_no_text_that_is_not_the_token_gets_in(text):
    waitpoint, token = signed()
    if text == token.value:
        return
    with pytest.raises(errors.InvalidInput):
        check_token(RING, NAMESPACE, waitpoint, WaitpointToken(text), NOW)
