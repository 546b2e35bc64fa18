"""The list of acceptance scenarios tells the truth."""

import pytest

from flowfabric.testing.scenarios import is_test, load_scenarios, marked_tests, render_scenarios

SCENARIOS = load_scenarios()
MARKED = marked_tests()


def test_every_scenario_is_listed_once():
    ids = [scenario.id for scenario in SCENARIOS]
    assert len(set(ids)) == len(ids)


def test_what_is_covered_has_a_test_that_carries_its_number():
    covered = {scenario.id for scenario in SCENARIOS if scenario.status == "covered"}
    assert not covered - MARKED.keys()


def test_every_number_that_a_test_carries_is_in_the_list():
    assert not MARKED.keys() - {scenario.id for scenario in SCENARIOS}


def test_what_has_a_test_is_not_left_for_later():
    later = {scenario.id for scenario in SCENARIOS if scenario.status == "later"}
    assert not later & MARKED.keys()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.id)
def test_each_status_says_what_goes_with_it(scenario):
    told = (bool(scenario.reason), bool(scenario.held_by), bool(scenario.part))
    expected = {
        "covered": (False, False, False),
        "replaced": (True, True, False),
        "later": (False, False, True),
    }
    assert told == expected[scenario.status]
    if scenario.status == "replaced":
        assert is_test(scenario.held_by)


def test_the_page_shows_every_scenario():
    page = render_scenarios()
    assert all(f"| {scenario.id} |" in page for scenario in SCENARIOS)
