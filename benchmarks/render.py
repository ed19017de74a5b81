"""Write the tables of README.md and docs/ from the files in results/; --check only says if they are current.

A table stands between ``<!-- begin generated: NAME -->`` and ``<!-- end generated: NAME -->``, each on a line
of its own; within one line the two hold a cell. The file ``arena_SUITE.json`` of a suite gives the table
``arena-SUITE``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import curvature
import paper
from tables import RESULTS, SPREAD, spread, table

from secateur.report.words import commits

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"(<!-- begin generated: ([a-z0-9_-]+) -->)(\n?).*?(<!-- end generated: \2 -->)", re.DOTALL
)


def load(name: str) -> dict[str, Any]:
    """A results file."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def percent(value: float | None) -> str:
    """A fraction in percent, or a dash."""
    return "–" if value is None else f"{100 * value:.2f}"


def origin(result: dict[str, Any], several: Iterable[str | None] = ()) -> str:
    """One line on where a table comes from; `several` commits where its rows were measured at several."""
    about = result["provenance"]
    hardware, versions = about["hardware"], about["versions"]
    return (
        f"\n<sub>`benchmarks/results/{result['benchmark']}.json`: {hardware['cpu']}, "
        f"{hardware['threads']} threads, torch {versions['torch']}, "
        f"{commits([*several] or [about['commit']])}, {about['date']}, seed {about['seed']}.</sub>"
    )


def cifar10() -> str:
    """Accuracy by criterion and sparsity."""
    result = load("cifar10_resnet20")
    header = ["criterion, zeros", "after the cut", "+ BatchNorm", "recovered", "recovered + KD", "file"]
    rows = []
    for cell in sorted(
        result["cells"], key=lambda c: (c["sparsity"]["asked"], -c["accuracy"]["recovered_kd"])
    ):
        accuracy, size = cell["accuracy"], cell["size_bytes"]
        stages = [percent(accuracy[key]) for key in ("cut", "batchnorm", "recovered", "recovered_kd")]
        name = f"{cell['criterion']}, {cell['sparsity']['asked']:.0%}"
        rows.append([name, *stages, f"{size['dense'] / size['sparse']:.1f}× smaller"])
    accuracy = result["cells"][0]["accuracy"]
    recipe = result["recipe"]
    intro = (
        f"ResNet-56 ({percent(accuracy['teacher'])} %) teaching ResNet-20 "
        f"({percent(accuracy['dense'])} % dense) on CIFAR-10: test accuracy in %, "
        f"BatchNorm re-estimated on {recipe['--batchnorm']} images, "
        f"recovery of {recipe['--recovery.epochs']} epochs, one seed.\n\n"
    )
    measured_at = [cell["commit"] for cell in result["cells"]]
    return intro + table(header, rows) + "\n" + origin(result, measured_at)


def costs() -> str:
    """What scoring, selection, masks and files cost."""
    select, score, step = load("selection"), load("scoring"), load("masked_step")
    rows = [
        [
            "selection, 25 M weights, times faster than `torch.nn.utils.prune`",
            f"{select['times_faster']:.0f}×",
        ],
        ["… and its extra memory as a share of theirs", f"{select['extra_memory_ratio']:.1%}"],
        [
            "scoring without the teacher's forward, over forward + backward",
            f"{score['score_without_teacher_over_plain']:.2f}×",
        ],
        [
            "… and its memory beyond that of forward + backward, in copies of the weights",
            f"{score['copies_beyond_plain']:.2f}",
        ],
        ["masked training step over unmasked, ResNet-18, batch 128", f"{step['masked_over_unmasked']:.3f}×"],
    ]
    origins = "\n".join(map(origin, (select, score, step)))
    return table(["cost, median of one run", "measured"], rows) + "\n" + origins


