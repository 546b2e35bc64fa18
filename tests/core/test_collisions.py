"""Which lanes share a partition, and how bad that is."""

import pytest

from flowfabric.contracts.ids import lane_partition
from flowfabric.core.collisions import CollisionSeverity, report_collisions
from flowfabric.errors import InvalidInput


def apart(count):
    """So many lanes of which no two share one of 256 partitions."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < count:
        found.setdefault(lane_partition(f"lane-{number}"), f"lane-{number}")
        number += 1
    return list(found.values())


def beside(lane, name="beside"):
    """Another lane in the same partition."""
    names = (f"{name}-{number}" for number in range(100_000))
    return next(name for name in names if lane_partition(name) == lane_partition(lane))


@pytest.mark.scenario("BOOT-008")
@pytest.mark.parametrize(
    ("others", "severity"),
    [
        (40, CollisionSeverity.WATCH),  # 2 of 41: 4.9 %
        (39, CollisionSeverity.ELEVATED),  # 2 of 40: 5 %
        (13, CollisionSeverity.ELEVATED),  # 2 of 14: 14.3 %
        (12, CollisionSeverity.REMEDIATE),  # 2 of 13: 15.4 %
    ],
)
def test_the_share_of_lanes_that_collide_says_how_bad_it_is(others, severity):
    lanes = apart(others)
    report = report_collisions([*lanes, beside(lanes[0])])
    assert (report.colliding, report.severity) == (2, severity)


@pytest.mark.scenario("BOOT-008")
def test_fifteen_percent_exactly_is_not_yet_too_much():
    lanes = apart(18)
    report = report_collisions([*lanes, beside(lanes[0]), beside(lanes[0], "third")])
    assert (len(report.lanes), report.colliding, report.severity) == (20, 3, CollisionSeverity.ELEVATED)


@pytest.mark.scenario("BOOT-008")
def test_lanes_apart_are_clean():
    report = report_collisions(apart(30))
    assert (report.colliding, report.severity) == (0, CollisionSeverity.CLEAN)
    assert not any(place.shared_with for place in report.lanes)


@pytest.mark.scenario("BOOT-008")
@pytest.mark.parametrize("lanes", [[], ["hot"], ["hot", "hot"]])
def test_no_lane_and_one_lane_are_clean(lanes):
    assert report_collisions(lanes, 1).severity is CollisionSeverity.CLEAN


@pytest.mark.scenario("BOOT-008")
def test_the_lanes_are_in_the_order_of_their_partitions():
    report = report_collisions(["workers-a", "hot", "default", "workers-b", "coding"])
    places = [(place.lane_id, place.partition) for place in report.lanes]
    assert places == [
        ("default", 86),
        ("coding", 96),
        ("workers-b", 162),
        ("workers-a", 193),
        ("hot", 205),
    ]


def test_each_lane_names_those_it_shares_its_partition_with():
    report = report_collisions(["b", "c", "a"], 1)
    assert [(place.lane_id, place.shared_with) for place in report.lanes] == [
        ("a", ("b", "c")),
        ("b", ("a", "c")),
        ("c", ("a", "b")),
    ]
    assert report.severity is CollisionSeverity.REMEDIATE


def test_every_severity_has_an_advice():
    assert len({severity.advice for severity in CollisionSeverity}) == len(CollisionSeverity)


@pytest.mark.parametrize(("lanes", "partitions"), [(["a"], 0), (["a"], 65_536), ([""], 256), (["ä"], 256)])
def test_what_cannot_be_is_refused(lanes, partitions):
    with pytest.raises(InvalidInput):
        report_collisions(lanes, partitions)
