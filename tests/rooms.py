"""The rooms of the Python code, lowest first, and the imports between them as they are in the sources.

``python -m tests.rooms`` draws the picture in docs/design.md again.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "design.md"

# A room imports rooms above it in this list, never below. A module or a package has one room.
ROOMS = {
    "basics": "types extras files import_paths data_options moments joined",
    "pictures": "figures pictures",
    "likelihoods": "likelihoods",
    "reference": "reference reference_pairwise",
    "backend": "built backend noise",
    "ops": "ops system",
    "functional": "functional distributions",
    "modules": "nn layers upsampling networks loader compat patches",
    "public": "public __init__",
    "models": "models",
    "data": "data",
    "train": "train",
    "tasks": "tasks",
    "evaluate": "evaluate",
    "hub": "hub lightning",
    "cli": "cli __main__",
    "benchmarks": "benchmarks",
    "experiments": "experiments",
}


def modules() -> dict[str, Path]:
    """Every module of the package, the benchmarks and the experiments, by its dotted name."""
    found = {}
    for top in ("vae_fast", "benchmarks", "experiments"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, known: dict[str, Path]) -> set[str]:
    """This project's modules that a module imports, also within functions.

    Imports for the type checker alone don't count. ``__version__``, which stands before the imports
    of the package's ``__init__``, is no import of what follows it.
    """
    found = set()
    for node in _walk(ast.parse(known[name].read_text())):
        targets = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        for target in targets:
            if target == "vae_fast.__version__":
                continue
            while target and target not in known:
                target = target.rpartition(".")[0]
            found |= {target} - {"", name}
    return found


def _walk(node: ast.AST):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _walk(child)


def graph() -> dict[str, set[str]]:
    """Every module with the modules that it imports."""
    known = modules()
    return {name: imports(name, known) for name in known}


def room_of(module: str) -> str:
    """The room of a module; ValueError if it has none."""
    parts = module.split(".")
    part = (parts[1] if len(parts) > 1 else "__init__") if parts[0] == "vae_fast" else parts[0]
    for room, names in ROOMS.items():
        if part in names.split():
            return room
    raise ValueError(f"{module} has no room: add it to ROOMS in tests/rooms.py")


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The circles of a graph, one for each edge that closes a circle in a depth-first walk."""
    found, done = [], set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append(path[path.index(name) :] + [name])
        elif name not in done:
            for other in sorted(edges[name]):
                visit(other, [*path, name])
            done.add(name)

    for name in edges:
        visit(name, [])
    return found


def arrows(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Every room with the rooms that its modules import."""
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for name, others in edges.items():
        room = room_of(name)
        found[room] |= {room_of(other) for other in others} - {room}
    return found


def picture() -> str:
    """The rooms as a Mermaid diagram, without the arrows that follow from others."""
    direct = arrows(graph())

    def reach(room: str) -> set[str]:
        return direct[room].union(*map(reach, direct[room])) if direct[room] else set()

    lines = ["```mermaid", "flowchart TD"]
    for room in reversed(ROOMS):
        beyond = set().union(*map(reach, direct[room]))
        lines += [f"  {room} --> {other}" for other in ROOMS if other in direct[room] - beyond]
    return "\n".join([*lines, "```"])


def drawn() -> str:
    """The picture as it stands in the page."""
    text = PAGE.read_text()
    start = text.index("```mermaid")
    return text[start : text.index("\n```", start) + len("\n```")]


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().replace(drawn(), picture()))
    sys.exit()
