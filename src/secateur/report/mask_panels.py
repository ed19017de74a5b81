"""Figures of what was removed: layers, scores, and how far the choice can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.report.canvas import ACCENT, BLUE, GREY, ORANGE
from secateur.report.page import Panel, Table
from secateur.report.plots import Bar, Mark, bars, histogram
from secateur.report.words import compact, layer_labels, number, percent, shorten

Run = Mapping[str, Any]

_DENSE_LAYOUT = 16


def density_panel(run: Run) -> Panel:
    """How much of each layer stays."""
    layers: Sequence[Run] = run["layers"]
    if not layers:
        return Panel("density", "What each layer keeps", absent="the result names no layer")
    labels = layer_labels([layer["name"] for layer in layers])
    rows = [
        Bar(
            name,
            layer["density"],
            "emptied"
            if layer["n_keep"] == 0
            else f"{percent(layer['density'])} of {_weights(layer['numel'])}",
            warn=layer["n_keep"] == 0,
        )
        for name, layer in zip(labels, layers, strict=True)
    ]
    overall = 1 - run["sparsity"]["prunable"]
    most = max(layers, key=lambda layer: layer["density"])
    least = min(layers, key=lambda layer: layer["density"])
    finding = (
        f"{shorten(most['name'], 40)} keeps the largest share ({percent(most['density'])}), "
        f"{shorten(least['name'], 40)} the smallest ({percent(least['density'])})."
    )
    top = min(1.0, 1.05 * max(overall, *(layer["density"] for layer in layers), 0.01))
    return Panel(
        "density",
        "What each layer keeps",
        finding,
        "A bar is the share of a layer's weights that stays, the dashed line that of the whole network; "
        "long bars are layers that the score found hard to do without.",
        bars(
            "density",
            finding,
            rows,
            limits=(0, top),
            marks=[Mark(overall, f"whole network {percent(overall)}")],
            fraction=True,
            axis="share of weights kept",
            pitch=_pitch(len(rows)),
        ),
        table=Table(
            "Weights by layer",
            ("layer", "shape", "weights", "kept", "zeros"),
            tuple(
                (
                    layer["name"],
                    " × ".join(str(side) for side in layer["shape"]),
                    number(layer["numel"]),
                    number(layer["n_keep"]),
                    percent(1 - layer["density"]),
                )
                for layer in layers
            ),
        ),
    )


def _weights(n: int) -> str:
    return number(n) if n < 10_000 else compact(n)


def _pitch(n_rows: int) -> float:
    return 21.0 if n_rows <= _DENSE_LAYOUT else 14.5


def scores_panel(run: Run) -> Panel:
    """How the scores spread, and where the line was drawn."""
    found = run["diagnostics"]["score_histogram"]
    if found is None:
        return Panel(
            "scores", "How the scores spread", absent="this criterion gives no single list of scores"
        )
    terms = found["terms"]
    outlines = [
        (f"{name} term", terms[name]["counts"], colour)
        for name, colour in (("task", BLUE), ("teacher", ORANGE))
        if terms
    ]
    threshold = found["log10_threshold"]
    parts = [f"{number(sum(found['counts']))} weights have a score above 0"]
    if found["n_zero"]:
        parts.append(f"{number(found['n_zero'])} score 0 or less and lie left of the picture")
    if threshold is not None:
        parts.append(f"those below {10**threshold:.2g} were removed")
    finding = f"{'; '.join(parts)}."
    how = "A hill is a heap of weights with similar scores"
    how += "; those left of the line were removed" if threshold is not None else ""
    return Panel(
        "scores",
        "How the scores spread",
        finding,
        f"{how}; the outlines are the two terms that the score is made of." if outlines else f"{how}.",
        histogram(
            "scores",
            finding,
            found["log10_edges"],
            found["counts"],
            outlines=outlines,
            threshold=threshold,
        ),
    )


def split_half_panel(run: Run) -> Panel:
    """Whether another half of the calibration data would have kept the same weights."""
    found = run["diagnostics"]["split_half"]
    if found is None:
        return Panel(
            "split-half",
            "Is the choice stable?",
            absent="this criterion reads no data, the cut moved the kept weights, or it was not measured",
        )
    overlap, chance, half = found["mask_overlap"], found["expected_random"], found["n_samples_per_half"]
    samples = f" ({number(half)} samples each)" if half is not None else ""
    finding = (
        f"Two masks from separate halves of the calibration data{samples} share {percent(overlap, 0)} "
        f"of the weights that either keeps; two random masks would share {percent(chance, 0)}."
    )
    rows = [
        Bar("two halves", overlap, percent(overlap)),
        Bar("two random masks", chance, percent(chance), colour=GREY),
    ]
    return Panel(
        "split-half",
        "Is the choice stable?",
        finding,
        "The longer the first bar against the second, the less it matters which samples were seen.",
        bars(
            "split-half",
            finding,
            rows,
            limits=(0, 1),
            fraction=True,
            axis="share of kept weights in common",
        ),
        table=Table("Overlap of masks", ("masks", "overlap"), tuple((row.name, row.text) for row in rows)),
    )


def agreement_panel(run: Run) -> Panel:
    """Whether the labels and the teacher rank the weights alike."""
    found = run["diagnostics"]["agreement"]
    if found is None:
        return Panel("agreement", "Do task and teacher agree?", absent=_why_no_agreement(run))
    layers: Sequence[Run] = found["layers"]
    ranks = [("all layers", found["spearman"])]
    ranks += zip(
        layer_labels([layer["name"] for layer in layers]),
        (layer["spearman"] for layer in layers),
        strict=True,
    )
    rows = [
        Bar(name, rank, "–" if rank is None else f"{rank:.2f}", colour=ACCENT if index == 0 else BLUE)
        for index, (name, rank) in enumerate(ranks)
    ]
    low = min(0.0, *(rank for _, rank in ranks if rank is not None), 0.0)
    overlap = found["mask_overlap"]
    parts = [f"The rank correlation is {rows[0].text}"] if found["spearman"] is not None else []
    if overlap is not None:
        parts.append(f"cut by either term alone, {percent(overlap, 0)} of the kept weights would be the same")
    finding = f"{'; '.join(parts)}." if parts else "The two terms could not be compared."
    return Panel(
        "agreement",
        "Do task and teacher agree?",
        finding[0].upper() + finding[1:],
        "1 means that labels and teacher rank the weights alike, 0 that they have nothing in common; "
        "short bars are layers where the teacher says something new.",
        bars(
            "agreement",
            finding,
            rows,
            limits=(max(-1.0, 1.1 * low), 1),
            axis="rank correlation of the two terms",
            pitch=_pitch(len(rows)),
        ),
        table=Table(
            "Rank correlation by layer", ("layer", "Spearman"), tuple((row.name, row.text) for row in rows)
        ),
    )


def _why_no_agreement(run: Run) -> str:
    """The first reason that holds; of a criterion of the user's own only the result can tell what it gave."""
    criterion = run["criterion"]
    guided = criterion["name"] == "teacher-guided"
    if not guided and ":" not in criterion["name"]:
        return _ONE_TERM
    if guided and criterion.get("form") == "joint":
        return f"the joint form gives {_NONE_APART}"
    if run.get("calibration_recovery"):
        return f"a cut with calibration steps keeps {_NONE_APART}"
    if any(row.get("loss") for row in run.get("stages", {}).get("rows", ())):
        return f"a cut that moves the kept weights keeps {_NONE_APART}"
    if run["n_prune"] == run["n_prunable"]:
        return "no weight stays, so there are no masks to compare"
    return "the calibration data have no labels, so there is no task term" if guided else _ONE_TERM


_ONE_TERM = "this criterion has no task term beside a teacher term"
_NONE_APART = "one score a weight, not the terms of task and teacher apart"
