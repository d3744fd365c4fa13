"""Compares the machine code of two builds, function by function."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from .building import libraries_in
from .common import MissingTool, last_words, run


class Code(NamedTuple):
    """How the machine code of two builds of a package compares."""

    stock_bytes: int
    """Of .text, in all modules."""
    shim_bytes: int
    same: int
    """Functions that are instruction for instruction the same."""
    changed: tuple[str, ...]
    """Those that are not."""
    added: tuple[str, ...]
    """Those that only the shim's has."""
    removed: tuple[str, ...]

    @property
    def summary(self) -> str:
        total = self.same + len(self.changed) + len(self.removed)
        return f"{self.same}/{total}"


#: `call 1130 <PyList_New@plt>`: the address moves with all that lies before it, the name does not.
TARGET = re.compile(r"\b(?:0x)?[0-9a-f]+ (<[^>]+>)")


#: `lea 0x2ee3(%rip),%rsi        # 2000 <_fini+0xe58>`: data, which has no names of its own.
RELATIVE = re.compile(r"-?0x[0-9a-f]+\(%rip\)")


PADDING = re.compile(r"^(?:(?:data16|cs|ds)\s+)*(?:nop|xchg\s+%ax,%ax)")


FUNCTION = re.compile(r"^(?:[0-9a-f]+ )?<([^>]+)>:$")


def functions(disassembly: str) -> dict[str, list[tuple[str, ...]]]:
    """The instructions of each function, without what depends on where things lie. Names may repeat."""
    found: dict[str, list[list[str]]] = {}
    current: list[str] | None = None
    for line in disassembly.splitlines():
        if match := FUNCTION.match(line):
            current = []
            found.setdefault(match[1], []).append(current)
        elif current is not None and line.startswith((" ", "\t")):
            instruction = line.partition("#")[0].strip()
            if instruction and not PADDING.match(instruction):
                instruction = RELATIVE.sub("DATA(%rip)", TARGET.sub(r"\1", instruction))
                current.append(re.sub(r"\s+", " ", instruction))
    return {name: sorted(map(tuple, bodies)) for name, bodies in found.items()}


def disassemble(path: Path) -> dict[str, list[tuple[str, ...]]]:
    done = run(
        ["objdump", "-d", "-w", "-C", "--no-show-raw-insn", "--no-addresses", "-j", ".text", str(path)]
    )
    if done.returncode != 0:
        raise MissingTool(f"objdump cannot read {path}: {last_words(done.stderr)}")
    return functions(done.stdout)


def text_bytes(path: Path) -> int:
    """The size of .text."""
    for line in run(["size", "-A", str(path)]).stdout.splitlines():
        if line.startswith(".text"):
            return int(line.split()[1])
    raise MissingTool(f"size does not say how large .text of {path} is.")


def compare_code(stock: Path, shim: Path) -> Code:
    """Of all modules of two builds."""
    ours, theirs = libraries_in(shim), libraries_in(stock)
    same = 0
    changed: list[str] = []
    added: list[str] = []
    removed: list[str] = []
    for name in sorted(theirs.keys() | ours.keys()):
        before = disassemble(theirs[name]) if name in theirs else {}
        after = disassemble(ours[name]) if name in ours else {}
        for function in sorted(before.keys() | after.keys()):
            if function not in before:
                added.append(function)
            elif function not in after:
                removed.append(function)
            elif before[function] == after[function]:
                same += 1
            else:
                changed.append(function)
    return Code(
        sum(map(text_bytes, theirs.values())),
        sum(map(text_bytes, ours.values())),
        same,
        tuple(changed),
        tuple(dict.fromkeys(added)),
        tuple(removed),
    )
