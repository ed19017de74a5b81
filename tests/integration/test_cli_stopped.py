"""Commands that are stopped by Ctrl-C."""

import subprocess
import sys

import pytest

from secateur.cli import main
from secateur.cli.commands import COMMANDS, command_class


@pytest.mark.parametrize("name", COMMANDS)
def test_a_stopped_command_says_what_is_left_of_it(name, capsys, monkeypatch):
    def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_class(name), "run", stopped)
    files = {"report": ["r"], "inspect": ["f"], "verify": ["f"], "compile": ["r"], "time": ["p"]}
    assert main([*name.split(), *files.get(name, [])]) == 130
    said = capsys.readouterr().err
    assert said.startswith("stopped")
    assert ("--resume" in said) == hasattr(command_class(name)(*files.get(name, [])), "resume")
    assert ("the same command" in said) == (name in ("prune", "sweep") or name.startswith("bench"))
    assert ("a cut, also one in stages, begins anew" in said) == (name in ("prune", "sweep"))


@pytest.mark.parametrize("module", ["rich.console", "tyro", "torch", "torch.nn"])
def test_a_command_that_is_stopped_while_it_imports_says_so(module):
    code = f"""
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from secateur.cli import main
main(["inspect", "nowhere"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "stopped.\n")
