"""The background duties: one loop each, all of the same shape.

A duty reads an index of instants up to now and issues one command for each entry. It never
decides: the command checks again whether something is due. So several processes may scan at
once, and a stale entry does no harm.
"""

from flowfabric.engine.scanners.loop import Scanners

__all__ = ["Scanners"]
