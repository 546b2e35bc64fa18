"""Quota policies: the window as a plain list says what the ring has to say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfabric.contracts.ids import quota_policy_id_of
from flowfabric.contracts.quotas import (
    AdmissionGranted,
    AdmissionRateExceeded,
    CheckAdmissionArgs,
    CreateQuotaPolicyArgs,
    ReadQuotaPolicyLimitsArgs,
    ReleaseAdmissionArgs,
)
from flowfabric.core.commands import CorrectQuotaCounterArgs
from tests.core.harness import NAMESPACE, Rulebook

QUOTA = quota_policy_id_of(NAMESPACE, "llm")
WINDOW_MS = 10_000


def policy(rate=0, cap=0):
    book = Rulebook()
    book.run(
        CreateQuotaPolicyArgs(
            quota_policy_id=QUOTA,
            name="llm",
            window_seconds=WINDOW_MS // 1_000,
            max_requests_per_window=rate,
            max_concurrent=cap,
        )
    )
    return book


def ask(book, execution_id):
    return book.run(CheckAdmissionArgs(quota_policy_id=QUOTA, execution_id=execution_id))


def active(book):
    limits = book.run(ReadQuotaPolicyLimitsArgs(quota_policy_id=QUOTA))
    assert limits is not None
    return limits.active


@given(
    rate=st.integers(1, 5),
    pauses=st.lists(st.sampled_from([0, 1, 1_000, WINDOW_MS // 2, WINDOW_MS - 1, WINDOW_MS]), max_size=40),
)
def test_the_ring_admits_what_a_list_of_all_admissions_would(rate, pauses):
    book = policy(rate=rate)
    admitted: list[int] = []
    for pause in pauses:
        book.advance(pause)
        recent = [instant for instant in admitted if instant > book.now - WINDOW_MS]
        answer = ask(book, book.create())
        if len(recent) < rate:
            assert answer == AdmissionGranted()
            admitted.append(book.now)
        else:
            assert answer == AdmissionRateExceeded(retry_after_ms=recent[-rate] + WINDOW_MS - book.now)


def test_chance_spreads_those_who_are_to_come_back():
    book = policy(rate=1)
    ask(book, book.create())
    asking = CheckAdmissionArgs(quota_policy_id=QUOTA, execution_id=book.create(), jitter_ms=1_000)
    assert book.run(asking, random=0.5) == AdmissionRateExceeded(retry_after_ms=WINDOW_MS + 500)


def test_a_release_gives_the_place_back_and_not_the_admission():
    book = policy(rate=1, cap=1)
    execution_id = book.create()
    ask(book, execution_id)
    book.run(ReleaseAdmissionArgs(quota_policy_id=QUOTA, execution_id=execution_id))
    assert active(book) == 0
    assert isinstance(ask(book, book.create()), AdmissionRateExceeded)


@pytest.mark.parametrize(("behind", "action"), [(0, "corrected"), (1, "busy")])
def test_a_counter_is_set_only_if_nothing_has_changed_since_it_was_counted(behind, action):
    book = policy()
    ask(book, book.create())
    correction = CorrectQuotaCounterArgs(quota_policy_id=QUOTA, revision=1 - behind, active=0)
    assert book.run(correction).action == action
