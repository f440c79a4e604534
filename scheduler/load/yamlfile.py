"""YAML with a memory: plain data, and the line that every value came from.

PyYAML's node graph keeps the marks that its constructor throws away. Scalars follow YAML 1.2: only
``true`` and ``false`` are booleans, and what YAML 1.1 would have read as something else is a problem that
says so. Every problem of a file is reported, not only the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml

from scheduler.core.text import hint

MAX_BYTES = 1 << 20
MAX_NODES = 20_000  # after aliases are expanded
MAX_DEPTH = 24

Loc = tuple[str | int, ...]


class Problem(NamedTuple):
    """One thing that is wrong in a file, with what is allowed instead."""

    file: str
    line: int
    path: str
    what: str

    def __str__(self) -> str:
        path = f" {self.path}:" if self.path else ""
        return f"{self.file}:{self.line}:{path} {self.what}"


class ScenarioError(ValueError):
    """A scenario cannot be used; ``problems`` holds everything that was found, in the file's order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(set(problems), key=lambda problem: (problem.line, problem.path))
        super().__init__("\n".join(map(str, self.problems)))

    @classmethod
    def of_file(cls, file: str, what: str, line: int = 1) -> Self:
        """Of one that is not there or no YAML, so that nothing else can be said of it."""
        return cls([Problem(file, line, "", what)])


def did_you_mean(word: object, allowed: Iterable[str]) -> str:
    """The tail of a message: what is allowed, and the nearest of it."""
    names = list(allowed)
    return f"allowed: {', '.join(names) or 'nothing'}{hint(word, names)}"


def kind_of(value: object) -> str:
    """A value as a message may show it: short, and escaped."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"{value!r:.40}"
        case str():
            return f"{value[:40]!r}"
        case tuple() | list():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return type(value).__name__


def no_file(path: str | Path) -> str | None:
    """What is wrong with ``path`` as a file to read; None where it is one. A pipe is none."""
    # Of os.path: to these a name that is too long is none, to a Path it is an error.
    if isfile(path):
        return None
    if isdir(path):
        return "is a folder"
    return "not a regular file" if exists(path) else "no such file"


def dotted(loc: Sequence[str | int]) -> str:
    """A location as text, safe to print: keys that are more than a plain name are quoted and escaped."""
    return ".".join(
        str(part) if isinstance(part, int) or re.fullmatch(r"[\w<-]{1,60}", part) else f"{part!r:.60}"
        for part in loc
    )


@dataclass(slots=True)
class Document:
    """A file as plain data: dicts, tuples, text, numbers, booleans, None."""

    file: str
    data: Any = None
    lines: dict[Loc, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    suspect: set[Loc] = field(default_factory=set)  # values with a problem: what they hold means nothing

    def line(self, loc: Loc) -> int:
        """Where ``loc`` is, or would be: the line of its nearest parent that exists."""
        while loc and loc not in self.lines:
            loc = loc[:-1]
        return self.lines.get(loc, 1)

    def problem(self, loc: Loc, what: str) -> Problem:
        return Problem(self.file, self.line(loc), dotted(loc), what)

    def is_suspect(self, loc: Loc) -> bool:
        return any(loc[:size] in self.suspect for size in range(len(loc) + 1))


class _Loader(yaml.SafeLoader):
    """Composes nodes only; plain scalars stay text, for ``_scalar`` to read."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (declared so by PyYAML)


