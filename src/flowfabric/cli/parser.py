"""The whole command line: every verb, its arguments, and the function that carries it out.

Nothing heavy is imported here, so ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

from flowfabric.cli import values
from flowfabric.cli.exits import EXIT_CODES, USAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM: Final = "flowfabric"
DEFAULT_URL: Final = "sqlite:///flowfabric.db"
DEFAULT_NAMESPACE: Final = "default"

ENVIRONMENT: Final = {
    "FF_URL": "the store, unless --url names it",
    "FF_TOKEN": "what a server knows you by, when the URL names one",
    "FF_NAMESPACE": "the namespace, unless --namespace names it",
    "FF_RETENTION": "how long workers and `retention` keep what has ended, such as 7d (1d), or off",
    "FF_WAITPOINT_HMAC_SECRET": "64 hexadecimal digits: the secret that the first worker, `keys seed` and "
    "`keys rotate` install; a random one when it is unset",
    "FF_PUBLIC_URL": "where outsiders reach the server, for links that answer waitpoints",
    "FF_CONFIG": "a TOML file with settings of servers and workers, unless --config names it",
    "FF_DEBUG": "set it to see the traceback of a failure",
}

STATES: Final = (
    "waiting",
    "delayed",
    "rate_limited",
    "waiting_children",
    "active",
    "suspended",
    "completed",
    "failed",
    "cancelled",
    "expired",
    "skipped",
)

FAMILIES: Final = ("completion", "lease", "signal", "tag", "execution", "operator")


ROLES: Final = ("read", "submit", "worker", "signal", "operator", "admin")


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where to read more, and leave."""
        print(f"error: {message}. See '{self.prog} --help'. [usage]", file=sys.stderr)
        raise SystemExit(USAGE)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read a command line.

    Raises:
        SystemExit: the command line is wrong, or help was asked for.
    """
    found = build_parser().parse_args(argv)
    given = vars(found)
    found.url_given, found.namespace_given = given.get("url"), given.get("namespace")
    found.url = found.url_given or os.environ.get("FF_URL") or DEFAULT_URL
    found.namespace = found.namespace_given or os.environ.get("FF_NAMESPACE") or DEFAULT_NAMESPACE
    found.json = given.get("json", False)
    return found


def build_parser() -> Parser:
    """Make the parser of everything."""
    parser = Parser(
        prog=PROGRAM,
        description="Durable execution: run workers, submit work, look at it, and operate it.",
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_common_options()],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="show the version and leave")
    verbs = parser.add_subparsers(
        title="verbs", dest="verb", metavar="VERB", required=True, parser_class=Parser
    )
    for add in (
        _worker,
        _submit,
        _list,
        _show,
        _explain,
        _tail,
        _events,
        _cancel,
        _replay,
        _approve,
        _signal,
        _token,
        _link,
    ):
        add(verbs)
    for add in (_pause, _unpause, _budget, _quota, _flow, _lane, _workers, _audit, _retention, _migrate):
        add(verbs)
    for add in (_log, _keys, _server, _new_token):
        add(verbs)
    return parser


class _Version(argparse.Action):
    """Prints the installed version."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from flowfabric.version import installed_version

        print(f"{PROGRAM} {installed_version()}")
        raise SystemExit(0)


def _epilog() -> str:
    lines = ["environment:", *(f"  {name}: {text}" for name, text in ENVIRONMENT.items())]
    lines += ["", "exit codes:", *(f"  {code}: {text}" for code, text in EXIT_CODES.items())]
    return "\n".join(lines)


