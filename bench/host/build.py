"""A CUDA that is not there, built for the PyTorch and the Triton of this Python: see fake_cuda.c."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path

from fe_adapter.errors import InputError, first_line

SOURCE = Path(__file__).with_name("fake_cuda.c")
# what PyTorch may ask for of runtime, driver, cuBLAS and cuDNN
_CALLS = re.compile(r"(__cuda|cuda[A-Z]|cublas|cudnn|cu[A-Z])")


def obstacle() -> str | None:
    """Why it cannot be built here; None if it can."""
    if sys.platform != "linux":
        return "the imitated CUDA is for Linux"
    for tool in ("gcc", "nm"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    import torch

    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if torch.cuda.is_available():
        return "there is a GPU, which measures more than an imitation of one"
    if not _headers()[0].joinpath("cuda.h").exists():
        return "Triton's cuda.h is not installed"
    return None


def environment() -> dict[str, str]:
    """What a process needs in its environment to see the imitated CUDA, which is built if need be.

    Raises:
        InputError: it cannot be built.
    """
    if reason := obstacle():
        raise InputError(f"no host times here: {reason}")
    library = _build()
    others = {name: value for name, value in os.environ.items() if not name.startswith("FE_ADAPTER_")}
    return {**others, "LD_PRELOAD": str(library), "TRITON_LIBCUDA_PATH": str(library.parent), "OMP_NUM_THREADS": "1"}


def _headers() -> list[Path]:
    site = Path(sysconfig.get_paths()["purelib"])
    return [site / "triton/backends/nvidia/include", *sorted(site.glob("nvidia/cu*/include"))]


def _build() -> Path:
    """The library, kept in the folder of temporary files for the next time."""
    content = f"{SOURCE.read_text()} {version('torch')} {version('triton')} {sys.prefix}"
    folder = Path(tempfile.gettempdir(), f"fe-adapter-fake-cuda-{hashlib.blake2b(content.encode()).hexdigest()[:16]}")
    library = folder / "libcuda.so.1"
    if library.exists():
        return library
    site = Path(sysconfig.get_paths()["purelib"])
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        work = Path(name)
        _run("gcc", "-O2", "-fPIC", "-w", *(f"-I{path}" for path in _headers()), "-c", str(SOURCE), "-o", f"{work}/a.o")
        imitated = {line.split()[2] for line in _run("nm", f"{work}/a.o").splitlines() if " T " in line}
        wanted: set[str] = set()
        for shared in (site / "torch/lib").rglob("*.so*"):
            names = re.findall(r"U (\w+)", _run("nm", "-D", "--undefined-only", str(shared)))
            wanted |= {name for name in names if _CALLS.match(name) and not name.startswith("cuFile")}
        rest = "\n".join(
            f'__attribute__((visibility("default"))) int {name}(void) {{ return 0; }}'
            for name in sorted(wanted - imitated)
        )
        Path(work, "b.c").write_text(rest)  # all others: success
        _run("gcc", "-O2", "-fPIC", "-w", "-c", f"{work}/b.c", "-o", f"{work}/b.o")
        names = [f"{work}/{part}" for part in ("a.o", "b.o")]
        _run("gcc", "-shared", "-Wl,-soname,libcuda.so.1", "-o", f"{work}/libcuda.so.1", *names, "-ldl")
        (work / "libcuda.so").symlink_to("libcuda.so.1")
        folder.mkdir(exist_ok=True)
        for built in ("libcuda.so", "libcuda.so.1"):
            (work / built).replace(folder / built)
    return library


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and command[0] == "gcc":
        raise InputError(f"the imitated CUDA does not compile: {first_line(RuntimeError(done.stderr))}")
    return done.stdout
