"""The shape of the code: layers, what an import costs, and what may not be written at all."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import secateur
from secateur.errors import SecateurError, SecateurWarning

ROOT = Path(__file__).parents[1]
SOURCE = Path(secateur.__file__).parent
LAYERS = (
    {
        "errors",
        "inputs",
        "interrupts",
        "naming",
        "counts",
        "targets",
        "masks",
        "files",
        "factories",
        "kinds",
        "modules",
        "statistics",
        "values",
    },
    {"augment", "losses", "scores", "allocate", "schedules", "layout"},
    {
        "calibration",
        "cutting",
        "repair",
        "enforce",
        "evaluate",
        "diagnostics",
        "teacher_cache",
        "recovery",
        "train",
        "stages",
        "steps",
        "strategies",
    },
    {"data", "models", "checkpoint", "report", "testing", "provenance", "runtime"},
    {
        "arena",
        "building",
        "checks",
        "config",
        "result",
        "runs",
        "progress",
        "pipeline",
        "training",
        "launch",
        "suggestions",
        "deploy",
        "cli",
        "api",
        "yaml_files",
        "__main__",
    },
)
"""Imports go down, from later sets to earlier ones, or stay within a set without going round."""
APART = ({"scores", "allocate"},)
"""Parts of one layer that must not know each other."""
MAX_LINES = 400
DEFERRED = {"tyro", "yaml", "rich", "jinja2", "matplotlib", "sklearn", "datasets", "PIL", "pandas", "scipy"}
"""What the public names must not load."""
TORCH_FREE = {
    "engine",
    "plan",
    "program",
    "attributes",
    "shapes",
    "weights",
    "container",
    "parts",
    "reference",
    "table",
}
"""Modules of the runtime that run a plan."""


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(("secateur", *(part for part in parts if part != "__init__")))


FILES = {name_of(path): path for path in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imports_of(name: str) -> Iterator[str]:
    """Full names of the modules that a module imports, wherever in it the import stands."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            assert node.module is not None
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in FILES else node.module


OURS = {name: {m for m in imports_of(name) if m.split(".")[0] == "secateur"} for name in FILES}


def part_of(name: str) -> str:
    """The top-level module or package that a module belongs to."""
    return name.split(".")[1]


def layer_of(name: str) -> int:
    return next(place for place, parts in enumerate(LAYERS) if part_of(name) in parts)


MODULES = [name for name in FILES if name != "secateur"]


def test_every_module_has_a_layer() -> None:
    assert {part_of(name) for name in MODULES} == set().union(*LAYERS)
    assert sum(len(parts) for parts in LAYERS) == len(set().union(*LAYERS))


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name: str) -> None:
    for target in OURS[name]:
        assert target != "secateur", f"{name} imports the package that imports it"
        assert target in FILES, f"{name} imports {target}, which does not exist"
        assert layer_of(target) <= layer_of(name), f"{name} imports {target}, which lies above it"
        for parts in APART:
            if part_of(name) in parts:
                assert part_of(target) not in parts - {part_of(name)}, f"{name} imports {target}"


def test_no_import_goes_round() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path, name))
        if name not in done:
            for target in OURS[name]:
                if target != name:
                    visit(target, (*path, name))
            done.add(name)

    for name in FILES:
        visit(name, ())


def test_the_parts_of_a_layer_do_not_go_round_either() -> None:
    """Coarser than modules: if `data` uses `models`, then `models` must not use `data`."""
    edges = {(part_of(a), part_of(b)) for a in MODULES for b in OURS[a] if part_of(a) != part_of(b)}
    assert not {(a, b) for a, b in edges if (b, a) in edges}


@pytest.mark.parametrize("name", [name for name in MODULES if layer_of(name) <= 2])
def test_the_core_needs_torch_and_numpy_only(name: str) -> None:
    roots = {target.split(".")[0] for target in imports_of(name)}
    assert roots <= {"secateur", "torch", "numpy", *sys.stdlib_module_names}


@pytest.mark.parametrize("name", [name for name in MODULES if layer_of(name) == 1])
def test_the_maths_does_no_input_or_output(name: str) -> None:
    roots = {target.split(".")[0] for target in imports_of(name)}
    assert not roots & {"os", "io", "pathlib", "json", "logging", "shutil", "sys", "tempfile", "subprocess"}


