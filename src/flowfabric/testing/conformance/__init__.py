"""The suite that every store has to pass.

A store's author subclasses ``StoreConformance`` and says how a store is made::

    class TestMyStore(StoreConformance):
        def make_store(self, path):
            return MyStore(path / "work.db")

The suite needs pytest and pytest-asyncio. It drives the store by a clock of its own, compares what
is stored with what the memory store holds after the same commands, and audits after every test.
"""

import pytest

pytest.register_assert_rewrite(
    "flowfabric.testing.conformance.admission",
    "flowfabric.testing.conformance.budgets",
    "flowfabric.testing.conformance.protocol",
    "flowfabric.testing.conformance.commands",
    "flowfabric.testing.conformance.feeds",
    "flowfabric.testing.conformance.fences",
    "flowfabric.testing.conformance.flow_news",
    "flowfabric.testing.conformance.flows",
    "flowfabric.testing.conformance.lanes",
    "flowfabric.testing.conformance.model",
    "flowfabric.testing.conformance.retention",
    "flowfabric.testing.conformance.scenarios",
    "flowfabric.testing.conformance.workers",
)

from flowfabric.testing.conformance.admission import AdmissionConformance  # noqa: E402 - rewritten first
from flowfabric.testing.conformance.budgets import BudgetConformance  # noqa: E402
from flowfabric.testing.conformance.commands import CommandConformance  # noqa: E402
from flowfabric.testing.conformance.feeds import FeedConformance  # noqa: E402
from flowfabric.testing.conformance.fences import FenceConformance  # noqa: E402
from flowfabric.testing.conformance.flow_news import FlowNewsConformance  # noqa: E402
from flowfabric.testing.conformance.flows import FlowConformance  # noqa: E402
from flowfabric.testing.conformance.lanes import LaneConformance  # noqa: E402
from flowfabric.testing.conformance.model import ModelConformance  # noqa: E402
from flowfabric.testing.conformance.protocol import ProtocolConformance  # noqa: E402
from flowfabric.testing.conformance.retention import RetentionConformance  # noqa: E402
from flowfabric.testing.conformance.scenarios import ScenarioConformance  # noqa: E402
from flowfabric.testing.conformance.workers import DeathConformance, WorkerConformance  # noqa: E402

__all__ = [
    "AdmissionConformance",
    "BudgetConformance",
    "CommandConformance",
    "DeathConformance",
    "FeedConformance",
    "FenceConformance",
    "FlowConformance",
    "FlowNewsConformance",
    "LaneConformance",
    "ModelConformance",
    "ProtocolConformance",
    "RetentionConformance",
    "ScenarioConformance",
    "StoreConformance",
    "WorkerConformance",
]


class StoreConformance(
    ProtocolConformance,
    CommandConformance,
    FenceConformance,
    ScenarioConformance,
    FlowConformance,
    BudgetConformance,
    AdmissionConformance,
    RetentionConformance,
    LaneConformance,
    FeedConformance,
    FlowNewsConformance,
    WorkerConformance,
    DeathConformance,
    ModelConformance,
):
    """Everything a store has to pass."""
