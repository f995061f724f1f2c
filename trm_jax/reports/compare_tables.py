"""Table and plot of what a comparison (compare.py) measured: its results.json as a dict goes in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trm_jax.reports import pictures
from trm_jax.runtime.text import human, markdown, percent

CUT = 0.95  # of the planned steps: with fewer a run is named as cut off


def spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    """'12.3 (11.9 to 12.8)'; one value alone without its range."""
    low, high = show(min(values)), show(max(values))
    mean = show(sum(values) / len(values))
    return mean if len(values) == 1 or low == high == mean else f"{mean} ({low} to {high})"


def table(results: dict[str, Any]) -> str:
    """Markdown: a row per system, the mean over seeds with the lowest and highest in brackets.

    Exact at every depth where all systems have the same ones, else at two.
    """
    settings, also = results["settings"], other_share(results)
    every = [run for by_seed in results["systems"].values() for run in by_seed.values()]
    alike = len({tuple(figure["calls"] for figure in run["depth"]) for run in every}) == 1 < len(every[0]["depth"])
    depths = [f"H {figure['H_test']}" for figure in every[0]["depth"]]
    tries = max((run["solved"]["restarts"] for run in every if "solved" in run), default=0)
    head = ["system", *([f"exact %, {depths[0]}", *depths[1:]] if alike and not also else
                        [f"exact %, at most {settings['calls']} core calls", *[f"{also} %"] * bool(also), "its depth",
                         "exact %, deepest", *[f"{also} %"] * bool(also), "its depth"]),
            *[f"verified %, at most {tries} tries"] * bool(tries), *["data", "exact of"] * settings.get("own", False),
            "parameters", "FLOP per example, training", "FLOP per example, test", "examples/s", "batch", "steps",
            "training s", "compiling s", "evaluating s", "peak memory"]
    rows = []
    for name, by_seed in results["systems"].items():
        runs = list(by_seed.values())
        first = runs[0]
        at, deep = ([run["depth"][i] for run in runs] for i in (_within(first["depth"], settings["calls"]), -1))

        def over(show, *path, runs=runs):
            return spread([run[path[0]] for run in runs], show)
        exact = [*_shares(at, also), _depth(at[0]), *_shares(deep, also), _depth(deep[0])]
        if alike and not also:
            exact = [_shares([run["depth"][i] for run in runs], "")[0] for i in range(len(depths))]
        if tries:
            exact.append(spread([run["solved"]["verified"] for run in runs], percent) if "solved" in first else "-")
        if settings.get("own"):
            exact += [first["dataset"], f"{first['examples']:,}"]
        rows.append([
            name, *exact, f"{first['parameters']:,}",
            over(human, "train_flops_per_example"), human(at[0]["flops_per_example"]),
            over("{:,.0f}".format, "examples_per_second"), str(first["batch"]),
            over("{:,.0f}".format, "steps") + f" of {first['planned_steps']:,}", over("{:.0f}".format, "train_seconds"),
            over("{:.0f}".format, "compile_seconds"), over("{:.0f}".format, "evaluation_seconds"),
            spread([run["peak_memory"] for run in runs], lambda b: f"{b / 2**20:,.0f} MiB")
            + f" of the {first['peak_memory_of']}"])
    return "\n".join([markdown(head, rows), "", *provenance(results)])


def _within(depth: Sequence[dict[str, Any]], calls: int) -> int:
    return max((i for i, figure in enumerate(depth) if figure["calls"] <= calls), default=0)


def _shares(figures: Sequence[dict[str, Any]], also: str) -> list[str]:
    names = ["exact_accuracy"] + ["verified"] * bool(also)
    return [spread([figure[name] or 0.0 for figure in figures], percent) for name in names]


def other_share(results: dict[str, Any]) -> str:
    """What answers are called that the verifier accepts, where they need not be the label (mazes); else ""."""
    names = {run.get("verified_as", "verified") for by_seed in results["systems"].values() for run in by_seed.values()}
    return next(iter(names - {"verified", ""}), "")


def _depth(figure: dict[str, Any]) -> str:
    return f"{figure['calls']:,} call{'s' * (figure['calls'] > 1)} (H_test {figure['H_test']}, L {figure['L_test']})"


def provenance(results: dict[str, Any]) -> list[str]:
    """What the figures are of."""
    s, runs = results["settings"], [run for by_seed in results["systems"].values() for run in by_seed.values()]
    seeds = sorted({int(seed) for by_seed in results["systems"].values() for seed in by_seed})
    facts = [sorted({run[name] for run in runs}) for name in ("dataset", "examples", "device")]
    versions = runs[0]["versions"]
    cut = [f"{name} seed {seed} at {run['steps'] / run['planned_steps']:.0%}"
           for name, by_seed in results["systems"].items() for seed, run in by_seed.items()
           if run["steps"] < CUT * run["planned_steps"]]
    how = "each config as it is, with its own length and data,"
    if s["minutes"]:
        how = f"{s['minutes']:g} minutes of training each"
    elif s.get("flops"):
        how = f"{human(s['flops'], 'FLOP')} of matrix products in training each,"
    return [
        f"{how} on {', '.join(facts[2])}, without compiling and evaluating; "
        f"{', '.join(facts[0])}; seeds {', '.join(map(str, seeds))}: mean (lowest to highest).",
        f"Exact: share of {', '.join(f'{n:,}' for n in facts[1])} test puzzles solved without a wrong cell. "
        "Core calls: passes through one network for one puzzle.",
        *["total_steps is what fits into the time by a measurement beforehand, so that each learning-rate schedule and "
          "curriculum ends with it; warm-ups keep their share of the run."] * bool(s["minutes"]),
        *[f"Set in every config: {name} = {value!r}." for name, value in s.get("changes", {}).items()],
        ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; {max(run['finished'] for run in runs)}",
        *([f"**Slower than measured, stopped short of the end of their schedules:** {', '.join(cut)}."] * bool(cut))]


# The plot.


def figure(results: dict[str, Any]):
    """Exact accuracy over minutes of training, optimiser steps and core calls at test time. A matplotlib Figure.

    A line is the mean over seeds, its band reaches from the lowest to the highest. Dotted: mazes' shortest paths.
    """
    plt, also = pictures.pyplot(), other_share(results)
    panels = (("over minutes of training", "minutes of training", "curve", lambda p: p["train_seconds"] / 60),
              ("over optimiser steps", "optimiser steps", "curve", lambda p: p["step"]),
              ("over test-time depth", "core calls at test time", "depth", lambda p: p["calls"]))
    with plt.rc_context(pictures.STYLE):
        made, axes = plt.subplots(1, len(panels), figsize=(13.5, 4.8), dpi=150, layout="constrained", sharey=True)
        for ax, (title, label, kind, x_of) in zip(axes, panels):
            for i, (name, by_seed) in enumerate(results["systems"].items()):
                x, mean, low, high = _line([run[kind] for run in by_seed.values()], x_of)
                colour = pictures.COLOURS[i % len(pictures.COLOURS)]
                ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
                ax.plot(x, mean, "-" + pictures.MARKERS[i % len(pictures.MARKERS)], color=colour, linewidth=1.6,
                        markersize=5, markerfacecolor="white", markeredgewidth=1.3, label=name)
                if also:
                    x, mean, *_ = _line([run[kind] for run in by_seed.values()], x_of, "verified")
                    ax.plot(x, mean, ":", color=colour, linewidth=1.8)
            ax.set_title(title, loc="left", fontsize=11)
            ax.set_xlabel(label)
            ax.set_ylim(-2, 102)
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
            ax.grid(color=pictures.GRID, linewidth=0.8)
            ax.set_axisbelow(True)
            if kind == "curve":
                ax.set_xlim(left=0)
        axes[-1].set_xscale("log", base=2)
        axes[-1].xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes[0].set_ylabel("test puzzles solved exactly" + f" (dotted: {also})" * bool(also))
        made.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", frameon=False,
                    ncols=min(4, len(results["systems"])))
        calls = results["settings"]["calls"]
        made.supxlabel(f"left and middle: at most {calls} core calls. " + provenance(results)[0], fontsize=8.5,
                       color=pictures.FAINT)
        return made


def _line(runs: Sequence[Sequence[dict[str, Any]]], x_of,
          share: str = "exact_accuracy") -> tuple[list[float], list[float], list[float], list[float]]:
    """(x, mean, lowest, highest) in percent: the runs' n-th points belong together, as far as all have one."""
    points = list(zip(*runs))
    shares = [[100 * (p[share] or 0.0) for p in at] for at in points]
    mean = [sum(v) / len(v) for v in shares]
    x = [sum(map(x_of, at)) / len(at) for at in points]
    return x, mean, [min(v) for v in shares], [max(v) for v in shares]