def _common_options() -> argparse.ArgumentParser:
    """Options that may stand before and after the verb."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("everywhere")
    group.add_argument("--url", metavar="URL", help=f"the store (FF_URL, else {DEFAULT_URL})")
    group.add_argument(
        "--namespace", metavar="NAME", help=f"the namespace (FF_NAMESPACE, else {DEFAULT_NAMESPACE})"
    )
    group.add_argument("--json", action="store_true", help="print JSON: one document, or one in each line")
    return common


def _verb(verbs: Any, name: str, summary: str, carried_out_by: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=summary[:1].upper() + summary[1:] + ".",
        parents=[_common_options()],
        allow_abbrev=False,
    )
    parser.set_defaults(carried_out_by=f"flowfabric.cli.{carried_out_by}")
    return parser


def _id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "execution_id", metavar="ID", type=values.execution_id, help="the execution's full id"
    )


def _worker(verbs: Any) -> None:
    parser = _verb(
        verbs, "worker", "run the handlers of an app until SIGTERM or SIGINT, then drain", "working:work"
    )
    add = parser.add_argument
    add("app", metavar="APP", help="module:attribute of a FlowFabric, such as app:ff")
    add("--lanes", type=values.names, metavar="NAMES", help="lanes to claim from (those of the handlers)")
    add("--concurrency", type=values.positive, metavar="N", help="handlers that run at the same time (16)")
    add("--capabilities", type=values.names, metavar="NAMES", help="what this worker offers")
    add(
        "--lease-ttl",
        type=values.duration_ms,
        metavar="TIME",
        help="how long a silent worker keeps its work (30s)",
    )
    add(
        "--drain-timeout",
        type=values.duration_ms,
        metavar="TIME",
        help="time to finish when told to stop (30s)",
    )
    add("--worker-id", metavar="NAME", help="the logical name, shared by workers that are alike (worker)")
    _process_options(parser)


def _process_options(parser: argparse.ArgumentParser) -> None:
    """What every process that stays can be told."""
    add = parser.add_argument
    add("--config", metavar="FILE", help="a TOML file with settings; flags and environment win over it")
    add("--log-format", choices=("text", "json"), metavar="FORMAT", help="text or json (text)")
    add("--log-level", metavar="LEVEL", help="debug, info, warning or error (info)")
    add(
        "--metrics-listen",
        metavar="ADDRESS",
        help="answer GET /metrics there, such as 127.0.0.1:9464 (FF_METRICS_LISTEN_ADDR)",
    )


def _submit(verbs: Any) -> None:
    parser = _verb(verbs, "submit", "submit work, and wait for its result if asked to", "submitting:submit")
    add = parser.add_argument
    add("kind", metavar="KIND", help="the execution kind: a handler's name")
    add("input", metavar="INPUT", nargs="?", help="JSON text, @file, or - for standard input (null)")
    add(
        "--many",
        metavar="FILE",
        help="submit one execution for each line of JSON in FILE (- for standard input)",
    )
    add("--lane", metavar="NAME", default="default", help="where it waits for a worker (default)")
    add("--priority", type=int, metavar="N", default=0, help="0 to 9000, higher is claimed first (0)")
    add("--idempotency-key", metavar="KEY", help="submitting again with this key finds the first submission")
    add("--delay", type=values.duration_ms, metavar="TIME", help="how long it may not be claimed yet")
    add(
        "--tag",
        type=values.tag,
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a label; may be repeated",
    )
    add(
        "--wait",
        action="store_true",
        help="wait for the end, print the result, and fail if it did not complete",
    )
    add("--timeout", type=values.duration_ms, metavar="TIME", help="how long --wait waits at most")


def _list(verbs: Any) -> None:
    parser = _verb(verbs, "list", "list executions, the newest first", "listing:list_executions")
    add = parser.add_argument
    add("--state", choices=STATES, metavar="STATE", help=f"only this state: {', '.join(STATES)}")
    add("--lane", metavar="NAME", help="only this lane")
    add("--limit", type=values.positive, metavar="N", default=50, help="how many at most (50)")
    add("--cursor", metavar="CURSOR", help="continue behind a list that said there is more")


def _show(verbs: Any) -> None:
    _id(
        _verb(
            verbs, "show", "show one execution: state, attempts, waitpoints, timeline, result", "showing:show"
        )
    )


def _explain(verbs: Any) -> None:
    _id(
        _verb(
            verbs,
            "explain",
            "say why one execution does not run, and what would change it",
            "explaining:explain",
        )
    )


def _workers(verbs: Any) -> None:
    parser = _verb(
        verbs, "workers", "list workers, or take the work of a dead one away", "workers:manage_workers"
    )
    add = parser.add_argument
    add("action", choices=("list", "dead"), metavar="ACTION", help="list, or dead to mark one as dead")
    add(
        "instance", metavar="INSTANCE", nargs="?", help="the instance id of the dead worker, as list shows it"
    )
    add("--lane", metavar="NAME", help="list only workers that claim from this lane")
    add("--limit", type=values.positive, metavar="N", default=50, help="how many at most (50)")
    add("--cursor", metavar="CURSOR", help="continue behind a list that said there is more")
    add("--reason", default="marked by an operator", metavar="TEXT", help="why it is dead, for the record")


def _tail(verbs: Any) -> None:
    parser = _verb(
        verbs, "tail", "print frames as they are written, until the execution ends", "tailing:tail"
    )
    _id(parser)
    parser.add_argument("--attempt", type=int, metavar="N", help="only this attempt, counted from 0")


def _events(verbs: Any) -> None:
    parser = _verb(verbs, "events", "print what happened, in order, and what happens", "following:events")
    add = parser.add_argument
    add(
        "--family",
        type=values.names,
        metavar="NAMES",
        default=(),
        help=f"only these: {', '.join(FAMILIES)} (all)",
    )
    add("--tag", type=values.tag, metavar="KEY=VALUE", help="only executions that had this tag")
    _add_place(parser)


def _log(verbs: Any) -> None:
    _add_place(_verb(verbs, "log", "print what operators did, who it was, and why", "following:log"))


def _add_place(parser: argparse.ArgumentParser) -> None:
    """Which part of the log of events is printed."""
    add = parser.add_argument
    add("--follow", action="store_true", help="go on until interrupted; without a cursor, from now on")
    add("--cursor", metavar="CURSOR", help="continue behind the event that had this cursor")
    add("--execution", metavar="ID", type=values.execution_id, help="only this execution")
    add("--everywhere", action="store_true", help="all namespaces, not only this one")


def _cancel(verbs: Any) -> None:
    parser = _verb(verbs, "cancel", "cancel executions that have not ended", "operating:cancel")
    parser.add_argument("execution_ids", metavar="ID", nargs="+", type=values.execution_id, help="full ids")
    parser.add_argument(
        "--reason", default="cancelled by an operator", metavar="TEXT", help="why, for the record"
    )


def _replay(verbs: Any) -> None:
    parser = _verb(verbs, "replay", "run ended executions again", "operating:replay")
    parser.add_argument("execution_ids", metavar="ID", nargs="+", type=values.execution_id, help="full ids")
    parser.add_argument("--keep-journal", action="store_true", help="do not run again what was recorded")


def _pause(verbs: Any) -> None:
    parser = _verb(verbs, "pause", "keep executions from being claimed until unpaused", "operating:pause")
    parser.add_argument("execution_ids", metavar="ID", nargs="+", type=values.execution_id, help="full ids")
    parser.add_argument(
        "--reason", default="paused by an operator", metavar="TEXT", help="why, for the record"
    )


def _unpause(verbs: Any) -> None:
    parser = _verb(verbs, "unpause", "end the pause of executions", "operating:unpause")
    parser.add_argument("execution_ids", metavar="ID", nargs="+", type=values.execution_id, help="full ids")


def _budget(verbs: Any) -> None:
    parser = _verb(verbs, "budget", "create, show, limit or reset a budget", "budgets:manage_budget")
    add = parser.add_argument
    actions = ("create", "show", "limit", "reset")
    add("action", choices=actions, metavar="ACTION", help=f"{', '.join(actions[:-1])} or {actions[-1]}")
    add("name", metavar="NAME", help="the budget's name or id")
    for kind, meaning in (("hard", "may not be passed"), ("soft", "is told of when passed")):
        add(
            f"--{kind}",
            type=values.amount,
            metavar="NAME=NUMBER",
            action="append",
            default=[],
            help=f"a limit that {meaning}; 0 for none; may be repeated",
        )
    add(
        "--on-hard-limit",
        choices=("deny", "pause", "cancel"),
        metavar="WORD",
        default="deny",
        help="what a refused report does to attached work: deny, pause or cancel (deny)",
    )
    add("--advisory", action="store_true", help="count and tell, refuse nothing")
    add("--reset-every", type=values.duration_ms, metavar="TIME", help="how long a period is (for ever)")


def _quota(verbs: Any) -> None:
    parser = _verb(verbs, "quota", "create or show a quota policy", "budgets:manage_quota")
    add = parser.add_argument
    add("action", choices=("create", "show"), metavar="ACTION", help="create or show")
    add("name", metavar="NAME", help="the quota policy's name or id")
    add("--per", type=values.duration_ms, metavar="TIME", default=60_000, help="the sliding window (1m)")
    add("--requests", type=values.whole, metavar="N", default=0, help="claims in one window (no limit)")
    add("--concurrent", type=values.whole, metavar="N", default=0, help="how many run at once (no limit)")


def _approve(verbs: Any) -> None:
    parser = _verb(
        verbs, "approve", "send an operator's decision to an execution that waits", "signalling:approve"
    )
    _id(parser)
    add = parser.add_argument
    add("--signal", default="approval", metavar="NAME", help="the signal it waits for (approval)")
    add(
        "--payload",
        default='{"approved": true}',
        metavar="JSON",
        help='JSON text, @file or - ({"approved": true})',
    )
    add(
        "--as", dest="identity", metavar="WHO", help="who decides, for the record (the user who is logged in)"
    )


def _signal(verbs: Any) -> None:
    parser = _verb(verbs, "signal", "send a signal to a waitpoint of an execution", "signalling:send_signal")
    _id(parser)
    add = parser.add_argument
    add("name", metavar="NAME", help="the signal's name")
    add("--payload", metavar="JSON", help="JSON text, @file, or - for standard input")
    add(
        "--waitpoint",
        type=values.uuid,
        metavar="ID",
        help="the waitpoint; without it, the one that waits for NAME",
    )
    add("--token", metavar="TOKEN", help="present this token instead of looking one up; needs --waitpoint")
    add("--idempotency-key", metavar="KEY", help="a signal with the same key counts once")
    add("--as", dest="identity", metavar="WHO", help="who sends it, for the record")


def _token(verbs: Any) -> None:
    parser = _verb(
        verbs, "token", "print the token of an open waitpoint; whoever has it may signal", "signalling:token"
    )
    _id(parser)
    parser.add_argument(
        "waitpoint", metavar="WAITPOINT", nargs="?", type=values.uuid, help="its id (the only one)"
    )


def _link(verbs: Any) -> None:
    parser = _verb(
        verbs, "link", "print the link that answers a waitpoint in a browser, once", "signalling:link"
    )
    _id(parser)
    add = parser.add_argument
    add("name", metavar="NAME", help="the signal that it sends")
    add("--question", default="", metavar="TEXT", help="what is asked, as the page shows it")
    add(
        "--choice",
        dest="choices",
        action="append",
        default=[],
        type=values.choice,
        metavar="LABEL=JSON",
        help="something to choose, with what it sends; may be repeated (a text is asked for)",
    )
    add("--public-url", metavar="URL", help="where outsiders reach the server (FF_PUBLIC_URL)")


def _lane(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "lane",
        "list lanes, pause, resume, drain or disable some, or say which share a partition",
        "lanes:manage_lanes",
    )
    add = parser.add_argument
    add(
        "action",
        choices=("list", "pause", "resume", "drain", "disable", "collisions"),
        metavar="ACTION",
        help="list; pause: give no work to workers; drain: take no new work; disable: neither; "
        "resume: both again; collisions: say which share a partition when ids are minted beside their lane",
    )
    add("lanes", metavar="NAME", nargs="*", help="the lanes to act on; collisions: all that there are")
    add("--reason", default="", metavar="TEXT", help="why, for the record and for those who wait")
    add("--limit", type=values.positive, metavar="N", default=100, help="how many to list at most (100)")
    add("--cursor", metavar="NAME", help="list the lanes behind this one")
    add(
        "--partitions",
        type=values.positive,
        metavar="N",
        default=256,
        help="collisions: among how many partitions (256)",
    )


def _flow(verbs: Any) -> None:
    parser = _verb(verbs, "flow", "submit, list, show or cancel flows", "flows:manage_flows")
    add = parser.add_argument
    actions = ("submit", "list", "show", "members", "cancel")
    add("action", choices=actions, metavar="ACTION", help="submit, list, show, members or cancel")
    add("subject", metavar="SUBJECT", nargs="?", help="the file to submit (- for standard input), or the id")
    add("--idempotency-key", metavar="KEY", help="submitting again with this key finds the first flow")
    add("--limit", type=values.positive, metavar="N", default=50, help="how many at most (50)")
    add("--cursor", metavar="CURSOR", help="continue behind a list that said there is more")
    add("--reason", default="cancelled by an operator", metavar="TEXT", help="why, for the record")
    add(
        "--policy",
        choices=("cancel_all", "cancel_pending", "cancel_flow_only"),
        metavar="POLICY",
        default="cancel_all",
        help="which members to cancel: cancel_all, cancel_pending or cancel_flow_only (cancel_all)",
    )


def _audit(verbs: Any) -> None:
    parser = _verb(verbs, "audit", "check the invariants of everything stored", "auditing:run_audit")
    parser.add_argument("--everywhere", action="store_true", help="all namespaces, not only this one")


def _retention(verbs: Any) -> None:
    parser = _verb(
        verbs, "retention", "remove what ended long ago, in all namespaces, in one pass", "retaining:trim"
    )
    add = parser.add_argument
    add(
        "--older-than",
        type=values.duration_ms,
        metavar="TIME",
        help="what ended longer ago (FF_RETENTION, else 1d)",
    )
    add("--limit", type=values.positive, metavar="N", default=1_000, help="how many at most, up to 1000")


def _migrate(verbs: Any) -> None:
    parser = _verb(verbs, "migrate", "bring the store's schema up to date", "migrating:migrate")
    parser.add_argument(
        "--check", action="store_true", help="only say what is pending, and fail if something is"
    )


def _keys(verbs: Any) -> None:
    parser = _verb(
        verbs, "keys", "list, seed or rotate the keys that sign waitpoint tokens", "keyring:manage_keys"
    )
    add = parser.add_argument
    add("action", choices=("list", "seed", "rotate"), metavar="ACTION", help="list, seed or rotate")
    add("--kid", metavar="NAME", help="the new key's id (k1 for the first, else a new name)")
    add(
        "--grace",
        type=values.duration_ms,
        metavar="TIME",
        default=86_400_000,
        help="old tokens stay valid so long (1d)",
    )


def _server(verbs: Any) -> None:
    parser = _verb(verbs, "server", "serve the store over HTTP", "serving:serve")
    add = parser.add_argument
    add("--listen", metavar="ADDRESS", help="where to listen (127.0.0.1:9090)")
    add("--tokens", metavar="FILE", help="the tokens that are let in; see `new-token`")
    add(
        "--insecure",
        action="store_const",
        const="on",
        help="listen to other machines although no token is set",
    )
    _process_options(parser)


def _new_token(verbs: Any) -> None:
    parser = _verb(
        verbs, "new-token", "make a token for the server; it is shown only this once", "serving:make_token"
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="whose it is, for the record")
    add(
        "--role",
        dest="roles",
        action="append",
        choices=ROLES,
        metavar="ROLE",
        required=True,
        help=f"what it may do; may be repeated: {', '.join(ROLES)}",
    )
    add("--everywhere", action="store_true", help="for all namespaces, not only this one")
