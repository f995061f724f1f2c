"""Files of weights as PyTorch projects keep them <-> {name: numpy array}: safetensors always, PyTorch's own with torch.

A PyTorch file is a pickle, and a pickle is a program. It is read by `torch.load(weights_only=True)` alone, which
builds tensors and plain values and runs nothing; whatever else a file asks for is refused.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from trm_jax.runtime.errors import UserError

# Where training programs keep the state dict in what they save: RSM's name first.
STATE_DICTS = ("model_state", "model_state_dict", "state_dict", "model")


class FileError(UserError):
    """A file that cannot be read or written; the message says why."""


class Contents(NamedTuple):
    weights: dict[str, np.ndarray]  # under the names of the file; bfloat16 as ml_dtypes has it
    extras: dict[str, Any]  # what was saved beside the state dict: step, config, ...


def read(path: str | os.PathLike[str]) -> Contents:
    """Either kind, told apart by its first bytes: published files often have no ending."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    if head[8:] == b"{":  # the length of a JSON header, and its first character
        try:
            with safe_open(path, framework="numpy") as file:
                extras = {name: _value(text) for name, text in (file.metadata() or {}).items()}
                return Contents({name: file.get_tensor(name) for name in file.keys()}, extras)
        except (OSError, SafetensorError) as error:
            raise FileError(f"{path} is damaged: {one_line(error)}") from error
    torch = _torch(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols: what cannot be read, raises
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))  # the rest of it advises to switch the protection off
        what = f"wants to run {wanted[1]}" if wanted else "is not a PyTorch file of weights alone"
        raise FileError(f"{path} {what} and is refused: only tensors and plain values are read") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{path} is damaged or no PyTorch file: {one_line(error)[:200]}") from error
    return unwrap(path, loaded, lambda value: isinstance(value, torch.Tensor), _to_numpy)


def unwrap(path, loaded: Any, is_tensor, to_numpy) -> Contents:
    """The state dict in what a PyTorch file holds: all of it, or one entry."""
    if not isinstance(loaded, Mapping):
        raise FileError(f"{path} holds a {type(loaded).__name__}, not a state dict (a dict of names and tensors)")
    inside = next((name for name in STATE_DICTS if isinstance(loaded.get(name), Mapping)), None)
    state = loaded if inside is None else loaded[inside]
    if foreign := [str(name) for name, value in state.items() if not is_tensor(value)]:
        raise FileError(f"{path} is not a state dict: no tensors under {', '.join(foreign[:8])}"
                        f"{' ...' if len(foreign) > 8 else ''}")
    extras = {} if inside is None else {name: value for name, value in loaded.items() if name != inside}
    return Contents({str(name): to_numpy(value) for name, value in state.items()}, extras)


def write(path: str | os.PathLike[str], weights: Mapping[str, np.ndarray],
          extras: Mapping[str, Any] | None = None) -> None:
    """safetensors if the name ends so, else as torch.save does.

    extras: plain values, in the header of a safetensors file; else the state dict is put under "model_state" beside
    them, and without any (None) it is all there is.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.suffix == ".safetensors":
            header = {name: json.dumps(value) for name, value in (extras or {}).items()}
            safetensors.numpy.save_file({name: np.ascontiguousarray(w) for name, w in weights.items()}, temporary,
                                        header or None)
        else:
            torch = _torch(path)
            state = {name: _to_tensor(torch, w) for name, w in weights.items()}
            torch.save(state if extras is None else {STATE_DICTS[0]: state, **extras}, temporary)
        temporary.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise FileError(f"{path} was not written: {one_line(error)[:200]}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _value(text: str) -> Any:
    """Of a header's text: what JSON makes of it, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _torch(path):
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise FileError(f"{path} is not named or made as safetensors, and PyTorch's own files take torch: "
                        "pip install 'trm_jax[torch]', or use .safetensors") from None
    return torch


def _to_numpy(tensor) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    if str(tensor.dtype) == "torch.bfloat16":
        return tensor.view(dtype=_torch("").int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _to_tensor(torch, array: np.ndarray):
    array = np.array(array, order="C")  # a copy: torch writes to what it shares
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
