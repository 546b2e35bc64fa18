"""The rules: one module per subject. Importing this package registers all of them."""

from __future__ import annotations

from flowfabric.core.rules import (
    attributes,
    claiming,
    creation,
    ending,
    finishing,
    forgetting,
    grants,
    journal,
    keys,
    lapsing,
    leasing,
    pausing,
    reading,
    reclaiming,
    replaying,
    signalling,
    streaming,
    suspending,
    suspension_timeouts,
    waitpoints,
)

__all__ = [
    "attributes",
    "claiming",
    "creation",
    "ending",
    "finishing",
    "forgetting",
    "grants",
    "journal",
    "keys",
    "lapsing",
    "leasing",
    "pausing",
    "reading",
    "reclaiming",
    "replaying",
    "signalling",
    "streaming",
    "suspending",
    "suspension_timeouts",
    "waitpoints",
]
