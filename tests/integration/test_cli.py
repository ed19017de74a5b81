"""The command line as a user meets it: whole runs on digits, in seconds, and what it says when it cannot."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur as sc
from secateur.cli import main
from secateur.cli.commands import COMMANDS

QUICK = [
    *("--n-calibration", "256", "--pretrain.epochs", "2", "--recovery.epochs", "2", "--pretrain.lr", "0.05"),
    *("--recovery.precision", "fp32", "--pretrain.precision", "fp32", "--teacher", "small-cnn"),
]


def run(*arguments):
    return main([str(a) for a in arguments])


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with both recoveries."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert run("prune", "--sparsity", 0.8, "--recover", "both", "--out", folder, *QUICK) == 0
    return folder


@pytest.fixture
def run_folder_with_space(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "a ü b"))


def test_a_run_folder_is_complete(finished):
    names = {p.name for p in finished.iterdir()}
    assert names == {
        "config.yaml", "result.json", "student.safetensors", "report.html", "log.jsonl",
        "teacher.safetensors", "dense.safetensors",
    }  # fmt: skip


def test_the_result_is_consistent(finished):
    result = result_of(finished)
    assert all(0 <= accuracy <= 1 for accuracy in result["accuracy"].values())
    assert result["sparsity"]["asked"] == 0.8
    assert result["n_prune"] == sum(row["numel"] - row["n_keep"] for row in result["layers"])
    assert result["size_bytes"]["sparse"] == (finished / "student.safetensors").stat().st_size
    assert result["size_bytes"]["dense"] == pytest.approx(
        (finished / "dense.safetensors").stat().st_size, rel=0.01
    )
    assert [e["epoch"] for e in result["curves"]["recovered_kd"]] == [1, 2]
    assert result["criterion"]["name"] == "teacher-guided"
    assert result["data"]["n_calibration"] == 256


def test_the_saved_student_is_the_one_that_was_measured(finished):
    result = result_of(finished)
    student = sc.build_model("small-cnn", num_classes=10, in_channels=1)
    loaded = sc.load_sparse(finished / "student.safetensors", into=student)
    data = sc.load_data(sc.DataOptions(), seed=0)
    assert sc.evaluate(student, data.test).accuracy == result["accuracy"]["recovered_kd"]
    assert loaded.masks.digest == result["mask_digest"]
    loaded.masks.check(student)


def test_the_same_configuration_is_the_same_run(finished, tmp_path):
    again = tmp_path / "again"
    assert run("prune", "--config", finished / "config.yaml", "--out", again) == 0
    for name in ("student.safetensors", "config.yaml"):
        assert (again / name).read_bytes() == (finished / name).read_bytes()
    first, second = result_of(finished), result_of(again)
    for key in ("run_id", "accuracy", "mask_digest", "sparsity", "layers", "diagnostics", "selected_epoch"):
        assert first[key] == second[key]


def test_a_finished_run_is_not_repeated(finished):
    before = (finished / "result.json").stat().st_mtime_ns
    assert run("prune", "--config", finished / "config.yaml", "--out", finished, "--resume") == 0
    assert (finished / "result.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("stage", ["teacher", "dense", "recovered", "recovered_kd"])
def test_a_killed_run_resumes_to_the_same_bits(finished, tmp_path, monkeypatch, stage):
    folder = tmp_path / "killed"
    arguments = ["prune", "--config", finished / "config.yaml", "--out", folder]
    with monkeypatch.context() as patch:
        patch.setattr("secateur.training.fit", dying_in(stage))
        assert run(*arguments) == 130
    assert not (folder / "result.json").exists()
    assert (folder / "checkpoint" / f"{stage}.safetensors").exists()
    assert run(*arguments, "--resume") == 0
    assert (folder / "student.safetensors").read_bytes() == (finished / "student.safetensors").read_bytes()
    assert result_of(folder)["accuracy"] == result_of(finished)["accuracy"]
    assert not (folder / "checkpoint").exists()


def dying_in(stage):
    """`fit` that is interrupted in the second epoch of a stage."""
    order = iter(("teacher", "dense", "recovered", "recovered_kd"))

    def fit(*args, on_step, **kwargs):
        dies = next(order) == stage
        steps = iter(range(10**6))

        def step():
            if dies and next(steps) > 15:
                raise KeyboardInterrupt
            on_step()

        return sc.fit(*args, on_step=step, **kwargs)

    return fit


def test_verify_inspect_and_report(finished, capsys, tmp_path):
    assert run("verify", finished) == 0
    assert "exactly the 0.8 asked for" in capsys.readouterr().out
    assert run("verify", finished, "--json") == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert run("inspect", finished / "student.safetensors", "--json") == 0
    assert json.loads(capsys.readouterr().out)["sparsity_asked"] == 0.8
    assert run("inspect", finished) == 0
    assert "features" in capsys.readouterr().out
    assert run("report", finished, "--out", tmp_path / "r.html") == 0
    assert "fig-accuracy" in (tmp_path / "r.html").read_text()
    assert run("report", finished, finished, "--out", tmp_path / "c.html") == 0
    assert (tmp_path / "c.html").stat().st_size > 10_000


def test_inspect_says_which_of_two_sizes_is_the_larger(tmp_path, capsys):
    """What a file says of itself can weigh more than a small network."""
    for n, words in ((4, "times smaller"), (100, "times larger")):
        layer = torch.nn.Linear(n, n)
        masks = sc.allocate({"weight": layer.weight.detach().abs()}, sparsity=0.9)
        sc.apply_masks(layer, masks)
        file = tmp_path / f"{n}.safetensors"
        sc.save_sparse(layer, file, masks=masks)
        assert run("inspect", file, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        dense, size = found["dense_size_bytes"], found["size_bytes"]
        assert run("inspect", file) == 0
        ratio = f"{max(dense, size) / min(dense, size):.2f} {words}"
        assert f"{size:,} bytes; dense it would be {dense:,}: {ratio}" in capsys.readouterr().out


def test_a_damaged_checkpoint_fails_verification(finished, tmp_path, capsys):
    data = bytearray((finished / "student.safetensors").read_bytes())
    data[-10] ^= 1
    damaged = tmp_path / "student.safetensors"
    damaged.write_bytes(bytes(data))
    assert run("verify", damaged) == 1
    assert "FAIL" in capsys.readouterr().out
    assert run("inspect", damaged) == 1
    assert "error:" in capsys.readouterr().err


def test_a_sweep_scores_once_and_cuts_often(finished, tmp_path, capsys):
    folder = tmp_path / "sweep"
    weights = [
        *("--student-weights", finished / "dense.safetensors"),
        *("--teacher-weights", finished / "teacher.safetensors", "--teacher", "small-cnn"),
    ]
    lists = ["--alpha", "0:1:0.5", "--sparsity", "0.5,0.9"]
    assert run("sweep", *lists, "--n-calibration", 256, "--out", folder, *weights) == 0
    content = json.loads((folder / "sweep.json").read_text())
    cells = [(row["alpha"], row["sparsity"]) for row in content["rows"]]
    assert cells == [(a, s) for a in (0.0, 0.5, 1.0) for s in (0.5, 0.9)]
    assert len({row["mask_digest"] for row in content["rows"]}) == 6
    assert content["split"] == "validation"
    assert (folder / "report.html").exists()
    assert "accuracy on validation" in capsys.readouterr().out
    assert (
        run("sweep", "--criterion", "magnitude", "--sparsity", "0.9", "--out", tmp_path / "m", *weights) == 0
    )
    rows = json.loads((tmp_path / "m" / "sweep.json").read_text())["rows"]
    assert [(r["alpha"], r["sparsity"]) for r in rows] == [(None, 0.9)]
    assert run("sweep", *lists, "--criterion", "magnitude", "--out", tmp_path / "n", *weights) == 2


def test_json_output_is_json_alone(finished, tmp_path, capsys):
    arguments = ["--config", finished / "config.yaml", "--out", tmp_path / "j", "--recover", "none", "--json"]
    assert run("prune", *arguments) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["accuracy"]["recovered"] is None
    assert shown["seconds"]["recovery"] is None


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--sparsity", "90"], ["sparsity", "[0, 1)", "0.9"]),
        (["--sparsity", "1"], ["sparsity", "[0, 1)"]),
        (["--alpha", "1.5"], ["alpha", "[0, 1]"]),
        (["--temperature", "0"], ["temperature", "above 0"]),
        (["--criterion", "magnitute"], ["magnitute", "magnitude"]),
        (["--criterion", "magnitude", "--alpha", "0.5"], ["alpha", "magnitude"]),
        (["--data", "cifar11"], ["cifar11", "cifar10"]),
        (["--data", "no.such.module:factory"], ["no.such.module"]),
        (["--student", "resnet21"], ["resnet21", "resnet20"]),
        (["--student-weights", "nowhere.safetensors"], ["nowhere.safetensors"]),
        (["--exclude", "conv9.*"], ["conv9"]),
        (["--device", "tpu"], ["tpu", "cpu"]),
        (["--device", "mps"], ["must be auto, cpu, cuda or cuda:N", "this torch can use", "'mps'"]),
        (["--device", "meta"], ["must be auto, cpu, cuda or cuda:N", "this torch can use", "'meta'"]),
        (
            ["--student", "small-cnn", "--image-size", "2"],
            ["student (Cnn) failed on inputs of shape (2, 1, 2, 2)"],
        ),
        (["--recovery.epochs", "-1"], ["epochs", "-1"]),
        (["--seed", "-1"], ["seed", "-1", "from 0"]),
    ],
)
def test_bad_input_gets_one_clear_line(flags, says, tmp_path, capsys):
    try:
        code = run("prune", "--out", tmp_path / "x", *QUICK, *flags)
    except SystemExit as refused:  # by the parser of flags
        code = refused.code
    assert code in (1, 2)
    message = capsys.readouterr().err
    assert message.lower().count("error") >= 1
    assert "Traceback" not in message
    for word in says:
        assert word in message


def test_unknown_commands_and_flags(capsys):
    assert run("prun") == 2
    assert "Did you mean 'prune'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        run("prune", "--sparsty", 0.9)
    assert caught.value.code == 2


def test_a_used_or_unwritable_folder_is_refused_and_untouched(finished, tmp_path, capsys):
    before = {p.name: p.read_bytes() for p in finished.iterdir()}
    assert run("prune", "--out", finished, *QUICK) == 1
    assert "already used" in capsys.readouterr().err
    assert run("prune", "--out", finished, "--resume", "--sparsity", 0.7, *QUICK) == 1
    assert "--config" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in finished.iterdir()} == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.yaml").write_text("mine: true\n")
    assert run("prune", "--out", foreign, *QUICK) == 1
    assert (foreign / "config.yaml").read_text() == "mine: true\n"
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert run("prune", "--out", blocked / "run", *QUICK) == 1
    assert "cannot use" in capsys.readouterr().err


def test_a_teacher_of_other_classes_is_refused(finished, tmp_path, capsys):
    teacher = sc.build_model("small-cnn", num_classes=7, in_channels=1)
    save_file(teacher.state_dict(), tmp_path / "seven.safetensors")
    arguments = ["--teacher", "small-cnn", "--teacher-weights", tmp_path / "seven.safetensors"]
    assert run("prune", "--out", tmp_path / "x", *arguments) == 1
    assert "classifier" in capsys.readouterr().err


def test_a_full_disk_loses_nothing(finished, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "full"
    arguments = ["prune", "--config", finished / "config.yaml", "--out", folder]

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(
            "secateur.pipeline.save_sparse",
            lambda *a, **k: patch.setattr("os.fsync", full) or sc.save_sparse(*a, **k),
        )
        assert run(*arguments) == 1
    assert "No space left" in capsys.readouterr().err
    assert not (folder / "student.safetensors").exists()
    assert run(*arguments, "--resume") == 0
    assert (folder / "student.safetensors").read_bytes() == (finished / "student.safetensors").read_bytes()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as caught:
        run(name, "--help")
    assert caught.value.code == 0
    assert f"secateur {name}" in capsys.readouterr().out


def test_a_configuration_is_given_once(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("sparsity: 0.9")
    again = ["--config", str(tmp_path / "a.yaml")]
    assert run("prune", *again, *again) == 2
    assert "--config may be given once" in capsys.readouterr().err


def test_next_commands_can_be_pasted(run_folder_with_space, capsys):
    assert run("compile", str(run_folder_with_space), "--threads", "1") == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next")]
    _, *command = shlex.split(line)
    assert command[1:3] == ["time", str(run_folder_with_space / "student.plan")]
    assert run("inspect", command[2]) == 0
    assert shlex.quote(command[2]) in capsys.readouterr().out
    assert run(*command[1:3], "--seconds", "0.05", "--threads", "1") == 0


def test_a_report_can_be_asked_for_by_its_result(run_folder_with_space, capsys):
    assert run("report", str(run_folder_with_space / "result.json")) == 0
    assert str(run_folder_with_space / "report.html") in capsys.readouterr().out


def test_nothing_to_time_is_told(tmp_path, capsys):
    assert run("bench", "runtime", "--models", "", "--out", str(tmp_path / "b")) == 2
    assert "nothing to time" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--version"], 0), (["inspect", "FILE"], 0), (["verify", "FILE"], 0), (["verify", "nowhere"], 1)],
)
@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_pipe_changes_no_exit_code(finished, arguments, code, closed):
    """Nor is there a traceback, or a word of Python's own about the stream."""
    words = [str(finished / "student.safetensors") if word == "FILE" else word for word in arguments]
    reading, writing = os.pipe()
    os.close(reading)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: writing}
    done = subprocess.run([sys.executable, "-m", "secateur", *words], text=True, check=False, **streams)
    os.close(writing)
    assert done.returncode == code
    assert not done.stderr


