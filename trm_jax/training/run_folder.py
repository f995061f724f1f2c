"""A run's folder: which config it belongs to. `claim` refuses a continuation with another config.

    workdir/config.json       what the run is
    workdir/checkpoints/N/    state, input position and metrics after step N (runtime/checkpoints.py)
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from trm_jax import config as config_lib
from trm_jax.runtime.checkpoints import CheckpointError
from trm_jax.runtime.files import write_json

CONFIG = "config.json"


# Files that a shell or a scheduler may have put into a run's folder before the run began.
LOGS = (".log", ".out", ".err")


def claim(workdir: Path | str, config: dict[str, Any]) -> None:
    """Makes `workdir` the folder of the run that `config` (a `config.to_json` dict) describes.

    A new or empty folder gets a `config.json`; in a run's own folder the two configs must agree, except in
    `config.MAY_CHANGE`, where the new values are written down. Hidden files and logs do not make a folder
    non-empty. Every process may call it.

    Raises:
      CheckpointError: another run's folder (listing every field that differs), or no run's folder.
    """
    workdir = Path(workdir)
    config = json.loads(json.dumps(config))
    if workdir.exists() and not workdir.is_dir():
        raise CheckpointError(f"--workdir={workdir} is a file; give a folder")
    path = workdir / CONFIG
    if not path.exists():
        foreign = sorted(p.name for p in workdir.iterdir()) if workdir.exists() else []
        foreign = [name for name in foreign if not name.startswith(".") and not name.endswith(LOGS)]
        if foreign and not path.exists():  # another process of this run may have claimed it since the first look
            raise CheckpointError(
                f"{workdir} is not empty and has no {CONFIG}, so it is not the folder of a run (it has "
                f"{', '.join(foreign[:5])}{' ...' if len(foreign) > 5 else ''}). Give a new or empty --workdir")
    if not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, config)
        return
    old = read_config(workdir)
    require_same(workdir, old, config, "Give another --workdir to start a new run, or the run's own values to "
                                       "continue this one")
    if old != config:
        write_json(path, config)


def require_same(workdir: Path | str, old: dict[str, Any], new: dict[str, Any], then: str,
                 but: tuple[str, ...] = ()) -> None:
    """Raises CheckpointError, listing every field in which a run's config differs, outside of `config.MAY_CHANGE`.

    Args:
      then: what would do.
      but: more fields that may differ.
    """
    found = {name: pair for name, pair in config_lib.differences(old, new).items() if name not in but}
    if found:
        lines = [f"{name}: the run has {was!r}, now {now!r}" for name, (was, now) in found.items()]
        raise CheckpointError(f"{workdir} belongs to a run with another config:\n  " + "\n  ".join(lines) + "\n" + then)


def read_config(workdir: Path | str) -> dict[str, Any]:
    """The `config.json` of the run in `workdir`, as `config.parse` takes it.

    Raises:
      CheckpointError: there is no run in the folder, or its config.json is not one of this program's.
    """
    path = Path(workdir) / CONFIG
    if not path.is_file():
        why = "has no " + CONFIG if path.parent.exists() else "does not exist"
        raise CheckpointError(f"{workdir} is not the folder of a run: it {why}. "
                              "Give as --workdir the folder that a training run wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}). Put the run's own back, or give another "
                              "--workdir") from error
    known = {field.name for field in dataclasses.fields(config_lib.Experiment)}
    if not isinstance(config, dict) or not known & set(config):
        raise CheckpointError(f"{path} is not a config of this program (no field of it is known). "
                              "Give another --workdir")
    return config
