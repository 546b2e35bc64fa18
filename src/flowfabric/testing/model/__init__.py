"""The model: random programs of commands, run against the memory store and another one in lockstep.

A store's author, and everyone who changes a rule, gets from it what no list of examples gives: any
command after any other, refused ones among them, with time passing and restarts in between. A new
command takes part through one function in ``generators``; a run says which commands have none.
"""

from flowfabric.testing.model.coverage import Coverage, codes_to_see, kinds_without_generator
from flowfabric.testing.model.lockstep import Divergence, Lockstep
from flowfabric.testing.model.run import Failed, replay, run_model
from flowfabric.testing.model.steps import Pass, Restart, Send, Step, Together

__all__ = [
    "Coverage",
    "Divergence",
    "Failed",
    "Lockstep",
    "Pass",
    "Restart",
    "Send",
    "Step",
    "Together",
    "codes_to_see",
    "kinds_without_generator",
    "replay",
    "run_model",
]