def test_the_installed_command_and_the_module_answer():
    done = subprocess.run([sys.executable, "-m", "secateur"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "secateur COMMAND" in done.stdout


def test_plain_torch_reads_the_dense_networks(finished):
    student = sc.build_model("small-cnn", num_classes=10, in_channels=1)
    student.load_state_dict(load_file(finished / "dense.safetensors"))
    assert all(torch.isfinite(p).all() for p in student.parameters())


BY_NAME = ["--scope", "per-tensor", "--scope-options"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["prune", "--alpha", "1.5"], "alpha"),
        (["prune", "--temperature", "0"], "temperature"),
        (["prune", "--criterion", "magnitude", "--alpha", "0.5"], "alpha"),
        (["prune", "--exclude", "conv9.*"], "conv9"),
        (["prune", "--student-weights", "nowhere.safetensors"], "nowhere"),
        (["prune", "--sparsity", "0.9", "--min-density", "0.2"], "min_density=0.2 keeps"),
        (["prune", "--pattern", "2:4", "--include", "features.0.*"], "fits no tensor"),
        (["prune", *BY_NAME, 'sparsities={"nope*":0.5}'], "'nope*' of PerTensor matches no tensor"),
        (["prune", *BY_NAME, 'sparsities={"*":0.9}', "--stages", "4"], "stage 1 of 4"),
        (["prune", "--criterion", "teacher-curvature", "--stages", "3", "--regrow"], "regrow"),
        (["sweep", "--criterion", "magnitude", "--alpha", "0:1:0.5"], "alpha can be swept"),
        (["sweep", "--form", "joint", "--alpha", "0:1:0.5"], "alpha can be swept"),
        (["sweep", "--criterion", "layer-reconstruction"], "update_weights=False to try its masks alone"),
        (["bench", "--suite", "digits-quick"], "bench needs to know which: accuracy or runtime"),
        (["sweep", "--min-density", "0.3"], "min_density=0.3 keeps"),
        (["sweep", *BY_NAME, 'sparsities={"classifier.*":0.9}', "--sparsity", "0.5,0.01"], "room for"),
    ],
)
def test_a_mistake_costs_no_training(flags, says, tmp_path, capsys, monkeypatch):
    def untouched(*_, **__):
        pytest.fail("training began")

    monkeypatch.setattr("secateur.training.fit", untouched)
    command, *flags = flags
    for _ in range(2):  # nor does it use up the folder
        assert run(command, "--out", tmp_path / "x", "--teacher", "small-cnn", *flags) in (1, 2)
        message = capsys.readouterr().err
        assert "error:" in message
        assert says in message
        assert "already used" not in message
