"""The documentation tells the truth: its code runs, its commands parse, what it names exists."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from integration.docs_helpers import (
    PAGES,
    ROOT,
    blocks,
    commands,
    prose,
    read,
    section,
    table_rows,
)
from secateur import CalibrationRecovery, Recovery
from secateur.arena import Suite, load_suite, plan
from secateur.arena.cell import build_method
from secateur.cli import main
from secateur.cli.bench_accuracy import BenchAccuracy
from secateur.cli.commands import COMMANDS, _parse, _split
from secateur.cli.console import parse_values
from secateur.cli.prune import Prune, Sweep
from secateur.config import RunConfig, build_criterion, build_scope, dump_config, load_config
from secateur.factories import load_object
from secateur.files import read_json
from secateur.models import MODELS
from secateur.scores import CRITERIA


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of somebody who follows a page and saves what it says to save."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    saved = {block.file: block.text for page in PAGES for block in blocks(page) if block.file}
    for name, text in saved.items():
        (tmp_path / name).write_text(text)
    yield tmp_path
    for name in saved:
        sys.modules.pop(Path(name).stem, None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_runs(page: Path, reader: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "a_reader"}
    for block in blocks(page):
        if block.info == "python" and not block.file:
            # Compiled with the lines of the page, so that a traceback points there.
            code = compile("\n" * block.line + block.text, str(block.page), "exec", dont_inherit=True)
            exec(code, namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse_and_what_they_name_exists(page: Path, reader: Path) -> None:
    for place, arguments in commands(page):
        assert arguments, place
        if arguments[0] in ("--help", "--version") or "--help" in arguments:
            continue
        try:
            command = _parse(*_split(arguments))
        except SystemExit:
            pytest.fail(f"{place} is not a command that secateur takes")
        if isinstance(command, Prune):
            check_setup(command.config)
            if command.out:  # a later line may go on from it
                (reader / command.out).mkdir(parents=True, exist_ok=True)
                (reader / command.out / "config.yaml").write_text(dump_config(command.config))
        if isinstance(command, Sweep):
            check_setup(RunConfig(command.setup))
            assert parse_values("sparsity", command.sparsity)
            assert command.alpha is None or parse_values("alpha", command.alpha)
        if isinstance(command, BenchAccuracy):
            check_suite(load_suite(command.suite))


def check_setup(config: RunConfig) -> None:
    """What is only looked at when the run begins: names and options that must fit together."""
    setup = config.setup
    build_criterion(setup, alpha=config.alpha, teacher=nn.Identity() if config.wants_teacher else None)
    build_scope(setup)
    for name in (setup.student, setup.teacher):
        if name not in (None, "student", *MODELS) and not name.startswith("timm:"):
            load_object(name, kind="model")
    if ":" in setup.dataset.data and not setup.dataset.data.startswith("hf:"):
        load_object(setup.dataset.data, kind="data")


def test_configuration_files_load(reader: Path) -> None:
    names = [block.file for page in PAGES for block in blocks(page) if block.info == "yaml" and block.file]
    assert names
    for name in names:
        if name.endswith("suite.yaml"):
            check_suite(load_suite(name))
        else:
            check_setup(load_config(name, RunConfig))


def check_suite(suite: Suite) -> None:
    """That its methods can be built."""
    assert plan(suite)
    for method in suite.methods.values():
        build_method(method, nn.Identity(), 0)


def test_every_command_is_shown() -> None:
    lines = [" ".join(arguments) for page in PAGES for _, arguments in commands(page)]
    for command in COMMANDS:
        assert any(line.startswith(command) for line in lines), command


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for text, link in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: [{text}]({link})"
        assert target.is_relative_to(ROOT), f"{page.name}: [{text}]({link}) leaves the repository"
        assert not anchor or anchor in anchors(target), (
            f"{page.name}: {link}; there is {sorted(anchors(target))}"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_code_is_where_it_is_said_to_be(page: Path) -> None:
    for name, link in re.findall(r"\[`([\w.]+)`\]\(([^)]+\.py)\)", prose(page)):
        target = page.parent / link
        if name == target.stem:
            continue
        scope: Any = ast.parse(read(target))
        for part in name.split("."):
            scope = next((node for node in scope.body if part in _names(node)), None)
            assert scope is not None, f"{page.name}: there is no {name} in {link}"


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def test_the_options_of_every_criterion_are_documented_with_their_defaults() -> None:
    page = ROOT / "docs" / "methods.md"
    rows = {row[0]: row for row in table_rows(read(page), "key")}
    assert set(rows) == {f"`{key}`" for key in CRITERIA}
    for key, kind in CRITERIA.items():
        assert rows[f"`{key}`"][1] == f"`{kind.__name__}`"
        (heading,) = re.findall(rf"^## .+: `{key}`$", read(page), re.MULTILINE)
        documented = options(section(page, heading))
        assert documented == defaults(kind), key


def test_the_options_of_recovery_are_documented_with_their_defaults() -> None:
    page = ROOT / "docs" / "methods.md"
    assert options(section(page, "## Recovery")) == defaults(Recovery)
    assert options(section(page, "## Calibration recovery")) == defaults(CalibrationRecovery)


def options(text: str) -> dict[str, object]:
    return {row[0].strip("`"): ast.literal_eval(row[1].strip("`")) for row in table_rows(text, "option")}


def defaults(kind: Any) -> dict[str, object]:
    return {f.name: f.default for f in fields(kind) if f.default is not MISSING}


@cache
def messages() -> str:
    """Every text in the source, with … where a value is put in."""
    found: list[str] = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(read(path))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_the_errors_of_the_guide_are_real() -> None:
    rows = table_rows(section(ROOT / "docs" / "guide.md", "## 9. Frequent errors"), "message")
    assert len(rows) >= 10
    for message, *_ in rows:
        (quoted,) = re.findall(r"^`([^`]+)`", message)
        assert quoted in messages(), f"no message reads {quoted!r}"


def test_measured_numbers_stand_in_generated_blocks_only() -> None:
    text = read(ROOT / "docs" / "methods.md")
    assert "batchnorm" in re.findall(r"<!-- begin generated: (\S+) -->", text)
    by_hand = re.sub(r"<!-- begin.*?<!-- end", "", text, flags=re.DOTALL)
    assert not re.findall(r"\d(?:\.\d+)? ?(?:%|×|s\b|ms\b)", by_hand), "a measured number written by hand"


# docs/result.md against what is written

RESULT = ROOT / "docs" / "result.md"
TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "integer": (int,),
    "number": (int, float),
    "object": (dict,),
    "list": (list,),
    "any": (str, int, float, bool),
}


@dataclass(frozen=True)
class Key:
    """A row of a table in docs/result.md."""

    path: str
    type: str
    unit: str
    null_when: str

    def stands_for(self, path: str) -> bool:
        return re.fullmatch(re.escape(self.path).replace(r"\*", r"[^.\[\]]+"), path) is not None


def documented(heading: str, *, only: tuple[str, ...] = ()) -> list[Key]:
    rows = table_rows(section(RESULT, heading), "key")
    keys = [Key(row[0].strip("`"), *row[1:4]) for row in rows]
    return [key for key in keys if not only or key.path.partition(".")[0] in only]


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of nested JSON with its value: ``a``, ``a.b``, ``a[].b``."""
    if path:
        yield path, value
    if isinstance(value, dict):
        for key, part in value.items():
            yield from flat(part, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for part in value:
            if isinstance(part, dict):
                yield from (found for found in flat(part, f"{path}[]") if found[0] != f"{path}[]")


def assert_documented(contents: list[Any], keys: list[Key]) -> None:
    """Each key has one row, a literal one before one with ``*``; each row a key; types and nulls agree."""
    seen: set[Key] = set()
    for content in contents:
        for path, value in flat(content):
            rows = [key for key in keys if key.stands_for(path)]
            literal = [key for key in rows if "*" not in key.path] or rows
            assert len(literal) == 1, f"{path} has the rows {[key.path for key in literal]}"
            (key,) = literal
            seen.add(key)
            if value is None:
                assert key.null_when not in ("", "never"), f"{path} is null"
            else:
                allowed = TYPES[key.type]
                assert isinstance(value, allowed), f"{path} is {value!r}"
                assert key.type == "any" or not isinstance(value, bool), path
                if key.unit == "fraction":
                    assert 0 <= value <= 1, f"{path} is {value!r}"
    assert set(keys) == seen, f"documented, but not there: {sorted(key.path for key in set(keys) - seen)}"


def secateur(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs and two sweeps: with all there can be, with as little, and without a training set."""
    folder = tmp_path_factory.mktemp("runs")
    digits = ("--data", "digits", "--pretrain.epochs", 1)
    full, bare = folder / "full", folder / "bare"
    both = ("--stages", 2, "--regrow", "--recover", "both", "--recovery.epochs", 1)
    secateur("prune", *digits, "--sparsity", 0.5, *both, "--out", full)
    weights = ("--student-weights", full / "dense.safetensors")
    little = ("--criterion", "magnitude", *weights, "--scope", "layerwise", "--batch-size", 5000)
    nothing = ("--recover", "none", "--batchnorm", "off")
    secateur("prune", *digits, *little, *nothing, "--sparsity", 0.5, "--out", bare)
    curved = ("--criterion", "teacher-curvature", "--criterion-options", "rows=64", "damping=10")
    steps = ("--n-calibration", 256, "--stages", 2, "--calibration.steps", 2, "--calibration.final-steps", 3)
    secateur(
        "prune",
        *digits,
        *weights,
        *curved,
        "--teacher",
        "student",
        *steps,
        *nothing,
        "--out",
        folder / "taught",
    )
    teacher = ("--teacher-weights", full / "teacher.safetensors")
    secateur(
        "sweep", *digits, *weights, *teacher, "--alpha", "0,1", "--sparsity", 0.5, "--out", folder / "alphas"
    )
    secateur("sweep", *digits, *little, "--sparsity", "0.25,0.5", "--out", folder / "sparsities")
    return folder


def test_result_json_has_exactly_the_documented_keys(runs: Path) -> None:
    contents = [read_json(runs / name / "result.json") for name in ("full", "bare", "taught")]
    assert_documented(contents, documented("## result.json"))


def test_every_key_has_a_value_in_a_full_run_and_a_null_is_real(runs: Path) -> None:
    names = ("full", "bare", "taught")
    full, bare, taught = (dict(flat(read_json(runs / name / "result.json"))) for name in names)
    assert {path for path, value in full.items() if value is None and taught[path] is None} <= {"commit"}
    assert {path for path, value in full.items() if value is None} <= {
        "commit",
        "calibration_recovery",
        "seconds.calibration",
        "stages.rows[].predicted",
        "stages.rows[].loss",
    }
    assert {path for path, value in bare.items() if value is None} >= {
        "models.teacher",
        "calibration_recovery",
        "seconds.calibration",
        "stages.rows[].predicted",
        "stages.rows[].loss",
        "stages.one_cut",
        "accuracy.teacher",
        "accuracy.batchnorm",
        "accuracy.recovered",
        "accuracy.recovered_kd",
        "seconds.teacher",
        "seconds.dense",
        "seconds.batchnorm",
        "seconds.recovery",
        "curves.dense",
        "selected_epoch.recovered",
        "diagnostics.score_histogram.log10_threshold",
        "diagnostics.score_histogram.terms",
        "diagnostics.agreement",
        "diagnostics.split_half",
    }


def test_sweep_json_has_exactly_the_documented_keys(runs: Path) -> None:
    contents = [read_json(runs / name / "sweep.json") for name in ("alphas", "sparsities")]
    shared = ("criterion", "scope", "data", "models", "seed", "versions", "hardware", "commit")
    keys = [*documented("## sweep.json"), *documented("## result.json", only=shared)]
    assert_documented(contents, keys)
    assert [row["alpha"] for content in contents for row in content["rows"]] == [0, 1, None, None]


def test_log_lines_have_exactly_the_documented_keys(runs: Path) -> None:
    lines = [json.loads(line) for line in (runs / "full" / "log.jsonl").read_text().splitlines()]
    assert_documented(lines, documented("## log.jsonl"))
    assert [line["stage"] for line in lines] == ["teacher", "dense", "recovered", "recovered_kd"]


def test_a_run_folder_holds_exactly_the_documented_files(runs: Path) -> None:
    rows = table_rows(read(RESULT), "file")
    names = {name.rstrip("/") for row in rows for name in re.findall(r"`([\w./]+)`", row[0])}
    full, sweep = ({path.name for path in (runs / name).iterdir()} for name in ("full", "alphas"))
    assert full == names - {"sweep.json", "checkpoint"}
    assert sweep <= names
