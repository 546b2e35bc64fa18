"""Commands that nearly fit: one thing in them is somebody else's, out of date, or made up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric.contracts.keyring import WaitpointToken
from flowfabric.core.records import Edge, Execution, Flow, Record, Waitpoint
from flowfabric.testing.model.draw import OTHER_NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowfabric.contracts.base import Command
    from flowfabric.testing.model.draw import Draw


def disturb(draw: Draw, command: Command[Any]) -> Command[Any]:
    """The command with one field that does not fit; as it is if it has no such field."""
    names = [name for name in command.__struct_fields__ if name in WRONG]
    if not names:
        return command
    name = draw.pick(names)
    return msgspec.structs.replace(command, **{name: WRONG[name](draw, command)})


def _id_of_another(record_type: type[Record], field: str) -> Callable[[Draw, Any], str]:
    """An id that another record has, or none."""

    def choose(draw: Draw, command: Any) -> str:
        found = draw.world.all(record_type)
        if found and draw.chance(0.6):
            return str(getattr(draw.pick(found), field))
        return draw.new_execution_id() if record_type is Execution else draw.new_id()

    return choose


def _wrong_fence(draw: Draw, command: Any) -> Any:
    """An earlier fence of the execution, or the current one with one part changed."""
    earlier = draw.world.fences.get(command.execution_id, [])[:-1]
    if earlier and draw.chance(0.5):
        return draw.pick(earlier)
    fence = command.fence
    if fence is None or draw.chance(0.2):
        return None
    part = draw.pick(("lease_id", "lease_epoch", "attempt_id"))
    wrong = fence.lease_epoch + draw.pick((-1, 1)) if part == "lease_epoch" else draw.new_id()
    return msgspec.structs.replace(fence, **{part: wrong})


def _wrong_token(draw: Draw, command: Any) -> WaitpointToken:
    others = draw.world.all(Waitpoint)
    if others and draw.chance(0.5):
        return draw.token(draw.pick(others))
    return WaitpointToken(draw.pick(("", "nonsense", f"k1:{'0' * 64}", f"k9:{'0' * 64}")))


WRONG: Final[dict[str, Callable[[Draw, Any], Any]]] = {
    "execution_id": _id_of_another(Execution, "execution_id"),
    "upstream_execution_id": _id_of_another(Execution, "execution_id"),
    "downstream_execution_id": _id_of_another(Execution, "execution_id"),
    "flow_id": _id_of_another(Flow, "flow_id"),
    "edge_id": _id_of_another(Edge, "edge_id"),
    "waitpoint_id": _id_of_another(Waitpoint, "waitpoint_id"),
    "fence": _wrong_fence,
    "lease_id": lambda draw, _: draw.new_id(),
    "lease_epoch": lambda draw, command: draw.pick((0, (command.lease_epoch or 0) + 1)),
    "attempt_id": lambda draw, _: draw.new_id(),
    "attempt_index": lambda draw, _: draw.pick((0, 1, 7)),
    "expected_attempt_index": lambda draw, _: draw.pick((0, 1, 7)),
    "current_attempt_index": lambda draw, _: draw.pick((0, 1, 7)),
    "waitpoint_token": _wrong_token,
    "lane_id": lambda draw, _: draw.pick(("second", "")),
    "worker_id": lambda draw, _: draw.pick(("somebody", "")),
    "worker_capabilities": lambda draw, _: frozenset(draw.pick(((), ("a b",)))),
    "namespace": lambda _draw, _: OTHER_NAMESPACE,
    "graph_revision": lambda _draw, _: 0,
    "expected_graph_revision": lambda _draw, _: 0,
    "lease_ttl_ms": lambda draw, _: draw.pick((0, 1)),
    "name": lambda _draw, _: "x" * 257,
}
"""How a field goes wrong, by its name. A field that several commands have needs one line."""
