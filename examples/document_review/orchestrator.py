"""The orchestrator: submits the documents, plays the reviewer, kills a worker, and checks everything."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from examples.document_review.app import Decision, Document, Letter, Review
from examples.document_review.report import Facts, Outcome, print_report
from examples.document_review.witness import read_witness
from examples.document_review.workers import ROOT, Accident, WorkerProcesses
from flowfabric import FlowFabric, errors
from flowfabric.audit import audit
from flowfabric.codec import encode_value
from flowfabric.contracts.journal import ReadJournalArgs
from flowfabric.contracts.keyring import WaitpointToken
from flowfabric.contracts.reads import ReadExecutionInfoArgs
from flowfabric.contracts.signals import DeliverSignalArgs
from flowfabric.contracts.states import PublicState
from flowfabric.minting import new_signal_id

if TYPE_CHECKING:
    from flowfabric import Run

WORKERS: Final = 2
DOCUMENTS_MAX: Final = 12
NAME_CHARS: Final = 34
PATIENCE_S: Final = 90
LOOK_S: Final = 0.02
LETTERS_BEFORE_ACCIDENT: Final = 2
REJECTED: Final = "LICENSE"
"""The document that the reviewer sends back."""
STEP_OF_ACCIDENT: Final = "study"


def main(argv: list[str] | None = None) -> int:
    """Run the example. Returns 0 only if everything held."""
    parser = argparse.ArgumentParser(description="Review the documents of this repository.")
    parser.add_argument("--keep", action="store_true", help="keep the folder with database, records and logs")
    arguments = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="flowfabric-review-"))
    os.environ["REVIEW_FOLDER"] = str(folder)
    for name in ("inbox", "records"):
        (folder / name).mkdir()
    try:
        held = asyncio.run(run_example(folder))
    finally:
        if arguments.keep:
            print(f"\nkept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if held else 1


def find_documents() -> list[Document]:
    """The repository's own texts; where they are few, the documentation inside its modules."""
    texts = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
    modules = sorted((ROOT / "src").rglob("*.py"), key=lambda path: (-path.stat().st_size, path))
    found = [ROOT / REJECTED, *texts, *modules][:DOCUMENTS_MAX]
    return [Document(name=path.relative_to(ROOT).as_posix(), path=str(path)) for path in found]


async def run_example(folder: Path) -> bool:
    """Play the whole story and report."""
    url = f"sqlite:///{folder / 'review.db'}"
    ff = FlowFabric(url, namespace="demo")
    os.environ["FF_NAMESPACE"] = "demo"
    await ff.start(scanners=False)
    try:
        with WorkerProcesses(folder, url, WORKERS) as workers:
            story = Story(folder, ff, workers)
            try:
                async with asyncio.timeout(PATIENCE_S):
                    facts = await story.play()
            except (TimeoutError, RuntimeError) as error:
                print(f"\nthe example broke: {type(error).__name__}: {error}", file=sys.stderr)
                for number, log in workers.logs():
                    print(f"--- worker {number}\n{log[-3000:]}", file=sys.stderr)
                return False
    finally:
        await ff.stop()
    return print_report(facts)


