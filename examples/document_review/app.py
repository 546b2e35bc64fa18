"""The app: one handler that reviews a document, waits for a person, and files the review.

Run it with ``flowfabric worker examples.document_review.app:ff`` in the repository's root. The
folder it works in is named by ``REVIEW_FOLDER``.
"""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from pathlib import Path
from typing import Final

import msgspec

from examples.document_review import analysis
from examples.document_review.witness import witnessed
from flowfabric import FlowFabric, PublishedWaitpoint, Task

FOLDER: Final = Path(os.environ.get("REVIEW_FOLDER", "review"))
PACE_S: Final = 0.04
"""How long reading one section takes, so that there is something to watch."""
STUDY_S_MAX: Final = 1.2
"""How long reading a document takes at most."""

ff = FlowFabric()


class Document(msgspec.Struct, frozen=True):
    """What is to be reviewed."""

    name: str
    path: str


class Study(msgspec.Struct, frozen=True):
    """What the worker found in the document."""

    headings: tuple[str, ...]
    key_sentences: tuple[str, ...]
    statistics: analysis.WordStatistics


class Letter(msgspec.Struct, frozen=True):
    """What the reviewer gets: the study, and the right to answer."""

    document: str
    execution_id: str
    waitpoint_id: str
    token: str
    study: Study


class Decision(msgspec.Struct, frozen=True):
    """The reviewer's answer."""

    approved: bool
    reviewer: str
    remark: str = ""


class Review(msgspec.Struct, frozen=True):
    """The result."""

    document: str
    verdict: str
    reviewer: str
    words: int
    headings: int
    record: str | None = None


@ff.handler(lane="documents")
async def review(task: Task, document: Document) -> Review:
    """Study a document, ask a person, and file the review if the person approves."""
    text = await task.step("read", read, task, document)
    await task.progress(20, "read")
    study = await task.step("study", study_text, task, text)
    await task.progress(60, "studied")
    waitpoint = await task.create_waitpoint("approval")
    await task.step("ask", ask, task, document, study, waitpoint)
    decision: Decision = (
        await task.wait_for_signal(
            "approval", waitpoint=waitpoint, payload_type=Decision, timeout=timedelta(days=2)
        )
    ).payload
    await task.progress(90, "decided")
    record = (
        await task.step("file", file_review, task, document, study, decision) if decision.approved else None
    )
    return Review(
        document=document.name,
        verdict="approved" if decision.approved else "rejected",
        reviewer=decision.reviewer,
        words=study.statistics.words,
        headings=len(study.headings),
        record=record,
    )


async def read(task: Task, document: Document) -> str:
    """Read the document's words."""
    with witnessed(FOLDER / "witness", task, "read"):
        text = await asyncio.to_thread(analysis.read_text, Path(document.path))
        await task.emit("step", {"step": "read", "found": f"{len(text)} characters"})
    return text


async def study_text(task: Task, text: str) -> Study:
    """Go through the sections one by one, telling whoever follows."""
    with witnessed(FOLDER / "witness", task, "study"):
        found = analysis.sections(text)
        pause_s = min(PACE_S, STUDY_S_MAX / max(1, len(found)))
        for section in found:
            await task.emit("section", {"title": section.title, "words": section.words})
            await asyncio.sleep(pause_s)
        headings = tuple(section.title for section in found if section.title)
        best = tuple(analysis.key_sentences(text))
        statistics = analysis.word_statistics(text)
        words = f"{statistics.words} words, most of all {', '.join(statistics.frequent[:3])}"
        await task.emit("step", {"step": "study", "found": f"{len(headings)} headings, {words}"})
    return Study(headings=headings, key_sentences=best, statistics=statistics)


async def ask(task: Task, document: Document, study: Study, waitpoint: PublishedWaitpoint) -> str:
    """Put a letter into the reviewer's inbox. It holds the token, so only its owner may read it."""
    with witnessed(FOLDER / "witness", task, "ask"):
        letter = Letter(document.name, task.execution_id, waitpoint.waitpoint_id, waitpoint.token, study)
        name = document.name.replace("/", "-") + ".json"
        await asyncio.to_thread(_write_whole, FOLDER / "inbox" / name, msgspec.json.encode(letter))
        await task.emit("step", {"step": "ask", "found": "waits for the reviewer"})
    return name


async def file_review(task: Task, document: Document, study: Study, decision: Decision) -> str:
    """Write the review into the folder of records."""
    with witnessed(FOLDER / "witness", task, "file"):
        lines = [f"# Review of {document.name}", "", f"Approved by {decision.reviewer}.", decision.remark, ""]
        lines += ["## Key sentences", "", *(f"- {sentence}" for sentence in study.key_sentences)]
        path = FOLDER / "records" / (document.name.replace("/", "-") + ".review.md")
        await asyncio.to_thread(_write_whole, path, "\n".join(lines).encode() + b"\n")
        await task.emit("step", {"step": "file", "found": path.name})
    return path.name


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file so that others see all of it or nothing, also when this runs twice."""
    draft = path.with_suffix(f".{os.getpid()}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    draft.replace(path)
