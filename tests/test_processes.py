"""Runs of several processes: they go on with another number of them, and share puzzles out among themselves."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tests import tiny
from trm_jax import config
from trm_jax.data import dataset
from trm_jax.inference import command
from trm_jax.jobs import evaluate, train

ROOT = pathlib.Path(__file__).resolve().parents[1]


def together(count: int, code: str, *arguments, devices: int = 1) -> list[str]:
    """Runs the code in so many processes of a few devices each; what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_NUM_PROCESSES": str(count),
                                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"}
    processes = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
                                  env=environment | {"JAX_PROCESS_ID": str(i)}, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True) for i in range(count)]
    try:
        said = []
        for process in processes:
            out, err = process.communicate(timeout=240)
            assert process.returncode == 0, err
            said.append("".join(line for line in out.splitlines(True) if not line.startswith("[Gloo]")))
        return said
    finally:
        for process in processes:
            process.kill()
            process.wait()


TRAIN = """
    import json, sys
    from tests import tiny
    from trm_jax import config
    from trm_jax.jobs import train
    from trm_jax.runtime import distributed
    assert distributed.initialize()
    workdir, experiment, stop = sys.argv[1:]
    with tiny.interrupted_after(int(stop)):
        train.train(config.parse(json.loads(experiment)), workdir)
    distributed.barrier("end")
"""


def losses(workdir) -> list[float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_a_run_goes_on_with_2_and_4_processes_and_again_with_1(tmp_path):
    """Equal are the puzzles of every step and, up to the order in which numbers are added up, the losses. Such
    differences grow in training: at first the losses agree to 1e-6, later only about."""
    e = tiny.experiment(tiny.make_dataset(tmp_path / "data"), total_steps=12, checkpoint={"interval_steps": 3},
                        data={"augment": True}, deepen={"carry_share": 0.5, "carry_keep_prob": 0.8})
    train.train(e, tmp_path / "whole")  # one process of eight devices
    with tiny.interrupted_after(4):
        train.train(e, tmp_path / "elastic")
    text = json.dumps(config.to_json(e))
    together(2, TRAIN, tmp_path / "elastic", text, 7)
    together(4, TRAIN, tmp_path / "elastic", text, 10)
    train.train(e, tmp_path / "elastic")
    whole, elastic = losses(tmp_path / "whole"), losses(tmp_path / "elastic")
    assert len(whole) == len(elastic) == 12
    np.testing.assert_allclose(elastic[:6], whole[:6], rtol=1e-6)
    np.testing.assert_allclose(elastic, whole, rtol=1e-4)
    assert whole[-1] != whole[0]


EVALUATE = """
    import json, sys
    from trm_jax import config
    from trm_jax.jobs import evaluate
    from trm_jax.runtime import distributed
    assert distributed.initialize()
    result = evaluate.evaluate(config.parse(json.loads(sys.argv[2])), sys.argv[1], note=lambda line: None)
    print(json.dumps(result))
"""


def figures(result) -> dict:
    """What does not depend on who computed it and when."""
    solved = {k: v for k, v in result.get("solved", {}).items() if k not in ("seconds", "core_calls_per_example",
                                                                            "flops_per_example")}
    return {"figures": result["figures"], "solved": solved, "examples": result["examples"]}


def assert_close(a, b):
    """Numbers to 1e-5, all else alike."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_close(a[name], b[name])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_close(x, y)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-5)
    else:
        assert a == b


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(experiment, workdir) of a short run, to be evaluated in an uneven number of batches, with three tries."""
    folder = tmp_path_factory.mktemp("trained")
    e = tiny.experiment(tiny.make_dataset(folder / "data"), eval={"restarts": 3, "batch_size": 8, "H_test": [1, 6]},
                        total_steps=40, lr=3e-2, checkpoint={"interval_steps": 1000})
    train.train(e, folder / "run")
    return e, folder / "run"


def test_two_processes_evaluate_as_one_does(trained):
    e, workdir = trained
    whole = json.loads(json.dumps(evaluate.evaluate(e, workdir, note=lambda line: None)))
    shares = [json.loads(out) for out in together(2, EVALUATE, workdir, json.dumps(config.to_json(e)), devices=2)]
    assert whole["solved"]["mean_cycles"] > 1
    for share in shares:  # all of them know the result
        assert_close(figures(share), figures(whole))


def test_two_processes_vote_as_one_does(tmp_path):
    e = tiny.experiment(tiny.arc_dataset(tmp_path / "arc"), **{
        "data": {"puzzle": "arc"}, "arch": {"mixer_hidden_size": 4, "mlp_hidden_size": 8}, "global_batch_size": 8,
        "total_steps": 1, "eval": {"H_test": [2], "batch_size": 16}})
    whole = json.loads(json.dumps(train.train(e, tmp_path / "run")))
    for share in together(2, EVALUATE, tmp_path / "run", json.dumps(config.to_json(e)), devices=2):
        assert_close(figures(json.loads(share)), figures(whole))
    submissions = [file.read_text() for file in (tmp_path / "run" / "eval").rglob("submission.json")]
    assert len(submissions) == 2 and submissions[0] == submissions[1]


SOLVE = """
    import sys
    from trm_jax.inference import command
    sys.exit(min(0, command.main(sys.argv[1:])))
"""


def test_two_processes_solve_a_file_and_one_prints(trained, tmp_path, capsys):
    test = dataset.load(trained[0].data.path, "test")
    lines = ["".join(" .1234"[token] for token in row) for row in test.inputs]
    lines[3] = "not a puzzle"
    (tmp_path / "puzzles.txt").write_text("\n".join(lines))
    arguments = [f"--workdir={trained[1]}", f"--file={tmp_path / 'puzzles.txt'}", "--format=json", "--tries=3",
                 "--max_cycles=6", "--compilation_cache="]
    command.main(arguments)
    alone = capsys.readouterr().out
    assert len(alone.splitlines()) == 13 and '"refused"' in alone
    first, second = together(2, SOLVE, *arguments, devices=2)
    assert first == alone and second == ""
