"""The tables of docs/curvature.md: cuts from calibration inputs alone, and what was tried on the way."""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

from tables import RESULTS, SPREAD, spread, table

from secateur.report.words import commits

GOALS = {0.5: "≥ 91.2", 0.7: "≥ 90.4", 0.8: "≥ 88.8", 0.9: "≥ 80"}
"""What `calibration-only` was to reach, set before it was measured."""


def calibration_only(name: str, goals: dict[float, str]) -> str:
    """Test accuracy of every method and sparsity of a suite after cut and steps, over its seeds.

    What had no steps is listed once more, with the statistics of BatchNorm re-estimated after the cut.
    """
    path = RESULTS / f"arena_{name}.json"
    if not path.is_file():
        return "not measured yet"
    result = json.loads(path.read_text())
    cells: list[dict[str, Any]] = result["cells"]
    zeros = sorted({cell["sparsity"]["asked"] for cell in cells})
    rows = [["goal", *(goals.get(z, "–") for z in zeros), ""]] if goals else []
    for key, method in result["suite"]["methods"].items():
        own = [cell for cell in cells if cell["method"] == key]
        if own:
            label = (method.get("label") or key).replace("|", "\\|")
            steps = _steps(own[0])
            rows.append([label, *(_accuracy(own, z, "cut") for z in zeros), f"{steps:,}"])
            # those with steps have had BatchNorm in training mode, and some networks have none
            if not steps and own[0]["accuracy"]["batchnorm"] is not None:
                again = (_accuracy(own, z, "batchnorm") for z in zeros)
                rows.append([f"{label}, BatchNorm re-estimated", *again, "0"])
    cpus = ", ".join(sorted({cell["hardware"]["cpu"] for cell in cells}))
    dense = sorted({f"{100 * cell['accuracy']['dense']:.2f}" for cell in cells})
    torch = cells[0]["versions"]["torch"]
    origin = (
        f"<sub>`benchmarks/results/{path.name}`: {SPREAD}; "
        f"dense {' to '.join(dict.fromkeys((dense[0], dense[-1])))}; {cpus}, "
        f"torch {torch}, {commits(cell['commit'] for cell in cells)}.</sub>"
    )
    return table(["zeros", *(f"{z:.0%}" for z in zeros), "KD steps"], rows) + "\n\n" + origin


def _steps(cell: dict[str, Any]) -> int:
    """Distillation steps in all; in older results null means as many after the last stage as after each."""
    strategy = cell["about"]["strategy"]
    recovery = strategy.get("recovery")
    if recovery is None:
        return 0
    final = recovery["steps"] if recovery["final_steps"] is None else recovery["final_steps"]
    return (strategy["stages"] - 1) * recovery["steps"] + final


def _accuracy(cells: list[dict[str, Any]], zeros: float, after: str) -> str:
    return spread([100 * c["accuracy"][after] for c in cells if c["sparsity"]["asked"] == zeros])


def tries(name: str) -> str:
    """Validation accuracy and loss of what was tried, by schedule."""
    result = json.loads((RESULTS / f"{name}.json").read_text())
    parts: list[str] = []
    for schedule in dict.fromkeys(row["schedule"] for row in result["rows"]):
        own = [row for row in result["rows"] if row["schedule"] == schedule]
        seen = [c["zeros"] for row in own for c in row["stages"]]
        zeros = sorted({z for z in seen if seen.count(z) > 1 or len(own) == 1})
        rows = [[row["variant"], *(_stage(row, z) for z in zeros), f"{row['cpu_seconds']} s"] for row in own]
        parts.append(table([schedule, *(f"{z:.1%}" for z in zeros), "CPU time"], rows))
    about = result["provenance"]
    origin = (
        f"<sub>`benchmarks/results/{name}.json`: accuracy in % / loss. {result['about']} "
        f"{about['hardware']['cpu']}, {commits([about['commit']])}, {about['date']}.</sub>"
    )
    return "\n\n".join([*parts, origin])


