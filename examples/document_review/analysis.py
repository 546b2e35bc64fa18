"""What can be learned from a text without understanding it: sections, key sentences, words."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path
from typing import Final

import msgspec

KEY_SENTENCES: Final = 3
_COMMON: Final = """
a all also an and any are as at be because been but by can do each for from has have if in into is it its
may more must no not of on one only or other so such than that the their them then there these they this
those to under use was what when where which who will with without you your
"""
COMMON_WORDS: Final = frozenset(_COMMON.split())

_HEADING = re.compile(r"^(?:#{1,6}\s+(.+)|\s*(?:APPENDIX:|\d+\.) ([A-Z].+))$")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")


class Section(msgspec.Struct, frozen=True):
    """A heading with the text below it."""

    title: str
    text: str

    @property
    def words(self) -> int:
        """How many words the section has."""
        return len(_WORD.findall(self.text))


class WordStatistics(msgspec.Struct, frozen=True):
    """How a text uses its words."""

    words: int
    distinct: int
    sentences: int
    frequent: tuple[str, ...]


def read_text(path: Path) -> str:
    """The words of a document: a text file as it is, a Python file's documentation."""
    text = path.read_text(encoding="utf-8")
    return documentation(text) if path.suffix == ".py" else text


def documentation(source: str) -> str:
    """The docstrings of a Python module as a text with a heading for each definition."""
    tree = ast.parse(source)
    parts = [f"# Module\n\n{ast.get_docstring(tree) or ''}"]
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            words = ast.get_docstring(node)
            if words:
                parts.append(f"## {node.name}\n\n{words}")
    return "\n\n".join(parts)


def sections(text: str) -> list[Section]:
    """The text in its sections; what stands before the first heading is one without a title."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in text.splitlines():
        heading = _HEADING.match(line)
        if heading:
            found.append(((heading[1] or heading[2]).strip(), []))
        else:
            found[-1][1].append(line)
    made = [Section(title, "\n".join(lines).strip()) for title, lines in found]
    return [section for section in made if section.title or section.text]


def sentences(text: str) -> list[str]:
    """The sentences of a text, without tables, code and lists."""
    prose = [line for line in text.splitlines() if line and line.lstrip()[:1] not in "|`-*#<"]
    found = _SENTENCE_END.split(" ".join(" ".join(prose).split()))
    return [sentence for sentence in found if len(_WORD.findall(sentence)) > 4]


def word_counts(text: str) -> Counter[str]:
    """How often each word occurs, common words left out."""
    words = (word.lower() for word in _WORD.findall(text))
    return Counter(word for word in words if word not in COMMON_WORDS)


def score(sentence: str, counts: Counter[str]) -> float:
    """How much of the text's vocabulary a sentence carries, per word."""
    words = [word.lower() for word in _WORD.findall(sentence)]
    return sum(counts[word] for word in words) / len(words)


def key_sentences(text: str) -> list[str]:
    """The sentences that carry most of the text's vocabulary, in their order in the text."""
    counts = word_counts(text)
    found = sentences(text)
    best = sorted(found, key=lambda sentence: score(sentence, counts), reverse=True)[:KEY_SENTENCES]
    return [sentence for sentence in found if sentence in best]


def word_statistics(text: str) -> WordStatistics:
    """Count words and sentences."""
    counts = word_counts(text)
    return WordStatistics(
        words=len(_WORD.findall(text)),
        distinct=len({word.lower() for word in _WORD.findall(text)}),
        sentences=len(sentences(text)),
        frequent=tuple(word for word, _ in counts.most_common(5)),
    )
