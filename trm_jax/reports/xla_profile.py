"""Where the time of a compiled program goes, operation by operation, beside what the machine can do.

A trace by jax.profiler gives the seconds of every operation that XLA ran; the compiled program gives what it had to do:
floating-point operations of matrix products, bytes of arrays read and written. They are joined by name. The folder of
the trace opens in XProf and Perfetto as well.

- FLOPs are those of matrix products, as everywhere in this library. Bytes are those of an operation's operands and
  results, each once; of an array of which a slice is read or written, the slice.
- The roof of an operation is the larger of its FLOPs over the measured peak for its numbers and its bytes over the
  measured bandwidth: that of a cache where they are less than CACHED bytes, else that of memory.
- On a GPU, XLA_FLAGS=--xla_gpu_enable_command_buffer= is needed, without which there are no single operations to see.
"""

from __future__ import annotations

import collections
import math
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from trm_jax.reports import pictures
from trm_jax.runtime import distributed, files, peaks
from trm_jax.runtime.errors import UserError
from trm_jax.runtime.text import human, table

CACHED = 8 * 2**20  # bytes of one operation that a core's caches may hold
CONTAINERS = ("while", "conditional", "call")  # their own time is that of starting what is in them
STEP = "profiled step"
SHOWN = 16  # groups in the table; the rest is in one line
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}


class ProfileError(UserError):
    """A trace in which the program cannot be found."""


class Operation(NamedTuple):
    """What one call of an instruction of a compiled program has to do."""

    kind: str  # "product 2592x96x384 bf16", "elementwise [81,32,96]"
    phase: str  # forward, rematerialised, backward
    flops: float
    bytes: float
    dtype: str  # of a product's operands; "" of what is none


# The program.


def shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Element type and dimensions of every array in the type at the head of an instruction's text."""
    head = text.partition(" = ")[2]
    if head.startswith("("):
        head = head[:head.index(")") + 1]
    else:
        head = head.partition(" ")[0]
    return [(kind, tuple(int(n) for n in sizes.split(",") if n))
            for kind, sizes in re.findall(r"([a-z]+[0-9]*)\[([0-9,]*)\]", head)]


def size(text: str) -> float:
    """Bytes of the arrays that an instruction gives."""
    return sum(WIDTHS.get(kind, 4) * math.prod(dims) for kind, dims in shapes(text))


def opcode(instruction) -> str:
    """'dynamic-slice'."""
    return re.sub("(?<=.)([A-Z])", r"-\1", instruction.opcode.name[1:]).lower()


def operations(module) -> dict[str, Operation]:
    """Every instruction outside of fusions of an HLO module, compiled.runtime_executable().hlo_modules()[0]."""
    bodies = {computation.name: computation.instructions() for computation in module.computations()}
    texts = {name: [(i, i.to_string()) for i in body] for name, body in bodies.items()}
    inside = {found[1] for body in texts.values() for i, text in body if opcode(i) == "fusion"
              if (found := re.search(r"calls=%?([\w.\-]+)", text))}
    return {i.name: _operation(i, text, texts) for name, body in texts.items() if name not in inside
            for i, text in body}


def _operation(instruction, text: str, texts) -> Operation:
    called = re.search(r"calls=%?([\w.\-]+)", text) if opcode(instruction) == "fusion" else None
    body = texts.get(called[1], []) if called else [(instruction, text)]
    products = [_product(i, t) for i, t in body if opcode(i) == "dot" or opcode(i) == "custom-call" and "gemm" in t]
    name = (re.search(r'op_name="([^"]*)"', text) or [""] * 2)[1]
    phase = ("rematerialised" if "rematted_computation" in name else
             "backward" if "transpose(" in name else "forward")
    moved = size(text) + sum(_read(i, operand, body if called else None)
                             for i, operand in enumerate(instruction.operands()))
    if any(opcode(i) == "dynamic-update-slice" for i, _ in body):  # in place: only the slice moves, there and back
        moved = 2 * sum(size(i.operands()[1].to_string()) for i, _ in body if opcode(i) == "dynamic-update-slice")
    if products:
        ((m, k, n), dtype), flops = products[0], sum(2 * math.prod(sizes) for sizes, _ in products)
        return Operation(f"product {m}x{k}x{n} {dtype}", phase, flops, moved, dtype)
    kind = re.sub(r"[.\d]+$", "", instruction.name) if opcode(instruction) == "fusion" else opcode(instruction)
    kind = re.sub(r"(wrapped_|bitcast_|bitcast-|_?fusion$|ynn_)", "", kind) or "reduction"
    dims = max((dims for _, dims in shapes(text)), key=math.prod, default=())
    return Operation(f"{kind.strip('_')} [{','.join(map(str, dims))}]", phase, 0.0, moved, "")


def _read(index: int, operand, body) -> float:
    """Bytes of an operand that are read: of one that is only sliced inside of a fusion, the slices."""
    whole = size(operand.to_string())
    if body is None:
        return whole
    for i, text in body:
        if opcode(i) == "parameter" and f"parameter({index})" in text:
            users = i.users()
            if users and all(opcode(u) in ("dynamic-slice", "gather", "slice") for u in users):
                return min(whole, sum(size(u.to_string()) for u in users))
    return whole


def _product(instruction, text: str) -> tuple[tuple[int, int, int], str]:
    """((M, K, N), element type of its operands) of a product; batches count as rows of the left one."""
    kind, left = shapes(instruction.operands()[0].to_string())[0]
    contracted = re.search(r"lhs_contracting_dim(?:s=\{|ensions\":\[)([\d,\"]*)", text)
    K = math.prod(left[int(n)] for n in re.findall(r"\d+", contracted[1])) if contracted else 1
    M, out = math.prod(left) // max(1, K), math.prod(shapes(text)[0][1])
    return (M, K, out // max(1, M)), kind


# The trace.


class Span(NamedTuple):
    name: str
    module: str
    start: float  # nanoseconds
    own: float  # without what ran inside of it
    whole: float


class Window(NamedTuple):
    """A step in a trace, nanoseconds."""

    start: float
    length: float


def spans(folder: Path) -> tuple[list[Span], list[Window]]:
    """The operations of the newest trace in a folder, and the steps in it."""
    files = sorted(folder.glob("**/*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise ProfileError(f"there is no trace in {folder}")
    found, steps = [], []
    for plane in jax.profiler.ProfileData.from_file(str(files[-1])).planes:
        for line in plane.lines:
            events = []
            for event in line.events:
                if event.name == STEP:
                    steps.append(Window(event.start_ns, event.duration_ns))
                if "hlo_op" in (stats := dict(event.stats)):
                    events.append((event.start_ns, -event.duration_ns, stats["hlo_op"], stats.get("hlo_module", "")))
            found += _nested(sorted(events))
    return found, steps


def _nested(events: Iterable[tuple[float, float, str, str]]) -> list[Span]:
    """Own times of the events of one thread, outer ones first."""
    done: list[Span] = []
    open_: list[list] = []  # [end, own, event]

    def close(until: float) -> None:
        while open_ and open_[-1][0] <= until:
            _, own, (start, minus, name, module) = open_.pop()
            done.append(Span(name, module, start, max(0.0, own), -minus))
    for event in events:
        close(event[0])
        if open_:
            open_[-1][1] += event[1]
        open_.append([event[0] - event[1], -event[1], event])
    close(math.inf)
    return done


def covered(found: Iterable[Span]) -> float:
    """Nanoseconds in which at least one operation ran."""
    total, end = 0.0, -math.inf
    for span in sorted(found, key=lambda s: s.start):
        total += max(0.0, span.start + span.whole - max(end, span.start))
        end = max(end, span.start + span.whole)
    return total


# The report.


def profile(run: Callable[[], Any], compiled, folder: Path, model_flops: float, steps: int = 5) -> dict[str, Any]:
    """Runs `run` (one call of `compiled`, waited for) some times under the profiler, and measures the machine.

    Args:
      model_flops: of one run, without what is computed twice.
    """
    machine = peaks.peaks()
    for _ in range(2):
        run()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # its events are many, and slow the host down
    with jax.profiler.trace(str(folder), profiler_options=options):
        for i in range(steps):
            with jax.profiler.StepTraceAnnotation(STEP, step_num=i):
                run()
    [module] = compiled.runtime_executable().hlo_modules()[:1]
    found, windows = spans(folder)
    return account(operations(module), module.name, found, windows, machine, model_flops)


def account(program: dict[str, Operation], module: str, found: list[Span], windows: list[Window],
            machine: dict[str, Any], model_flops: float) -> dict[str, Any]:
    """The result as JSON: times in seconds. Groups are of the fastest step, the one that was disturbed least.

    Raises ProfileError.
    """
    def is_ours(span: Span) -> bool:
        return span.module == module and span.name in program
    seconds = [window.length / 1e9 for window in windows]
    fastest = min(windows, key=lambda window: window.length, default=Window(0, 0))
    found = [span for span in found if 0 <= span.start - fastest.start < fastest.length]
    ours = [span for span in found if is_ours(span)]
    if not ours:
        raise ProfileError(f"the trace has no operation of {module}; on a GPU set "
                           "XLA_FLAGS=--xla_gpu_enable_command_buffer=")
    groups: dict[tuple[str, str], dict[str, Any]] = collections.defaultdict(
        lambda: {"calls": 0.0, "seconds": 0.0, "flops": 0.0, "bytes": 0.0, "roof_seconds": 0.0})
    for span in ours:
        op = program[span.name]
        contains = op.kind.split(" ")[0] in CONTAINERS
        group = groups["loops and branches" if contains else op.kind, "" if contains else op.phase]
        group["calls"] += 1
        group["seconds"] += span.own / 1e9
        if not contains:
            group["flops"] += op.flops
            group["bytes"] += op.bytes
            group["roof_seconds"] += roof(op, machine)
    total, busy = fastest.length / 1e9, covered(ours) / 1e9
    others = covered([span for span in found if not is_ours(span)]) / 1e9
    flops = sum(group["flops"] for group in groups.values())
    by_type = collections.Counter()
    for (kind, _), group in groups.items():
        by_type[kind.split(" ")[-1]] += group["flops"]
    main = by_type.most_common(1)[0][0]
    peak = machine["products"].get(main, machine["products"]["f32"])
    rows = [{"kind": kind, "phase": phase, **group, "share": group["seconds"] / total,
             "lost_seconds": group["seconds"] - group["roof_seconds"]} for (kind, phase), group in groups.items()]
    return {
        "machine": machine, "steps": len(seconds), "model_flops": model_flops, "executed_flops": flops, "peak": peak,
        "peak_of": main, "mfu": model_flops / total / peak, "hfu": flops / total / peak, "busy_share": busy / total,
        "step_seconds": {"fastest": total, "median": statistics.median(seconds), "quartiles":
                         statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3},
        "idle_share": max(0.0, 1 - (busy + others) / total), "other_programs_share": others / total,
        "accounted_share": sum(row["seconds"] for row in rows) / total, "versions": distributed.versions(),
        "groups": sorted(rows, key=lambda row: -row["seconds"])}


def roof(op: Operation, machine: dict[str, Any]) -> float:
    """Seconds that one call takes at least."""
    bandwidth = machine["bandwidth"]
    moving = op.bytes / (bandwidth.get("cache", bandwidth["memory"]) if op.bytes < CACHED else bandwidth["memory"])
    return max(op.flops / machine["products"].get(op.dtype, machine["products"]["f32"]), moving)


def show(result: dict[str, Any]) -> str:
    """Text for a terminal; the last line says what limits the step."""
    machine, step = result["machine"], result["step_seconds"]
    rows = []
    for row in result["groups"][:SHOWN]:
        s = row["seconds"]
        rows.append([row["kind"], row["phase"], f"{row['calls']:.0f}", f"{1e3 * s:.2f}", f"{row['share']:.1%}",
                     human(row["flops"] / s, "FLOP/s") if row["flops"] else "", human(row["bytes"] / s, "B/s"),
                     f"{row['flops'] / row['bytes']:.0f}" if row["flops"] and row["bytes"] else "",
                     f"{1e3 * row['roof_seconds']:.2f}", f"{1e3 * row['lost_seconds']:.2f}"])
    if rest := result["groups"][SHOWN:]:
        total = {name: sum(row[name] for row in rest) for name in ("calls", "seconds", "share", "roof_seconds",
                                                                   "lost_seconds")}
        rows.append([f"{len(rest)} other groups", "", f"{total['calls']:.0f}", f"{1e3 * total['seconds']:.2f}",
                     f"{total['share']:.1%}", "", "", "", f"{1e3 * total['roof_seconds']:.2f}",
                     f"{1e3 * total['lost_seconds']:.2f}"])
    accounted = result["accounted_share"]
    return "\n".join([
        peaks.show(machine),
        f"step {1e3 * step['median']:.1f} ms (quartiles {1e3 * step['quartiles'][0]:.1f}, "
        f"{1e3 * step['quartiles'][2]:.1f}; {result['steps']} steps), here the fastest, "
        f"{1e3 * step['fastest']:.1f} ms; {human(result['model_flops'], 'FLOP')} of the "
        f"model, {human(result['executed_flops'], 'FLOP')} executed; MFU {result['mfu']:.1%}, HFU {result['hfu']:.1%} "
        f"of {human(result['peak'], 'FLOP/s')} ({result['peak_of']})",
        table(["operations", "phase", "calls", "ms", "share", "products", "moved", "FLOP/B", "roof ms", "lost ms"],
              rows, left=(0, 1)),
        f"operations account for {accounted:.1%} of the step"
        + ("" if accounted >= 0.95 else f", and {1 - accounted:.1%} is between them: the host, and starting programs")
        + f"; idle {result['idle_share']:.1%}",
        limit(result)])


def limit(result: dict[str, Any]) -> str:
    """One sentence: what limits the step, and where most could be gained."""
    total = result["step_seconds"]["fastest"]
    products = [row for row in result["groups"] if row["flops"]]
    others = [row for row in result["groups"] if not row["flops"]]

    def sums(rows, name):
        return sum(row[name] for row in rows)
    parts = {"matrix products": sums(products, "seconds"), "moving memory (elementwise, norms, copies)":
             sums(others, "seconds"), "waiting for the host": result["idle_share"] * total}
    first = max(parts, key=parts.__getitem__)
    at = sums(products, "roof_seconds") / max(1e-12, sums(products, "seconds"))
    worst = max(result["groups"], key=lambda row: row["lost_seconds"])
    return (f"limited by {first}: {parts[first] / total:.0%} of the step; products run at {at:.0%} of their roof; most "
            f"is lost in {worst['kind']}{', ' + worst['phase'] if worst['phase'] else ''}: "
            f"{1e3 * worst['lost_seconds']:.1f} of {1e3 * total:.1f} ms")


def keep(result: dict[str, Any], folder: Path) -> None:
    """profile.json into the folder of the trace, and profile.png where there is matplotlib."""
    files.write_json(folder / "profile.json", result)
    try:
        pictures.save(figure(result), folder / "profile.png")
    except pictures.PictureError:
        pass


def figure(result: dict[str, Any]):
    """Groups as bars, their roofs in them. A matplotlib Figure."""
    plt, rows = pictures.pyplot(), result["groups"][:SHOWN][::-1]
    with plt.rc_context(pictures.STYLE):
        made, ax = plt.subplots(figsize=(9, 0.36 * len(rows) + 1.4), dpi=150, layout="constrained")
        phases = {"forward": 0, "rematerialised": 1, "backward": 2, "": 5}
        for i, row in enumerate(rows):
            colour = pictures.COLOURS[phases[row["phase"]]]
            ax.barh(i, 1e3 * row["seconds"], color=colour, alpha=0.35)
            ax.barh(i, 1e3 * min(row["roof_seconds"], row["seconds"]), color=colour, height=0.45)
        ax.set_yticks(range(len(rows)), [row["kind"] for row in rows], fontsize=8)
        ax.set_xlabel("ms of a step; dark: what the machine would need")
        handles = [plt.Rectangle((0, 0), 1, 1, color=pictures.COLOURS[i]) for i in range(3)]
        ax.legend(handles, ["forward", "rematerialised", "backward"], frameon=False, loc="lower right")
        ax.set_title(limit(result), fontsize=8, loc="left")
        return made
