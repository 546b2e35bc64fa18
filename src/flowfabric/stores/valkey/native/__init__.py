"""Commands that a function on the server decides, so that they take one call and never conflict.

The rules stay where they are, in ``core``. A function knows only their common case and declines every
other one, which the engine then decides by the rule; what both write and answer is compared by tests.
"""
