"""The report: a table of what happened, and the checks that everything held."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import msgspec

from flowfabric.cli.output import table_lines
from flowfabric.contracts.journal import JournalKind

if TYPE_CHECKING:
    from examples.document_review.app import Review
    from examples.document_review.witness import Testimony
    from examples.document_review.workers import Accident
    from flowfabric.audit import AuditReport
    from flowfabric.contracts.journal import JournalEntry

WITNESSED = ("read", "study", "ask", "file")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one document ended."""

    document: str
    execution_id: str
    expected: str
    review: Review
    attempts: int
    frames: int
    journal: tuple[JournalEntry, ...]
    seconds: float

    @property
    def recorded(self) -> dict[str, int]:
        """When each step was recorded, in milliseconds."""
        return {entry.name: entry.recorded_at for entry in self.journal if entry.kind is JournalKind.STEP}


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the report looks at."""

    outcomes: tuple[Outcome, ...]
    testimonies: tuple[Testimony, ...]
    accident: Accident
    exit_codes: dict[int, int]
    tampered_refused: int
    records: int
    audit: AuditReport
    seconds: float

    def runs_of(self, outcome: Outcome) -> list[Testimony]:
        """Every time a step of this document began."""
        return [
            line
            for line in self.testimonies
            if line.event == "begin" and line.execution_id == outcome.execution_id
        ]

    @property
    def victim(self) -> Outcome:
        """The document whose step was hit by the kill."""
        hit = self.accident.during.execution_id
        return next(outcome for outcome in self.outcomes if outcome.execution_id == hit)


def print_report(facts: Facts) -> bool:
    """Print the table and the checks. Returns whether all of them held."""
    print()
    rows = [_row(facts, outcome) for outcome in facts.outcomes]
    print("\n".join(table_lines(HEADERS, rows, flexible=0, width=None)))
    print(f"\n{_totals(facts)}\n")
    held = checks(facts)
    for name, fine in held.items():
        print(f"  {'ok' if fine else 'FAILED':<6}  {name}")
    for violation in facts.audit.violations:
        print(f"          {violation.invariant}: {violation.subject}: {violation.detail}")
    return all(held.values())


HEADERS = ("DOCUMENT", "ATTEMPTS", "STEPS RUN", "RECORDED", "AGAIN", "APPROVAL", "RESULT", "SECONDS")


def _row(facts: Facts, outcome: Outcome) -> list[str]:
    review = outcome.review
    return [
        outcome.document,
        str(outcome.attempts),
        str(len(facts.runs_of(outcome))),
        str(len([name for name in WITNESSED if name in outcome.recorded])),
        str(len(run_again(facts, outcome))),
        f"{review.verdict} by {review.reviewer}",
        f"{review.words} words, {review.headings} headings",
        f"{outcome.seconds:.1f}",
    ]


def run_again(facts: Facts, outcome: Outcome) -> list[Testimony]:
    """Steps that began although their result had been recorded before. There must be none."""
    recorded = outcome.recorded
    return [line for line in facts.runs_of(outcome) if line.at_ms > recorded.get(line.step, line.at_ms)]


def _totals(facts: Facts) -> str:
    steps = sum(len(facts.runs_of(outcome)) for outcome in facts.outcomes)
    frames = sum(outcome.frames for outcome in facts.outcomes)
    taken_over = sum(outcome.attempts - 1 for outcome in facts.outcomes)
    return (
        f"{len(facts.outcomes)} documents, {steps} steps run, {frames} frames, "
        f"{facts.records} records filed, 1 worker killed, {taken_over} taken over, {facts.seconds:.1f} s"
    )


def checks(facts: Facts) -> dict[str, bool]:
    """What must have held, in words."""
    outcomes, accident, report = facts.outcomes, facts.accident, facts.audit
    codes = dict(facts.exit_codes)
    killed_code = codes.pop(accident.pid)
    approved = [outcome for outcome in outcomes if outcome.expected == "approved"]
    return {
        "every document ended as the reviewer decided": all(
            outcome.review.verdict == outcome.expected for outcome in outcomes
        ),
        "exactly one document was rejected, and a record was filed for each of the others": (
            len(approved) == len(outcomes) - 1 and facts.records == len(approved)
        ),
        "every step of every document is in the journal": all(_is_complete(outcome) for outcome in outcomes),
        "no step ran again after it was recorded": not any(run_again(facts, outcome) for outcome in outcomes),
        "the kill hit a running step, which had not been recorded": (
            killed_code == -signal.SIGKILL and _was_hit(facts)
        ),
        "another worker took that document over as attempt 1": (
            facts.victim.attempts == 2 and _took_over(facts)
        ),
        "the forged token was refused and changed nothing": facts.tampered_refused == 1,
        "the other workers drained and left with code 0": set(codes.values()) == {0},
        f"the audit found no violation in {sum(report.checked.values())} checks": not report.violations,
    }


def _is_complete(outcome: Outcome) -> bool:
    expected = set(WITNESSED if outcome.expected == "approved" else WITNESSED[:-1])
    return expected <= outcome.recorded.keys()


def _was_hit(facts: Facts) -> bool:
    """The step began in the killed process, never ended there, and was recorded only later."""
    hit = facts.accident.during
    ended = any(
        line.event == "end" and line.pid == hit.pid and line.step == hit.step
        for line in facts.testimonies
        if line.execution_id == hit.execution_id
    )
    return not ended and facts.victim.recorded[hit.step] > hit.at_ms


def _took_over(facts: Facts) -> bool:
    hit = facts.accident.during
    later = [line for line in facts.runs_of(facts.victim) if line.step == hit.step and line.attempt == 1]
    return hit.attempt == 0 and len(later) == 1 and later[0].pid != hit.pid