class Story:
    """What happens, and what was seen of it."""

    def __init__(self, folder: Path, ff: FlowFabric, workers: WorkerProcesses) -> None:
        self._folder = folder
        self._ff = ff
        self._workers = workers
        self._began = time.monotonic()
        self._runs: dict[str, Run[Review]] = {}
        self._decisions: dict[str, Decision] = {}
        self._frames: dict[str, int] = {}
        self._enough_letters = asyncio.Event()
        self._accident: Accident | None = None
        self._tampered_refused = 0

    async def play(self) -> Facts:
        """From the submission to the last result."""
        documents = find_documents()
        self._say("", f"{len(documents)} documents, {WORKERS} workers, one SQLite file")
        for document in documents:
            run = await self._ff.submit("review", document, lane="documents")
            self._runs[document.name] = self._ff.run(run.execution_id, result_type=Review)
        followers = [asyncio.create_task(self._follow(name)) for name in self._runs]
        others = [asyncio.create_task(self._answer_letters()), asyncio.create_task(self._cause_accident())]
        guard = asyncio.create_task(self._watch_workers())
        try:
            await _all_or_first_failure([*followers, *others], guard)
        finally:
            for task in (*followers, *others, guard):
                task.cancel()
        return await self._gather_facts()

    async def _follow(self, name: str) -> None:
        """Print what the workers tell of a document while they work on it."""
        self._frames[name] = 0
        async for frame in self._runs[name].stream():
            self._frames[name] += 1
            if frame.fields.get("frame_type") == "step":
                told = msgspec.json.decode(frame.payload)
                self._say(name, f"{told['step']:<6} {told['found']}")
        result = await self._runs[name].result()
        self._say(name, f"done   {result.verdict} by {result.reviewer}")

    async def _answer_letters(self) -> None:
        """Play the reviewer: answer every letter once, one of them with a forged token first."""
        while len(self._decisions) < len(self._runs):
            for path in sorted((self._folder / "inbox").glob("*.json")):
                letter = msgspec.json.decode(path.read_bytes(), type=Letter)
                if letter.document not in self._decisions and await self._is_suspended(letter):
                    await self._answer(letter)
            await asyncio.sleep(LOOK_S)

    async def _is_suspended(self, letter: Letter) -> bool:
        return await self._runs[letter.document].state() is PublicState.SUSPENDED

    async def _answer(self, letter: Letter) -> None:
        approved = letter.document != REJECTED
        remark = f"{len(letter.study.headings)} headings" if approved else "not ours to change"
        decision = Decision(approved=approved, reviewer="ada", remark=remark)
        if not self._decisions:
            await self._try_forged_token(letter, decision)
        await self._deliver(letter, decision, letter.token)
        self._decisions[letter.document] = decision
        if len(self._decisions) >= LETTERS_BEFORE_ACCIDENT:
            self._enough_letters.set()

    async def _try_forged_token(self, letter: Letter, decision: Decision) -> None:
        forged = letter.token[:-1] + ("0" if letter.token[-1] != "0" else "1")
        try:
            await self._deliver(letter, decision, forged)
        except errors.InvalidToken as refusal:
            still_waits = await self._is_suspended(letter)
            self._tampered_refused += still_waits
            self._say(letter.document, f"forged token refused ({refusal.code}); the document still waits")

    async def _deliver(self, letter: Letter, decision: Decision, token: str) -> None:
        payload, encoding = encode_value(decision)
        await self._ff.engine.execute(
            DeliverSignalArgs(
                execution_id=letter.execution_id,
                waitpoint_id=letter.waitpoint_id,
                signal_id=new_signal_id(),
                signal_name="approval",
                signal_category="human",
                source_type="reviewer",
                source_identity=decision.reviewer,
                payload=payload,
                payload_encoding=encoding,
                waitpoint_token=WaitpointToken(token),
            )
        )

    async def _cause_accident(self) -> None:
        self._accident = await self._workers.kill_one_in_step(STEP_OF_ACCIDENT, self._enough_letters)
        number = self._workers.number(self._accident.pid)
        self._say(
            self._name_of(self._accident.during.execution_id), f"KILLED worker {number} inside this step"
        )

    async def _watch_workers(self) -> None:
        while True:
            self._workers.require_alive(but=None if self._accident is None else self._accident.pid)
            await asyncio.sleep(0.2)

    def _name_of(self, execution_id: str) -> str:
        return next(name for name, run in self._runs.items() if run.execution_id == execution_id)

    async def _gather_facts(self) -> Facts:
        """Read how everything ended, from the store and from the witness."""
        exit_codes = await self._workers.stop()
        assert self._accident is not None
        return Facts(
            outcomes=tuple([await self._outcome_of(name) for name in self._runs]),
            testimonies=tuple(read_witness(self._folder / "witness")),
            accident=self._accident,
            exit_codes=dict(zip(self._workers.pids, exit_codes, strict=True)),
            tampered_refused=self._tampered_refused,
            records=len(list((self._folder / "records").glob("*.review.md"))),
            audit=await audit(self._ff.engine, namespace=self._ff.namespace),
            seconds=time.monotonic() - self._began,
        )

    async def _outcome_of(self, name: str) -> Outcome:
        run = self._runs[name]
        view = await run.view()
        info = await self._ff.engine.execute(ReadExecutionInfoArgs(execution_id=run.execution_id))
        journal = await self._ff.engine.execute(ReadJournalArgs(execution_id=run.execution_id))
        assert info is not None
        return Outcome(
            document=name,
            execution_id=run.execution_id,
            expected="approved" if self._decisions[name].approved else "rejected",
            review=await run.result(timeout=1),
            attempts=view.total_attempt_count,
            frames=self._frames[name],
            journal=journal.entries,
            seconds=((info.completed_at or 0) - info.created_at) / 1_000,
        )

    def _say(self, name: str, text: str) -> None:
        shown = name if len(name) <= NAME_CHARS else "…" + name[1 - NAME_CHARS :]
        print(f"{time.monotonic() - self._began:6.2f}s  {shown:<{NAME_CHARS}}  {text}".rstrip(), flush=True)


async def _all_or_first_failure(tasks: list[asyncio.Task[None]], guard: asyncio.Task[Any]) -> None:
    """Wait for all tasks, but not if one of them or the guard fails."""
    together = asyncio.gather(*tasks)
    await asyncio.wait([together, guard], return_when=asyncio.FIRST_COMPLETED)
    if guard.done():
        together.cancel()
        await guard
    await together
