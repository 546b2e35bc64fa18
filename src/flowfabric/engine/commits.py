"""From what the rules of a batch have changed to one commit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from flowfabric.core.indexes import IndexRow, index_rows
from flowfabric.core.records import Execution, Key, LastRequest, Record
from flowfabric.core.registry import ACTING_ANEW, EARLIER_REQUESTS_MAX
from flowfabric.stores.base import Change, Commit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.core.registry import Rule
    from flowfabric.core.work import Trim, Work, WorkingSet

_encode_outcome = msgspec.msgpack.Encoder().encode


def repeated_outcome(rule: Rule, command: Command[Any], work: Work) -> Any:
    """The answer that this request already got, or None if it is new.

    The answer belongs to the namespace that got it; a request id is no proof of who asks.
    """
    key = rule.subject(command)
    subject = None if key is None else work.peek(key)
    answered = None if subject is None else _answered(subject, work.envelope.request_id)
    if subject is None or answered is None:
        return None
    if answered.operation != type(command).__name__ or _is_foreign(subject, work):
        return None
    return rule.restore(work, command, rule.outcome_decoder.decode(answered.outcome))


def _answered(subject: Record, request_id: str) -> LastRequest | None:
    """What a record remembers of this request."""
    last = subject.last_request
    if last is not None and last.request_id == request_id:
        return last
    if not subject.earlier_requests:
        return None
    return next((found for found in subject.earlier_requests if found.request_id == request_id), None)


def _is_foreign(subject: Record, work: Work) -> bool:
    """Whether the record is, or belongs to, something that the caller may not see."""
    own = getattr(subject, "namespace", None)
    if own is not None:
        return work.envelope.namespace not in (None, own)
    execution_id = getattr(subject, "execution_id", None)
    if work.envelope.namespace is None or execution_id is None:
        return False
    execution = work.read(Execution, execution_id)
    return execution is None or execution.namespace != work.envelope.namespace


def remember_outcome(rule: Rule, command: Command[Any], work: Work, outcome: Any) -> None:
    """Keep request id and outcome in the subject, if the rule changed it.

    The answer that was there before goes, unless its command would act anew when it is repeated.
    """
    key = rule.subject(command)
    if key is None:
        return
    subject = work.writes.get(key)
    if subject is not None:
        before = subject.last_request
        if before is not None and before.operation in ACTING_ANEW:
            subject.earlier_requests = (*subject.earlier_requests, before)[-EARLIER_REQUESTS_MAX:]
        subject.last_request = LastRequest(
            work.envelope.request_id, _encode_outcome(rule.shorten(outcome)), type(command).__name__
        )


def build_commit(works: Sequence[Work], working_set: WorkingSet) -> Commit | None:
    """Join the changes of all rules, in their order. None if there is nothing to commit."""
    changing = [work for work in works if work.changed]
    if not changing:
        return None
    final: dict[Key, Record | None] = {}
    trims: dict[str, Trim] = {}
    read: set[Key] = set()
    commit = Commit(
        now=working_set.now,
        changes=[],
        relied_on=[],
        rows_removed=[],
        rows_added=[],
        events=[],
        appends=[],
        trims=[],
    )
    for work in changing:
        final.update(work.writes)
        read |= work.reads
        commit.events += work.events
        commit.appends += work.appends
        # The rule that trims last knows how many frames are left after all appends.
        trims.update((trim.stream, trim) for trim in work.trims)
    commit.trims = list(trims.values())
    versions, loaded = working_set.versions, working_set.loaded
    for key, record in final.items():
        before = loaded.get(key)
        if before is None and record is None:
            continue
        commit.changes.append(Change(key, versions.get(key, 0), record))
        _diff_rows(before, record, commit)
    commit.relied_on = [(key, versions[key]) for key in read if key not in final]
    return commit


def _diff_rows(before: Record | None, after: Record | None, commit: Commit) -> None:
    old: set[IndexRow] = set() if before is None else index_rows(before)
    new: set[IndexRow] = set() if after is None else index_rows(after)
    commit.rows_removed += old - new
    commit.rows_added += new - old


def affected_by(keys: frozenset[Key], works: Sequence[Work]) -> list[bool]:
    """Which works touched one of these keys, directly or through what an affected one wrote."""
    tainted = set(keys)
    affected = []
    for work in works:
        touched = not tainted.isdisjoint(work.reads)
        if touched:
            tainted |= work.writes.keys()
        affected.append(touched)
    return affected
