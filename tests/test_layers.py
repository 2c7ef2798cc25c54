"""Which module may import which: read from the source, without importing anything."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tilereg"

VOCABULARY = {"errors", "windows", "grid", "points", "spot_source", "transform"}
KERNELS = {"kernels"}
TOP = {"cli", "__main__"}
JOINERS = {"pipeline", "batch", "stages", "given", "tiled", "registered", "plan", "steps", "demo"}
OUTER = {"lazy", "io", "report"}

# Which room may look into which; a room may always look into itself.
BELOW = {
    "kernels": set[str](),
    "vocabulary": {"kernels"},
    "algorithms": {"kernels", "vocabulary"},
    "lazy": {"kernels", "vocabulary", "algorithms"},
    "io": {"kernels", "vocabulary", "algorithms"},
    "report": {"kernels", "vocabulary", "algorithms"},
    "pipeline": {"kernels", "vocabulary", "algorithms", "lazy", "io", "report"},
    "cli": {"kernels", "vocabulary", "algorithms", "lazy", "io", "report", "pipeline"},
}
ONLY_LAZY = {"dask", "distributed"}
ONLY_IO = {"zarr", "fsspec", "pyarrow", "ome_zarr", "s3fs"}


def room(module: str) -> str:
    """Return the layer of a module, named as within the package: ``kernels.bspline``."""
    first = module.split(".")[0]
    if first in VOCABULARY:
        return "vocabulary"
    if first in TOP:
        return "cli"
    if first in JOINERS:
        return "pipeline"
    return first if first in OUTER | KERNELS else "algorithms"


def modules() -> dict[str, Path]:
    """Return every module but the package's own front, which shows names of all layers."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """Return the full names of all modules that a file imports, wherever in it.

    Imports below ``if TYPE_CHECKING`` are left out: they name types and import nothing.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively; write tilereg in full."
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))
    return names


def outside(path: Path) -> set[str]:
    """Return the packages that a file imports, but for tilereg and the standard library."""
    roots = {name.split(".")[0] for name in imports(path)}
    return roots - {"tilereg"} - sys.stdlib_module_names


def inside(path: Path) -> set[str]:
    """Return the modules of the package that a file imports."""
    return {name.removeprefix("tilereg.") for name in imports(path) if name.startswith("tilereg.")}


@pytest.mark.parametrize("name", modules())
def test_imports_go_downwards(name: str) -> None:
    here = room(name)
    if here != "cli":
        assert "tilereg" not in imports(modules()[name]), "The package's front reaches all layers."
    allowed = BELOW[here] | {here}
    # `tilereg.__version__` and the like belong to no layer.
    reached = {
        other: room(other) for other in inside(modules()[name]) if not other.startswith("__")
    }
    wrong = {other: where for other, where in reached.items() if where not in allowed}
    assert not wrong, f"{name} ({here}) may import {sorted(allowed)}, not {wrong}."


@pytest.mark.parametrize("name", modules())
def test_outside_packages_stay_in_their_rooms(name: str) -> None:
    used = outside(modules()[name])
    here = room(name)
    if here != "lazy":
        assert not used & ONLY_LAZY, f"Only lazy/ imports {ONLY_LAZY}."
    if here != "io":
        assert not used & ONLY_IO, f"Only io/ imports {ONLY_IO}."
    if here == "vocabulary":
        assert used <= {"numpy"}
    if here == "kernels":
        assert used <= {"numpy", "numba"}


@pytest.mark.parametrize("name", [n for n in modules() if room(n) == "kernels"])
def test_kernels_import_only_mathematics(name: str) -> None:
    standard = {n.split(".")[0] for n in imports(modules()[name])} & sys.stdlib_module_names
    assert standard <= {"__future__", "math", "typing", "collections"}


@pytest.mark.parametrize("name", [n for n in modules() if room(n) == "vocabulary"])
def test_vocabulary_knows_one_kernel(name: str) -> None:
    used = {n for n in inside(modules()[name]) if room(n) == "kernels"}
    assert not {n for n in used if name != "transform" or not n.startswith("kernels.bspline")}


def test_the_reader_reads(tmp_path: Path) -> None:
    # Proof that the tests above would see what they forbid.
    path = tmp_path / "module.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "import numpy.linalg\n"
        "from tilereg.io import tables\n"
        "if TYPE_CHECKING:\n    import dask\n"
        "def f():\n    from zarr import open_group\n"
    )
    assert outside(path) == {"numpy", "zarr"}
    assert {room(name) for name in inside(path)} == {"io"}
    assert len(modules()) > 5
