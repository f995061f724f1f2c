"""Other people's trackers get a run's records: tested against their real packages, offline, where these are installed.

Each runs in a process of its own: they patch what they find, and warn of what is theirs.
"""

import json
import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

from trm_jax import config
from trm_jax.runtime import metrics, trackers

RUN = """
import sys
from trm_jax.runtime import metrics, trackers
name, step = sys.argv[1], int(sys.argv[2])
others = trackers.writers([name], {"arch": {"L_cycles": 2}, "lr": 0.5})
with metrics.MetricWriter("quick", step, others=others) as writer:
    writer.write(step + 1, {"loss": 1.0 / (step + 2), "note": "text", "bad": float("nan")})
    writer.write(step + 1, {"eval/exact_accuracy": 0.25})
    writer.flush()
"""


def run(name: str, folder: pathlib.Path, **environment: str) -> str:
    """Two sessions of a run, of steps 1 and 2; the name that the service knows it by."""
    root = pathlib.Path(trackers.__file__).parents[2]
    for step in (0, 1):
        subprocess.run([sys.executable, "-c", RUN, name, str(step)], cwd=folder, check=True, timeout=300,
                       env={**os.environ, "PYTHONPATH": str(root), **environment})
    assert len((folder / "quick" / "metrics.jsonl").read_text().splitlines()) == 4
    return json.loads((folder / "quick" / trackers.RECORD).read_text())[name]


def test_wandb(tmp_path):
    pytest.importorskip("wandb")
    name = run("wandb", tmp_path, WANDB_MODE="offline")
    content = b"".join(path.read_bytes() for path in tmp_path.rglob(f"run-{name}.wandb"))
    assert content.count(b"eval/exact_accuracy") >= 2, "both sessions are of one run"
    assert b"L_cycles" in content and b"loss" in content


def test_mlflow(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    where = {"MLFLOW_TRACKING_URI": (tmp_path / "runs").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
    name = run("mlflow", tmp_path, **where)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = mlflow.MlflowClient(where["MLFLOW_TRACKING_URI"])
        history = [(m.step, m.value) for m in client.get_metric_history(name, "loss")]
        found = client.get_run(name)
    assert history == [(1, 0.5), (2, 1 / 3)]
    assert found.data.params == {"arch.L_cycles": "2", "lr": "0.5"}
    assert (found.info.status, found.info.run_name) == ("FINISHED", "quick")
    assert "bad" not in found.data.metrics


def test_comet(tmp_path):
    pytest.importorskip("comet_ml")
    name = run("comet", tmp_path, COMET_START_ONLINE="false", COMET_OFFLINE_DIRECTORY=str(tmp_path))
    archives = list(tmp_path.glob("*.zip"))
    assert len(archives) == 2 and all(name in archive.name for archive in archives)
    text = "".join(zipfile.ZipFile(archive).read("messages.json").decode() for archive in archives)
    assert "eval/exact_accuracy" in text and "arch.L_cycles" in text


def test_a_package_that_is_missing_is_named_before_anything_is_made(monkeypatch):
    monkeypatch.setitem(trackers.PACKAGES, "comet", "no_such_package")
    with pytest.raises(trackers.TrackerError, match="comet needs what is not installed: pip install no_such_package$"):
        trackers.require(["tensorboard", "comet"])
    trackers.require(["tensorboard"])


def test_a_service_that_cannot_be_begun_is_the_users_fault(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.PACKAGES, "wandb", "json")  # a module without init
    with pytest.raises(trackers.TrackerError, match="wandb cannot be begun .*--config.log.writers=tensorboard"):
        metrics.MetricWriter(tmp_path, others=trackers.writers(["wandb"], {}))
    assert not (tmp_path / trackers.RECORD).exists()


class Failing:
    """A service whose network is gone from the second record on."""

    def __init__(self, *_):
        self.records = []

    def write(self, step, values):
        if self.records:
            raise ConnectionError("no route")
        self.records.append((step, dict(values)))

    def flush(self):
        pass

    def close(self):
        self.records.append("closed")


def test_a_service_that_fails_does_not_end_the_run(tmp_path, capsys):
    service = Failing()
    with metrics.MetricWriter(tmp_path, others={"mine": lambda *_: service}) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": 1.0})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert service.records == [(1, {"loss": 1.0})]
    assert capsys.readouterr().err == ("mine takes no more records (ConnectionError: no route); "
                                       "the run goes on without it\n")


def test_writers_are_a_list_in_the_config():
    assert config.read_fields(["log.writers=tensorboard,wandb"]) == {"log.writers": ("tensorboard", "wandb")}
    with pytest.raises(config.ConfigError, match="must be one of 'tensorboard', 'wandb', 'mlflow', 'comet'"):
        config.with_fields(config.Experiment(), {"log.writers": ["neptune"]})
