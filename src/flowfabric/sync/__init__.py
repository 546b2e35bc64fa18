"""The same app for code that does not use ``asyncio``: every name, and every call blocks.

```python
from flowfabric.sync import FlowFabric

with FlowFabric("sqlite:///work.db") as ff:
    run = ff.submit("greet", "ana")
    print(run.result(timeout=30))
```

The engine runs on an event loop in a thread of its own. Any number of threads may use one app.
"""

from flowfabric.sync.app import FlowFabric
from flowfabric.sync.engine import Engine, Feed
from flowfabric.sync.portal import Each
from flowfabric.sync.runs import Budget, FlowRun, Quota, Run

__all__ = ["Budget", "Each", "Engine", "Feed", "FlowFabric", "FlowRun", "Quota", "Run"]
