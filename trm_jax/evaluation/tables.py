"""Evaluations as text for a terminal."""

from __future__ import annotations

from typing import Any

from trm_jax.evaluation.scores import PASS
from trm_jax.runtime import text
from trm_jax.runtime.text import percent


def table(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    k = result["settled_cycles"]
    verified = result["verified_as"]
    head = ["H_test", "L_test", "exact", "cell", *[verified] * bool(verified), "settled", "settled of right",
            "settled of wrong"]
    names = ["exact_accuracy", "cell_accuracy", *["verified"] * bool(verified), "settled", "settled_among_right",
             "settled_among_wrong"]
    lines = [
        f"{result['examples']:,} test puzzles ({result['sample']}) of {result['dataset']}, {result['parameters']} "
        f"parameters, step {result['step']:,}, {result['seconds']:.0f} s on {result['device']}",
        f"H_test counts {result['H_test_unit']}; settled: the answer has not changed for {k} of them; all figures in %",
        text.table(head, [[str(f["H_test"]), str(f["L_test"]), *(percent(f[name]) for name in names)]
                          for f in result["figures"]], left=(), indent="  "),
    ]
    if "mean_steps" in result["figures"][-1]:
        lines.append("  a puzzle stops when it has halted; mean steps: " + ", ".join(
            f"{f['mean_steps']:.2f} (H_test {f['H_test']})" for f in result["figures"]))
    if PASS[0] in result["figures"][-1]:
        lines += voted(result["figures"])
    sources = result["figures"][-1].get("by_source", {})
    if len(sources) > 1:
        names = ("exact_accuracy", "verified") if verified else ("exact_accuracy",)
        lines.append(f"  exact{verified and ', ' + verified} by source at H_test {result['figures'][-1]['H_test']}: "
                     + ", ".join(f"{name} {', '.join(percent(s[which]) for which in names)} (n {s['n']:,})"
                                 for name, s in sources.items()))
    return "\n".join(lines + signal_lines(result["figures"][-1], verified) + _solved(result))


def _solved(result: dict[str, Any]) -> list[str]:
    """What the engine made of the same puzzles."""
    if not (s := result.get("solved")):
        return []
    by = {"symmetry": "a symmetry", "draw": "the network's own draws", "start": "noise of {:g} at the start",
          "cycle": "noise of {:g} in every cycle"}
    by = f", up to {s['restarts']} tries that differ by {by[s['vary']].format(s['sigma'])}" if s["restarts"] > 1 else ""
    return [f"  as a solver: done when {result['verified_as']} or unchanged for {s['settle']}, at most H_test "
            f"{s['H_test']}{by}:",
            f"  exact {percent(s['exact_accuracy'])}, {result['verified_as']} {percent(s['verified'])} (n {s['n']:,}; "
            f"{s['by_restart']:,} by a later try), {s['mean_cycles']:.1f} cycles a puzzle, {s['seconds']:.0f} s"]


def signal_lines(figure: dict[str, Any], verified_as: str | None) -> list[str]:
    """What the signals of convergence are worth at one depth: n and percent of all, precision, recall, AUROC."""
    s = figure["signals"]
    kinds = [name.partition("_")[2] for name in s["table"] if name.startswith("settled_")]  # right_verified, ...
    heads = [kind.replace("_verified", f", {verified_as}").replace("_refused", f", not {verified_as}")
             for kind in kinds]
    cells = [[f"{cell['n']:,} ({percent(cell['share'])})" for cell in (s["table"][f"{row}_{kind}"] for kind in kinds)]
             for row in ("settled", "unsettled")]
    rows = text.table(["", *heads], [["settled", *cells[0]], ["unsettled", *cells[1]]], indent="  ")
    aurocs = [f"{name.replace('_', ' ')} {int(value * 1000 + 1e-9) / 1000:.3f}"
              + ("" if s["auroc_standard_error"][name] is None else f" +- {s['auroc_standard_error'][name]:.3f}")
              for name, value in s["auroc"].items() if value is not None]
    return [f"  signals at H_test {figure['H_test']}, L_test {figure['L_test']}: puzzles (% of {figure['n']:,})",
            *rows.splitlines(),
            "  settled as a claim of right: " + ", ".join(
                f"{name} {percent(s[name]['share'])} ({s[name]['n']:,} of {s[name]['of']:,})"
                for name in ("precision", "recall")),
            f"  AUROC of right ({s['right']:,}) over wrong ({s['wrong']:,}): "
            + (", ".join(aurocs) or f"not defined, {s['auroc_undefined']}")]


def voted(figures: list[dict[str, Any]]) -> list[str]:
    """Lines of ARC's score."""
    last = figures[-1]
    pooled = last["pooled_evaluations"]
    lines = [f"votes: {last['predictions']:,} on {last['test_inputs']:,} test inputs of {last['tasks']:,} tasks, "
             f"{last['unanswered']:,} inputs without any"
             + (f"; POOLED over {pooled} checkpoints, no one model's score" if pooled > 1 else "")]
    rows = [[str(f["H_test"]), str(f["L_test"]), *(percent(f[name]) for name in PASS)] for f in figures]
    return [*lines, text.table(["H_test", "L_test", *PASS], rows, left=(), indent="  ")]