def batchnorm() -> str:
    """Plain against augmented images for BatchNorm re-estimation."""
    result = load("batchnorm")
    cells = {(r["criterion"], r["sparsity"], r["kind"]): r for r in result["rows"]}
    rows = []
    for criterion, sparsity in dict.fromkeys((r["criterion"], r["sparsity"]) for r in result["rows"]):
        row = [f"{criterion}, {sparsity:.0%}"]
        for split in ("val", "test"):
            for kind in ("cut", "plain", "augmented"):
                found = cells[criterion, sparsity, kind][split]
                row.append(f"{percent(found['mean'])} ± {percent(found['std'])}")
        rows.append(row)
    kinds = ["cut", "plain", "augmented"]
    header = ["criterion, zeros", *(f"{split}: {kind}" for split in ("validation", "test") for kind in kinds)]
    return table(header, rows) + "\n" + origin(result)


def checkpoint_size() -> str:
    """How many times smaller than dense, by way of storing."""
    result = load("checkpoint_size")
    found = result["size_bytes"]
    counted = {"dense safetensors": ("yes", "the file"), "this format": ("by tensor", "the file")}
    counted |= dict.fromkeys(("gzip -9", "xz -9"), ("no", "the dense file, compressed"))
    counted["this format, bf16 values"] = counted["this format"]
    rows = []
    for way in found["0.9"]:
        ratios = [f"{sizes['dense safetensors'] / sizes[way]:.1f}×" for sizes in found.values()]
        rows.append([way, *counted.get(way, ("yes", "tensors, no header")), *ratios])
    header = ["way", "random access", "what is counted", *(f"{float(s):.0%} zeros" for s in found)]
    return table(header, rows) + "\n" + origin(result)


def runtime(zeros: float | None = None, name: str = "runtime") -> str:
    """Milliseconds of the engine, and how many times longer the others take; at one sparsity, or at all."""
    if not (RESULTS / f"{name}.json").is_file():
        return "not measured yet"
    result = load(name)
    result["cells"] = [cell for cell in result["cells"] if zeros in (None, cell["sparsity"])]
    names = list(dict.fromkeys(t["name"] for cell in result["cells"] for t in cell["timings"][1:]))
    rows = []
    for cell in sorted(result["cells"], key=lambda c: (c["masks"], c["model"], c["batch"], c["sparsity"])):
        ours, *others = cell["timings"]
        found = {t["name"]: t for t in others}
        masks = "" if cell["masks"] == "random" else ", really pruned"
        ratios = [
            f"{found[name]['median_s'] / ours['median_s']:.2f}×" if found.get(name, {}).get("agrees") else "–"
            for name in names
        ]
        milliseconds = f"{1e3 * ours['median_s']:.3g}"
        rows.append(
            [f"{cell['model']}{masks}, batch {cell['batch']}, {cell['sparsity']:.0%}", milliseconds, *ratios]
        )
    versions = dict.fromkeys(f"{t['name']}: {t['version']}" for c in result["cells"] for t in c["timings"])
    again = any(len(cell.get("passes", [])) > 1 for cell in result["cells"])
    note = (
        "\n<sub>"
        + "; ".join(versions)
        + ". Median of the best of ten blocks of calls, taken in turn, for every engine alike"
        + ("; cells measured several times have ten of each time.</sub>\n" if again else ".</sub>\n")
    )
    header = ["network, zeros", "ms", *(f"{name} takes" for name in names)]
    measured_at = [commit for cell in result["cells"] for commit in cell.get("passes", [cell["commit"]])]
    return table(header, rows) + "\n" + note + origin(result, measured_at)


def code_or_words(name: str) -> str:
    """A name as code, several words as they are."""
    return name if " " in name else f"`{name}`"


