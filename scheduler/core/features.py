"""What a prompt says about the length of its answer, in numbers: shape, cue words, hashed words and pairs.

One pass over at most ``MAX_CHARS`` characters, so a hostile prompt costs no more than a long one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from math import log1p, sqrt
from typing import NamedTuple
from zlib import crc32

MAX_CHARS = 4000
MAX_WORDS = 200  # hashed; the first ones say most
BUCKETS = 4096

CUES: Mapping[str, str] = {
    "transform": "rewrite rephrase paraphrase edit correct fix grammar translate translation convert "
    "classify categorize categorise identify sentiment label detect determine rate score evaluate extract "
    "summarize summarise summary positive negative choose select",
    "write": "write compose draft create generate design develop",
    "document": "essay article blog report paper guide plan itinerary proposal speech letter email review",
    "fiction": "story novel scene dialogue script screenplay episode poem lyrics song fiction character "
    "imagine",
    "detail": "detail detailed details comprehensive thorough explain describe discuss analyze analyse "
    "elaborate depth",
    "brief": "short brief briefly concise one sentence sentences word words only single simply",
    "list": "list examples ideas names steps ways tips recommend suggest suggestions",
    "code": "code python java javascript function program sql html css algorithm implement api",
    "mathematics": "solve equation probability compute calculate integral sum equals",
    "recipe": "recipe cook bake ingredients make prepare",
    "personal": "i i'm my me i've",
    "you": "you your",
    "format": "table spreadsheet csv json markdown format",
    "compare": "compare difference differences versus vs pros cons advantages disadvantages",
    "history": "history origin origins come",
    "given": "given following below above",
    "number": "two three four five six seven eight nine ten",
}
FIRST_WORDS: Mapping[str, str] = {
    "who": "who",
    "when": "when where which",
    "what": "what",
    "how": "how",
    "why": "why",
    "closed": "is are do does did can was were will should",
}
SHAPE = (
    *("words", "words_beyond_20", "lines", "many_lines", "asks", "states"),
    *("upper", "digits", "word_length", "quotes", "opens", "questions", "how_to"),
)
DENSE = (*SHAPE, *(f"first_{name}" for name in FIRST_WORDS), *CUES)
"""Names of the dense features, in order."""

_WORD = re.compile(rb"[a-z0-9']+")
_UPPER, _DIGIT = re.compile(r"[A-Z]"), re.compile(r"[0-9]")
_HOW_TO = ("how to", "how do", "how can")


def _places(words: Mapping[str, str], start: int) -> dict[bytes, int]:
    groups = enumerate(words.values(), start)
    return {word.encode(): place for place, group in groups for word in group.split()}


_FIRST = _places(FIRST_WORDS, len(SHAPE))
_CUE = _places(CUES, len(SHAPE) + len(FIRST_WORDS))


class Features(NamedTuple):
    """``buckets`` counts once each, times ``share``: 1 / sqrt(number of distinct words and pairs)."""

    dense: tuple[float, ...]
    buckets: tuple[int, ...]
    share: float


def read(prompt: str) -> Features:
    """O(min(prompt, MAX_CHARS))."""
    text = prompt[:MAX_CHARS]
    lower = text.lower()
    words = _WORD.findall(lower.encode(errors="replace"))
    chars, end, lines = max(1, len(text)), text.rstrip()[-1:], text.count("\n")
    length = log1p(len(words))
    dense = [0.0] * len(DENSE)
    dense[: len(SHAPE)] = (
        length,
        max(0.0, length - 3.0),
        log1p(lines),
        1.0 if lines else 0.0,
        1.0 if end == "?" else 0.0,
        1.0 if end == "." else 0.0,
        len(_UPPER.findall(text)) / chars * 5,
        len(_DIGIT.findall(text)) / chars * 5,
        min(8.0, chars / max(1, len(words))) / 2,
        1.0 if '"' in text else 0.0,
        1.0 if end == ":" or ":\n" in text else 0.0,
        log1p(text.count("?")),
        1.0 if any(map(lower.__contains__, _HOW_TO)) else 0.0,
    )
    if words and (place := _FIRST.get(words[0])) is not None:
        dense[place] = 1.0
    for place in filter(None, map(_CUE.get, words)):
        dense[place] = 1.0
    del words[MAX_WORDS:]
    terms = dict.fromkeys([*words, *map(b" ".join, pairwise(words))])  # each once, in a fixed order
    buckets = tuple([crc32(term) % BUCKETS for term in terms])
    return Features(tuple(dense), buckets, 1 / sqrt(len(terms) or 1))
