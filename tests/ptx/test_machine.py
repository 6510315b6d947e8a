"""The tool that runs PTX, by kernels written by hand: its arithmetic, and what it has to refuse."""

from __future__ import annotations

import ctypes
import struct

import pytest
import torch

from tests.cuda_emulation import emulator
from tests.ptx import build, translate

HEAD = ".version 9.0\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 k_0, .param .u64 k_1)\n{{\n{}\nret;\n}}"
START = """
.reg .pred %p<4>; .reg .b32 %r<20>; .reg .f32 %f<20>; .reg .b64 %rd<10>; .reg .f64 %fd<5>;
.shared .align 4 .b8 box[256];
ld.param.u64 %rd1, [k_0]; ld.param.u64 %rd2, [k_1];
mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd2, %rd3;
"""
STORE_SHARED = """
mov.u32 %r2, box; shl.b32 %r3, %r1, 2; add.s32 %r4, %r2, %r3; st.shared.u32 [%r4], %r1;
"""


class Machine:
    def __init__(self):
        if emulator.compiler() is None:
            pytest.skip("no C++ compiler: PTX can't be run")
        self.lib, self.folder = build.bare()
        self.lib.emulation_error.restype = ctypes.c_char_p
        self.lib.emulation_declare.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def run(self, body: str, words: torch.Tensor, threads: int = 4, kind: int = 1, order: int = 0):
        """Runs a block; ``words`` is the input, and what comes back the output and the error."""
        kernels = build.Kernels(translate.kernels(HEAD.format(START + body)), self.folder)
        find = build.FIND(kernels.find)
        out = torch.zeros(threads, dtype=torch.int32)
        self.lib.emulation_reset(order)
        self.lib.emulation_declare(words.data_ptr(), 4 * len(words), 0)
        self.lib.emulation_declare(out.data_ptr(), 4 * threads, kind)
        kernel = kernels.find(b"k")
        assert not kernels.errors, kernels.errors[0]
        pointers = (ctypes.c_uint64 * 2)(words.data_ptr(), out.data_ptr())
        args = (ctypes.c_void_p * 2)(*(ctypes.addressof(pointers) + 8 * i for i in range(2)))
        self.lib.ptx_run(ctypes.c_void_p(kernel), 1, threads, args)
        del find
        return out, self.lib.emulation_error().decode()


@pytest.fixture(scope="module")
def machine():
    return Machine()


def bits(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(torch.int32)


def test_arithmetic_is_the_isas(machine):
    """One instruction a thread, beside what the ISA says of it."""
    one_and = struct.unpack("f", struct.pack("I", 0x3F800001))[0]  # 1 + 2^-23
    words = bits(one_and, 3.0, -0.0, float("nan"))
    body = """
    ld.global.nc.f32 %f1, [%rd1]; ld.global.nc.f32 %f2, [%rd1+4];
    setp.eq.s32 %p1, %r1, 0; setp.eq.s32 %p2, %r1, 1; setp.eq.s32 %p3, %r1, 2;
    mov.b32 %r2, %f1; mov.b32 %r3, 0x80000001;
    fma.rm.f32 %f3, %f1, %f1, 0f00000000; mov.b32 %r10, %f3;
    prmt.b32 %r11, %r2, %r3, 0x7654;
    shf.l.wrap.b32 %r12, %r3, %r2, 4;
    ld.global.nc.f32 %f4, [%rd1+12]; cvt.sat.f32.f32 %f5, %f4; mov.b32 %r13, %f5;
    selp.b32 %r14, %r12, %r13, %p3; selp.b32 %r14, %r11, %r14, %p2; selp.b32 %r14, %r10, %r14, %p1;
    st.global.u32 [%rd4], %r14;
    """
    out, error = machine.run(body, words)
    assert error == ""
    assert [w & 0xFFFFFFFF for w in out.tolist()] == [0x3F800002, 0x80000001, 0xF8000018, 0]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("ld.global.nc.f32 %f1, [%rd1+16]; st.global.f32 [%rd4], %f1;", "out of bounds"),
        ("ld.global.nc.u32 %r2, [%rd1+2]; st.global.u32 [%rd4], %r2;", "misaligned"),
        ("st.global.u32 [%rd1], %r1; st.global.u32 [%rd4], %r1;", "write to an input"),
        (
            "bar.warp.sync 0xffffffff; st.global.u32 [%rd4], %r1;",
            "does not compile",
        ),
        (
            STORE_SHARED
            + "xor.b32 %r5, %r4, 4; ld.shared.u32 %r6, [%r5]; st.global.u32 [%rd4], %r6;",
            "shared memory is read",
        ),
        ("mov.u32 %r2, box; ld.shared.u32 %r3, [%r2]; st.global.u32 [%rd4], %r3;", "before it is"),
        ("setp.eq.s32 %p1, %r1, 0; @%p1 bar.sync 0; st.global.u32 [%rd4], %r1;", "barrier"),
        ("ld.global.nc.u32 %r2, [%rd4]; st.global.u32 [%rd4], %r2;", "as if it did not"),
        (
            "div.approx.f32 %f1, 0f3F800000, 0f00000001; st.global.f32 [%rd4], %f1;",
            "outside its range",
        ),
    ],
    ids=str,
)
def test_forbidden_behaviour_of_a_kernel_is_reported(machine, body: str, says: str):
    if says == "does not compile":
        with pytest.raises(AssertionError, match=r"op_bar_warp_sync|bar\.warp"):
            machine.run(body, bits(1, 2, 3, 4))
        return
    for order in (0, 1):
        _, error = machine.run(body, bits(1, 2, 3, 4), order=order)
        assert says in error


def test_a_register_that_nobody_set_has_no_constant_value(machine):
    body = "st.global.u32 [%rd4], %r9;"
    found = set()
    for word in (1, 2):
        machine.lib.ptx_poison(ctypes.c_uint64(word))
        found.add(machine.run(body, bits(0))[0][0].item())
    assert found == {1, 2}


def test_other_threads_writes_are_read_after_a_barrier_alone(machine):
    exchange = """
    bar.sync 0; xor.b32 %r5, %r4, 4; ld.shared.u32 %r6, [%r5]; st.global.u32 [%rd4], %r6;
    """
    out, error = machine.run(STORE_SHARED + exchange, bits(0))
    assert error == "" and out.tolist() == [1, 0, 3, 2]
    through_global = """
    st.global.u32 [%rd4], %r1; xor.b32 %r2, %r1, 1; mul.wide.u32 %rd5, %r2, 4;
    add.s64 %rd5, %rd2, %rd5; {} ld.global.u32 %r3, [%rd5];
    """
    assert machine.run(through_global.format("bar.sync 0;"), bits(0))[1] == ""
    errors = {machine.run(through_global.format(""), bits(0), order=o)[1] != "" for o in (0, 1)}
    assert errors == {True}