def read_yaml(path: Path, file: str) -> Document:
    """Read one file; ``file`` is its name in messages. Raises ScenarioError if it is no YAML at all."""
    document = Document(file)
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ScenarioError.of_file(file, f"cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise ScenarioError.of_file(file, f"larger than {MAX_BYTES} bytes, the most allowed")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ScenarioError.of_file(file, "not UTF-8 text", line) from None
    node = _compose(text, file)
    if node is None:
        raise ScenarioError.of_file(file, "the file is empty, a mapping is needed")
    try:
        document.data = _Builder(document).build(node, (), 0)
    except _TooBigError as error:
        raise ScenarioError([*document.problems, error.problem]) from None
    return document


def _compose(text: str, file: str) -> yaml.Node | None:
    """The one document as nodes; None of an empty one. Raises ScenarioError."""
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"control character U+{int(error.character):04X} is not allowed"
        raise ScenarioError.of_file(file, what, line) from None
    try:
        node: yaml.Node | None = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise ScenarioError([_syntax_problem(file, error)]) from None
    except RecursionError:
        what = f"nested too deeply, at most {MAX_DEPTH} levels are allowed"
        raise ScenarioError.of_file(file, what) from None
    except (ValueError, OverflowError):  # PyYAML's, of chr() and int()
        what = "the number in an escape or a %YAML line is too large"
        raise ScenarioError.of_file(file, what, loader.line + 1) from None
    return node


def _syntax_problem(file: str, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    what = error.problem or error.context or "not valid YAML"
    if "but found another document" in what:
        what = "a second document starts here, one document a file is allowed"
    elif "'\\t'" in what:
        what = "a tab cannot be used here, indent with spaces"
    elif "but found '<block" in what:
        what = "a list or a mapping begins here in the middle of another: check the indentation"
    elif what == "could not find expected ':'":
        mark = error.context_mark or mark  # the line itself, not the one after it
        what = "a `key: value` is needed here: a colon needs a space after it"
    elif what == "mapping values are not allowed here":
        what = "a second `key: value` begins here: check the indentation, and the space after the colon above"
    elif error.context and error.problem:
        what = f"{error.context}: {what}"
    return Problem(file, (mark.line if mark else 0) + 1, "", what)


class _TooBigError(Exception):
    def __init__(self, problem: Problem) -> None:
        self.problem = problem


_TAGS = {
    yaml.MappingNode: "tag:yaml.org,2002:map",
    yaml.SequenceNode: "tag:yaml.org,2002:seq",
    yaml.ScalarNode: "tag:yaml.org,2002:str",
}
"""What a node has that was given none."""


class _Builder:
    """Turns nodes into data, noting lines and problems in the document."""

    def __init__(self, document: Document) -> None:
        self._doc = document
        self._nodes = 0

    def build(self, node: yaml.Node, loc: Loc, depth: int) -> Any:
        self._nodes += 1
        self._doc.lines.setdefault(loc, node.start_mark.line + 1)
        if self._nodes > MAX_NODES:
            what = f"more than {MAX_NODES} values, aliases expanded: more than is allowed"
            raise _TooBigError(self._doc.problem(loc, what))
        if depth > MAX_DEPTH:
            what = f"nested too deeply, or inside itself: at most {MAX_DEPTH} levels are allowed"
            raise _TooBigError(self._doc.problem(loc, what))
        if node.tag != _TAGS[type(node)]:
            self._add(loc, f"the tag {node.tag!r:.60} is not allowed, leave it out")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc, depth)
        if isinstance(node, yaml.SequenceNode):
            return tuple(self.build(item, (*loc, i), depth + 1) for i, item in enumerate(node.value))
        assert isinstance(node, yaml.ScalarNode), "a node is a mapping, a sequence or a scalar"
        return node.value if node.style else self._scalar(node.value, loc)

    def _add(self, loc: Loc, what: str, line: int | None = None) -> None:
        problem = self._doc.problem(loc, what)
        self._doc.problems.append(problem if line is None else problem._replace(line=line))
        self._doc.suspect.add(loc)

    def _mapping(self, node: yaml.MappingNode, loc: Loc, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: list[dict[str, Any]] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._add(loc, "a key must be text, not a list or a mapping", line)
                continue
            key = key_node.value
            if key == "<<" and not key_node.style:
                merged += self._merge(value_node, loc, depth)
                continue
            here = (*loc, key)
            if key in result:
                first = self._doc.lines[here]
                self._add(here, f"the key is here twice, first in line {first}: remove one", line)
                continue
            self._doc.lines[here] = line
            result[key] = self.build(value_node, here, depth + 1)
        for source in merged:  # the mapping's own keys win, then the earlier sources
            for key, value in source.items():
                result.setdefault(key, value)
        return result

    def _merge(self, node: yaml.Node, loc: Loc, depth: int) -> list[dict[str, Any]]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not all(isinstance(source, yaml.MappingNode) for source in sources):
            self._add((*loc, "<<"), "only mappings can be merged", node.start_mark.line + 1)
            return []
        return [self.build(source, loc, depth + 1) for source in sources]

    def _scalar(self, text: str, loc: Loc) -> Any:
        """A plain scalar by YAML 1.2's core schema."""
        if text in ("", "~", "null", "Null", "NULL"):
            return None
        if text in ("true", "True", "TRUE"):
            return True
        if text in ("false", "False", "FALSE"):
            return False
        if text.lower() in ("yes", "on", "no", "off"):
            meant = "true" if text.lower() in ("yes", "on") else "false"
            self._add(
                loc, f"{text} is a boolean to some YAML readers: write {meant}, or quote it if text is meant"
            )
        elif re.fullmatch(r"[+-]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?", text):
            self._add(
                loc, f'{text} is a number in base 60 to some YAML readers: write seconds or "90s", "1.5m"'
            )
        elif re.fullmatch(r"[+-]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", text):
            self._add(loc, f"{text} is not allowed, a finite number is needed")
        elif re.fullmatch(r"0o[0-7]{1,20}|0x[0-9a-fA-F]{1,16}", text):
            if (whole := int(text, 0)) < 10**18:  # as of decimal numbers: run folders hold no longer ones
                return whole
            self._add(loc, "the number is too large, at most 18 decimal digits are allowed")
        elif re.fullmatch(r"[+-]?0[0-9]+", text):
            self._add(loc, f"{text} is octal to some YAML readers: write it without the leading zero")
        elif re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            return int(text)
        elif re.fullmatch(r"[+-]?[0-9]+", text):
            self._add(loc, "the number is too large, at most 18 decimal digits are allowed")
        elif re.fullmatch(r"[+-]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][+-]?[0-9]+)?", text):
            if isfinite(number := float(text)):
                # 32.0 and 1e3 are whole numbers, too; to a field of seconds it is all the same.
                return int(number) if number.is_integer() and abs(number) < 1e18 else number
            self._add(loc, "the number is too large")
        return text
