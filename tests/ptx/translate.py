"""PTX to C++, instruction by instruction: what nvcc made of a kernel, as a function for the emulation.

A register becomes a variable of its bits, an instruction a call of ``op_NAME`` in ``machine.h``, a
label a label. An instruction that is not in ``machine.h`` does not compile, so none is guessed.
Written by the PTX ISA's text (version 9.0).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise

CTYPES = {
    **{f"{kind}{bits}": f"uint{bits}_t" for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"int{bits}_t" for bits in (8, 16, 32, 64)},
    "f16": "f16",
    "f32": "float",
    "f64": "double",
    "pred": "bool",
}
SPECIAL = {
    "%tid.x": "threadIdx.x",
    "%ntid.x": "blockDim.x",
    "%ctaid.x": "blockIdx.x",
    "%nctaid.x": "gridDim.x",
    "%laneid": "(threadIdx.x % 32u)",
}
STATEMENT = re.compile(r"\s*(?:([{}])|([\w$]+):(?!:)|((?:[^;{}]|\{[^{}]*\})+);)")
VARIABLE = re.compile(r"\.(?:align\s+(\d+)\s+)?\.?(?:b|u|s|f)(8|16|32|64)\s+([\w$]+)(?:\[(\d+)\])?")


class Unknown(Exception):
    """PTX that this translation does not know."""


def bits_of(kind: str) -> int:
    return 1 if kind == "pred" else 32 if kind.endswith("x2") else int(re.sub(r"\D+", "", kind))


def operands(text: str) -> list[str]:
    return [a.strip() for a in re.findall(r"\{[^{}]*\}|\[[^\]]*\]|[^,{}\[\]]+", text) if a.strip()]


def variable(name: str) -> str:
    return "v_" + re.sub(r"[^\w]", "_", name)


@dataclass
class Kernel:
    name: str
    params: dict[str, int] = field(default_factory=dict)  # name: place among the arguments
    sizes: list[int] = field(default_factory=list)
    shared: dict[str, int] = field(default_factory=dict)  # name: offset
    shared_bytes: int = 0
    registers: dict[str, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    # --- operands ---

    def read(self, text: str, kind: str) -> str:
        ctype = CTYPES[kind]
        if text in SPECIAL:
            return f"as<{ctype}>({SPECIAL[text]})"
        if text in self.registers:
            return f"as<{ctype}>({variable(text)})"
        if text in self.shared:
            return f"as<{ctype}>(uint64_t{{{self.shared[text]}}})"
        if text in self.params:
            return f"as<{ctype}>(reinterpret_cast<uint64_t>(args[{self.params[text]}]))"
        if re.fullmatch(r"0[fF][0-9A-Fa-f]{8}", text):
            return f"as<{ctype}>(uint32_t{{0x{text[2:]}u}})"
        if re.fullmatch(r"0[dD][0-9A-Fa-f]{16}", text):
            return f"as<{ctype}>(uint64_t{{0x{text[2:]}ull}})"
        if re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)U?", text):
            value = int(text.rstrip("U"), 0) & (2**64 - 1)
            return f"as<{ctype}>(uint64_t{{{value}ull}})"
        raise Unknown(f"operand {text}")

    def write(self, text: str, value: str) -> str:
        if text != "_" and text not in self.registers:
            raise Unknown(f"destination {text}")
        return f"set({'sink' if text == '_' else variable(text)}, {value});"

    def address(self, text: str) -> str:
        m = re.fullmatch(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]", text)
        if m is None:
            raise Unknown(f"address {text}")
        return f"{self.read(m[1], 'u64')} + {int(m[2] or '0', 0)}ll"

    # --- statements ---

    def declare(self, text: str) -> bool:
        """Takes in a directive; False if ``text`` is an instruction."""
        if not text.startswith("."):
            return False
        if text.startswith(".reg"):
            m = re.match(r"\.reg\s*\.(\w+)\s+(.*)", text)
            for name in (n.strip() for n in m[2].split(",")):
                many = re.fullmatch(r"(%?[\w$]+)<(\d+)>", name)
                names = [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name]
                for one in names:
                    if self.registers.setdefault(one, bits_of(m[1])) != bits_of(m[1]):
                        raise Unknown(f"register {one} of two sizes")
        elif text.startswith(".shared"):
            m = VARIABLE.search(text)
            align, count = int(m[1] or 1), int(m[4] or 1)
            offset = -(-self.shared_bytes // align) * align
            self.shared[m[3]] = offset
            self.shared_bytes = offset + int(m[2]) // 8 * count
        elif not text.startswith((".pragma", ".loc", ".file", ".section")):
            raise Unknown(text)
        return True

    def statement(self, text: str) -> None:
        if self.declare(text):
            return
        guard = re.match(r"@(!?)(%\w+)\s+(.*)", text)
        condition = ""
        if guard:
            condition = f"if ({guard[1]}{variable(guard[2])}) "
            text = guard[3]
        name, _, rest = text.partition(" ")
        self.lines.append(f"  {condition}{{ {self.instruction(name.split('.'), operands(rest))} }}")

    def instruction(self, op: list[str], args: list[str]) -> str:
        base = op[0]
        if base == "bra":
            return f"goto L_{args[-1].replace('$', '_')};"
        if base in ("ret", "exit"):
            return "return;"
        if base == "trap":
            return "emulation::trap(); return;"
        if base in ("bar", "barrier"):
            if args != ["0"] or "sync" not in op:
                raise Unknown(".".join(op) + " " + ", ".join(args))
            return "emulation::block_barrier();"
        if base == "shfl":
            out, *rest = args
            d, _, p = out.partition("|")
            given = ", ".join(self.read(a, "b32") for a in rest)
            text = f"bool inside; {self.write(d, f'op_{chr(95).join(op[:-1])}({given}, inside)')}"
            return text + (f" {self.write(p, 'inside')}" if p else "")
        if base in ("ld", "st") or (base == "atom"):
            return self.memory(op, args)
        if base == "mov" and "{" in args[0] + args[1]:
            return self.pack(op[-1], args)
        kinds = [m for m in op[1:] if m in CTYPES]
        name = "op_" + "_".join(m for m in op if m not in CTYPES)
        if base == "cvta":
            return self.write(args[0], self.read(args[1], "u64"))
        if base == "cvt":
            source = kinds[-1]
            to = ", ".join(CTYPES[k] for k in kinds)
            given = ", ".join(self.read(a, source) for a in args[1:])
            return self.write(args[0], f"{name}<{to}>({given})")
        if not kinds:
            given = ", ".join(self.read(a, "b32") for a in args[1:])
            return self.write(args[0], f"{name}({given})") if args else f"{name}();"
        kind = kinds[-1]
        if base == "selp":
            given = [*(self.read(a, kind) for a in args[1:3]), self.read(args[3], "pred")]
        elif base in ("shl", "shr", "shf", "lop3", "prmt"):
            given = [self.read(args[1], kind), *(self.read(a, "u32") for a in args[2:])]
            if base == "shf":
                given[1] = self.read(args[2], kind)
        elif base in ("mad", "mul", "fma") and "wide" in op:
            wide = kind[0] + str(2 * bits_of(kind))
            given = [
                *(self.read(a, kind) for a in args[1:3]),
                *(self.read(a, wide) for a in args[3:]),
            ]
        else:
            given = [self.read(a, kind) for a in args[1:]]
        return self.write(args[0], f"{name}<{CTYPES[kind]}>({', '.join(given)})")

    def pack(self, kind: str, args: list[str]) -> str:
        if args[0].startswith("{"):  # one register into parts
            parts = operands(args[0][1:-1])
            each = bits_of(kind) // len(parts)
            whole = self.read(args[1], f"b{bits_of(kind)}")
            return f"const auto whole = {whole}; " + " ".join(
                self.write(p, f"uint{each}_t(whole >> {each * i})") for i, p in enumerate(parts)
            )
        parts = operands(args[1][1:-1])
        bits = bits_of(kind)
        each = bits // len(parts)
        joined = " | ".join(
            f"uint{bits}_t({self.read(p, f'b{each}')}) << {each * i}" for i, p in enumerate(parts)
        )
        return self.write(args[0], f"uint{bits}_t({joined})")

    def memory(self, op: list[str], args: list[str]) -> str:
        base, kind, ctype = op[0], op[-1], CTYPES[op[-1]]
        space = next((m for m in op if m in ("param", "shared", "global")), None)
        if space is None:
            raise Unknown(f"{'.'.join(op)}: generic address")
        if base == "atom":
            name = "_".join(m for m in op if m not in CTYPES)
            given = ", ".join(self.read(a, kind) for a in args[2:])
            return self.write(args[0], f"op_{name}<{ctype}>({self.address(args[1])}, {given})")
        where, data = (args[1], args[0]) if base == "ld" else (args[0], args[1])
        parts = operands(data[1:-1]) if data.startswith("{") else [data]
        lanes = next((int(m[1:]) for m in op if re.fullmatch(r"v[248]", m)), 1)
        if lanes != len(parts):
            raise Unknown(f"{'.'.join(op)} of {len(parts)} parts")
        at = self.address(where)
        if base == "ld":
            how = "true" if "nc" in op else "false"
            loads = {
                "param": f"load_param({at}, x);",
                "shared": f"load_shared({at}, x, {self.shared_bytes});",
                "global": f"load_global({at}, x, {how});",
            }
            writes = " ".join(self.write(p, f"x[{i}]") for i, p in enumerate(parts))
            return f"{ctype} x[{lanes}]; {loads[space]} {writes}"
        values = ", ".join(self.read(p, kind) for p in parts)
        stores = {
            "shared": f"store_shared({at}, x, {self.shared_bytes});",
            "global": f"store_global({at}, x);",
        }
        return f"const {ctype} x[{lanes}] = {{{values}}}; {stores[space]}"

    def source(self) -> str:
        variables = [
            f"  {'bool' if bits == 1 else f'uint{bits}_t'} {variable(name)} = poison<{bits}>();"
            for name, bits in self.registers.items()
        ]
        return "\n".join(
            [
                '#include "machine.h"',
                'extern "C" void kernel(void** args) {',
                "  uint64_t sink = 0;",
                *variables,
                *self.lines,
                "  (void)sink; (void)args;",
                "}",
                f'extern "C" const int shared_bytes = {self.shared_bytes};',
                "",
            ]
        )


def kernels(ptx: str) -> dict[str, str]:
    """The text of each kernel of a module, with what the module declares before the first."""
    ptx = re.sub(r"//[^\n]*", "", ptx)
    starts = [m.start() for m in re.finditer(r"(?:\.\w+\s+)*\.entry\s", ptx)]
    module = "\n".join(re.findall(r"\.shared[^;]*;", ptx[: starts[0]])) if starts else ""
    found = {}
    for begin, end in pairwise([*starts, len(ptx)]):
        text = ptx[begin:end]
        found[re.search(r"\.entry\s+([\w$]+)", text)[1]] = module + "\n" + text
    return found


def translate(text: str) -> str:
    """C++ of one kernel (a value of ``kernels``)."""
    if ".func" in text or ".extern" in text:
        raise Unknown("a function beside a kernel")
    entry = re.search(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{", text)
    kernel = Kernel(entry[1])
    for s in re.findall(r"\.shared[^;]*;", text[: entry.start()]):
        kernel.declare(s)
    for i, p in enumerate(p for p in entry[2].split(",") if p.strip()):
        kernel.params[VARIABLE.search(p)[3]] = i
    at, depth = entry.end(), 1
    while depth:
        m = STATEMENT.match(text, at)
        if m is None:
            raise Unknown(text[at : at + 80])
        at = m.end()
        if m[1]:
            depth += 1 if m[1] == "{" else -1
        elif m[2]:
            kernel.lines.append(f"L_{m[2].replace('$', '_')}:;")
        else:
            kernel.statement(" ".join(m[3].split()))
    return kernel.source()