def kernel_limits() -> str:
    """What kernels reach in each cache, as a share of the dense kernel in the first level."""
    result = load("kernels")
    peak = next(limit["gflops"] for limit in result["limits"] if limit["limit"] == "dense")
    rows = [
        [
            f"{code_or_words(limit['limit'])}, {limit['kilobytes']} KB",
            f"{limit['gflops']:.0f}",
            f"{limit['gflops'] / peak:.0%}",
        ]
        for limit in result["limits"]
    ]
    note = f"\n<sub>One thread, {result['isa']}; GFLOP/s of the products that are computed.</sub>\n"
    return table(["kernel, what it reads", "GFLOP/s", "of dense"], rows) + "\n" + note + origin(result)


def kernel_layers() -> str:
    """GFLOP/s of single layers, products with zeros not counted."""
    result = load("kernels")
    kinds = dict.fromkeys((layer["kernel"], layer["zeros"]) for layer in result["layers"])
    found: dict[tuple[int, ...], dict[tuple[str, float], float]] = {}
    for layer in result["layers"]:
        speeds = found.setdefault((layer["images"], *layer["layer"]), {})
        speeds[layer["kernel"], layer["zeros"]] = layer["gflops"]
    rows = [
        [
            f"{images} × {c}→{o}, {size}², {k}×{k}/{stride}",
            *(f"{speeds[kind]:.0f}" if kind in speeds else "–" for kind in kinds),
        ]
        for (images, c, o, size, k, stride), speeds in found.items()
    ]
    header = [
        "images × channels, input, kernel/stride",
        *(f"`{kernel}`" + (f", {zeros:.0%} zeros" if zeros else "") for kernel, zeros in kinds),
    ]
    return table(header, rows) + "\n" + origin(result)


def precision() -> str:
    """Really pruned networks by the precision of their weights."""
    result = load("precision")
    rows = [
        [
            f"{row['run']}, {row['precision']}",
            row["isa"],
            f"{row['plan_bytes'] / row['n_nonzero']:.2f}",
            percent(row["accuracy_engine"]),
            f"{row['n_differing']} of {row['n_samples']:,}",
            f"{row['worst']:.0e}",
        ]
        for row in result["rows"]
    ]
    header = [
        "run, weights",
        "computed with",
        "bytes a non-zero",
        "test accuracy %",
        "other class than torch",
        "largest difference",
    ]
    return table(header, rows) + "\n" + origin(result)


def half() -> str:
    """Plans that compute in fp16 against those that compute in fp32."""
    result = load("half")
    rows = [
        [
            f"{row['model']}, batch {row['batch']}, {100 * row['sparsity']:.0f}%",
            f"{row['ms']['fp32']:.3g}",
            f"{row['ms']['fp16']:.3g}",
            f"{row['times_faster']:.2f}×",
            f"{row['difference']:.0e}",
        ]
        for row in result["rows"]
    ]
    header = ["network, zeros", "fp32 ms", "fp16 ms", "faster", "largest difference"]
    return table(header, rows) + "\n" + origin(result)


def threads() -> str:
    """Small batches on one thread and on several."""
    result = load("threads")
    rows = [
        [
            f"{row['model']}, batch {row['batch']}, {100 * row['sparsity']:.0f}%",
            f"{row['ms']['one']:.3g}",
            f"{row['ms']['several']:.3g}",
            f"{row['ms']['advised']:.3g}",
            f"{row['ms']['onnxruntime'] / row['ms']['advised']:.2f}×",
        ]
        for row in result["rows"]
    ]
    header = ["network, zeros", "one thread, ms", "all threads", "as the plan advises", "onnxruntime takes"]
    return table(header, rows) + "\n" + origin(result)


def arithmetic() -> str:
    """What one core multiplies and adds, by instruction."""
    result = load("half")
    rows = [[f"`{row['instruction']}`", f"{row['gflops']:.0f}"] for row in result["arithmetic"]]
    return table(["one core, from registers", "GFLOP/s"], rows) + "\n" + origin(result)


def arena(path: Path) -> str:
    """Accuracies and paired differences of a suite."""
    from secateur.report import suite_table

    return f"{suite_table(json.loads(path.read_text()))}\n<sub>`benchmarks/results/{path.name}`</sub>"


