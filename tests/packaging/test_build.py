"""Building for real, around sources small enough for a test."""

import os
import signal
import subprocess
import time

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("needs_compiler")]


def test_cpu_library_builds_and_loads(project):
    result = project.build(VAE_FAST_BUILD="cpu")
    assert result.returncode == 0, result.stderr
    assert project.libraries() == ["_C"]
    assert project.load() == torch.__version__


def test_a_killed_build_leaves_nothing_that_stops_the_next(project):
    process = subprocess.Popen(
        project.COMMAND,
        cwd=project.path,
        env=project.environment(VAE_FAST_BUILD="cpu"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    # Ninja has begun when its file is there; compiling the library takes seconds from then on.
    deadline = time.monotonic() + 60
    while not list(project.path.glob("build/temp*/build.ninja")):
        assert process.poll() is None and time.monotonic() < deadline, "the build did not start"
        time.sleep(0.02)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert project.libraries() == [], "the build was over before it was killed"

    result = project.build(VAE_FAST_BUILD="cpu")
    assert result.returncode == 0, result.stderr
    project.load()


def test_a_compile_error_is_loud_and_ends_in_a_sentence(project):
    (project.path / "csrc" / "module.cpp").write_text("this is no C++\n")
    result = project.build()
    assert result.returncode != 0
    assert "VAE_FAST_BUILD=off" in result.stderr.strip().splitlines()[-1]
    assert "error:" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_only_what_changed_is_compiled_again(project):
    assert project.build(VAE_FAST_BUILD="cpu").returncode == 0
    objects = {path.name: path for path in project.path.glob("build/temp*/csrc/*.o")}
    before = {name: path.stat().st_mtime_ns for name, path in objects.items()}
    module = project.path / "csrc" / "module.cpp"
    module.write_text(module.read_text() + "// changed\n")
    assert project.build(VAE_FAST_BUILD="cpu").returncode == 0
    after = {name: path.stat().st_mtime_ns for name, path in objects.items()}
    assert [name for name in before if after[name] != before[name]] == ["module.o"]
