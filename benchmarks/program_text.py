"""Numbers that only the text of a compiled program tells: collectives and estimated cycles."""

import functools
import math
import re

SIZES = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "s64": 8, "s32": 4, "u32": 4, "u8": 1, "pred": 1}


def collectives(text: str) -> tuple[int, int]:
    """Returns the number of collectives of a compiled program, and the bytes of their results."""
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    found = re.findall(rf" = (.*?) ({kinds})(-start)?\(", text)
    total = 0
    for shape, kind, start in found:
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
        if start and kind != "all-reduce":  # it also returns its operands, first
            arrays = arrays[len(arrays) // 2 :]
        for dtype, sizes in arrays:
            total += SIZES[dtype] * math.prod(int(n) for n in sizes.split(",") if n)
    return len(found), total


def estimated_cycles(text: str) -> tuple[int, int]:
    """Returns XLA's estimate of the cycles of a program, if conditionals do least or most.

    Collectives have no estimate. So it compares the arithmetic of two programs, and their memory
    traffic, not more.
    """
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if heading := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            lines = computations.setdefault(heading[1], [])
        else:
            lines.append(line)

    def called(line: str, role: str) -> list[str]:
        names = re.search(rf"{role}=\{{?([^,}}]*(?:, %[^,}}]*)*)", line)
        return [name.strip(" %") for name in names[1].split(",")] if names else []

    @functools.cache
    def cycles(name: str, worst: bool) -> int:
        total = 0
        for line in computations[name]:
            total += sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', line)))
            if " conditional(" in line:
                branches = called(line, "branch_computations") or [
                    *called(line, "true_computation"),
                    *called(line, "false_computation"),
                ]
                total += (max if worst else min)(cycles(branch, worst) for branch in branches)
            elif " while(" in line:
                condition = "\n".join(computations[called(line, "condition")[0]])
                trips = map(int, re.findall(r"constant\((\d+)\)", condition))
                total += max(trips, default=1) * cycles(called(line, "body")[0], worst)
            elif " call(" in line:
                total += cycles(called(line, "to_apply")[0], worst)
        return total

    entry = re.search(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE)
    assert entry is not None
    return cycles(entry[1], False), cycles(entry[1], True)
