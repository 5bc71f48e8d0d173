"""The functional form as a package of its own, loaded by Hugging Face's ``kernels`` and by nothing at all."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fe_adapter import functional
from fe_adapter.errors import InputError
from fe_adapter.sharing.kernel_package import PACKAGE, write_kernel_package


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The package, written once."""
    folder = tmp_path_factory.mktemp("kernels") / "package"
    write_kernel_package(folder)
    return folder


def arguments(B=1, T=3, L=5, D=8, R=4):
    torch.manual_seed(0)
    shapes = ((B * T, L, D), (R, D), (R,), (R, 1, 3, 1, 1), (R,), (D, R), (D,))
    return [torch.randn(shape).requires_grad_() for shape in shapes]


def test_it_is_loaded_from_its_folder_and_gives_the_same(package):
    kernels = pytest.importorskip("kernels")
    module = kernels.get_local_kernel(package, backend="cpu")
    assert module.adapter.__module__ != functional.adapter.__module__
    found = []
    for function in (module.adapter, functional.adapter):
        tensors = arguments()
        y = function(*tensors, num_frames=3)
        found.append((y, *torch.autograd.grad(y.square().sum(), tensors)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with pytest.raises(ValueError, match="num_frames=2 does not divide batch 3"):
        module.adapter(*arguments(), num_frames=2)
    compiled = torch.compile(module.adapter, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments(), num_frames=3), found[0][0])


def test_what_it_says_of_itself_is_as_kernels_wants_it(package):
    rust = pytest.importorskip("kernels._rust")
    assert {str(backend).lower() for backend in rust.Build.open(package).general.backends} == {"cpu", "cuda"}
    for backend in ("cpu", "cuda"):
        metadata = rust.Metadata.read_from_file(package / "build" / f"torch-{backend}" / "metadata.json")
        assert metadata.name.python_name == PACKAGE
        assert str(metadata.backend.backend_type).lower() == backend


def test_it_needs_torch_alone(package):
    code = f"""
import sys
sys.modules["fe_adapter"] = None
import torch, {PACKAGE} as package
y = package.adapter(torch.randn(2, 3, 8), torch.randn(4, 8), torch.zeros(4), torch.zeros(4, 1, 3, 1, 1), torch.zeros(4),
                    torch.randn(8, 4), torch.zeros(8), num_frames=2)
assert y.shape == (2, 3, 8)
assert [name for name in sys.modules if name.split(".")[0] == "fe_adapter"] == ["fe_adapter"]
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=package / "torch-ext", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_kernels_are_all_there(package):
    there = {path.name for path in (package / "torch-ext" / PACKAGE / "kernels").iterdir()}
    assert {"fused.py", "conv.py", "plans.py", "spec.py", "launch.py"} <= there
    for path in (package / "torch-ext" / PACKAGE).rglob("*.py"):
        assert "from fe_adapter" not in path.read_text()


def test_a_folder_that_holds_something_is_left_alone(package):
    with pytest.raises(InputError, match="is no empty folder"):
        write_kernel_package(package)
