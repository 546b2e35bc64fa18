"""FlowFabric: durable execution for Python.

Long-running, interruptible work that survives crashes, waits for people, streams what it does,
and never does the same thing twice by accident.
"""

from flowfabric.app import FlowFabric
from flowfabric.contracts.policy import ExponentialBackoff, FixedBackoff
from flowfabric.errors import FlowFabricError, RunCancelled, RunExpired, RunFailed, RunSkipped
from flowfabric.flows import Flow, FlowRun, Member, all_of, any_of, quorum
from flowfabric.outcomes import Fatal, Retry
from flowfabric.run import Run
from flowfabric.task import PublishedWaitpoint, ReceivedSignal, SignalTimeout, SyncTask, Task

__all__ = [
    "ExponentialBackoff",
    "Fatal",
    "FixedBackoff",
    "Flow",
    "FlowFabric",
    "FlowFabricError",
    "FlowRun",
    "Member",
    "PublishedWaitpoint",
    "ReceivedSignal",
    "Retry",
    "Run",
    "RunCancelled",
    "RunExpired",
    "RunFailed",
    "RunSkipped",
    "SignalTimeout",
    "SyncTask",
    "Task",
    "all_of",
    "any_of",
    "quorum",
]
