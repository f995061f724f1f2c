"""The puzzle table over several devices: whole on each of them or, where it has many rows, its columns split.

ARC's table has a row for every task and symmetry: 960,961 of 512 float32, 2 GB. Of such a table a device holds the
columns [rows, W/n]. It reads its columns of the rows of the whole batch, and an exchange (all-to-all, B W / n numbers
from each device) turns them into whole rows of its own examples; the gradients go back the same way. So every device
sums and applies the sign-SGD of its columns alone: no array of the table's size is made beside it, none travels, and
the sums are added up in the same order as on one device.

Columns rather than rows, because then no device has more of a batch's rows than another, nothing is padded, and a
checkpoint's table has the same shape on any number of devices.

A table of few rows is whole everywhere, and the gradients of its rows travel with all others.

B batch over all devices, b of it on this one, W = puzzle_emb_ndim, n devices.
"""

from __future__ import annotations

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trm_jax.models.network import Model, Weights
from trm_jax.runtime.distributed import AXIS

Array = jax.Array
SPLIT_ROWS = 1024  # with more rows than this a batch touches but few of them


def spec(model: Model, mesh: Mesh) -> P:
    """How the table lies on the devices; whole where its width cannot be shared out evenly."""
    rows, width = model.shape.num_puzzle_identifiers, model.arch.puzzle_emb_ndim
    split = mesh.size > 1 and rows > SPLIT_ROWS and width > 0 and width % mesh.size == 0
    return P(None, AXIS) if split else P()


def is_split(model: Model, mesh: Mesh) -> bool:
    return spec(model, mesh) != P()


def weights_specs(model: Model, mesh: Mesh) -> Weights:
    """How weights lie on the devices."""
    return Weights(P(), P(), spec(model, mesh))


def weights_shardings(model: Model, mesh: Mesh) -> Weights:
    return Weights(*(NamedSharding(mesh, s) for s in weights_specs(model, mesh)))


# Within shard_map.


def rows_of(model: Model, table: Array | None, identifiers: Array, split: bool) -> Array:
    """`Model.rows` of this device's examples: identifiers [b] -> [b, W]."""
    if not split:
        return model.rows(table, identifiers)
    columns = model.rows(table, lax.all_gather(identifiers, AXIS, tiled=True))  # [B, W/n]
    return lax.all_to_all(columns, AXIS, split_axis=0, concat_axis=1, tiled=True)


def columns_of(rows: Array) -> Array:
    """[b, W] of this device's examples -> [B, W/n], of this device's columns."""
    return lax.all_to_all(rows, AXIS, split_axis=1, concat_axis=0, tiled=True)
