"""Pages stay true: everything that README.md, CONTRIBUTING.md and docs/ name exists, and code runs.

The quick tests look names up: make targets, commands and their flags, files, links, attributes,
environment variables. The slow one runs every page from top to bottom, as a reader would.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md"]
PAGES += sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))
FOLDERS = ("benchmarks", "csrc", "docs", "examples", "experiments", "scripts", "tests", "vae_fast")
SUFFIXES = ("cpp", "cu", "cuh", "h", "inc", "md", "py", "sh", "yaml")
# Files that the reader makes, not the project.
MADE = {
    "benchmarks/results/gpu-check",
    "benchmarks/results/latest",
    "config.yaml",
    "csrc/likelihoods/logistic.h",
    "vae_fast/likelihoods/logistic.py",
}
# What of a page's commands is carried out, as Python; pip, make and scripts have checks of their own.
RUN = {
    "vae-fast": "sys.argv[0] = '-m'; from vae_fast.cli import script; sys.exit(script())",
    "torchrun": "import subprocess; command = [sys.executable, '-m', 'torch.distributed.run']; "
    "sys.exit(subprocess.run(command + sys.argv[1:]).returncode)",
}

# Libraries that a page shows and the project does not need: a block that imports one runs where it is
# installed, beside those that it imports.
CLIENTS = ("accelerate", "anndata", "diffusers", "huggingface_hub", "lightning", "onnxruntime",
           "pythae", "scvi")  # fmt: skip

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").is_file(), reason="these tests run in the source tree"
)


# --- reading a page -------------------------------------------------------------------------------


def blocks(page: str) -> list[tuple[str, int, str]]:
    """(language, line of its first line, text) of every fenced block."""
    found, language, start, lines = [], None, 0, []
    for number, line in enumerate((ROOT / page).read_text().splitlines(), 1):
        if line.startswith("```"):
            if language is None:
                language, start, lines = line[3:].strip(), number + 1, []
            else:
                found.append((language, start, "\n".join(lines)))
                language = None
        elif language is not None:
            lines.append(line)
    assert language is None, f"{page}: the block of line {start - 1} has no end"
    return found


def prose(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def spans(page: str) -> list[str]:
    """The pieces of `code` within the text, a line break in one being a space."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def words_of(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # an apostrophe, or the like: no command
        return []


def in_blocks(page: str) -> list[list[str]]:
    """The commands of the page's bash blocks, each as its words."""
    text = "\n".join(text for language, _, text in blocks(page) if language == "bash")
    return [words for line in text.replace("\\\n", " ").splitlines() if (words := words_of(line))]


def commands(page: str) -> list[list[str]]:
    """The commands of bash blocks and of `code`, without the variables set before a command."""
    found = [*in_blocks(page), *(words_of(span) for span in spans(page))]
    found = [words[i:] for words in found for i in [first_of(words)] if i < len(words)]
    return [words for words in found if words[0] in {"make", "pip", "pytest", "python", *RUN}]


def first_of(words: list[str]) -> int:
    return next((i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), len(words))


@cache
def help_of(module: str, *arguments: str) -> str:
    """What the main function of a module prints about its flags, "-" for every "_"."""
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        importlib.import_module(module).main(list(arguments) or ["--help"])
    return printed.getvalue().replace("_", "-")


@cache
def verbs() -> dict[str, str]:
    """Each command of vae-fast, and its help (which `info`, having no flags, may not have)."""
    return {
        verb: help_of("vae_fast.cli", verb, "--help-all")
        for verb in importlib.import_module("vae_fast.cli").COMMANDS
    }


@cache
def files() -> list[str]:
    found = [p for folder in FOLDERS for p in (ROOT / folder, *(ROOT / folder).rglob("*"))]
    found += [p for p in ROOT.iterdir() if p.is_file()]
    return [str(p.relative_to(ROOT)) for p in found if "__pycache__" not in p.parts]


# --- what is named exists -------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_make_targets(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    variables = set(
        re.findall(r"^([A-Z]+) \?=", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    )
    for first, *rest in commands(page):
        if first == "make":
            names = {word for word in rest if re.fullmatch(r"[a-z][a-z-]*", word)}
            assert names <= targets, f"{page}: make has no {names - targets}"
            given = {name for word in rest for name in re.findall(r"^([A-Z]+)=", word)}
            assert given <= variables, f"{page}: the Makefile reads no {given - variables}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_flags(page):
    pytest.importorskip("jsonargparse")
    everything = "".join(verbs().values())
    for words in commands(page):
        if words[0] == "vae-fast" and len(words) > 1:
            verb, said = words[1], " ".join(words)
            if "|" in said or verb.isupper() or verb == "--help":
                continue
            assert verb in verbs(), f"{page}: {said!r}: {verb} is no command"
            known = verbs()[verb]
        elif words[:3] == ["python", "-m", "benchmarks"]:
            known, said = help_of("benchmarks.__main__"), " ".join(words)
        else:
            continue
        for flag in (word.split("=")[0] for word in words if word.startswith("--")):
            # Into a dict, whose keys are not the parser's to know.
            flag = re.sub(r"^(--model-args|--optimizer\.(args|phases))\..*", r"\1", flag)
            assert re.search(re.escape(flag.replace("_", "-")) + r"\b", known), f"{page}: {said!r}"
    for span in spans(page):
        # Flags and fields of the configuration by themselves: `--profile N`, `objective.beta`.
        field = re.match(r"(objective|optimizer|checkpoint)\.[a-z_]+", span)
        own_flag = page == "docs/training.md" and re.match(r"--[a-z][\w.-]*", span)
        if name := field or own_flag:
            flag = "--" + name.group().lstrip("-").replace("_", "-")
            assert re.search(re.escape(flag) + r"\b", everything), f"{page}: {span!r}"


@pytest.mark.parametrize("page", PAGES)
def test_extras_that_pip_is_to_install(page):
    known = set(
        re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    )
    text = " ".join(" ".join(words) for words in commands(page) if words[0] == "pip")
    named = {name for extras in re.findall(r"\.\[([\w,]+)\]", text) for name in extras.split(",")}
    assert named <= known, f"{page}: no extra is called {named - known}"


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            found = (ROOT / page).parent / path if path else ROOT / page
            assert found.exists(), f"{page} links to {target}, which is not there"
            if anchor:
                titles = re.findall(r"^#+ (.+)$", found.read_text(), flags=re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}
                assert anchor in anchors, f"{page} links to {target}: no such heading"


@pytest.mark.parametrize("page", PAGES)
def test_files_and_folders(page):
    top = "|".join(FOLDERS)
    named = {span for span in spans(page) if re.fullmatch(rf"(?:{top})/[\w./*-]*", span)}
    plain = "\n".join(text for language, _, text in blocks(page) if language != "diff")
    named |= set(re.findall(rf"(?<![\w/.-])(?:{top})/[\w./*-]*[\w/*]", plain))
    named |= {s for s in spans(page) if re.fullmatch(rf"[\w./*-]+\.(?:{'|'.join(SUFFIXES)})", s)}
    for name in sorted(named - MADE):
        if "NAME" not in name:
            pattern = re.escape(name.rstrip("/")).replace(r"\*", "[^/]*")
            there = [path for path in files() if re.search(rf"(^|/){pattern}$", path)]
            assert there, f"{page} names {name}, and there is no such file or folder"


@pytest.mark.parametrize("page", PAGES)
def test_attributes(page):
    for span in spans(page):
        if found := re.match(r"vae_fast((?:\.\w+)+)", span):
            if found.group() in {"vae_fast._C", "vae_fast._C_cuda"}:
                continue
            if found.group().startswith("vae_fast.lightning") and lacks("import lightning"):
                continue
            thing = importlib.import_module("vae_fast")
            for name in found.group(1).strip(".").split("."):
                if not hasattr(thing, name):
                    thing = importlib.import_module(f"{thing.__name__}.{name}")
                else:
                    thing = getattr(thing, name)


@pytest.mark.parametrize("page", PAGES)
def test_environment_variables(page):
    names = set(re.findall(r"\bVAE_FAST_[A-Z_]+\b", (ROOT / page).read_text()))
    readers = [ROOT / "setup.py", *ROOT.glob("vae_fast/**/*.py"), *ROOT.glob("csrc/**/*.cpp")]
    text = "\n".join(path.read_text() for path in readers)
    for name in names:
        assert f'"{name}"' in text, f"{page}: nothing reads {name}"


# --- what is shown runs ---------------------------------------------------------------------------


def test_before_and_after_are_the_same_loss():
    """README's diffs, both sides of them."""
    text = "\n".join(text for language, _, text in blocks("README.md") if language == "diff")
    sides = {sign: [s[1:] for s in text.splitlines() if s.startswith(sign)] for sign in "-+"}
    values = {}
    for sign, lines in sides.items():
        g = torch.Generator().manual_seed(0)
        names = {"torch": torch, "F": F, "x": torch.rand(8, 784, generator=g)}
        names |= {k: torch.randn(8, 784, generator=g) for k in ("logits", "mu", "logvar")}
        code = "\n".join(s for s in lines if "model" not in s)
        exec(compile(code, "README.md", "exec"), names)  # noqa: S102
        values[sign] = names["loss"]
    torch.testing.assert_close(values["+"], values["-"])


def lacks(code: str) -> bool:
    """Whether a block imports one of the optional libraries that is not installed."""
    named = set(re.findall(r"^(?:import|from) (\w+)", code, flags=re.MULTILINE))
    return any(importlib.util.find_spec(name) is None for name in named & set(CLIENTS))


def script_of(page: str) -> str:
    """The page as a Python script, whose errors name the page's lines."""
    lines = ["import sys", "from tests.fresh import python", "names = {'__name__': '__main__'}"]
    for language, start, text in blocks(page):
        if language == "python" and not lacks(text):
            code = "\n" * (start - 1) + text
            lines.append(f"exec(compile({code!r}, {page!r}, 'exec'), names)")
        elif language == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                words = words_of(line)
                if words and words[0] in RUN:
                    command = [f"import sys; {RUN[words[0]]}", *words[1:]]
                    lines.append(f"done = python(*{command!r})")
                    lines.append(
                        f"print({line!r}, done.stdout, done.stderr, sep='\\n', flush=True)"
                    )
                    lines.append("if done.returncode: sys.exit(done.returncode)")
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if "exec(" in script_of(p)])
def test_a_page_runs_from_top_to_bottom(page, tmp_path):
    pytest.importorskip("jsonargparse")
    # README names a configuration of examples/, as from the clone it is read in.
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    result = subprocess.run(
        [sys.executable, "-c", script_of(page)],
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert result.returncode == 0, f"{page}:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
