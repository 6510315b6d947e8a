"""One version, one list of CI's steps, and the same tools everywhere."""

import fnmatch
import re
import runpy
import subprocess
import sys

import pytest

import vae_fast
from tests.packaging.conftest import ROOT

yaml = pytest.importorskip("yaml")
pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").is_file(), reason="setup.py is not here: these read the source tree"
)


def read(name):
    path = ROOT / name
    if not path.is_file():
        pytest.skip(f"{name} is not here: a source distribution has none")
    return path.read_text(encoding="utf-8")


def test_the_version_stands_in_one_place(monkeypatch, tmp_path):
    assert re.findall(r'^dynamic = \["version"\]', read("pyproject.toml"), flags=re.MULTILINE)
    assert not re.search(r"^version = \"", read("pyproject.toml"), flags=re.MULTILINE)
    script = runpy.run_path(str(ROOT / "scripts" / "check_version.py"))
    wrong = script["problems"]("99.0")
    assert len(wrong) == 2 and vae_fast.__version__ in wrong[0] and "99.0 (YYYY-MM-DD)" in wrong[1]
    (tmp_path / "vae_fast").mkdir()
    (tmp_path / "vae_fast" / "__init__.py").write_text('"""x"""\n\n__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 (2026-01-31)\n")
    script["problems"].__globals__["ROOT"] = tmp_path
    assert script["problems"]("1.2.3") == []
    assert len(script["problems"]("1.2.30")) == 2


def test_a_script_beside_the_clone_imports_the_package(tmp_path):
    """The clone is a folder named vae_fast. On a script's path it comes before an import hook, which
    is how setuptools installs an editable package unless it is told otherwise, as in setup.py."""
    (tmp_path / "vae_fast").mkdir()
    script = tmp_path / "script.py"
    script.write_text("from vae_fast import VAE\n")
    done = subprocess.run(
        [sys.executable, script], check=False, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_workflows_call_the_steps_of_ci():
    read(".ci/run")
    command = [str(ROOT / ".ci" / "run"), "no-such-step"]
    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert refused.returncode == 2
    steps = re.findall(r"[a-z-]+", refused.stderr.split(":")[1].replace(" or ", ", "))
    jobs = yaml.safe_load(read(".github/workflows/checks.yml"))["jobs"]
    assert jobs["step"]["strategy"]["matrix"]["step"] == steps
    assert jobs["step"]["steps"][-1]["run"] == ".ci/run ${{ matrix.step }}"


def test_actions_and_tools_are_pinned():
    for workflow in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        for action in re.findall(r"uses: (\S+)", workflow.read_text(encoding="utf-8")):
            assert re.search(r"@(v\d+\.\d+\.\d+|[0-9a-f]{40})$", action), action
    makefile = dict(re.findall(r'([a-z-]+)==([\d.]+)"', read("Makefile")))
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    wanted = [tool for hook in hooks for tool in hook.get("additional_dependencies", [])]
    assert wanted
    for tool in wanted:
        name, version = tool.split("==")
        assert makefile[name] == version


def test_the_wheel_and_the_sdist_leave_no_file_of_the_package_out():
    tracked = subprocess.run(
        ["git", "ls-files", "vae_fast"], cwd=ROOT, check=False, capture_output=True, text=True
    ).stdout.split()
    if not tracked:
        pytest.skip("this is no clone")
    assert "vae_fast/py.typed" in tracked  # without it the package's types count for nothing
    package_data = re.search(r"package-data\]\n((?:.+\n)+)", read("pyproject.toml"))[1]
    patterns = []
    for package, globs in re.findall(r'^"?([\w.]+)"? = \[(.+)\]$', package_data, re.MULTILINE):
        patterns += [
            f"{package.replace('.', '/')}/{glob}" for glob in re.findall(r'"(.+?)"', globs)
        ]
    manifest = [word for word in read("MANIFEST.in").split() if word.startswith("vae_fast/")]
    for wanted in (patterns, manifest):
        matched = {pattern: fnmatch.filter(tracked, pattern) for pattern in wanted}
        assert all(matched.values()), matched
        rest = set(tracked).difference(*matched.values())
        assert [name for name in rest if not name.endswith(".py")] == []
