"""The adapter's functional form as a package of Hugging Face's ``kernels``: sources, ``build.toml`` and ready builds.

    python -m fe_adapter.sharing.kernel_package OUT

`fe_adapter.functional.adapter` and all that it imports are copied, with relative imports and an operator namespace of
their own, so that the package stands alone and several versions of it, and fe-adapter itself, live in one process. It
is Python and Triton: a build is a copy of the sources and its ``metadata.json``.
"""

from __future__ import annotations

import ast
import hashlib
import re
import shutil
import sys
from pathlib import Path

from fe_adapter.errors import InputError
from fe_adapter.files import make_folder, write_json
from fe_adapter.ops.registration import NAMESPACE

NAME = "fe-adapter-kernels"
PACKAGE = NAME.replace("-", "_")
VERSION = 1
BACKENDS = ("cpu", "cuda")
_ROOT = Path(__file__).parents[1]
_IMPORT = re.compile(r"^( *)from fe_adapter((?:\.\w+)*) import", re.MULTILINE)
_INIT = '''"""The temporal adapter of FE-Adapter (arXiv 2408.02421), fused, with gradients; static, it is ST-Adapter's.

``adapter(x, …)`` is ``x + up(φ(temporal_conv(down(x))))`` on the patch tokens of ``x`` (B*T, L, D); by Triton on a GPU,
by PyTorch elsewhere. Generated from fe-adapter.
"""

from .functional import adapter

__all__ = ["adapter"]
'''
_BUILD = f"""[general]
name = "{NAME}"
version = {VERSION}
edition = 5
license = "apache-2.0"
backends = [{", ".join(f'"{backend}"' for backend in BACKENDS)}]

[torch-noarch]
"""
_FLAKE = """{
  description = "Flake for the fe-adapter kernels";
  inputs.kernel-builder.url = "github:huggingface/kernels";
  outputs = { self, kernel-builder }:
    kernel-builder.lib.genKernelFlakeOutputs {
      inherit self;
      path = ./.;
    };
}
"""
_CARD = f"""---
library_name: kernels
license: apache-2.0
tags:
- kernel
---

# {NAME}

A temporal adapter for frozen image transformers, forward and backward in fused Triton kernels.

```python
import torch
from kernels import get_kernel

kernel = get_kernel("OWNER/{NAME}", version={VERSION})
B, T, L, D, R = 2, 8, 197, 768, 64
options = {{"device": "cuda", "dtype": torch.bfloat16}}
x = torch.randn(B * T, L, D, **options)
down, up = torch.randn(R, D, **options) / D**0.5, torch.randn(D, R, **options) / R**0.5
taps = torch.randn(R, 1, 3, 1, 1, **options)
zeros_r, zeros_d = torch.zeros(R, **options), torch.zeros(D, **options)
y = kernel.adapter(x, down, zeros_r, taps, zeros_r, up, zeros_d, num_frames=T)
```

Sources, tests, benchmarks and the layers around it: fe-adapter, of which this is generated.
"""


def write_kernel_package(out: Path) -> None:
    """Write the package into ``out``, an empty folder or a new one.

    Raises:
        InputError: ``out`` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is no empty folder")
    sources = _sources()
    digest = hashlib.sha256("".join(f"{name}\n{text}" for name, text in sorted(sources.items())).encode()).hexdigest()
    registration = "ops/registration.py"
    own = f'NAMESPACE = "{PACKAGE}_{digest[:12]}"'
    if f'NAMESPACE = "{NAMESPACE}"' not in sources[registration]:
        raise RuntimeError(f"{registration} does not say its namespace where it is looked for")
    sources[registration] = sources[registration].replace(f'NAMESPACE = "{NAMESPACE}"', own)
    make_folder(out)
    for name, text in (("build.toml", _BUILD), ("flake.nix", _FLAKE), ("README.md", _CARD)):
        (out / name).write_text(text, encoding="utf-8")
    _write(sources, out / "torch-ext" / PACKAGE)
    for backend in BACKENDS:
        folder = out / "build" / f"torch-{backend}"
        shutil.copytree(out / "torch-ext" / PACKAGE, folder)
        about = {"id": f"_{PACKAGE}_{backend}_{digest[:12]}", "name": NAME, "version": VERSION, "license": "apache-2.0"}
        write_json(folder / "metadata.json", {**about, "python-depends": [], "backend": {"type": backend}})


def _sources() -> dict[str, str]:
    """The text of every file of the package, by its path in it."""
    found = {"__init__.py": _INIT}
    waiting = ["functional.py"]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        text = (_ROOT / name).read_text(encoding="utf-8")
        waiting += _imported(text)
        found[name] = _relative(text, depth=name.count("/"))
    for folder in {name.rpartition("/")[0] for name in found if "/" in name}:
        found.setdefault(f"{folder}/__init__.py", "")
    return found


def _relative(text: str, depth: int) -> str:
    """``text`` of a file so many folders deep, whose imports of fe_adapter are relative ones."""
    return _IMPORT.sub(lambda match: f"{match[1]}from {'.' * (1 + depth)}{match[2][1:]} import", text)


def _imported(text: str) -> list[str]:
    """The files of fe_adapter that a file imports."""
    files = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fe_adapter":
            module = "/".join(node.module.split(".")[1:])
            if module and (_ROOT / f"{module}.py").exists():
                files.append(f"{module}.py")
            else:
                files += [f"{module}/{alias.name}.py".lstrip("/") for alias in node.names]
    return files


def _write(sources: dict[str, str], folder: Path) -> None:
    for name, text in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m fe_adapter.sharing.kernel_package OUT")
    try:
        write_kernel_package(Path(sys.argv[1]))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
