"""The C++ tests: every kernel against plain code, and hostile plans under the sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = ("test_conv", "test_sections", "fuzz_plans")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        shutil.which("cmake") is None or shutil.which("c++") is None, reason="needs CMake and a C++ compiler"
    ),
]


@pytest.fixture(scope="module", params=["", "address,undefined"], ids=["plain", "sanitized"])
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the test programs, built."""
    folder = tmp_path_factory.mktemp("native")
    options = ["-DSECATEUR_PYTHON=OFF", "-DSECATEUR_TESTS=ON", f"-DSECATEUR_SANITIZE={request.param}"]
    run("cmake", "-S", str(ROOT), "-B", str(folder), *options)
    run("cmake", "--build", str(folder), "--parallel", "2", "--target", *TARGETS)
    return folder / "tests" / "native"


def test_every_kernel_and_convolution_agrees_with_plain_code(programs: Path) -> None:
    output = run(str(programs / "test_conv"), "300")
    assert output.count("300 convolutions agree") >= 1
    assert "baseline" in output


def test_a_program_cut_into_sections_computes_the_same(programs: Path) -> None:
    assert run(str(programs / "test_sections")) == "sections agree\n"


def test_hostile_plans_are_refused_or_run_without_a_bad_access(programs: Path) -> None:
    output = run(str(programs / "fuzz_plans"), "20000", "3")
    assert output.startswith("20000 programs")


def run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command[0]} failed:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout
