"""Resume conditions, evaluated one signal at a time, and compared with a model that looks at all."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowfabric.contracts.conditions import (
    AllOf,
    ByName,
    Composite,
    Count,
    CountKind,
    OperatorOnly,
    ResumeCondition,
    Single,
    TimeoutOnly,
    Wildcard,
)
from flowfabric.contracts.signals import SignalEffect
from flowfabric.core.conditions import (
    Applied,
    Arrival,
    Satisfiers,
    Unmet,
    apply_signal,
    is_met,
    required_signal_names,
    unmet_nodes,
)

SATISFIED = SignalEffect.RESUME_CONDITION_SATISFIED
APPENDED = SignalEffect.APPENDED_TO_WAITPOINT
DUPLICATE = SignalEffect.APPENDED_TO_WAITPOINT_DUPLICATE
NO_OP = SignalEffect.NO_OP
NOT_IN_CONDITION = SignalEffect.SIGNAL_IGNORED_NOT_IN_CONDITION
MATCHER_FAILED = SignalEffect.SIGNAL_IGNORED_MATCHER_FAILED


def arrival(key="a", name="go", signal_id="s1", source="ana", source_type="cli") -> Arrival:
    return Arrival(
        signal_id=signal_id,
        signal_name=name,
        source_type=source_type,
        source_identity=source,
        waitpoint_id=f"id-{key}",
        waitpoint_key=key,
    )


def single(key="a", name: str | None = None) -> Single:
    return Single(waitpoint_key=key, matcher=Wildcard() if name is None else ByName(name=name))


def all_of(*members) -> Composite:
    return Composite(body=AllOf(members=members))


def count(n, kind, *keys, matcher=None) -> Composite:
    return Composite(body=Count(n=n, count_kind=kind, matcher=matcher, waitpoints=keys))


def effects(condition, *arrivals) -> list[SignalEffect]:
    """What each of the signals does, until the condition is met."""
    satisfiers: Satisfiers = {}
    found = []
    for one in arrivals:
        applied = apply_signal(condition, satisfiers, one)
        satisfiers = applied.satisfiers
        found.append(applied.effect)
    return found


def test_a_single_is_met_by_its_first_signal():
    assert effects(single(), arrival()) == [SATISFIED]


def test_a_single_with_a_name_takes_no_other():
    assert effects(single(name="go"), arrival(name="stay"), arrival(name="go")) == [NO_OP, SATISFIED]


def test_a_single_takes_nothing_from_another_waitpoint():
    assert effects(single("a"), arrival("b")) == [NO_OP]


@pytest.mark.parametrize("condition", [OperatorOnly(), TimeoutOnly()], ids=lambda kind: type(kind).__name__)
@pytest.mark.parametrize("name", ["go", "__operator_only__", "__timeout_only__", "timeout", ""])
def test_no_signal_of_any_name_meets_what_waits_for_an_operator_or_a_time(condition, name):
    assert effects(condition, arrival(name=name)) == [NO_OP]


@pytest.mark.scenario("SUSP-016")
def test_all_of_takes_each_member_once():
    condition = all_of(single(name="alpha"), single(name="beta"))
    alpha, again, beta = arrival(name="alpha"), arrival(name="alpha", signal_id="s2"), arrival(name="beta")
    assert effects(condition, alpha, again, beta) == [APPENDED, DUPLICATE, SATISFIED]


def test_one_signal_may_meet_several_members():
    assert effects(all_of(single(name="go"), single()), arrival(name="go")) == [SATISFIED]


def test_a_composite_ignores_waitpoints_it_does_not_name():
    assert effects(all_of(single("a")), arrival("b")) == [NOT_IN_CONDITION]


def test_a_composite_says_when_every_matcher_failed():
    assert effects(all_of(single("a", "go")), arrival("a", "stay")) == [MATCHER_FAILED]


@pytest.mark.parametrize("condition", [OperatorOnly(), TimeoutOnly()], ids=lambda kind: type(kind).__name__)
def test_a_member_that_no_signal_meets_keeps_all_of_open(condition):
    assert effects(all_of(single(), condition), arrival(), arrival(signal_id="s2")) == [APPENDED, DUPLICATE]


@pytest.mark.scenario("SUSP-017")
def test_counting_waitpoints_resumes_on_the_first_of_many():
    assert effects(count(1, CountKind.DISTINCT_WAITPOINTS, "a", "b"), arrival("b")) == [SATISFIED]


def test_counting_waitpoints_counts_each_once():
    condition = count(2, CountKind.DISTINCT_WAITPOINTS, "a", "b")
    arrivals = (arrival("a"), arrival("a", signal_id="s2"), arrival("b"))
    assert effects(condition, *arrivals) == [APPENDED, DUPLICATE, SATISFIED]


@pytest.mark.scenario("SUSP-017")
def test_counting_signals_counts_by_signal_id():
    condition = count(2, CountKind.DISTINCT_SIGNALS, "a")
    arrivals = (arrival(signal_id="s1"), arrival(signal_id="s1"), arrival(signal_id="s2"))
    assert effects(condition, *arrivals) == [APPENDED, DUPLICATE, SATISFIED]


@pytest.mark.scenario("SUSP-017")
def test_counting_sources_counts_who_sent():
    condition = count(2, CountKind.DISTINCT_SOURCES, "a")
    arrivals = (arrival(source="alice"), arrival(source="alice", signal_id="s2"), arrival(source="bob"))
    assert effects(condition, *arrivals) == [APPENDED, DUPLICATE, SATISFIED]


def test_sources_are_told_apart_by_type_and_identity():
    condition = count(2, CountKind.DISTINCT_SOURCES, "a")
    arrivals = (
        arrival(source_type="a:b", source="c"),
        arrival(source_type="a", source="b:c", signal_id="s2"),
    )
    assert effects(condition, *arrivals) == [APPENDED, SATISFIED]


@pytest.mark.scenario("SUSP-017")
def test_a_count_with_a_matcher_counts_nothing_else():
    condition = count(1, CountKind.DISTINCT_SOURCES, "a", matcher=ByName(name="go"))
    assert effects(condition, arrival(name="stay"), arrival(name="go")) == [MATCHER_FAILED, SATISFIED]


def test_two_counts_of_one_kind_do_not_share_what_they_counted():
    condition = all_of(count(1, CountKind.DISTINCT_SIGNALS, "a"), count(1, CountKind.DISTINCT_SIGNALS, "b"))
    arrivals = (arrival("a"), arrival("a", signal_id="s2"), arrival("b", signal_id="s3"))
    assert effects(condition, *arrivals) == [APPENDED, APPENDED, SATISFIED]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_composite_at_any_depth_can_be_met(depth):
    condition = count(2, CountKind.DISTINCT_SIGNALS, "a")
    for _ in range(depth):
        condition = all_of(condition, single("b"))
    arrivals = (arrival("b"), arrival("a"), arrival("a", signal_id="s2"))
    assert effects(condition, *arrivals)[-1] is SATISFIED


def test_nothing_that_is_passed_in_is_changed():
    satisfiers: Satisfiers = {"members[0]": ("s0",)}
    apply_signal(all_of(single("b"), single("a")), satisfiers, arrival("a"))
    assert satisfiers == {"members[0]": ("s0",)}


@pytest.mark.scenario("SUSP-027")
@pytest.mark.parametrize(
    ("condition", "names"),
    [
        (single(name="go"), ("go",)),
        (single(), ()),
        (OperatorOnly(), ("__operator_only__",)),
        (TimeoutOnly(), ("__timeout_only__",)),
        (all_of(single("a", "x"), single("a", "y"), single("b", "z")), ("x", "y")),
        (all_of(single("a", "x"), single("a")), ()),
        (count(1, CountKind.DISTINCT_SIGNALS, "a", matcher=ByName(name="x")), ("x",)),
        (count(1, CountKind.DISTINCT_SIGNALS, "a"), ()),
    ],
)
def test_the_names_that_count_on_a_waitpoint(condition, names):
    assert required_signal_names(condition, "a") == names


# The model: look at all signals so far, with nothing remembered between them.

KEYS = ("a", "b", "c")
NAMES = ("x", "y")

matchers = st.one_of(st.builds(Wildcard), st.sampled_from(NAMES).map(lambda name: ByName(name=name)))
leaves = st.one_of(
    st.builds(Single, waitpoint_key=st.sampled_from(KEYS), matcher=matchers),
    st.builds(OperatorOnly),
    st.builds(TimeoutOnly),
)
counts = st.builds(
    Count,
    n=st.integers(1, 3),
    count_kind=st.sampled_from(CountKind),
    matcher=st.none() | matchers,
    waitpoints=st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True).map(tuple),
).map(lambda body: Composite(body=body))


def nested(depth: int) -> st.SearchStrategy[ResumeCondition]:
    """Conditions of at most this depth; mostly ones that signals can meet."""
    if depth == 1:
        return counts | leaves
    members = st.lists(nested(depth - 1), min_size=1, max_size=3).map(tuple)
    return counts | leaves | members.map(lambda found: Composite(body=AllOf(members=found)))


arrivals_strategy = st.lists(
    st.builds(
        arrival,
        key=st.sampled_from(KEYS),
        name=st.sampled_from((*NAMES, "z")),
        signal_id=st.sampled_from(("s1", "s2", "s3", "s4")),
        source=st.sampled_from(("ana", "bob")),
    ),
    max_size=12,
)


def accepts(matcher, one: Arrival) -> bool:
    return not isinstance(matcher, ByName) or matcher.name == one.signal_name


def model(condition: ResumeCondition, arrivals: list[Arrival]) -> bool:
    if isinstance(condition, Single):
        return any(
            one.waitpoint_key == condition.waitpoint_key and accepts(condition.matcher, one)
            for one in arrivals
        )
    if not isinstance(condition, Composite):
        return False
    body = condition.body
    if isinstance(body, AllOf):
        return all(model(member, arrivals) for member in body.members)
    matching = [
        one for one in arrivals if one.waitpoint_key in body.waitpoints and accepts(body.matcher, one)
    ]
    counted: dict[CountKind, set[Any]] = {
        CountKind.DISTINCT_WAITPOINTS: {one.waitpoint_key for one in matching},
        CountKind.DISTINCT_SIGNALS: {one.signal_id for one in matching},
        CountKind.DISTINCT_SOURCES: {(one.source_type, one.source_identity) for one in matching},
    }
    return len(counted[body.count_kind]) >= body.n


def run(condition: ResumeCondition, arrivals: list[Arrival]) -> tuple[list[Applied], Satisfiers]:
    satisfiers: Satisfiers = {}
    applied = []
    for one in arrivals:
        applied.append(apply_signal(condition, satisfiers, one))
        satisfiers = applied[-1].satisfiers
    return applied, satisfiers


@settings(max_examples=200)
@given(nested(4), arrivals_strategy)
def test_the_evaluator_agrees_with_the_model_after_every_signal(condition, arrivals):
    applied, _ = run(condition, arrivals)
    for place, one in enumerate(applied, 1):
        assert is_met(condition, one.satisfiers) == model(condition, arrivals[:place])


@settings(max_examples=100)
@given(nested(4), arrivals_strategy)
def test_the_condition_is_met_by_exactly_one_signal(condition, arrivals):
    met = [model(condition, arrivals[:place]) for place in range(1, len(arrivals) + 1)]
    applied, _ = run(condition, arrivals)
    first = met.index(True) if True in met else None
    for place, one in enumerate(applied):
        if first is None or place < first:
            assert one.effect is not SATISFIED
        elif place == first:
            assert one.effect is SATISFIED


@given(nested(4), arrivals_strategy)
def test_a_signal_contributes_exactly_when_it_adds_a_satisfier(condition, arrivals):
    satisfiers: Satisfiers = {}
    for one in arrivals:
        applied = apply_signal(condition, satisfiers, one)
        assert applied.contributed == (applied.satisfiers != satisfiers)
        satisfiers = applied.satisfiers


@given(nested(4))
def test_a_condition_survives_being_stored(condition):
    data = msgspec.msgpack.encode(condition)
    assert msgspec.msgpack.decode(data, type=ResumeCondition) == condition


def test_what_is_unmet_names_places_signals_and_how_many_are_missing():
    condition = all_of(single("c", "go"), count(2, CountKind.DISTINCT_SIGNALS, "a", "b"))
    assert list(unmet_nodes(condition, {"members[1]": ("one",)})) == [
        Unmet(path="members[0]", waitpoint_keys=("c",), signal_name="go", received=0, needed=1),
        Unmet(path="members[1]", waitpoint_keys=("a", "b"), signal_name=None, received=1, needed=2),
    ]


@given(nested(4), arrivals_strategy)
def test_nothing_is_unmet_once_the_condition_is_met(condition, arrivals):
    _, satisfiers = run(condition, arrivals)
    if is_met(condition, satisfiers):
        assert list(unmet_nodes(condition, satisfiers)) == []
    elif not any(isinstance(node, OperatorOnly | TimeoutOnly) for node in leaves_of(condition)):
        assert list(unmet_nodes(condition, satisfiers)) != []


def leaves_of(condition):
    """The nodes without members, depth first."""
    if isinstance(condition, Composite) and isinstance(condition.body, AllOf):
        for member in condition.body.members:
            yield from leaves_of(member)
    else:
        yield condition
