"""scripts/gpu_check.sh without a GPU: a stand-in for python3 says there is one, and notes its calls."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check.sh"

PYTHON = r"""#!/bin/bash
echo "$*" | head -1 >> "$CALLS"
case "$*" in
    *"cuda.is_available"*) echo "A GPU" ;;
    *STEPS*) "$REAL" -c 'import json, os
steps = json.loads(os.environ["STEPS"])
open(os.path.join(os.environ["OUT"], "summary.json"), "w").write(json.dumps({"steps": steps}))' ;;
    *junitxml*)
        last="${@: -1}"
        trap 'kill $!; echo "kept" > "${last#--junitxml=}"; exit 2' INT
        if [[ -n "$ENDLESS" ]]; then sleep 60 & wait; fi
        echo "1 failed"; echo > "${last#--junitxml=}"; exit 1 ;;
    *setup.py*) head -c "${WARNINGS:-10}" /dev/zero | tr "\\0" w; echo "did: $*" ;;
    *"-m benchmarks"*) echo "a table"; echo "{}" > "${@: -1}" ;;
    *) echo "did: $*" ;;
esac
"""


def run(tmp_path: Path, script: Path = SCRIPT, **env: str) -> tuple[dict, list[str], Path]:
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    for name, text in {
        "fake-python": PYTHON,
        "compute-sanitizer": '#!/bin/bash\necho "Device not supported"; exit 1\n',
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    out, calls = tmp_path / "out", tmp_path / "calls"
    given = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(calls), **env}
    given.update(PYTHON=str(tools / "fake-python"), REAL=sys.executable)
    result = subprocess.run(
        ["bash", str(script), str(out)], env=given, check=False, capture_output=True, text=True
    )
    summary = json.loads((out / "summary.json").read_text())["steps"]
    assert result.returncode == (
        1 if "failed" in str(summary) or "out of time" in str(summary) else 0
    ), result.stderr
    return summary, calls.read_text().splitlines(), out


def test_all_steps_run_whatever_one_does_and_few_files_are_left(tmp_path):
    steps, calls, out = run(tmp_path)
    assert {name: step["outcome"] for name, step in steps.items()} == {
        "build": "passed",
        "info": "passed",
        "tests": "failed",
        "memcheck": "skipped",
        "racecheck": "skipped",  # a virtual machine that refuses the sanitizer its device
        "benchmarks": "passed",
    }
    assert any("-m benchmarks --suite must-show --group gpu" in call for call in calls)
    files = {path.name for path in out.iterdir()}
    assert files == {"log.txt", "tests.xml", "benchmarks.json", "benchmarks.txt", "summary.json"}
    assert (out / "benchmarks.txt").read_text() == "a table\n"
    assert "1 failed" in (out / "log.txt").read_text()


def test_steps_that_are_left_out_are_not_run(tmp_path):
    steps, calls, _ = run(tmp_path, SKIP="build tests memcheck racecheck", BENCH="--only gather")
    assert [n for n, step in steps.items() if step["outcome"] == "skipped"] == [
        "build",
        "tests",
        "memcheck",
        "racecheck",
    ]
    assert not any("setup.py" in call or "-m pytest" in call for call in calls)
    assert any("-m benchmarks --only gather" in call for call in calls)


def test_two_runs_fit_a_quarter_of_an_hour():
    text = SCRIPT.read_text()
    limits = {n: int(s) for n, s in re.findall(r"^step (\w+) (\d+) ", text, flags=re.MULTILINE)}
    whole = int(re.search(r'TIME="\$\{TIME:-(\d+)\}"', text)[1])
    assert sum(seconds for name, seconds in limits.items() if name != "benchmarks") <= 300
    assert whole <= 420 and 2 * whole <= 15 * 60


def test_kernels_are_compiled_again_only_for_changed_sources(tmp_path):
    """By their contents: a second run is in a copy of the tree, whose files have other times."""
    tree = tmp_path / "tree"
    for name, text in {
        "scripts/gpu_check.sh": SCRIPT.read_text(),
        "setup.py": "",
        "csrc/cuda/step.cu": "one",
        "vae_fast/_C_cuda.so": "",
    }.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    builds = []
    for text in ("one", "one", "two"):
        (tree / "csrc/cuda/step.cu").write_text(text)
        steps, calls, out = run(tmp_path, tree / "scripts/gpu_check.sh", SKIP="memcheck racecheck")
        assert steps["build"]["outcome"] == "passed"
        builds.append(sum("build_ext" in call for call in calls))
        said = "the kernels here were compiled from these sources" in (out / "log.txt").read_text()
        assert said == (len(builds) == 2)
    assert builds == [1, 1, 2]
    (tree / "vae_fast/_C_cuda.so").unlink()
    _, calls, _ = run(tmp_path, tree / "scripts/gpu_check.sh", SKIP="memcheck racecheck")
    assert sum("build_ext" in call for call in calls) == 3


def test_tests_out_of_time_leave_their_results_and_the_log_stays_small(tmp_path):
    options = {"TIME": "2", "ENDLESS": "1", "WARNINGS": "20000000"}
    steps, _, out = run(tmp_path, SKIP="info memcheck racecheck benchmarks", **options)
    assert steps["tests"]["outcome"] == "out of time"
    assert (out / "tests.xml").read_text() == "kept\n"
    log = out / "log.txt"
    assert log.stat().st_size < 3_000_000 and "did: setup.py build_ext --inplace" in log.read_text()
