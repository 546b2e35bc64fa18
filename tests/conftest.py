"""Defaults of the whole suite; what a subject needs stands in that subject's folder."""

from hypothesis import settings

# The time limit of a test is pytest's; one example may be slow on a busy machine.
settings.register_profile("suite", deadline=None, max_examples=100, print_blob=True)
settings.register_profile("long", settings.get_profile("suite"), max_examples=5_000)
settings.load_profile("suite")
