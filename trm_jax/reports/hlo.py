"""A compiled program as XLA describes it, read from its protocol buffer (HloModuleProto).

jaxlib gives a program's instructions as text, or serialized; the buffers' description (xla/service/hlo.proto) comes
with no package that is small. What is read here of it is written down below, by the numbers of the fields.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# Message -> field -> (number, type or message); "*": repeated.
_FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "Module": {"name": (1, "string"), "entry": (6, "int64"), "computations": (3, "*Computation")},
    "Computation": {"name": (1, "string"), "instructions": (2, "*Instruction"), "id": (5, "int64")},
    "Instruction": {"name": (1, "string"), "opcode": (2, "string"), "shape": (3, "Shape"), "metadata": (7, "Metadata"),
                    "parameter_number": (9, "int64"), "custom_call_target": (28, "string"), "dot": (30, "Dot"),
                    "id": (35, "int64"), "operand_ids": (36, "*int64"), "called_computation_ids": (38, "*int64"),
                    "backend_config": (43, "bytes")},
    "Shape": {"element_type": (2, "int32"), "dimensions": (3, "*int64"), "tuple_shapes": (4, "*Shape")},
    "Metadata": {"op_name": (2, "string")},
    "Dot": {"lhs_contracting": (1, "*int64"), "rhs_contracting": (2, "*int64"), "lhs_batch": (3, "*int64"),
            "rhs_batch": (4, "*int64")},
}
# xla_data.proto, PrimitiveType -> (name, bytes).
TYPES = {1: ("pred", 1), 2: ("s8", 1), 3: ("s16", 2), 4: ("s32", 4), 5: ("s64", 8), 6: ("u8", 1), 7: ("u16", 2),
         8: ("u32", 4), 9: ("u64", 8), 10: ("f16", 2), 11: ("f32", 4), 12: ("f64", 8), 16: ("bf16", 2)}
COLLECTIVES = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")


class Array(NamedTuple):
    dtype: str  # "f32"
    dims: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.dims) * next((size for name, size in TYPES.values() if name == self.dtype), 0)


class Instruction:
    """One operation; `body` are those inside of a fusion, or of what else it calls."""

    def __init__(self, raw: Any, by_id: dict[int, Instruction], computations: dict[int, list[Instruction]]):
        self._raw, self._by_id, self._computations = raw, by_id, computations
        self.name, self.opcode, self.op_name = raw.name, raw.opcode, raw.metadata.op_name
        self.target, self.parameter_number = raw.custom_call_target, raw.parameter_number
        self.arrays = _arrays(raw.shape)

    @property
    def operands(self) -> list[Instruction]:
        return [self._by_id[i] for i in self._raw.operand_ids]

    @property
    def called(self) -> list[list[Instruction]]:
        """The computations that it calls."""
        return [self._computations[i] for i in self._raw.called_computation_ids]

    @property
    def body(self) -> list[Instruction]:
        return [i for computation in self.called for i in computation]

    @property
    def bytes(self) -> int:
        """Of the arrays that it gives."""
        return sum(array.bytes for array in self.arrays)

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """What the backend has decided about it."""
        try:
            return json.loads(self._raw.backend_config or b"{}")
        except ValueError:
            return {}

    @property
    def product(self) -> tuple[int, int, int] | None:
        """(M, K, N) of a matrix product; batches count as rows of the left operand. None: it is none."""
        dims = self._raw.dot.lhs_contracting
        if self.opcode != "dot":
            dot = self.config.get("gemm_backend_config", self.config).get("dot_dimension_numbers")
            if self.opcode != "custom-call" or dot is None:
                return None
            dims = [int(d) for d in dot.get("lhs_contracting_dimensions", ())]
        left = self.operands[0].arrays[0].dims
        K = math.prod(left[d] for d in dims)
        M = math.prod(left) // max(1, K)
        return M, K, math.prod(self.arrays[0].dims) // max(1, M)

    @property
    def trips(self) -> int | None:
        """How often the body of a loop runs, where XLA knows it."""
        count = self.config.get("known_trip_count", {}).get("n")
        return None if count is None else int(count)


class Module(NamedTuple):
    name: str
    entry: list[Instruction]
    computations: list[list[Instruction]]

    @property
    def instructions(self) -> Iterator[Instruction]:
        """Of all computations, those inside of fusions too."""
        return (i for computation in self.computations for i in computation)

    @property
    def run(self) -> Iterator[Instruction]:
        """Without what is inside of fusions."""
        inside = {id(body) for i in self.instructions if i.opcode == "fusion" for body in i.called}
        return (i for computation in self.computations if id(computation) not in inside for i in computation)


def read(serialized: bytes) -> Module:
    """Of module.as_serialized_hlo_module_proto()."""
    raw = _messages()["Module"].FromString(serialized)
    by_id: dict[int, Instruction] = {}
    computations: dict[int, list[Instruction]] = {}
    for c in raw.computations:
        computations[c.id] = [Instruction(i, by_id, computations) for i in c.instructions]
        by_id |= {i.id: made for i, made in zip(c.instructions, computations[c.id])}
    return Module(raw.name, computations[raw.entry], list(computations.values()))


def of(compiled: Any) -> Module:
    """Of jax.jit(...).lower(...).compile()."""
    [module] = compiled.runtime_executable().hlo_modules()[:1]
    return read(module.as_serialized_hlo_module_proto())


def _arrays(shape: Any) -> list[Array]:
    if shape.tuple_shapes:
        return [array for part in shape.tuple_shapes for array in _arrays(part)]
    kind = TYPES.get(shape.element_type)
    return [Array(kind[0], tuple(shape.dimensions))] if kind else []


@functools.cache
def _messages() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="trm_jax/hlo.proto", package="trm_jax.hlo", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            made = message.field.add(name=field, number=number, label=3 if kind[0] == "*" else 1)
            kind = kind.lstrip("*")
            if kind in _FIELDS:
                made.type, made.type_name = kinds.TYPE_MESSAGE, f".trm_jax.hlo.{kind}"
            else:
                made.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"trm_jax.hlo.{name}"))
            for name in _FIELDS}
