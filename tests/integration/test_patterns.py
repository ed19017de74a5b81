"""N:M patterns through whole cuts: every criterion, in stages, solved, distilled, saved, and from a shell."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from helpers import Snapshot, build
from secateur.building import build_pattern_from
from secateur.cli import main
from secateur.config import RunConfig, dump_config, load_config, run_id
from secateur.data import Data
from secateur.diagnostics import describe_scores
from secateur.evaluate import reestimate_batchnorm
from secateur.losses import kd_loss
from secateur.schedules import geometric_sparsities
from secateur.scores import CRITERIA
from secateur.stages import Stage, staged_masks

STEPS = sc.CalibrationRecovery(steps=20, final_steps=20, batch_size=16, lr=0.003, precision="fp32")
FIRST = "0.weight"
"""Of one input channel: no pattern fits it."""


def batches(n: int = 3, seed: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    labels = [torch.randint(3, (16,), generator=generator) for _ in range(n)]
    return [(torch.randn(16, 1, 6, 6, generator=generator) + y[:, None, None, None], y) for y in labels]


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(32, 3)),
        )
    with torch.no_grad():
        model.get_parameter("7.weight").mul_(20)  # a network with a clear opinion
    reestimate_batchnorm(model, batches())
    return model.eval()


def is_patterned(kept: Tensor, n: int, m: int) -> bool:
    """Whether exactly n of every m along dimension 1 are there."""
    return bool((kept.unflatten(1, (-1, m)).sum(dim=2) == n).all())


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("key", CRITERIA)
def test_every_criterion_cuts_to_the_pattern(key: str, stages: int) -> None:
    student = network()
    criterion = build(CRITERIA[key], network(1))
    masks = sc.cut(student, batches(), criterion, pattern=sc.NM(2, 4), stages=stages, exclude=[FIRST])
    masks.check(student)
    assert masks.sparsity == 0.5
    assert all(is_patterned(mask, 2, 4) for mask in masks.values())


@pytest.mark.parametrize("regrow", [False, True])
def test_stages_come_down_to_the_pattern_and_what_does_not_fit_is_named_once(regrow: bool) -> None:
    model, seen = network(), list[Stage]()
    before = Snapshot.of(model)
    with pytest.warns(sc.LeftDenseWarning, match=FIRST) as caught:
        masks = staged_masks(
            model, batches(), sc.Snip(), pattern=sc.NM(1, 4), stages=4, regrow=regrow, on_stage=seen.append
        )
    before.assert_unchanged(model)
    assert len(caught) == 1
    assert [stage.sparsity for stage in seen] == list(geometric_sparsities(0.75, 4))
    lost = [stage.masks.n_prune for stage in seen]
    assert lost == sorted(set(lost))
    for stage in seen:
        assert list(stage.masks) == ["3.weight", "7.weight"]
        assert all((mask.unflatten(1, (-1, 4)).sum(dim=2) >= 1).all() for mask in stage.masks.values())
    assert all(is_patterned(mask, 1, 4) for mask in masks.values())
    assert sum(stage.n_returned for stage in seen) == 0 or regrow


def test_a_score_of_the_weights_alone_gains_nothing_from_stages() -> None:
    one, five = (
        staged_masks(network(), None, sc.Magnitude(), pattern=sc.NM(2, 4), stages=stages, exclude=[FIRST])
        for stages in (1, 5)
    )
    assert one == five


def teachers_loss(student: nn.Module) -> float:
    x = torch.cat([x for x, _ in batches()])
    with torch.no_grad():
        return float(kd_loss(student.eval()(x), network()(x), temperature=4.0))


@pytest.mark.parametrize("stages", [1, 3])
def test_kept_weights_are_solved_for_under_the_pattern(stages: int) -> None:
    losses: list[float] = []
    for update in (True, False):
        student, dense = network(), network()
        criterion = sc.TeacherCurvature(network(), draw="exact", update_weights=update)
        masks = sc.cut(
            student, batches(), criterion, pattern=sc.NM(2, 4), stages=stages, exclude=[FIRST, "7.*"]
        )
        kept, weight = masks["3.weight"], student.get_parameter("3.weight").detach()
        assert is_patterned(weight != 0, 2, 4)
        assert torch.equal(weight[kept], dense.get_parameter("3.weight").detach()[kept]) is not update
        losses.append(teachers_loss(student))
    assert losses[0] < losses[1]


def test_distillation_on_inputs_keeps_the_pattern() -> None:
    taught, alone = network(), network()
    options: dict[str, Any] = {"pattern": sc.NM(2, 4), "stages": 2, "exclude": [FIRST]}
    masks = sc.cut(taught, batches(), sc.Magnitude(), recovery=STEPS, **options)
    sc.cut(alone, batches(), sc.Magnitude(), **options)
    masks.check(taught)
    assert all(is_patterned(taught.get_parameter(name) != 0, 2, 4) for name in masks)
    assert teachers_loss(taught) < teachers_loss(alone)


@pytest.mark.parametrize("criterion", [sc.Magnitude(), sc.TeacherGuided(network(1))])
def test_prune_recovers_saves_and_records_it(criterion: sc.AbstractCriterion, tmp_path: Path) -> None:
    parts: dict[str, Any] = {
        name: batches(4, seed) for seed, name in enumerate(("train", "val", "test", "calibration"))
    }
    data = Data(name="blobs", n_classes=3, input_shape=(1, 6, 6), **parts)
    student = network()
    with pytest.warns(sc.LeftDenseWarning, match=FIRST):
        result = sc.prune(
            student,
            data=data,
            teacher=network(1),
            criterion=criterion,
            pattern=sc.NM(2, 4),
            stages=2,
            recovery=sc.Recovery(epochs=1, kd_weight=0.5, precision="fp32"),
        )
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert found["scope"] == {"name": "n:m", "n": 2, "m": 4}
    assert found["sparsity"]["asked"] == 0.5
    assert {row["name"]: row["density"] for row in found["layers"]} == {
        "3.weight": 0.5,
        "7.weight": 0.5,
    }
    assert "leaves 0.weight (8, 1, 3, 3) dense" in found["warnings"][0]
    assert found["stages"]["one_cut"]["mask_overlap"] > 0.3
    assert found["diagnostics"]["split_half"]["mask_overlap"] > 0.3
    assert is_patterned(student.get_parameter("3.weight").detach() != 0, 2, 4)
    path = tmp_path / "student.safetensors"
    sc.save_sparse(student, path, masks=result.masks)
    loaded = sc.load_sparse(path, into=network(2))
    assert loaded.masks == result.masks


def test_terms_of_a_guided_score_are_compared_under_the_pattern() -> None:
    scores = sc.score(network(), batches(), sc.TeacherGuided(network(1)), exclude=[FIRST])
    rankings = scores, scores.at(1), scores.at(0)  # type: ignore[attr-defined]
    masks, *kept = [sc.allocate(ranking, pattern=sc.NM(2, 4)) for ranking in rankings]
    found = describe_scores(scores, masks, sc.NM(2, 4).scope_for(None))
    assert found["agreement"]["mask_overlap"] == sc.mask_overlap(*kept)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sparsity": 0.9}, r"sparsity=0\.9 does not go with the pattern 2:4, which removes exactly 0\.5"),
        ({"scope": sc.ERK()}, "Leave scope out"),
        ({"include": [FIRST]}, r"2:4 fits no tensor: .* there are 0\.weight \(8, 1, 3, 3\)"),
    ],
)
@pytest.mark.parametrize("recovery", [None, STEPS])
def test_what_does_not_go_with_a_pattern_changes_nothing(
    options: dict[str, Any], says: str, recovery: sc.CalibrationRecovery | None
) -> None:
    student = network()
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(sc.InvalidArgument, match=says):
        sc.cut(student, batches(), sc.Magnitude(), pattern=sc.NM(2, 4), recovery=recovery, **options)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize("recovery", [None, STEPS])
def test_a_layer_that_does_not_fit_is_left_as_it_was(recovery: sc.CalibrationRecovery | None) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(128, 3)
    )
    with pytest.warns(sc.LeftDenseWarning, match=r"0\.weight \(4, 1, 3, 3\), 1\.weight \(4, 4, 3, 3\) dense"):
        masks = sc.cut(model, batches(), sc.Magnitude(), pattern=sc.NM(2, 4), recovery=recovery)
    assert list(masks) == ["2.weight", "4.weight"]
    assert bool(all((model.get_parameter(name) != 0).all() for name in ("0.weight", "1.weight")))


@pytest.mark.parametrize(
    ("text", "pattern"), [("unstructured", sc.Unstructured()), ("2:4", sc.NM(2, 4)), ("1:16", sc.NM(1, 16))]
)
def test_patterns_by_name(text: str, pattern: sc.AbstractPattern) -> None:
    assert build_pattern_from(text) == pattern


@pytest.mark.parametrize("text", ["", "2-4", "2:4 ", "124", "2:", "-2:4", "2:4:8", "NM(2, 4)", "²:4"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(sc.InvalidArgument, match="must be unstructured or N:M such as 2:4, got"):
        build_pattern_from(text)


@pytest.mark.parametrize(("n", "m"), [("2", "4"), (2.0, 4), (True, 4), (2, None)])
def test_a_pattern_is_made_of_whole_numbers(n: Any, m: Any) -> None:
    with pytest.raises(
        sc.InvalidArgument, match=rf"takes whole numbers, got n={n!r} and m={m!r}\. The usual"
    ):
        sc.NM(n, m)


def test_a_configuration_takes_its_sparsity_from_the_pattern(tmp_path: Path) -> None:
    config = RunConfig(pattern="2:4")
    assert config.resolved().sparsity == 0.5
    assert RunConfig().resolved().sparsity == 0.9
    assert run_id(config) == run_id(RunConfig(sparsity=0.5, pattern="2:4")) != run_id(RunConfig(sparsity=0.5))
    (tmp_path / "run.yaml").write_text(dump_config(config.resolved()))
    assert load_config(tmp_path / "run.yaml", RunConfig) == config.resolved()
    with pytest.raises(sc.InvalidArgument, match=r"sparsity=0\.9 does not go with the pattern 2:4"):
        RunConfig(sparsity=0.9, pattern="2:4")
    (tmp_path / "bare.yaml").write_text("pattern: 2:4\n")  # in YAML 1.1 a number of base 60
    assert load_config(tmp_path / "bare.yaml", RunConfig) == config


QUICK = ("--data", "digits", "--n-calibration", "256", "--pretrain.epochs", "1")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.filterwarnings("default::secateur.LeftDenseWarning")
def test_from_the_command_line(tmp_path: Path, capsys: Any) -> None:
    flags = (*QUICK, "--criterion", "magnitude", "--recover", "none", "--pattern", "2:4")
    assert run("prune", *flags, "--out", tmp_path / "first") == 0
    result = json.loads((tmp_path / "first" / "result.json").read_text())
    assert result["sparsity"]["asked"] == 0.5
    assert result["scope"] == {"name": "n:m", "n": 2, "m": 4}
    assert "dense" in capsys.readouterr().err  # the first convolution has one channel
    assert {layer["density"] for layer in result["layers"]} == {0.5} == {result["sparsity"]["prunable"]}
    assert "n:m" in (tmp_path / "first" / "report.html").read_text()
    assert run("verify", tmp_path / "first") == 0
    loaded = sc.build_model("small-cnn", num_classes=10, in_channels=1)
    masks = sc.load_sparse(tmp_path / "first" / "student.safetensors", into=loaded).masks
    assert all(is_patterned(mask, 2, 4) for mask in masks.values())

    again = tmp_path / "again"
    assert run("prune", "--config", tmp_path / "first" / "config.yaml", "--out", again) == 0
    repeated = json.loads((again / "result.json").read_text())
    assert (repeated["run_id"], repeated["mask_digest"]) == (result["run_id"], result["mask_digest"])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--pattern", "2:4", "--sparsity", "0.9"), "removes exactly 0.5"),
        (("--pattern", "4:2"), "1 ≤ n < m, got 4:2"),
        (("--pattern", "half"), "must be unstructured or N:M such as 2:4, got 'half'"),
        (("--pattern", "2:4", "--scope", "erk"), "Leave scope out"),
    ],
)
def test_what_does_not_fit_costs_no_training(tmp_path: Path, capsys: Any, flags: Any, says: str) -> None:
    assert run("prune", *QUICK, "--criterion", "magnitude", *flags, "--out", tmp_path / "never") == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "never" / "log.jsonl").exists()
