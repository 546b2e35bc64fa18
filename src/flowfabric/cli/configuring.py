"""What servers and workers are told, as the command line finds it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowfabric.cli.exits import UsageError
from flowfabric.errors import InvalidInput
from flowfabric.settings import (
    COMMON,
    EVERYTHING,
    WORKER,
    fill_environment,
    read_file,
    read_values,
    unread_variables,
)

if TYPE_CHECKING:
    from argparse import Namespace

log = logging.getLogger("flowfabric.cli")


def settings_file(arguments: Namespace) -> Path | None:
    """The file that ``--config`` or ``FF_CONFIG`` names."""
    name = arguments.config or os.environ.get("FF_CONFIG")
    return Path(name) if name else None


def settings_flags(arguments: Namespace) -> dict[str, Any]:
    """What the command line says of settings."""
    given = {**vars(arguments), "url": arguments.url_given, "namespace": arguments.namespace_given}
    return {setting.name: given.get(setting.name) for setting in EVERYTHING if setting.has_flag}


def worker_settings(arguments: Namespace) -> dict[str, Any]:
    """The settings of a worker. What its file says, the app finds in the environment.

    Raises:
        UsageError: a value breaks a rule.
    """
    file = settings_file(arguments)
    try:
        told = read_file(file)
        found = read_values((*COMMON, *WORKER), settings_flags(arguments), os.environ, told)
    except InvalidInput as error:
        raise UsageError(str(error)) from error
    fill_environment(told, os.environ)
    return found


def warn_of_unread_variables() -> None:
    """Say which variables look like settings and are none; most are misspelled."""
    for name, advice in unread_variables(os.environ).items():
        log.warning("the variable %s is not read. %s", name, advice)
