"""What a prompt says about the length of its answer, in numbers: shape, cue words, hashed words and pairs.

One pass over at most ``MAX_CHARS`` characters, so a hostile prompt costs no more than a long one.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, repeat
from math import log1p, sqrt
from operator import and_
from typing import NamedTuple
from zlib import crc32

MAX_CHARS = 4000
MAX_WORDS = 200  # hashed; the first ones say most
BUCKETS = 16384  # a power of two

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

_UPPER, _DIGITS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"0123456789"
_WORDS = b"abcdefghijklmnopqrstuvwxyz'" + _DIGITS
_PLAIN = bytes(byte if byte in _WORDS else byte + 32 if byte in _UPPER else 32 for byte in range(256))


def _places(words: Mapping[str, str], start: int) -> dict[bytes, int]:
    groups = enumerate(words.values(), start)
    return {word.encode(): place for place, group in groups for word in group.split()}


_FIRST = _places(FIRST_WORDS, len(SHAPE))
_CUE = _places(CUES, len(SHAPE) + len(FIRST_WORDS))
_CUE_WORDS = frozenset(_CUE)


class Features(NamedTuple):
    """``cues``: places in ``DENSE`` of the words that are there. ``buckets`` counts once each, times
    ``share``: 1 / sqrt(number of buckets).
    """

    shape: tuple[float, ...]
    cues: set[int]
    buckets: set[int]
    share: float

    @property
    def dense(self) -> tuple[float, ...]:
        """In the order of ``DENSE``."""
        return self.shape + tuple(float(at in self.cues) for at in range(len(SHAPE), len(DENSE)))


def read(prompt: str) -> Features:
    """O(min(prompt, MAX_CHARS))."""
    text = prompt[:MAX_CHARS]
    raw = text.encode(errors="replace")
    plain = raw.translate(_PLAIN)  # lower-case words and spaces
    words = plain.split()
    chars, end, lines = len(text) or 1, text.rstrip()[-1:], text.count("\n")
    length = log1p(len(words))
    shape = (
        length,
        length - 3.0 if length > 3.0 else 0.0,
        log1p(lines),
        1.0 if lines else 0.0,
        1.0 if end == "?" else 0.0,
        1.0 if end == "." else 0.0,
        (len(raw) - len(raw.translate(None, _UPPER))) / chars * 5,
        (len(raw) - len(raw.translate(None, _DIGITS))) / chars * 5,
        min(8.0, chars / (len(words) or 1)) / 2,
        1.0 if '"' in text else 0.0,
        1.0 if end == ":" or ":\n" in text else 0.0,
        log1p(text.count("?")),
        1.0 if b"how" in plain and (b"how to" in plain or b"how do" in plain or b"how can" in plain) else 0.0,
    )
    cues = set(map(_CUE.__getitem__, _CUE_WORDS.intersection(words)))
    if words and (first := _FIRST.get(words[0])) is not None:
        cues.add(first)
    del words[MAX_WORDS:]
    hashes = list(map(crc32, words))
    pairs = map(crc32, words[1:], hashes)  # as of the first word followed by the second
    buckets = set(map(and_, chain(hashes, pairs), repeat(BUCKETS - 1)))
    return Features(shape, cues, buckets, 1 / sqrt(len(buckets) or 1))
