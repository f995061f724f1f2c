"""Models on the Hugging Face hub, by the name hf://OWNER/NAME or hf://OWNER/NAME@REVISION.

Each is a folder of three files: model.safetensors (as weights_file.py writes it), config.json and README.md, its card.
What was fetched once stays in the hub's own cache. Its variables hold here too: HF_TOKEN, HF_HOME, HF_ENDPOINT,
HF_HUB_OFFLINE.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from trm_jax.runtime.errors import UserError

PREFIX = "hf://"
MODEL, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
LOG_IN = "log in (hf auth login, or HF_TOKEN)"
T = TypeVar("T")


class HubError(UserError):
    """A model that cannot be fetched or uploaded; the message says why and what would do."""


def parse(name: str) -> tuple[str, str | None]:
    """OWNER/NAME[@REVISION], with or without hf:// before it -> (OWNER/NAME, REVISION). Raises HubError."""
    repo, at, revision = name.removeprefix(PREFIX).partition("@")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo, re.ASCII) or at and not revision:
        raise HubError(f"{name!r} is no model of the hub: it must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    return repo, revision or None


def download(name: str, file: str = MODEL) -> Path:
    """A file of a model, in the cache: the hub's newest where it can be reached, else what is there. Raises HubError.
    """
    from huggingface_hub import hf_hub_download
    repo, revision = parse(name)
    return Path(_asked(name, lambda: hf_hub_download(repo, file, revision=revision, endpoint=_endpoint()),
                       f"the same again with a network; or, where there is one, python -m trm_jax weights pull {repo} "
                       "--out=FOLDER, and then --weights=FOLDER here"))


def upload(folder: Path, name: str, private: bool) -> str:
    """Makes the model where there is none yet, and commits the folder's files to it; returns its address."""
    from huggingface_hub import HfApi
    repo, revision = parse(name)
    if revision:
        raise HubError(f"{name}: a revision cannot be pushed to; give OWNER/NAME")
    hub = HfApi(endpoint=_endpoint())

    def push() -> str:
        url = hub.create_repo(repo, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="Weights, config and card by trm_jax")
        return str(url)
    return _asked(name, push, f"the same again with a network; {LOG_IN} with a token that may write")


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _asked(name: str, call: Callable[[], T], then: str) -> T:
    """What the hub answers. All that can go wrong becomes a HubError; then: what would do without a network."""
    from huggingface_hub import errors
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it would tell of every try
    try:
        return call()
    except errors.LocalEntryNotFoundError as error:
        why = _line(error.__cause__ or error)
        raise HubError(f"{name} is not in the cache, and the hub cannot be reached ({why}). What would do: "
                       f"{then}") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(f"{name}: the hub has no such model, or it is not for everybody: then {LOG_IN}") from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{name}: the model has no such revision") from error
    except errors.EntryNotFoundError as error:
        raise HubError(f"{name} has no {MODEL}: it is no model of this program (of TRM's or HRM's published code? "
                       "python -m trm_jax published --help)") from error
    except Exception as error:  # those of its HTTP libraries, and what they did not foresee
        raise HubError(f"{name}: the hub cannot be used ({_line(error)}). What would do: {then}") from error


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