def batches() -> str:
    """Validation accuracies by how the same images were dealt out to steps, and by temperature."""
    result = json.loads((RESULTS / "calibration_batches.json").read_text())
    variants: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        name = (
            f"{row['stages']} stages, {row['steps']} steps of {row['batch_size']} each, "
            f"{row['final_steps']:,} at the end, T = {row['temperature']:g}"
        )
        if "rate" in row:  # where it is not 0.01 throughout
            name += f", {row['rate']}"
        variants.setdefault(name, []).append(row)
    cases = sorted({(row["network"], row["zeros"]) for row in result["rows"]})
    rows: list[list[str]] = []
    for name, own in variants.items():
        found = [
            [f"{100 * r['val_accuracy']:.2f}" for r in own if (r["network"], r["zeros"]) == case]
            for case in cases
        ]
        seconds = [r["cpu_seconds"] for r in own if r["network"] == own[0]["network"]]
        rows.append([name, *(", ".join(f) or "–" for f in found), f"{fmean(seconds):.0f} s"])
    about = result["provenance"]
    origin = (
        f"<sub>`benchmarks/results/calibration_batches.json`: accuracy in %, one number a seed. "
        f"{result['about']} {about['hardware']['cpu']}, {commits([about['commit']])}, {about['date']}.</sub>"
    )
    head = ["steps", *(f"{network}, {zeros:.0%}" for network, zeros in cases), "CPU time of the first"]
    return f"{table(head, rows)}\n\n{origin}"


def blocks() -> str:
    """Validation accuracies of TeacherCurvature by block, without steps."""
    result = json.loads((RESULTS / "curvature_blocks.json").read_text())
    zeros = sorted({row["zeros"] for row in result["rows"]})
    rows: list[list[str]] = []
    for variant in dict.fromkeys(row["variant"] for row in result["rows"]):
        own = {row["zeros"]: row for row in result["rows"] if row["variant"] == variant}
        rows.append([variant])
        for z in zeros:
            found = own.get(z)
            rows[-1].append(f"{100 * found['cut']:.1f}, {100 * found['batchnorm']:.1f}" if found else "–")
    about = result["provenance"]
    origin = (
        f"<sub>`benchmarks/results/curvature_blocks.json`: accuracy in %. {result['about']} "
        f"{about['hardware']['cpu']}, {commits([about['commit']])}, {about['date']}.</sub>"
    )
    return (
        table(["teacher-curvature, where no other score is named", *(f"{z:.0%}" for z in zeros)], rows)
        + "\n\n"
        + origin
    )


def kinds() -> str:
    """Networks of many kinds before and after a cut by the default, by one version and the next."""
    result = json.loads((RESULTS / "calibration_kinds.json").read_text())
    versions = list(dict.fromkeys(row["commit"] for row in result["rows"]))

    def cell(rows: list[dict[str, Any]], what: str) -> str:
        found = [100 * row[what] for row in rows if row[what] is not None]
        failed = len(rows) - len(found)
        words = [spread(found)] if found else []
        return ", ".join([*words, f"{failed} diverged"] if failed else words)

    rows: list[list[str]] = []
    for network in dict.fromkeys(row["network"] for row in result["rows"]):
        own = [row for row in result["rows"] if row["network"] == network]
        by_version = [[row for row in own if row["commit"] == version] for version in versions]
        rows.append([network, cell(by_version[-1], "dense"), *(cell(some, "pruned") for some in by_version)])
    about = result["provenance"]
    note = (
        f"<sub>`benchmarks/results/calibration_kinds.json`: teacher-fisher as by default, "
        f"{result['sparsity']:.0%} zeros, 1,000 inputs, three seeds; on inputs that no network has seen: "
        "accuracy in % of classes, of single labels, or R² in %. "
        f"{about['hardware']['cpu']}, {commits(versions)}, {about['date']}.</sub>"
    )
    head = ["network", "dense", *(f"at commit {version[:7]}" for version in versions)]
    return f"{table(head, rows)}\n\n{note}"


