"""Removing what need not be remembered any longer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric.core.commands import DedupForgotten, ForgetDedupArgs
from flowfabric.core.records import Dedup, key_for
from flowfabric.core.registry import no_subject, rule

if TYPE_CHECKING:
    from flowfabric.core.work import Work


@rule(ForgetDedupArgs, subject=no_subject, reads=lambda args: (key_for(Dedup, args.dedup_id),))
def forget_dedup(work: Work, args: ForgetDedupArgs) -> DedupForgotten:
    """Remove a remembered answer once its window is over."""
    dedup = work.read(Dedup, args.dedup_id)
    if dedup is None:
        return DedupForgotten(action="gone")
    if dedup.expires_at > work.now:
        return DedupForgotten(action="kept")
    work.remove(dedup)
    return DedupForgotten(action="forgotten")
