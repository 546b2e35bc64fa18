"""Which FlowFabric this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """The version of the installed package, or that it is not installed."""
    try:
        return version("flowfabric")
    except PackageNotFoundError:
        return "not installed"
