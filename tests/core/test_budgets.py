"""Budgets: what is counted, when a budget is closed, and when it opens again."""

import pytest

from flowfabric import errors
from flowfabric.contracts.budgets import (
    CreateBudgetArgs,
    EnforcementMode,
    GetBudgetStatusArgs,
    OnHardLimit,
    OnSoftLimit,
    ReadBudgetUsageAndLimitsArgs,
    ReportUsageAdminArgs,
    ResetBudgetArgs,
    UsageApplied,
    UsageHardBreach,
)
from flowfabric.contracts.ids import budget_id_of
from flowfabric.contracts.limits import SAFE_INTEGER_MAX
from flowfabric.errors import InvalidInput
from tests.core.harness import NAMESPACE, Rulebook, new_id

BUDGET = budget_id_of(NAMESPACE, "team")
KNOWN = "ea974955-35a1-5532-a53c-6f27106640c8"


def creation(**fields):
    defaults = {
        "budget_id": BUDGET,
        "name": "team",
        "scope_type": "",
        "scope_id": "",
        "enforcement_mode": EnforcementMode.STRICT,
        "on_hard_limit": OnHardLimit.DENY,
        "on_soft_limit": OnSoftLimit.WARN,
        "reset_interval_ms": 0,
        "dimensions": ("tokens",),
        "hard_limits": (10,),
        "soft_limits": (0,),
    }
    return CreateBudgetArgs(**{**defaults, **fields})


@pytest.fixture
def book():
    book = Rulebook()
    book.run(creation())
    return book


def spend(book, tokens):
    return book.run(ReportUsageAdminArgs(budget_id=BUDGET, dimensions=("tokens",), deltas=(tokens,)))


def has_headroom(book):
    return book.run(ReadBudgetUsageAndLimitsArgs(budget_id=BUDGET)).has_headroom


def status(book):
    return book.run(GetBudgetStatusArgs(budget_id=BUDGET))


def test_names_make_ids_that_never_change():
    assert budget_id_of("tenant", "team") == KNOWN
    assert budget_id_of("other", "team") != KNOWN
    assert budget_id_of("tenant", BUDGET) == BUDGET


@pytest.mark.parametrize("interval_ms", [0, 1_000])
def test_a_period_is_none_or_a_second_or_more(interval_ms):
    creation(reset_interval_ms=interval_ms).validate()


@pytest.mark.parametrize("interval_ms", [1, 999])
def test_a_shorter_period_is_refused_for_it_would_keep_the_duty_busy(interval_ms):
    with pytest.raises(InvalidInput, match="reset_interval_ms"):
        creation(reset_interval_ms=interval_ms).validate()


def test_a_budget_is_closed_from_the_report_on_that_meets_its_limit(book):
    assert spend(book, 9) == UsageApplied()
    assert has_headroom(book)
    assert spend(book, 1) == UsageApplied()
    assert not has_headroom(book)


def test_a_reset_opens_it_again(book):
    spend(book, 10)
    book.run(ResetBudgetArgs(budget_id=BUDGET))
    assert has_headroom(book)


def test_a_refused_report_leaves_a_budget_open_that_only_denies(book):
    assert isinstance(spend(book, 11), UsageHardBreach)
    assert has_headroom(book)
    assert status(book).breach_count == 1


@pytest.mark.parametrize("word", [OnHardLimit.PAUSE, OnHardLimit.CANCEL])
def test_a_refused_report_closes_a_budget_that_acts_on_it(word):
    book = Rulebook()
    book.run(creation(on_hard_limit=word))
    assert isinstance(spend(book, 11), UsageHardBreach)
    assert not has_headroom(book)


def test_a_report_of_nothing_passes_no_limit(book):
    spend(book, 10)
    assert spend(book, 0) == UsageApplied()


def test_a_sum_that_cannot_be_kept_exactly_is_refused():
    book = Rulebook()
    book.run(creation(hard_limits=(0,)))
    spend(book, SAFE_INTEGER_MAX)
    with book.refuses(errors.InvalidInput):
        spend(book, 1)


def test_a_caller_without_bounds_has_to_name_the_namespace():
    book = Rulebook()
    with book.refuses(errors.InvalidInput):
        book.run(creation(budget_id=new_id(), name=""), namespace=None)
