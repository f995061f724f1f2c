"""Writers for the services in which people keep their experiments: Weights & Biases, MLflow and Comet.

A run has those that its config names (`--config.log.writers=tensorboard,wandb`). Each is a thin layer over its own
package, which is imported only then, and is told where to report, and whether to stay offline, by that package's own
environment variables:

    wandb     WANDB_PROJECT, WANDB_MODE=offline
    mlflow    MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME
    comet     COMET_PROJECT_NAME, COMET_START_ONLINE=false with COMET_OFFLINE_DIRECTORY

A run that is continued goes on under the name that the service knows it by (`workdir/trackers.json`). What is done
again after a kill is there twice: these services do not take a record back.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trm_jax.runtime import files
from trm_jax.runtime.errors import UserError
from trm_jax.runtime.metrics import TensorBoard, Writer, finite

RECORD = "trackers.json"  # in the run's folder: by which name each service knows the run
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "comet": "comet_ml"}


class TrackerError(UserError):
    """A service that cannot be reported to; the message says why."""


class Wandb:
    def __init__(self, library: Any, workdir: Path, known_as: str | None, config: Mapping[str, Any]):
        self.known_as = known_as or uuid.uuid4().hex
        self._run = library.init(dir=str(workdir), name=workdir.name, id=self.known_as, resume="allow",
                                 config=dict(config))
        self._run.define_metric("*", step_metric="step")  # W&B's own count of steps would drop what is done again

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({"step": step, **finite(values)})

    def flush(self) -> None:
        """W&B writes by itself."""

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    def __init__(self, library: Any, workdir: Path, known_as: str | None, config: Mapping[str, Any]):
        self._mlflow = library
        self.known_as = library.start_run(run_id=known_as, run_name=workdir.name).info.run_id
        if known_as is None:  # they cannot be changed later
            library.log_params(_flat(config))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self._mlflow.log_metrics(finite(values), step=step, run_id=self.known_as)

    def flush(self) -> None:
        """Everything is there when `write` returns."""

    def close(self) -> None:
        self._mlflow.end_run()


class Comet:
    def __init__(self, library: Any, workdir: Path, known_as: str | None, config: Mapping[str, Any]):
        self.known_as = known_as or uuid.uuid4().hex
        how = library.ExperimentConfig(
            name=workdir.name, log_code=False, log_git_metadata=False, log_git_patch=False, parse_args=False,
            auto_output_logging=False, auto_metric_logging=False, auto_param_logging=False, auto_log_co2=False,
            display_summary_level=0)
        self._experiment = library.start(experiment_key=self.known_as, mode="get_or_create", experiment_config=how)
        self._experiment.log_parameters(_flat(config))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self._experiment.log_metrics(finite(values), step=step)

    def flush(self) -> None:
        """Comet sends by itself."""

    def close(self) -> None:
        self._experiment.end()


_KINDS: dict[str, type[Wandb | Mlflow | Comet]] = {"wandb": Wandb, "mlflow": Mlflow, "comet": Comet}


def require(names: Sequence[str]) -> None:
    """Raises TrackerError for a writer whose package is not installed."""
    if missing := [PACKAGES[name] for name in names
                   if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None]:
        raise TrackerError(f"log.writers = {','.join(names)} needs what is not installed: "
                           f"pip install {' '.join(missing)}")


def writers(names: Sequence[str], config: Mapping[str, Any]) -> dict[str, Callable[[Path, int], Writer]]:
    """What `MetricWriter` opens, by name: tensorboard, wandb, mlflow, comet.

    Args:
      config: of the run, for the service to show.
    """
    return {name: TensorBoard if name == "tensorboard" else functools.partial(_open, name, config) for name in names}


def _open(name: str, config: Mapping[str, Any], workdir: Path, resume_step: int) -> Writer:
    record = workdir / RECORD
    known = files.read_json(record) if record.exists() else {}
    try:
        writer = _KINDS[name](importlib.import_module(PACKAGES[name]), workdir, known.get(name), config)
    except Exception as error:  # whatever their library raises: no login, no server
        why = " ".join(str(error).split())
        raise TrackerError(f"log.writers: {name} cannot be begun ({type(error).__name__}: {why}). Put that right, or "
                           "leave it out, as --config.log.writers=tensorboard does") from error
    files.write_json(record, known | {name: writer.known_as})
    return writer


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"arch": {"L_cycles": 2}} -> {"arch.L_cycles": 2}."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