def calls_of(name: str) -> Iterator[tuple[str, ast.Call]]:
    """Each call with the last part of what is called, ``print`` or ``.cuda``."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.func.id, node
            elif isinstance(node.func, ast.Attribute):
                yield f".{node.func.attr}", node


@pytest.mark.parametrize("name", FILES)
def test_what_may_not_be_written(name: str) -> None:
    called = {call for call, _ in calls_of(name)}
    assert not called & {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
    assert ".cuda" not in called, "the caller chooses the device"
    if part_of(f"{name}.") != "cli":
        assert "print" not in called, "only the command line prints"


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_unpickled(name: str) -> None:
    roots = {target.split(".")[0] for target in imports_of(name)}
    assert not roots & {"dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for node in ast.walk(TREES[name]):
        assert not (isinstance(node, ast.ImportFrom) and node.module == "pickle")
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            assert node.attr == "UnpicklingError", "of pickle, only its error may be named, to catch it"
    for _, node in calls_of(name):
        if ast.unparse(node.func) == "torch.load":
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert options.get("weights_only") == "True"


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(TREES[name])


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "examples"])
def test_files_are_short(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert lengths
    assert not {path: n_lines for path, n_lines in lengths.items() if n_lines > MAX_LINES}


def bound_names(tree: ast.Module) -> Iterator[str]:
    """Names that a module binds by import, assignment or definition."""
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name


def test_the_public_names_are_listed_in_order_and_exist() -> None:
    names = {name for name in bound_names(TREES["secateur.api"]) if not name.startswith("_")}
    # As ruff sorts: constants such as ERK before the others.
    listed = sorted(names | {"__version__", "runtime"}, key=lambda name: (not name.isupper(), name))
    assert secateur.__all__ == listed
    assert all(hasattr(secateur, name) for name in secateur.__all__)


@pytest.mark.parametrize("name", [name for name, path in FILES.items() if path.name == "__init__.py"])
def test_what_a_package_lists_exists(name: str) -> None:
    listed = getattr(importlib.import_module(name), "__all__", [])
    assert len(listed) == len(set(listed))
    assert all(hasattr(importlib.import_module(name), item) for item in listed)


def test_every_error_and_warning_is_public() -> None:
    for kind in (SecateurError, SecateurWarning):
        for found in (kind, *kind.__subclasses__()):
            assert getattr(secateur, found.__name__) is found


def loaded_by(code: str) -> set[str]:
    """Packages that are loaded after running some code."""
    code += "; import json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_the_public_names_load_nothing_that_only_some_commands_need() -> None:
    loaded = loaded_by("import secateur; secateur.prune")
    assert {"torch", "secateur"} <= loaded
    assert not loaded & DEFERRED


def test_importing_the_package_or_its_engine_loads_no_torch() -> None:
    assert not loaded_by("import secateur") & {"torch", "numpy"}
    loaded = loaded_by("import secateur, secateur.runtime; secateur.runtime.load")
    assert {"numpy", "secateur"} <= loaded
    assert not loaded & {"torch", "safetensors", *DEFERRED}


def test_timing_a_plan_loads_no_torch() -> None:
    loaded = loaded_by("from secateur.cli.commands import command_class; command_class('time')")
    assert {"numpy", "secateur", "tyro"} <= loaded
    assert not loaded & {"torch", "safetensors", "matplotlib"}


@pytest.mark.parametrize("name", sorted(TORCH_FREE))
def test_what_runs_a_plan_needs_numpy_only(name: str) -> None:
    roots = {target.split(".")[0] for target in imports_of(f"secateur.runtime.{name}")}
    assert roots <= {"secateur", "numpy", *sys.stdlib_module_names}
    free = {f"secateur.runtime.{name}" for name in TORCH_FREE}
    free |= {"secateur.counts", "secateur.errors", "secateur.files"}
    assert OURS[f"secateur.runtime.{name}"] <= free


@pytest.mark.parametrize("name", ["allocate", "evaluate"])
def test_a_function_wins_over_the_module_it_comes_from(name: str) -> None:
    code = f"import secateur.{name}, secateur.pipeline, secateur; assert callable(secateur.{name})"
    subprocess.run([sys.executable, "-c", code], check=True)
    clashes = {name for name in secateur.__all__ if f"secateur.{name}" in FILES} - {"runtime"}
    assert name in clashes
    assert clashes == {"allocate", "evaluate"}, "list them in secateur/__init__.py"
