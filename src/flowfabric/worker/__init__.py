"""The worker: claims work, runs handlers, keeps their leases, and drains when told to stop."""

from flowfabric.worker.signals import stopped_by_signals
from flowfabric.worker.worker import Worker, WorkerOptions

__all__ = ["Worker", "WorkerOptions", "stopped_by_signals"]
