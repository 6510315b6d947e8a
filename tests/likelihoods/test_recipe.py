"""CONTRIBUTING's "Adding a likelihood", followed to the letter in a copy of the sources.

The page's own code makes a likelihood of three files. The CPU's library is built there, and every
generated test holds the new likelihood to the project's bar.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("csrc", "vae_fast", "tests", "setup.py", "pyproject.toml", "LICENSE", "README.md")

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").is_file(), reason="this test runs in the source tree"
)


def recipe() -> dict[str, str]:
    """The files of the page's section, by the path that their first line names."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    section = re.search(r"^## Adding a likelihood\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)[1]
    block = r"^```\w+\n(?://|#) (\S+)\n(.*?)^```$"
    return dict(re.findall(block, section, re.MULTILINE | re.DOTALL))


def in_list(text: str, lines: str) -> str:
    """list.h with an include and an entry more."""
    include, entry = lines.splitlines(keepends=True)
    text, includes = re.subn(r"(?=#include \"likelihoods/)", include, text, count=1)
    text, entries = re.subn(r"(?<=#define VF_LIKELIHOODS\(X\)) *\\\n", lambda m: m[0] + entry, text)
    assert (includes, entries) == (1, 1)
    return text


def run(path: Path, *command: str, **variables: str) -> str:
    drop = {"CXX", "CC", "MAX_JOBS"} | {
        v for v in os.environ if v.startswith(("VAE_FAST", "PYTEST"))
    }
    environment = {k: v for k, v in os.environ.items() if k not in drop}
    environment |= {"PYTHONPATH": str(path), **variables}
    done = subprocess.run(
        [sys.executable, *command],
        check=False,
        cwd=path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def add(path: Path) -> list[str]:
    """Follow the recipe in a copy of the sources; the paths that were written."""
    files = recipe()
    for name, text in files.items():
        file = path / name
        if file.name == "list.h":
            text = in_list(file.read_text(), text)
        else:
            assert not file.exists()
        file.write_text(text)
    return sorted(files)


@pytest.mark.slow  # it builds the library: minutes
def test_a_likelihood_is_three_files(tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "*.pyc")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=ignore)
        else:
            shutil.copy(source, tmp_path / name)
    assert add(tmp_path) == [
        "csrc/likelihoods/list.h",
        "csrc/likelihoods/logistic.h",
        "vae_fast/likelihoods/logistic.py",
    ]
    run(tmp_path, "setup.py", "-q", "build_ext", "--inplace", VAE_FAST_BUILD="cpu")
    tests = ["tests/likelihoods/test_ops.py", "tests/likelihoods/test_formulas.py"]
    tests += ["tests/test_compile.py", "tests/models/test_likelihoods.py"]
    said = run(
        tmp_path, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-p", "no:randomly",
        "-m", "not slow and not cuda", "-k", "logistic and not discretized", *tests,
    )  # fmt: skip
    for test in ("test_ops.py", "test_reference_is_true", "test_opcheck", "test_every_likelihood"):
        assert re.search(rf"PASSED .*{test}.*\blogistic", said), (test, said)
    assert not re.search(r"^(SKIPPED|FAILED|ERROR)", said, re.MULTILINE), said
    code = (
        "import torch, vae_fast; x = torch.randn(3, 4); vae_fast.set_backend('native');"
        "print(vae_fast.logistic_nll(x, 0.0, x).item())"
    )
    assert float(run(tmp_path, "-c", code)) == pytest.approx(24 * math.log(2))
