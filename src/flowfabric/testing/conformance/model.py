"""Random programs: the store does what the memory store does, whatever comes after whatever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from flowfabric.testing.conformance.base import StoreSuite
from flowfabric.testing.model import Coverage, run_model
from flowfabric.testing.model.coverage import command_kinds

if TYPE_CHECKING:
    from pathlib import Path

PIECES: Final = 8
STEPS: Final = 250
STEPS_MAX: Final = 1_500
"""How long a piece goes on if something it has to send was not accepted yet."""


class ModelConformance(StoreSuite):
    """Some two thousand steps, in pieces that can run side by side."""

    @pytest.mark.slow
    @pytest.mark.parametrize("piece", range(PIECES))
    async def test_random_programs_leave_what_they_leave_in_the_model(
        self, tmp_path: Path, piece: int
    ) -> None:
        """Each piece has its share of the commands, of each of which one is accepted."""
        share = sorted(command_kinds())[piece::PIECES]
        seen = Coverage()
        while seen.steps < STEPS or (seen.missing_kinds().intersection(share) and seen.steps < STEPS_MAX):
            await run_model(
                self.make_store, tmp_path, seed=f"piece {piece}", steps=STEPS, coverage=seen, wanted=share
            )
        assert not seen.missing_kinds().intersection(share)
