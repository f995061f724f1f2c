"""Records survive kills and resumes; progress reads the same on a terminal and in a log file."""

import io
import json
import os
import pty
import termios

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from trm_jax.runtime.files import write_json
from trm_jax.runtime.metrics import MetricWriter
from trm_jax.runtime.progress import Progress, format_progress
from trm_jax.runtime.text import clock, human, markdown, table


def records(folder) -> list[dict]:
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def events(folder) -> list[Event]:
    """TensorBoard's files: length (8 bytes), checksum (4), event, checksum (4), in the order of writing."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda p: (os.stat(p).st_mtime_ns, p.name)):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            found.append(Event.FromString(content[12:12 + size]))
            content = content[16 + size:]
    return found


def test_one_line_per_record_of_any_kind_of_scalar(tmp_path):
    with MetricWriter(tmp_path / "run", resume_step=0) as writer:
        writer.write(1, {"loss": jnp.float32(0.5), "H": np.int32(4), "half": jnp.bfloat16(0.25), "text": "warm-up"})
        writer.write(np.int64(2), {"loss": 0.25, "done": True})
        assert records(tmp_path / "run") == [{"step": 1, "loss": 0.5, "H": 4, "half": 0.25, "text": "warm-up"},
                                             {"step": 2, "loss": 0.25, "done": 1}], "complete before it is closed"
    scalars = {(e.step, v.tag): v.simple_value for e in events(tmp_path / "run") for v in e.summary.value}
    assert scalars == {(1, "loss"): 0.5, (1, "H"): 4, (1, "half"): 0.25, (2, "loss"): 0.25, (2, "done"): 1}


def test_what_is_not_finite_stays_json(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"a": float("nan"), "b": jnp.float32(jnp.inf), "c": -np.inf, "d": 1.0})
    assert records(tmp_path) == [{"step": 1, "a": "nan", "b": "inf", "c": "-inf", "d": 1.0}]
    assert [v.tag for e in events(tmp_path) for v in e.summary.value] == ["d"]


def test_not_a_scalar_is_refused_by_name(tmp_path):
    with MetricWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match=r"'loss' must be a scalar number, is float32\[2\]"):
            writer.write(1, {"loss": np.zeros(2, np.float32)})
    assert records(tmp_path) == []


def test_resume_drops_what_will_be_done_again(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in (10, 20, 30):
            writer.write(step, {"loss": 1.0 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')
    with MetricWriter(tmp_path, resume_step=20) as writer:
        assert [r["step"] for r in records(tmp_path)] == [10, 20]
        writer.write(30, {"loss": 7.0})
    assert [(r["step"], r["loss"]) for r in records(tmp_path)] == [(10, 0.1), (20, 0.05), (30, 7.0)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]
    starts = [e.step for e in events(tmp_path) if e.HasField("session_log")]
    assert starts == [21], "TensorBoard hides what the first session wrote from there on"


def test_tensorboard_is_complete_when_it_is_flushed(tmp_path):
    writer = MetricWriter(tmp_path)
    for step in range(1, 101):
        writer.write(step, {"loss": 1.0})
    writer.flush()
    assert [e.step for e in events(tmp_path) if e.summary.value] == list(range(1, 101))  # as a kill would leave it
    writer.close()


def test_an_evaluation_that_will_be_done_again_is_dropped(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(20, {"loss": 1.0})
        writer.write(20, {"eval/exact_accuracy/H1_L1": 1.0})
    with MetricWriter(tmp_path, resume_step=20, evaluated=True):
        assert len(records(tmp_path)) == 2
    with MetricWriter(tmp_path, resume_step=20, evaluated=False):
        assert records(tmp_path) == [{"step": 20, "loss": 1.0}]


@pytest.mark.parametrize("line", ["[1]", '{"step": "x"}', '{"step": null}', '{"loss": 1}', "[" * 5000, '"x"'])
def test_lines_that_are_no_records_block_nothing(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n' + line + "\n")
    with MetricWriter(tmp_path, resume_step=5):
        assert records(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(5, {"loss": 1.0})
    with MetricWriter(tmp_path, resume_step=0):
        assert records(tmp_path) == []


def test_write_json(tmp_path):
    write_json(tmp_path / "eval" / "a.json", {"figure": np.float32(0.5), "H": (1, 2), "x": float("nan"),
                                              "nested": {"steps": np.arange(2)}})
    assert json.loads((tmp_path / "eval" / "a.json").read_text()) == {
        "figure": 0.5, "H": [1, 2], "x": "nan", "nested": {"steps": [0, 1]}}
    with pytest.raises(TypeError):
        write_json(tmp_path / "eval" / "a.json", {"x": object()})
    assert [p.name for p in (tmp_path / "eval").iterdir()] == ["a.json"]
    assert "figure" in (tmp_path / "eval" / "a.json").read_text(), "a failed write leaves the old file"


def test_format_progress():
    values = {"loss": 0.12345, "exact_accuracy": 0.4521, "lr": 1e-3, "H": 4, "L": 3, "other": 1}
    line = format_progress(1200, 5000, values, examples_per_second=1234.4, flops_per_second=1.23e13,
                           peak=3e13, eta_seconds=3723)
    assert line == ("step 1200/5000  ETA 1:02:03  loss 0.1235  exact 45.2%  lr 1.0e-03  H 4  L 3  1,234 ex/s"
                    "  12.3 TFLOP/s  MFU 41%")
    assert format_progress(0, 10, {}) == "step 0/10"
    assert format_progress(1, 10, {"loss": float("nan")}, examples_per_second=0.26) == "step 1/10  loss nan  0.3 ex/s"


@pytest.mark.parametrize("value, text", [
    (0, "0 B"), (17, "17 B"), (0.25, "0.25 B"), (999, "999 B"), (1000, "1.00 kB"), (2.5e6, "2.50 MB"),
    (9.996e8, "1.00 GB"), (9.994e8, "999 MB"), (4.56e10, "45.6 GB"), (9.89e14, "989 TB"), (2e18, "2.00 EB"),
    (5e21, "5000 EB")])
def test_human(value, text):
    assert human(value, "B") == text


def test_tables():
    rows = [["a", "1.0", "left"], ["longer", "22.0", "x"]]
    assert table(["", "head", "note"], rows, left=(0, -1), indent=" ").splitlines() == [
        "         head  note", " a        1.0  left", " longer  22.0  x"]
    assert markdown(["", "head", "note"], rows).splitlines() == [
        "|        | head | note |", "|--------|------|------|", "| a      | 1.0  | left |", "| longer | 22.0 | x    |"]


@pytest.mark.parametrize("seconds, text", [(0, "0:00:00"), (59.6, "0:01:00"), (3723, "1:02:03"),
                                           (360000, "100:00:00"), (-1, "0:00:00")])
def test_clock(seconds, text):
    assert clock(seconds) == text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_without_a_width_gets_plain_lines(monkeypatch):
    """A container's or a recorder's: a bar would be invisible there."""
    stream = Terminal()
    stream.fileno = lambda: 2
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((0, 0)))
    with Progress(10, stream=stream) as progress:
        progress.update(1, {"loss": 1.0})
    assert stream.getvalue() == "step 1/10  loss 1.0000\n"


def drive(stream):
    with Progress(100, 20, stream=stream) as progress:
        progress.note("compiling for L = 3")
        progress.update(40, {"loss": np.float32(2.0), "H": jnp.int32(2)}, seconds=10.0, examples=1280, flops=2e12)
        progress.update(60, {"loss": 1.0}, seconds=30.0, examples=1280)
        progress.note("saved\nand evaluated")
    return stream.getvalue()


def test_progress_in_a_file_is_plain_lines():
    text = drive(io.StringIO())
    assert "\r" not in text and "\x1b" not in text
    assert text.splitlines() == [
        "compiling for L = 3",
        "step 40/100  ETA 0:00:30  loss 2.0000  H 2  128 ex/s  200 GFLOP/s",
        "step 60/100  ETA 0:00:40  loss 1.0000  43 ex/s",  # pace: the mean of 0.5 and 1.5 seconds a step
        "saved", "and evaluated"]


def test_progress_on_a_terminal_is_a_bar_and_notes_are_lines():
    text = drive(Terminal())
    assert "\r" in text
    for note in ("compiling for L = 3", "saved\nand evaluated"):
        start = text.index(note)
        assert text[start - 1] == "\r", "a note starts on a cleared line"
        assert text[start + len(note)] == "\n"
    last = text.split("\r")[-1]
    assert " 60%|" in last and "step 60/100  ETA 0:00:40  loss 1.0000  43 ex/s" in last


def test_bar_fits_a_narrow_terminal():
    """A real (pseudo-)terminal: a line longer than it is wide would leave a copy of itself at every update."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 50))
    with os.fdopen(theirs, "w") as stream, Progress(100, stream=stream) as progress:
        progress.update(5, {"loss": 1.0, "exact_accuracy": 0.5, "lr": 1e-3, "H": 4}, seconds=1.0, examples=100)
        progress.close()
        stream.flush()
        text = os.read(ours, 1 << 16).decode()
    os.close(ours)
    drawn = text.rstrip("\r\n").split("\r")[-1]
    assert "step 5/100  ETA 0:00:19" in drawn
    assert all(len(line) <= 50 for line in text.replace("\n", "\r").split("\r"))


def test_progress_without_time_shows_no_rates():
    stream = io.StringIO()
    with Progress(10, stream=stream) as progress:
        progress.update(1, {"loss": 1.0})
    assert stream.getvalue() == "step 1/10  loss 1.0000\n"
