"""Reads a Dockerfile: instructions with their flags, by stage. Only what ours uses; anything else is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_KNOWN = {"ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "LABEL", "USER", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)\}|(?P<bare>\w+))")
_PAIR = re.compile(r"""(?P<key>[\w.-]+)=(?P<value>"(?:[^"\\]|\\.)*"|\S*)""")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; `line` is where it begins."""

    name: str
    value: str
    line: int
    flags: Mapping[str, str] = field(default_factory=dict)

    def words(self) -> list[str]:
        """Return the value's words: of the exec form where it is one, else split at blanks."""
        if self.value.startswith("["):
            words: list[str] = json.loads(self.value)
            return words
        return self.value.split()

    def pairs(self) -> dict[str, str]:
        """Return KEY=VALUE pairs, quotes removed and variables not yet replaced."""
        return {match["key"]: match["value"].strip('"') for match in _PAIR.finditer(self.value)}


@dataclass(frozen=True, slots=True)
class Stage:
    """What stands between two FROMs. `base` still has its variables."""

    name: str
    base: str
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """The arguments before the first FROM with their defaults, and the stages in their order."""

    arguments: Mapping[str, str]
    stages: tuple[Stage, ...]

    @property
    def final(self) -> Stage:
        """The stage that becomes the image."""
        return self.stages[-1]

    def last(self, name: str) -> Instruction:
        """Return the final stage's last instruction of that name; raises StopIteration without one."""
        return next(one for one in reversed(self.final.instructions) if one.name == name)


def read(text: str) -> Dockerfile:
    """Read a Dockerfile; raises ValueError for an instruction that is not known here."""
    arguments: dict[str, str] = {}
    stages: list[tuple[str, str, list[Instruction]]] = []
    for one in _instructions(text):
        if one.name == "FROM":
            base, *alias = one.value.split()
            stages.append((alias[1] if alias else str(len(stages)), base, []))
        elif stages:
            stages[-1][2].append(one)
        elif one.name == "ARG":
            name, _, default = one.value.partition("=")
            arguments[name] = default
        else:
            raise ValueError(f"line {one.line}: {one.name} before the first FROM")
    return Dockerfile(arguments, tuple(Stage(name, base, tuple(inside)) for name, base, inside in stages))


def replace(text: str, variables: Mapping[str, str]) -> str:
    """Put variables in; one that is not known becomes nothing, as Docker does."""
    return _VARIABLE.sub(lambda match: variables.get(match["braced"] or match["bare"], ""), text)


def _instructions(text: str) -> list[Instruction]:
    found = []
    begun: list[str] = []
    start = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not (line.strip() or begun):
            continue
        start = start if begun else number
        begun.append(line.rstrip().removesuffix("\\"))
        if not line.rstrip().endswith("\\"):
            found.append(_instruction("\n".join(begun), start))
            begun = []
    return found


def _instruction(text: str, line: int) -> Instruction:
    name, _, rest = text.strip().partition(" ")
    if name not in _KNOWN:
        raise ValueError(f"line {line}: {name} is not an instruction that this reader knows")
    flags = {}
    while match := re.match(r"--([\w-]+)=(\S+)\s+", rest.lstrip()):
        flags[match[1]] = match[2]
        rest = rest.lstrip()[match.end() :]
    # A shell sees one line, as Docker gives it to it.
    return Instruction(name, rest.replace("\n", " ").strip(), line, flags)
