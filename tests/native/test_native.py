"""The C++ tests, built for this machine and for 64-bit Arm: kernels against plain code, hostile plans."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = (
    "test_borders",
    "test_conv",
    "test_lanes",
    "test_memory",
    "test_pool",
    "test_sections",
    "fuzz_plans",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@dataclass(frozen=True)
class Build:
    """A way to build and run the test programs: what it needs, options of CMake, and what runs a program."""

    name: str
    needs: tuple[str, ...] = ("cmake", "c++")
    options: tuple[str, ...] = ()
    emulator: tuple[str, ...] = ()


PLAIN = Build("plain")
SANITIZED = Build("sanitized", options=("-DSECATEUR_SANITIZE=address,undefined",))
ARM = Build(
    "arm",
    needs=("cmake", "aarch64-linux-gnu-g++", "aarch64-linux-gnu-objdump", "qemu-aarch64"),
    options=(
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",  # so that the emulator needs no libraries of the other machine
    ),
    emulator=("qemu-aarch64",),
)


@dataclass(frozen=True)
class Programs:
    """The test programs, built."""

    build: Build
    folder: Path

    def __call__(self, program: str, *arguments: str) -> str:
        """What a program prints; it must succeed."""
        return run(*self.build.emulator, str(self.folder / "tests" / "native" / program), *arguments)


@pytest.fixture(scope="module", params=[PLAIN, SANITIZED, ARM], ids=lambda build: build.name)
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    build: Build = request.param
    missing = [tool for tool in build.needs if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"the {build.name} build needs {' and '.join(missing)}")
    folder = tmp_path_factory.mktemp(build.name)
    options = ["-DSECATEUR_PYTHON=OFF", "-DSECATEUR_TESTS=ON", *build.options]
    run("cmake", "-S", str(ROOT), "-B", str(folder), *options)
    run("cmake", "--build", str(folder), "--parallel", "2", "--target", *TARGETS)
    return Programs(build, folder)


def isas(output: str) -> set[str]:
    return {line.split(":")[0] for line in output.splitlines()}


def test_every_kernel_and_convolution_agrees_with_plain_code(programs: Programs) -> None:
    rounds = "120" if programs.build is ARM else "300"  # an emulator is slow
    output = programs("test_conv", rounds)
    assert output.count(f"{rounds} convolutions agree") == len(isas(output))
    assert isas(output) >= ({"baseline", "neon"} if programs.build is ARM else {"baseline"})


def test_every_other_kernel_agrees_with_plain_code(programs: Programs) -> None:
    output = programs("test_lanes", "300")
    assert isas(output) >= ({"baseline", "neon"} if programs.build is ARM else {"baseline"})


def test_strips_hand_each_other_what_their_margins_need(programs: Programs) -> None:
    output = programs("test_borders", "300")
    assert isas(output) >= ({"baseline", "neon"} if programs.build is ARM else {"baseline"})


def test_a_program_cut_into_sections_computes_the_same(programs: Programs) -> None:
    assert programs("test_sections") == "sections agree\n"


def test_available_memory_is_what_the_machine_and_its_control_groups_leave(programs: Programs) -> None:
    assert programs("test_memory") == "available memory is what the files say\n"


def test_a_pool_outlives_a_fork(programs: Programs) -> None:
    if programs.build is ARM:
        pytest.skip("the emulator cannot fork a process of several threads")
    if programs.build is SANITIZED:
        pytest.skip(
            "a child may find the lock of the sanitizer's own allocator taken by a thread that it has not"
        )
    assert programs("test_pool") == "pools outlive a fork\n"


def test_hostile_plans_are_refused_or_run_without_a_bad_access(programs: Programs) -> None:
    rounds = "5000" if programs.build is ARM else "20000"
    output = programs("fuzz_plans", rounds, "3")
    assert output.startswith(f"{rounds} programs")  # it fails if a kernel never ran


def test_the_sums_of_the_neon_kernels_stay_in_registers(programs: Programs) -> None:
    """No loop of a convolution that multiplies and adds may read or write the stack."""
    if programs.build is not ARM:
        pytest.skip("about the arm build")
    [kernels] = programs.folder.rglob("kernels_neon.cpp.o")
    listing = run("aarch64-linux-gnu-objdump", "-d", "-C", "--no-show-raw-insn", str(kernels))
    loops = [
        (name, loop)
        for name, code in functions_of(listing).items()
        if "rows_kernel<" in name or "dense_kernel<" in name
        for loop in inner_loops(code)
        if any("fmla" in line for line in loop)
    ]
    assert max(sum("fmla" in line for line in loop) for _, loop in loops) == 28
    assert [name for name, loop in loops if any("[sp" in line for line in loop)] == []


def functions_of(listing: str) -> dict[str, list[tuple[int, str]]]:
    """Address and instruction of every line, by function."""
    functions: dict[str, list[tuple[int, str]]] = {}
    code: list[tuple[int, str]] = []
    for line in listing.splitlines():
        if title := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            code = functions[title[1]] = []
        elif instruction := re.match(r"\s+([0-9a-f]+):\t(.*)", line):
            code.append((int(instruction[1], 16), instruction[2]))
    return functions


def inner_loops(code: list[tuple[int, str]]) -> list[list[str]]:
    """The instructions between each branch backwards and its target that hold no other such branch."""
    jumps = [(re.match(r"(?:b\S*|cbn?z|tbn?z)\s.*?([0-9a-f]+) <", text), at) for at, text in code]
    spans = [(int(jump[1], 16), at) for jump, at in jumps if jump and int(jump[1], 16) <= at]
    inner = [
        (start, end)
        for start, end in spans
        if not any(start <= a and b <= end and (a, b) != (start, end) for a, b in spans)
    ]
    return [[text for at, text in code if start <= at <= end] for start, end in inner]


def run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command[0]} failed:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout
