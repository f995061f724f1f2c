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
import contextlib
import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from trm_jax.reports import hlo, pictures
from trm_jax.runtime import distributed, files, peaks
from trm_jax.runtime.errors import UserError
from trm_jax.runtime.text import human, table

CACHED = 8 * 2**20  # bytes of one operation that a core's caches may hold
CONTAINERS = ("while", "conditional", "call")  # their own time is that of starting what is in them
STEP = "profiled step"
SHOWN = 16  # groups in the table; the rest is in one line
HOST = "host: "  # annotations that begin so say what the host does


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


def operations(module: hlo.Module) -> dict[str, Operation]:
    """Every instruction outside of fusions, by name."""
    return {i.name: operation(i) for i in module.run}


def operation(instruction: hlo.Instruction) -> Operation:
    fused = instruction.opcode == "fusion"
    body = instruction.body if fused else [instruction]
    products = [(i, i.product) for i in body if i.product]
    name = instruction.op_name
    phase = ("rematerialised" if "rematted_computation" in name else
             "backward" if "transpose(" in name else "forward")
    moved = instruction.bytes + sum(_read(index, operand, body if fused else ())
                                    for index, operand in enumerate(instruction.operands))
    if updates := [i for i in body if i.opcode == "dynamic-update-slice"]:  # in place: only the slice moves, twice
        moved = 2 * sum(i.operands[1].bytes for i in updates)
    if products:
        (first, (m, k, n)), flops = products[0], sum(2 * math.prod(sizes) for _, sizes in products)
        dtype = first.operands[0].arrays[0].dtype
        return Operation(f"product {m}x{k}x{n} {dtype}", phase, flops, moved, dtype)
    kind = re.sub(r"[.\d]+$", "", instruction.name) if fused else instruction.opcode
    kind = re.sub(r"(wrapped_|bitcast_|bitcast-|_?fusion$|ynn_)", "", kind) or "reduction"
    dims = max((array.dims for array in instruction.arrays), key=math.prod, default=())
    return Operation(f"{kind.strip('_')} [{','.join(map(str, dims))}]", phase, 0.0, moved, "")


def _read(index: int, operand: hlo.Instruction, body: Sequence[hlo.Instruction]) -> float:
    """Bytes of an operand that are read: of one that is only sliced inside of a fusion, the slices."""
    for inner in body:
        if inner.opcode == "parameter" and inner.parameter_number == index:
            users = [user for user in body if inner in user.operands]
            if users and all(user.opcode in ("dynamic-slice", "gather", "slice") for user in users):
                return min(operand.bytes, sum(user.bytes for user in users))
    return operand.bytes


def running(spans: Iterable[Span]) -> dict[tuple[str, int], dict[str, Operation]]:
    """The programs of these operations, among those that this process has compiled: by name, and best by contents."""
    seen: dict[tuple[str, int], set[str]] = collections.defaultdict(set)
    for span in spans:
        seen[span.module, span.program].add(span.name)
    live = collections.defaultdict(list)
    for executable in jax.local_devices()[0].client.live_executables():
        for module in executable.hlo_modules():
            if any(module.name == name for name, _ in seen):
                live[module.name].append(operations(hlo.read(module.as_serialized_hlo_module_proto())))
    return {of: max(live[of[0]], key=lambda program: len(names & program.keys()), default={})
            for of, names in seen.items()}


# The trace.


class Span(NamedTuple):
    name: str
    module: str
    start: float  # nanoseconds
    own: float  # without what ran inside of it
    whole: float
    program: int = 0  # which one of those with this name
    run: int = 0  # which of its executions; 0: not told


class Window(NamedTuple):
    """A step in a trace, or what the host did meanwhile; nanoseconds."""

    start: float
    length: float
    name: str = STEP


class Timeline(NamedTuple):
    spans: list[Span]  # of the first device
    windows: list[Window]
    host: list[Window]  # what HOST annotations say


def read_trace(folder: Path) -> Timeline:
    """The newest one in a folder."""
    files = sorted(folder.glob("**/*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise ProfileError(f"there is no trace in {folder}")
    trace = Timeline([], [], [])
    for plane in jax.profiler.ProfileData.from_file(str(files[-1])).planes:
        if plane.name.startswith("/device:") and not plane.name.endswith(":0"):
            continue
        for line in plane.lines:
            events = []
            for event in line.events:
                if event.name == STEP:
                    trace.windows.append(Window(event.start_ns, event.duration_ns))
                elif event.name.startswith(HOST):
                    trace.host.append(Window(event.start_ns, event.duration_ns, event.name.removeprefix(HOST)))
                elif event.duration_ns and not event.name.startswith("end: "):
                    stats = dict(event.stats)
                    if "hlo_op" in stats and not stats.get("device_ordinal"):
                        events.append((event.start_ns, -event.duration_ns, stats["hlo_op"], stats.get("hlo_module", ""),
                                       stats.get("program_id", 0), stats.get("run_id", 0)))
            trace.spans.extend(_nested(sorted(events)))
    return trace


def _nested(events: Iterable[tuple[float, float, str, str, int, int]]) -> list[Span]:
    """Own times of the events of one thread, outer ones first."""
    done: list[Span] = []
    open_: list[list] = []  # [end, own, event]

    def close(until: float) -> None:
        while open_ and open_[-1][0] <= until:
            _, own, (start, minus, name, module, program, run) = open_.pop()
            done.append(Span(name, module, start, max(0.0, own), -minus, program, run))
    for event in events:
        close(event[0])
        if open_:
            open_[-1][1] += event[1]
        open_.append([event[0] - event[1], -event[1], event])
    close(math.inf)
    return done


def busy(spans: Iterable[Span]) -> list[tuple[float, float]]:
    """[(from, to)], ascending and apart: when a program was at work. From its first operation to its last, where the
    trace tells executions apart; else while one of its operations was."""
    runs: dict[Any, list[float]] = {}
    for i, span in enumerate(spans):
        at = runs.setdefault((span.program, span.run) if span.run else i, [math.inf, 0.0])
        at[:] = min(at[0], span.start), max(at[1], span.start + span.whole)
    merged: list[tuple[float, float]] = []
    for start, end in sorted(map(tuple, runs.values())):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def overlap(a: Iterable[tuple[float, float]], b: Iterable[tuple[float, float]]) -> float:
    """Length of what two ascending lists of intervals have in common."""
    total, rest = 0.0, list(b)[::-1]
    for start, end in a:
        while rest and rest[-1][1] <= start:
            rest.pop()
        for other in reversed(rest):
            if other[0] >= end:
                break
            total += min(end, other[1]) - max(start, other[0])
    return total


# The report.


@contextlib.contextmanager
def recording(folder: Path) -> Iterator[None]:
    """A trace of what is done in this block."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # its events are many, and slow the host down
    with jax.profiler.trace(str(folder), profiler_options=options):
        yield


def profile(run: Callable[[], Any], folder: Path, model_flops: float, steps: int = 5, warm: int = 2) -> dict[str, Any]:
    """Runs `run`, which waits for what it starts, some times under the profiler, and measures the machine.

    Args:
      model_flops: of one run on one device, without what is computed twice.
      warm: runs before.
    """
    machine = peaks.peaks()
    for _ in range(warm):
        run()
    with recording(folder):
        for i in range(steps):
            with jax.profiler.StepTraceAnnotation(STEP, step_num=i):
                run()
    trace = read_trace(folder)
    return account(running(trace.spans), trace, machine, model_flops)


def account(programs: dict[tuple[str, int], dict[str, Operation]], trace: Timeline, machine: dict[str, Any],
            model_flops: float) -> dict[str, Any]:
    """The result as JSON: times in seconds. Groups are of the fastest step, the one that was disturbed least.

    Args:
      programs: by name and number.
    Raises ProfileError.
    """
    seconds = [window.length / 1e9 for window in trace.windows]
    fastest = min(trace.windows, key=lambda window: window.length, default=Window(0, 0))
    whole = [(fastest.start, fastest.start + fastest.length)]
    found = [span for span in trace.spans if 0 <= span.start - fastest.start < fastest.length]
    known = [(span, op) for span in found if (op := programs.get((span.module, span.program), {}).get(span.name))]
    if not known:
        raise ProfileError("the trace has no operation of a program of this process; on a GPU set "
                           "XLA_FLAGS=--xla_gpu_enable_command_buffer=")
    groups: dict[tuple[str, str], dict[str, Any]] = collections.defaultdict(
        lambda: {"calls": 0.0, "seconds": 0.0, "flops": 0.0, "bytes": 0.0, "roof_seconds": 0.0})
    for span, op in known:
        contains = op.kind.split(" ")[0] in CONTAINERS
        group = groups["loops and branches" if contains else op.kind, "" if contains else op.phase]
        group["calls"] += 1
        group["seconds"] += span.own / 1e9
        if not contains:
            group["flops"] += op.flops
            group["bytes"] += op.bytes
            group["roof_seconds"] += roof(op, machine)
    total, worked = fastest.length / 1e9, busy(found)
    idle = _gaps(whole[0], worked)
    by_host = {name: overlap(idle, sorted((w.start, w.start + w.length) for w in trace.host if w.name == name)) / 1e9
               for name in sorted({w.name for w in trace.host})}
    by_program = {name: overlap(whole, busy(span for span in found if span.module == name)) / 1e9
                  for name in sorted({span.module for span in found})}
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
        "peak_of": main, "mfu": model_flops / total / peak, "hfu": flops / total / peak,
        "step_seconds": {"fastest": total, "median": statistics.median(seconds), "quartiles":
                         statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3},
        "idle_share": sum(end - start for start, end in idle) / 1e9 / total,
        "idle_while": {name: value / total for name, value in by_host.items()},
        "programs": {name: value / total for name, value in by_program.items()},
        "accounted_share": sum(row["seconds"] for row in rows) / total, "versions": distributed.versions(),
        "groups": sorted(rows, key=lambda row: -row["seconds"])}


def _gaps(window: tuple[float, float], intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """What is left of the window between ascending intervals."""
    found, at = [], window[0]
    for start, end in intervals:
        if start > at:
            found.append((at, min(start, window[1])))
        at = max(at, end)
    return [*found, (at, window[1])] if at < window[1] else found


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
    accounted, idle, waits = (result[name] for name in ("accounted_share", "idle_share", "idle_while"))
    return "\n".join([
        peaks.show(machine),
        (f"{step['fastest']:.2f} s in all; " if result["steps"] == 1 else
         f"step {1e3 * step['median']:.1f} ms (quartiles {1e3 * step['quartiles'][0]:.1f}, "
         f"{1e3 * step['quartiles'][2]:.1f}; {result['steps']} steps), here the fastest, "
         f"{1e3 * step['fastest']:.1f} ms; ") + f"{human(result['model_flops'], 'FLOP')} of the "
        f"model, {human(result['executed_flops'], 'FLOP')} executed; MFU {result['mfu']:.1%}, HFU {result['hfu']:.1%} "
        f"of {human(result['peak'], 'FLOP/s')} ({result['peak_of']})",
        table(["operations", "phase", "calls", "ms", "share", "products", "moved", "FLOP/B", "roof ms", "lost ms"],
              rows, left=(0, 1)),
        *([", ".join(f"{name} {share:.1%}" for name, share in result["programs"].items())]
          if len(result["programs"]) > 1 else []),
        f"operations account for {accounted:.1%} of the time; between those of a program "
        f"{max(0.0, 1 - accounted - idle):.1%}; idle {idle:.2%}" + (" (" + ", ".join(
            f"{name} {share:.2%}" for name, share in [*waits.items(), ("other", idle - sum(waits.values()))]) + ")"
            if waits else ""),
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


class StepRange:
    """A callback of training: its steps from `first` to `last` are traced, from a record to a record of the run
    (log.interval_steps), and accounted for when they are done, or when this context is left before.

    Args:
      flops: (first step, last step) -> what the model does in them, on one device.
      note: takes the report.
    """

    def __init__(self, first: int, last: int, folder: Path, flops: Callable[[int, int], float],
                 note: Callable[[str], None]):
        self._first, self._last, self._folder, self._flops, self._note = first, last, folder, flops, note
        self._begun: int | None = None
        self._stack = contextlib.ExitStack()

    def __call__(self, step: int, values: Any) -> None:
        if "loss" not in values:  # an evaluation's
            return
        if self._begun is not None and step >= self._last:
            self.finish(step)
        elif self._begun is None and self._first <= step + 1 and step < self._last:
            self._begun = self._done = step
            self._stack.enter_context(recording(self._folder))
            self._stack.enter_context(jax.profiler.TraceAnnotation(STEP))
        self._done = step

    def finish(self, step: int) -> None:
        begun, self._begun = self._begun, None
        self._stack.close()
        self._first = self._last = 0  # once
        if begun is None or step <= begun:
            return
        trace = read_trace(self._folder)
        result = account(running(trace.spans), trace, peaks.peaks(), self._flops(begun + 1, step))
        keep(result, self._folder)
        self._note(f"steps {begun + 1:,} to {step:,}, traced into {self._folder}\n{show(result)}")

    def __enter__(self) -> StepRange:
        return self

    def __exit__(self, *_: object) -> None:
        if self._begun is not None:
            self.finish(self._done)


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
