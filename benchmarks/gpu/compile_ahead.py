"""Compiles the few-token kernels for GPUs that need not be there, and reads what they take."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ARCHITECTURES = (80, 90)
"""A100 and H100; an 86 or 89 runs what is compiled for an 80."""
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10}
"""Most bytes of shared memory that a program may have (CUDA C++ Programming Guide, table of
technical specifications per compute capability)."""


class CompilationError(RuntimeError):
    """A kernel does not compile, or not into something that may run."""


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel as compiled for an architecture.

    Attributes:
        kernel: its name.
        arch: `sm_80` or `sm_90`.
        registers: of a thread; 255 are the limit.
        spills: bytes that a thread stores because it has too few.
        shared_bytes: of shared memory, of a program.
        warps: of a program.
        rows: of the weight, of a program.
        instructions: of the machine code.
    """

    kernel: str
    arch: str
    registers: int
    spills: int
    shared_bytes: int
    warps: int
    rows: int
    instructions: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compile_kernels() -> list[CompiledKernel]:
    """Both kernels for both architectures, as `few_tokens` launches them on aligned shapes.

    Raises:
        CompilationError: one does not compile, or takes more shared memory than there is.
    """
    from engines.vllm_plugin import triton_kernel as source
    from engines.vllm_plugin.few_token_layout import WORDS

    weight = {"pairs_ptr": "*i32", "shifts_ptr": "*i32", "y_ptr": "*bf16"}
    sizes = {"n": "i32", "inputs": "i32", "words": "i32"}
    one, few = source.ONE_TOKEN, source.FEW_TOKENS
    one_constants = {"rows_per_program": one.rows, "words_per_step": WORDS, "stages": one.stages}
    few_constants = {
        "rows_per_program": few.rows,
        "tokens_per_program": source.TOKENS,
        "words_per_step": WORDS,
        "product_type": source.PRODUCT_TYPE,
    }
    found = []
    for arch in ARCHITECTURES:
        types = {"x_ptr": "*i64", **weight, **sizes}
        found.append(_compile(source.one_token_kernel, types, one_constants, arch, one))
        types = {"x_ptr": "*bf16", **weight, "tokens": "i32", **sizes}
        found.append(_compile(source.few_tokens_kernel, types, few_constants, arch, few))
    return found


def _compile(
    kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any], arch: int, launch: Any
) -> CompiledKernel:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    # At a launch Triton compiles for arguments that are multiples of 16: addresses and widths are.
    whole = [name for name in types if name != "tokens"]
    source = ASTSource(
        fn=kernel,
        signature={**types, **dict.fromkeys(constants, "constexpr")},
        constexprs=dict(constants),
        attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in whole},
    )
    options = {
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "enable_fp_fusion": True,
    }
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, spills, instructions = _resources(compiled.asm["cubin"])
    shared = int(compiled.metadata.shared)
    name = kernel.__name__.removesuffix("_kernel")
    if shared > SHARED_LIMIT[arch]:
        raise CompilationError(
            f"{name} takes {shared} bytes of shared memory on sm_{arch}, the limit is"
            f" {SHARED_LIMIT[arch]}: launch it with fewer rows or stages"
        )
    return CompiledKernel(
        name, f"sm_{arch}", registers, spills, shared, launch.warps, launch.rows, instructions
    )


def _resources(binary: bytes) -> tuple[int, int, int]:
    """Registers, bytes of spills, and instructions of the machine code that a GPU would run.

    The kernels have no arrays of their own, so whatever a thread stores to local memory is a
    spill.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(binary)
        usage, code = _cuobjdump("-res-usage", file), _cuobjdump("-sass", file)
    registers = re.search(r"\bREG:(\d+)", usage)
    if registers is None:
        raise CompilationError(f"cuobjdump names no registers:\n{usage}")
    names = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", code, re.M)
    spilled = [name for name in names if name.partition(".")[0] == "STL"]
    spills = sum(int(name.rpartition(".")[2]) // 8 if name[-1] in "468" else 4 for name in spilled)
    return int(registers[1]), spills, sum(name != "NOP" for name in names)


def _cuobjdump(what: str, file: Path) -> str:
    """What the program in Triton's wheel says of compiled code."""
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not program.is_file():
        raise CompilationError(f"{program} is missing: Triton's wheels for Linux on x86-64 have it")
    done = subprocess.run([program, what, file], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompilationError(f"cuobjdump failed:\n{done.stderr}")
    return done.stdout
