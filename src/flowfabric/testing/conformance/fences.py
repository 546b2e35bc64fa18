"""A stale fence is refused and nothing changed: every fenced command, every part of the fence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from flowfabric import errors
from flowfabric.testing.conformance.base import StoreSuite
from flowfabric.testing.conformance.callers import FENCE_PARTS, HOLDER, build, command_types
from flowfabric.testing.conformance.situations import bring, seed_key

if TYPE_CHECKING:
    from flowfabric.contracts.base import Command
    from flowfabric.testing.bed import Bed

FENCED: Final = tuple(
    name
    for name, (command_type, _) in command_types().items()
    if {"fence", "lease_epoch"} & set(command_type.__struct_fields__)
)
STALE: Final = (errors.StaleLease, errors.StaleOwnerCannotAppend)

WRONG_PARTS: Final = ("older_epoch", "newer_epoch", "other_lease", "other_attempt")


def with_wrong_part(bed: Bed, command: Command[Any], part: str) -> Command[Any]:
    """The command of the holder, with one part of its fence changed."""
    source: Any = getattr(command, "fence", None) or command
    values: dict[str, dict[str, Any]] = {
        "older_epoch": {"lease_epoch": source.lease_epoch - 1},
        "newer_epoch": {"lease_epoch": source.lease_epoch + 1},
        "other_lease": {"lease_id": bed.new_id()},
        "other_attempt": {"attempt_id": bed.new_id()},
    }
    wrong = values[part]
    if source is command:
        return msgspec.structs.replace(command, **wrong)
    return msgspec.structs.replace(command, fence=msgspec.structs.replace(source, **wrong))


class FenceConformance(StoreSuite):
    """Every fenced command, with each part of the fence wrong on its own."""

    @pytest.mark.parametrize("part", WRONG_PARTS)
    @pytest.mark.parametrize("name", FENCED)
    async def test_a_fence_with_one_wrong_part_is_refused(self, bed: Bed, name: str, part: str) -> None:
        command_type, fixed = command_types()[name]
        await seed_key(bed)
        [place] = await bring(bed, "running", 1)
        command = await build(bed, command_type, place, HOLDER, fixed)
        refusal = await bed.refused(with_wrong_part(bed, command, part))
        assert isinstance(refusal, STALE)
        assert await bed.execute(command) is not None  # the holder itself is let in

    @pytest.mark.parametrize("name", FENCED)
    async def test_from_its_expiry_on_a_lease_is_refused(self, bed: Bed, name: str) -> None:
        command_type, fixed = command_types()[name]
        await seed_key(bed)
        [place] = await bring(bed, "running", 1)
        command = await build(bed, command_type, place, HOLDER, fixed)
        bed.clock.now_ms = place.held.lease_expires_at
        refusal = await bed.refused(command)
        assert isinstance(refusal, (errors.LeaseExpired, errors.StaleOwnerCannotAppend))
        bed.clock.now_ms -= 1
        assert await bed.execute(command) is not None

    @pytest.mark.parametrize("name", FENCED)
    async def test_half_a_fence_is_refused(self, bed: Bed, name: str) -> None:
        """Where the three parts are fields that may be left out."""
        command_type, fixed = command_types()[name]
        await seed_key(bed)
        [place] = await bring(bed, "running", 1)
        command = await build(bed, command_type, place, HOLDER, fixed)
        for part in FENCE_PARTS:
            optional = [found for found in msgspec.structs.fields(command_type) if found.name == part]
            if optional and not optional[0].required:
                refusal = await bed.refused(msgspec.structs.replace(command, **{part: None}))
                assert isinstance(refusal, errors.PartialFenceTriple)
