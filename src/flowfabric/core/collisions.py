"""Which lanes share a partition, where ids are minted beside their lane.

``new_execution_id(lane=…)`` keeps all executions of a lane in one partition. Two lanes in the same
one do no harm but share the throughput of one place, so who chooses lane names can look here first.
Ids that spread by their own uuid, as those of ``submit`` do, are not concerned.
"""

from __future__ import annotations

from collections import defaultdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from flowfabric.contracts.base import Value
from flowfabric.contracts.ids import LaneId, lane_partition, parse_lane_id
from flowfabric.contracts.partitions import FLOW_PARTITIONS, PartitionIndex
from flowfabric.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PARTITIONS_MAX: Final = 65_535
ELEVATED_FROM_PERCENT: Final = 5
REMEDIATE_ABOVE_PERCENT: Final = 15


class CollisionSeverity(StrEnum):
    """How much the lanes are in each other's way, by the part of them that shares a partition."""

    CLEAN = "clean"
    """None."""
    WATCH = "watch"
    """Less than 5 %."""
    ELEVATED = "elevated"
    """5 to 15 %."""
    REMEDIATE = "remediate"
    """More than 15 %."""

    @property
    def advice(self) -> str:
        """What to do, in a sentence."""
        return _ADVICE[self]


_ADVICE: Final = {
    CollisionSeverity.CLEAN: "Every lane has a partition of its own.",
    CollisionSeverity.WATCH: "Nothing has to be done unless the lanes that share one are busy.",
    CollisionSeverity.ELEVATED: "See that no two busy lanes share one; another name moves a lane.",
    CollisionSeverity.REMEDIATE: "Rename busy lanes that share one, or mint ids without a lane: they spread "
    "by themselves.",
}


class LanePlace(Value):
    """One lane, its partition, and the other lanes there."""

    lane_id: LaneId
    partition: PartitionIndex
    shared_with: tuple[LaneId, ...] = ()


class CollisionReport(Value):
    """The lanes in the order of their partitions, and what to make of it."""

    partitions: Annotated[int, Meta(ge=1, le=PARTITIONS_MAX)]
    lanes: tuple[LanePlace, ...]
    colliding: int
    """How many lanes share a partition with another one."""
    severity: CollisionSeverity


def report_collisions(lanes: Iterable[str], partitions: int = FLOW_PARTITIONS) -> CollisionReport:
    """Say which of these lanes share a partition among so many. A lane that is named twice is one lane.

    >>> report_collisions(["hot", "coding"]).severity
    <CollisionSeverity.CLEAN: 'clean'>

    Raises:
        InvalidInput: a name is no lane's, or there cannot be so many partitions.
    """
    if not 1 <= partitions <= PARTITIONS_MAX:
        raise InvalidInput(field="partitions", value=str(partitions), rule=f"from 1 to {PARTITIONS_MAX}")
    housed: dict[int, list[LaneId]] = defaultdict(list)
    for lane in sorted(set(lanes)):
        housed[lane_partition(parse_lane_id(lane), partitions)].append(lane)
    places = tuple(place for partition in sorted(housed) for place in _places(partition, housed[partition]))
    colliding = sum(bool(place.shared_with) for place in places)
    return CollisionReport(
        partitions=partitions,
        lanes=places,
        colliding=colliding,
        severity=_severity(colliding, len(places)),
    )


def _places(partition: int, lanes: list[LaneId]) -> Iterator[LanePlace]:
    for lane in lanes:
        others = tuple(other for other in lanes if other != lane)
        yield LanePlace(lane_id=lane, partition=partition, shared_with=others)


def _severity(colliding: int, lanes: int) -> CollisionSeverity:
    """In whole numbers, so that a share of exactly 5 or 15 % falls where it should."""
    if colliding == 0:
        return CollisionSeverity.CLEAN
    if 100 * colliding < ELEVATED_FROM_PERCENT * lanes:
        return CollisionSeverity.WATCH
    if 100 * colliding <= REMEDIATE_ABOVE_PERCENT * lanes:
        return CollisionSeverity.ELEVATED
    return CollisionSeverity.REMEDIATE