def recovery_rates() -> str:
    """Validation accuracies after one epoch of recovery at several rates."""
    result = json.loads((RESULTS / "recovery_rates.json").read_text())
    rates = sorted({row["lr"] for row in result["rows"]}, reverse=True)
    rows: list[list[str]] = []
    for zeros, inputs in sorted({(row["zeros"], row["inputs"]) for row in result["rows"]}):
        own = {r["lr"]: r for r in result["rows"] if (r["zeros"], r["inputs"]) == (zeros, inputs)}
        start = next(iter(own.values()))["start_val_accuracy"]
        found = (f"{100 * own[lr]['val_accuracy']:.2f}" if lr in own else "–" for lr in rates)
        rows.append([f"{zeros:.0%}", f"{inputs:,}", f"{100 * start:.2f}", *found])
    about = result["provenance"]
    origin = (
        f"<sub>`benchmarks/results/recovery_rates.json`: accuracy in %. {result['about']} "
        f"{about['hardware']['cpu']}, {commits([about['commit']])}, {about['date']}.</sub>"
    )
    head = ["zeros", "images of the steps", "after the steps", *(f"one epoch at {lr:g}" for lr in rates)]
    return f"{table(head, rows)}\n\n{origin}"


def _stage(row: dict[str, Any], zeros: float) -> str:
    for stage in row["stages"]:
        if stage["zeros"] == zeros:
            return f"{100 * stage['val_accuracy']:.2f} / {stage['val_loss']:.2f}"
    return ""


def cost() -> str:
    """What one cut at the defaults takes."""
    result = json.loads((RESULTS / "calibration_cost.json").read_text())
    row = [
        f"{result['sparsity']:.0%}",
        f"{result['n_steps']:,}",
        str(result["threads"]),
        f"{result['seconds']:.0f} s",
        f"{result['cpu_seconds']:.0f} s",
        f"{result['score_seconds']:.0f} s",
    ]
    about = result["provenance"]
    origin = (
        f"<sub>`benchmarks/results/calibration_cost.json`: {about['hardware']['cpu']}, one run, seed 0, "
        f"{commits([about['commit']])}.</sub>"
    )
    head = ["zeros", "KD steps", "threads", "time of the cut", "CPU time", "of it scoring"]
    return f"{table(head, [row])}\n\n{origin}"


def targets() -> str:
    """What the steps aim at, and the test accuracy that is left."""
    path = RESULTS / "calibration_targets.json"
    if not path.is_file():
        return "not measured yet"
    result = json.loads(path.read_text())
    found: dict[str, list[float]] = {}
    for row in result["rows"]:
        found.setdefault(row["target"], []).append(100 * row["test_accuracy"])
    rows = [[target, spread(values)] for target, values in found.items()]
    about = result["provenance"]
    origin = (
        f"<sub>`benchmarks/results/{path.name}`: {SPREAD}; "
        f"{about['hardware']['cpu']}, {commits([about['commit']])}.</sub>"
    )
    return table(["target of the steps", f"{result['sparsity']:.0%} zeros"], rows) + "\n\n" + origin


def memory() -> str:
    """What cutting a large network takes."""
    path = RESULTS / "calibration_memory.json"
    if not path.is_file():
        return "not measured yet"
    result = json.loads(path.read_text())
    done = [row for row in result["rows"] if "failed" not in row]
    rows = [[row["case"], f"{row['peak_bytes'] / 1e9:.1f} GB", f"{row['cpu_seconds']:.0f} s"] for row in done]
    about, first = result["provenance"], done[0]
    origin = (
        f"<sub>`benchmarks/results/{path.name}`: {first['weights']:,} weights, {first['images']} images "
        f"of 224², two stages, 128 images a step; {about['hardware']['cpu']}, {first['threads']} threads, "
        f"{commits([about['commit']])}.</sub>"
    )
    return table(["ResNet-50", "most memory of the process", "CPU time"], rows) + "\n\n" + origin


def steps() -> str:
    """What steps after one cut were tried."""
    result = json.loads((RESULTS / "curvature_tries.json").read_text())["steps_after_one_cut"]
    rows = [[r["batchnorm"], r["steps"], f"{100 * r['test_accuracy']:.1f}"] for r in result["rows"]]
    return table(["BatchNorm", "steps", "accuracy"], rows) + f"\n\n<sub>{result['about']}</sub>"