def headline() -> str:
    """The methods that compete in the suite with recovery: test accuracy at the sparsities run."""
    path = RESULTS / f"arena_{paper.TRAINED}.json"
    if not path.is_file():
        return paper.missing(paper.TRAINED)
    result = json.loads(path.read_text())
    zeros = sorted({cell["sparsity"]["asked"] for cell in result["cells"]})
    rows: list[list[str]] = []
    for key, method in result["suite"]["methods"].items():
        found = paper.cells_of(result, key, "recovered")
        if found and method.get("family") not in ("ablation", "control"):
            spreads = [spread([100 * a for a in found.get(z, {}).values()]) for z in zeros]
            rows.append([(method.get("label") or key).replace("|", "\\|"), *spreads])
    dense = f"{percent(result['cells'][0]['accuracy']['dense'])} dense"
    title = f"ResNet-20 on CIFAR-10, {dense}, after recovery, zeros"
    epochs, cpus = result["suite"]["recovery"]["epochs"], {c["hardware"]["cpu"] for c in result["cells"]}
    note = (
        f"<sub>`benchmarks/results/{path.name}`, {len(result['cells'])} of {result['n_planned']} cells: "
        f"{SPREAD}, epochs of recovery: {epochs}; "
        f"{', '.join(sorted(cpus))}.</sub>"
    )
    return table([title, *(f"{z:.0%}" for z in zeros)], rows) + "\n\n" + note


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "cifar10": cifar10,
    "costs": costs,
    "batchnorm": batchnorm,
    "checkpoint_size": checkpoint_size,
    "calibration-only": partial(curvature.calibration_only, "calibration-only", curvature.GOALS),
    "calibration-digits": partial(curvature.calibration_only, "calibration-digits", {}),
    "calibration-separable": partial(curvature.calibration_only, "calibration-separable", {}),
    "calibration-fashion": partial(curvature.calibration_only, "calibration-fashion", {}),
    "calibration-vit": partial(curvature.calibration_only, "calibration-vit", {}),
    "calibration-ablations": partial(curvature.calibration_only, "calibration-ablations", {}),
    "calibration-targets": curvature.targets,
    "calibration-memory": curvature.memory,
    "curvature-tries": partial(curvature.tries, "curvature_tries"),
    "calibration-tries": partial(curvature.tries, "calibration_tries"),
    "calibration-batches": curvature.batches,
    "curvature-blocks": curvature.blocks,
    "calibration-kinds": curvature.kinds,
    "recovery-rates": curvature.recovery_rates,
    "calibration-cost": curvature.cost,
    "curvature-steps": curvature.steps,
    "runtime": runtime,
    "runtime-90": partial(runtime, 0.9),
    "runtime-fp16": partial(runtime, name="runtime_fp16"),
    "runtime-zen5": partial(runtime, name="runtime_zen5"),
    "kernel-limits": kernel_limits,
    "kernel-layers": kernel_layers,
    "precision": precision,
    "half": half,
    "arithmetic": arithmetic,
    "threads": threads,
    **paper.OUTCOMES,
    **{f"arena-{path.stem[6:]}": partial(arena, path) for path in sorted(RESULTS.glob("arena_*.json"))},
}


def rendered(text: str) -> str:
    """A document with every generated block written anew."""
    return BLOCK.sub(lambda m: f"{m[1]}{m[3]}{TABLES[m[2]]()}{m[3]}{m[4]}", text)


def main() -> None:
    """Rewrite the documents, or check them."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 if a table is out of date"
    )
    options = arguments.parse_args()
    stale = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        before = path.read_text()
        after = rendered(before)
        if after != before:
            stale.append(path.name)
            if not options.check:
                path.write_text(after)
    print("\n".join(stale) or "all tables are current")
    sys.exit(1 if options.check and stale else 0)


if __name__ == "__main__":
    main()
