"""The examples run as a newcomer runs them, without a warning, and print what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from secateur.checkpoint import inspect_checkpoint, verify_checkpoint
from secateur.cli import main
from secateur.files import read_json

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


Run = Callable[[str], tuple[str, Path]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """What a script printed, and the folder it ran in; two scripts run at a time."""
    folders = {script: tmp_path_factory.mktemp(script) for script in SCRIPTS}
    with ThreadPoolExecutor(max_workers=2) as pool:
        started = {script: pool.submit(execute, script, folder) for script, folder in folders.items()}
        yield lambda script: (started[script].result(), folders[script])


def execute(script: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / script)],
        cwd=folder,
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def percentages(text: str) -> list[float]:
    return [float(found) / 100 for found in re.findall(r"([\d.]+)%", text)]


def test_prune_digits(run: Run) -> None:
    printed, folder = run("prune_digits.py")
    accuracy = dict(re.findall(r"^(\w+) +([\d.]+)% on test$", printed, re.MULTILINE))
    assert list(accuracy) == ["teacher", "dense", "cut", "batchnorm", "recovered_kd"]
    assert min(float(accuracy[key]) for key in ("teacher", "dense", "recovered_kd")) > 90
    found = inspect_checkpoint(folder / "student.safetensors")
    assert f"{found.n_prune} of {round((found.n_prune or 0) / 0.9)} prunable weights are zero" in printed
    assert f"{found.size_bytes} bytes, {found.ratio:.1f} times smaller" in printed
    assert found.ratio > 5


def test_own_loop(run: Run) -> None:
    printed, folder = run("own_loop.py")
    assert printed.endswith("loaded as it was saved: True\n")
    epochs = re.findall(r"^epoch (\d+): validation ([\d.]+)%$", printed, re.MULTILINE)
    assert [int(number) for number, _ in epochs] == list(range(10))
    assert float(epochs[-1][1]) > 90
    assert verify_checkpoint(folder / "student.safetensors").ok


def test_own_criterion(run: Run) -> None:
    printed, _ = run("own_criterion.py")
    assert printed.startswith("RelativeMagnitude keeps the contract of a criterion\n")
    rows = re.findall(r"^sparsity ([\d.]+) +(\w+) +([\d.]+)% on validation$", printed, re.MULTILINE)
    assert [(sparsity, name) for sparsity, name, _ in rows] == [
        (sparsity, name)
        for sparsity in ("0.5", "0.8", "0.9", "0.95")
        for name in ("Magnitude", "RelativeMagnitude")
    ]
    assert min(float(accuracy) for sparsity, _, accuracy in rows if sparsity == "0.5") > 90
    overlaps = [float(found) for found in re.findall(r"overlap by ([\d.]+)", printed)]
    assert len(overlaps) == 4
    assert max(overlaps) < 0.95, "the two criteria choose alike"


def test_own_criterion_by_its_name_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (EXAMPLES / "own_criterion.py").read_text(encoding="utf-8")
    (line,) = re.findall(r"^    (secateur prune .*)$", text, re.MULTILINE)
    program, *arguments = line.replace("runs/own", str(tmp_path / "own")).split()
    assert program == "secateur"
    monkeypatch.chdir(EXAMPLES)
    assert main([*arguments, "--pretrain.epochs", "1", "--recover", "none"]) == 0
    result = read_json(tmp_path / "own" / "result.json")
    assert result["criterion"]["name"].endswith("RelativeMagnitude")
    assert result["sparsity"]["prunable"] == pytest.approx(0.9, abs=1e-3)


def test_alpha_sweep(run: Run) -> None:
    printed, _ = run("alpha_sweep.py")
    rows = re.findall(r"^alpha ([\d.]+) +(.+)$", printed, re.MULTILINE)
    assert [float(alpha) for alpha, _ in rows] == [0, 0.25, 0.5, 0.75, 1]
    table = {float(alpha): percentages(row) for alpha, row in rows}
    assert all(len(row) == 3 for row in table.values())
    assert min(row[0] for row in table.values()) > 0.9
    chosen = re.search(r"at sparsity 0\.8: alpha ([\d.]+), ([\d.]+)% on test$", printed, re.MULTILINE)
    assert chosen is not None
    assert table[float(chosen[1])][-1] == max(row[-1] for row in table.values())


def test_every_example_is_run_here() -> None:
    tested = {name.removeprefix("test_") + ".py" for name in globals() if name.startswith("test_")}
    assert set(SCRIPTS) <= tested


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_example_is_short_and_says_how_to_run_it(script: str) -> None:
    text = (EXAMPLES / script).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert f"    python examples/{script}" in text
