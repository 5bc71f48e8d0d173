"""Compile Triton kernels for GPUs that are not there, and read what the compiler made of them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

KIB = 1024


@dataclasses.dataclass(frozen=True)
class Arch:
    """Limits of one target: CUDA C programming guide, compute capabilities; AMD CDNA 3 ISA guide."""

    backend: str
    code: int | str
    warp_size: int
    smem_block: int  # bytes one block may ask for
    smem_sm: int  # bytes a multiprocessor has
    warps_sm: int
    blocks_sm: int
    tensor_memory: int = 0  # columns a multiprocessor has


ARCHS = {
    "sm_75": Arch("cuda", 75, 32, 64 * KIB, 64 * KIB, 32, 16),  # T4, RTX 20
    "sm_80": Arch("cuda", 80, 32, 163 * KIB, 164 * KIB, 64, 32),  # A100
    "sm_86": Arch("cuda", 86, 32, 99 * KIB, 100 * KIB, 48, 16),  # RTX 30, A10
    "sm_89": Arch("cuda", 89, 32, 99 * KIB, 100 * KIB, 48, 24),  # RTX 40, L4
    "sm_90": Arch("cuda", 90, 32, 227 * KIB, 228 * KIB, 64, 32),  # H100, H200
    "sm_100": Arch("cuda", 100, 32, 227 * KIB, 228 * KIB, 64, 32, tensor_memory=512),  # B200
    "sm_120": Arch("cuda", 120, 32, 99 * KIB, 100 * KIB, 48, 24),  # RTX 50
    "gfx942": Arch("hip", "gfx942", 64, 64 * KIB, 64 * KIB, 32, 16),  # MI300
}
TENSOR_CORES = r"\btcgen05\.mma|\bwgmma\.mma_async|(?<!w)\bmma\.sync|\bv_mfma_"
ASYNC_COPIES = r"\bcp\.async\.c[ag]|\bcp\.async\.bulk\.tensor|\bbuffer_load_\w+ .*\blds\b"
BARRIERS = r"ttg\.barrier|gpu\.barrier"
POINTERS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.uint8: "u8"}


@dataclasses.dataclass(frozen=True)
class Report:
    """What one kernel became on one target."""

    kernel: str
    design: str
    case: str
    target: str
    num_warps: int
    num_stages: int
    registers: int  # per thread
    spilled: int  # bytes per thread
    smem: int  # bytes per block
    tensor_memory: int  # columns per block, of 128 words
    blocks_per_sm: int
    tensor_core: int  # instructions
    async_copy: int  # instructions
    barriers: int  # of the whole block, in Triton's GPU dialect
    is_serialized: bool  # ptxas could not overlap the tensor-core products (C7515)


def compile_call(
    kernel: Any, arguments: tuple, options: Mapping[str, Any], target: str, design: str = "", case: str = ""
) -> Report:
    """Compile the launch ``kernel[grid](*arguments, **options)`` for ``target``, as the JIT would on it.

    Args:
        kernel: a ``@triton.jit`` function.
        arguments: tensors (only dtype and alignment matter) and numbers, in order.
        options: constexprs, ``num_warps`` and ``num_stages``.
        target: a key of `ARCHS`.
        design, case: names for the report.

    Raises:
        RuntimeError: it does not compile; the message is one line.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    arch = ARCHS[target]
    constants = {name: value for name, value in options.items() if name in kernel.arg_names}
    launch = {name: value for name, value in options.items() if name not in kernel.arg_names}
    signature: dict[str, str] = {}
    attributes: dict[tuple[int], list] = {}
    for i, (parameter, value) in enumerate(zip(kernel.params, arguments, strict=False)):
        signature[parameter.name], is_aligned = type_of(value)
        if value is None:  # the JIT leaves it out
            constants[parameter.name] = None
        if parameter.do_not_specialize:
            continue
        if isinstance(value, int) and value == 1:  # the JIT specialises on 1
            constants[parameter.name] = 1
        elif is_aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys((name for name in kernel.arg_names if name in constants), "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:  # a failing ptxas prints the whole program
            compiled = triton.compile(source, target=GPUTarget(arch.backend, arch.code, arch.warp_size), options=launch)
        except Exception as error:  # what the compiler raises differs from version to version
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise RuntimeError(f"{kernel.__name__} for {target}: {lines[-1].strip()[:200]}") from None
    text = compiled.asm["ptx" if arch.backend == "cuda" else "amdgcn"]
    registers, spilled = _usage(compiled.asm, text, arch)
    smem, warps = compiled.metadata.shared, compiled.metadata.num_warps
    tensor_memory = getattr(compiled.metadata, "tmem_size", None) or 0
    return Report(
        kernel=kernel.__name__.strip("_"),
        design=design,
        case=case,
        target=target,
        registers=registers,
        spilled=spilled,
        smem=smem,
        tensor_memory=tensor_memory,
        blocks_per_sm=_blocks_per_sm(arch, registers, smem, warps, tensor_memory),
        tensor_core=len(re.findall(TENSOR_CORES, text)),
        async_copy=len(re.findall(ASYNC_COPIES, text)),
        barriers=len(re.findall(BARRIERS, compiled.asm["ttgir"])),
        is_serialized=target == "sm_90" and _is_serialized(text),
        num_warps=warps,
        num_stages=compiled.metadata.num_stages,
    )


class Recorder:
    """Stands for a kernel: ``recorder[grid](…)`` notes the call instead of launching it."""

    def __init__(self, kernel: Any, calls: list[tuple[Any, tuple, dict]]) -> None:
        self._kernel, self._calls = kernel, calls

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **options: self._calls.append((self._kernel, arguments, options))


@contextlib.contextmanager
def recorded_calls(*modules: Any) -> Iterator[list[tuple[Any, tuple, dict]]]:
    """Within the block the launchers of ``modules`` record their launches: (kernel, arguments, options)."""
    calls: list[tuple[Any, tuple, dict]] = []
    kernels = [
        (module, name, value) for module in modules for name, value in vars(module).items() if name.endswith("_kernel")
    ]
    for module, name, kernel in kernels:
        setattr(module, name, Recorder(kernel, calls))
    try:
        yield calls
    finally:
        for module, name, kernel in kernels:
            setattr(module, name, kernel)


def type_of(value: Any) -> tuple[str, bool]:
    """Triton's name of an argument's type, and whether it is a multiple of 16 (bytes, of a pointer)."""
    if isinstance(value, torch.Tensor):
        return f"*{POINTERS[value.dtype]}", True  # allocations are aligned
    if value is None:
        return "constexpr", False
    if isinstance(value, float):
        return "fp32", False
    return "i32", value % 16 == 0


def _usage(asm: Mapping[str, Any], text: str, arch: Arch) -> tuple[int, int]:
    """Registers and spilled bytes per thread."""
    if arch.backend == "hip":
        registers, spilled = (
            int(re.findall(rf"\.{key}:\s*(\d+)", text)[0]) for key in ("vgpr_count", "private_segment_fixed_size")
        )
        return registers, spilled
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", output)}
    return usage["REG"], max(usage["STACK"], usage["LOCAL"])


def _blocks_per_sm(arch: Arch, registers: int, smem: int, warps: int, tensor_memory: int) -> int:
    if smem > arch.smem_block or tensor_memory > arch.tensor_memory:
        return 0
    reserved = KIB if arch.backend == "cuda" else 0  # the driver keeps one KiB a block
    by_smem = arch.smem_sm // (smem + reserved) if smem else arch.blocks_sm
    if arch.backend == "hip":  # 512 vector registers a lane and SIMD; four SIMDs
        by_registers = (512 // max(8, -(-registers // 8) * 8)) * 4 // warps
    else:  # 65,536 registers, given out in units of 256 a warp
        by_registers = 65536 // (-(-registers * 32 // 256) * 256 * warps)
    by_tensor_memory = arch.tensor_memory // tensor_memory if tensor_memory else arch.blocks_sm
    return min(by_smem, arch.warps_sm // warps, by_registers, by_tensor_memory, arch.blocks_sm)


def _is_serialized(ptx: str) -> bool:
    """Whether ptxas waits for each tensor-core product of Hopper before it starts the next, and says so."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.ptx")
        file.write_text(ptx)
        command = [knobs.nvidia.ptxas.path, "-arch=sm_90a", "-v", str(file), "-o", str(file.with_suffix(".o"))]
        said = subprocess.run(command, capture_output=True, text=True)
    return "C7515" in said.stdout + said.stderr
