"""What one instruction of a compiled program costs: a product, a collective, a kernel, a transfer.

Bytes of a collective are those of the full array, gathered or not yet reduced, that a device takes
part in, without the padding of tiles:

    all-gather                                              its output
    reduce-scatter, all-reduce, all-to-all, permute, ...    its operand

Wire bytes are what a device sends for that around a ring of the n devices of its group: (n-1)/n of
the bytes, twice that for an all-reduce, all of them for a permute or broadcast.
"""

import dataclasses
import functools
import math
import re

from jaxterm.preflight import hlo_text

# Kind of collective -> how often a ring passes (n-1)/n of the bytes on; None: sent once, whole.
RING_PASSES = {
    "all-gather": 1,
    "reduce-scatter": 1,
    "all-reduce": 2,
    "all-to-all": 1,
    "ragged-all-to-all": 1,
    "collective-permute": None,
    "collective-broadcast": None,
}
PRODUCTS = ("dot", "convolution")
COPIES = ("copy", "slice", "dynamic-slice", "dynamic-update-slice")
# Custom calls that compute nothing.
_NO_KERNELS = {
    "AllocateBuffer", "AssumeGatherIndicesInBound", "AsyncCollectiveStart", "AsyncCollectiveDone",
    "ConcatBitcast", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape",
}  # fmt: skip

_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_ESTIMATE = re.compile(r'"cost_estimate":\{"flops":"?(\d+)')
_LABELS = re.compile(r"dim_labels=([^_,]+)_([^-,]+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_DIVIDED = re.compile(r"(?:feature|batch)_group_count=(\d+)")
# The three ways of writing replica groups: {{0,1},{2,3}}, [2,2]<=[4], mesh['a'=2,'b'=2] {'b'}.
_GROUPS_LISTED = re.compile(r"replica_groups=\{(\{.*?\})\}")
_GROUPS_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_GROUPS_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\].*? \{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction, which may carry several arrays."""

    kind: str  # as XLA names it: all-gather, all-reduce, ...
    shapes: tuple[hlo_text.Shape, ...]  # the full arrays; see above
    bytes: int  # of one execution
    wire_bytes: int  # of one execution
    group_size: int  # devices that take part together
    times: int  # executions in one call of the program
    op_name: str  # where in the traced program it comes from


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A custom call: the text does not tell what it computes."""

    name: str  # of the Pallas kernel, else the call's target
    target: str
    flops: int  # of one execution, as the kernel's author estimates them; 0: not said
    times: int  # executions in one call of the program
    op_name: str  # where in the traced program it comes from


def product_flops(instruction: hlo_text.Instruction, computation: hlo_text.Computation) -> int:
    """2 x multiplications of a dot or convolution.

    The TPU compiler makes every dot a convolution; batch dims become spatial dims with windows,
    strides and dilations, where only positions that meet an element are counted.
    """
    left, right = computation.operand_shapes(instruction)[:2]
    result = instruction.shapes[0]
    if instruction.opcode == "dot":
        contracted = [left.dims[dim] for dim in instruction.numbers("lhs_contracting_dims")]
        return 2 * result.num_elements * math.prod(contracted)
    attributes = instruction.attributes
    labels = _LABELS.search(attributes)
    assert labels is not None
    left, right, result = (
        dict(zip(label, shape.dims, strict=True))
        for label, shape in zip(labels.groups(), (left, right, result), strict=True)
    )
    spatial = sorted(filter(str.isdigit, left))
    met = math.prod(
        _met_positions(left[dim], right[dim], result[dim], *window)
        for dim, window in zip(spatial, _windows(attributes, len(spatial)), strict=True)
    )
    divided_by = math.prod(map(int, _DIVIDED.findall(attributes)))
    return 2 * left["b"] * left["f"] * right["o"] * met // divided_by


def collective(
    kind: str,
    instruction: hlo_text.Instruction,
    computation: hlo_text.Computation,
    num_devices: int,
) -> Collective:
    """A collective that is executed once.

    Args:
        kind: the opcode, without `-start`.
        instruction: the collective.
        computation: it lies in.
        num_devices: of the program.
    """
    shapes = _full_shapes(kind, instruction, computation.operand_shapes(instruction))
    size = sum(shape.bytes for shape in shapes)
    group_size = _group_size(kind, instruction, num_devices)
    return Collective(
        kind=kind,
        shapes=shapes,
        bytes=size,
        wire_bytes=_wire_bytes(kind, size, group_size),
        group_size=group_size,
        times=1,
        op_name=instruction.op_name,
    )


def scattered(all_reduce: Collective, output_bytes: int) -> Collective:
    """An all-reduce as the reduce-scatter that it is, where a fusion gives only a device's part.

    Args:
        all_reduce: any collective in a fusion; returned as it is unless the sizes fit.
        output_bytes: of the fusion.
    """
    if all_reduce.kind != "all-reduce" or output_bytes * all_reduce.group_size != all_reduce.bytes:
        return all_reduce
    wire = _wire_bytes("reduce-scatter", all_reduce.bytes, all_reduce.group_size)
    return dataclasses.replace(all_reduce, kind="reduce-scatter", wire_bytes=wire)


def kernel(custom_call: hlo_text.Instruction) -> Kernel | None:
    """A custom call that is executed once; None if it is one that computes nothing."""
    target = _TARGET.search(custom_call.attributes)
    if target is None or target[1] in _NO_KERNELS:
        return None
    scopes, name = custom_call.op_name.split("/"), target[1]
    if name == "tpu_custom_call":
        is_named = len(scopes) > 1 and scopes[-1] == "pallas_call" and "(" not in scopes[-2]
        name = scopes[-2] if is_named else custom_call.name.split(".")[0]
    flops = _ESTIMATE.search(custom_call.tail)
    return Kernel(name, target[1], int(flops[1]) if flops else 0, 1, custom_call.op_name)


def host_transfer(
    opcode: str, instruction: hlo_text.Instruction, computation: hlo_text.Computation
) -> tuple[int, int]:
    """Bytes that a copy, or a copy of a slice, moves to the host's memory and from it."""
    operands = computation.operand_shapes(instruction)
    source, result = operands[0], instruction.shapes[0]
    if opcode == "dynamic-update-slice":
        source, result = operands[1], dataclasses.replace(operands[1], space=operands[0].space)
    elif opcode != "copy" and instruction.opcode.endswith("-start"):  # gives its operands first
        result = instruction.shapes[len(operands)]
    ends = [shape.space == hlo_text.HOST_MEMORY for shape in (source, result)]
    return result.bytes * (ends == [False, True]), result.bytes * (ends == [True, False])


def _full_shapes(
    kind: str, instruction: hlo_text.Instruction, operands: tuple[hlo_text.Shape, ...]
) -> tuple[hlo_text.Shape, ...]:
    if kind == "ragged-all-to-all":  # its data; then a buffer, offsets and sizes
        return operands[:1]
    if kind != "all-gather":
        return operands
    # The start of one gives its operands again, then what they are gathered into.
    first = len(operands) if instruction.opcode.endswith("-start") else 0
    return instruction.shapes[first : first + len(operands)]


def _windows(attributes: str, num_dims: int) -> list[tuple[int, int, int, int]]:
    """Of each spatial dim: stride, padding in front, dilation of the left and the right operand."""
    found = _WINDOW.search(attributes)
    fields = dict(field.split("=") for field in found[1].split()) if found else {}

    def numbers(name: str, default: int) -> list[int]:
        values = fields[name].split("x") if name in fields else [str(default)] * num_dims
        return [int(value.split("_")[0]) for value in values]

    names = (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))
    return list(zip(*(numbers(*name) for name in names), strict=True))


@functools.lru_cache(maxsize=1 << 14)
def _met_positions(
    size: int, kernel: int, result: int, stride: int, pad: int, dilation: int, kernel_dilation: int
) -> int:
    """Pairs (o, k) of a position of the result and one of the kernel that meet an element.

    They meet element e of `size` where o * stride + k * kernel_dilation - pad = e * dilation.
    """
    period = dilation // math.gcd(stride, dilation)  # of the o that meet one, for a given k
    total = 0
    for k in range(kernel):
        shift = k * kernel_dilation - pad
        first = max(-(shift // stride), 0)
        last = min(((size - 1) * dilation - shift) // stride, result - 1)
        aligned = (o for o in range(first, first + period) if (o * stride + shift) % dilation == 0)
        first = next(aligned, result)
        total += max((last - first) // period + 1, 0)
    return total


def _group_size(kind: str, instruction: hlo_text.Instruction, num_devices: int) -> int:
    if kind == "collective-permute":
        return 2  # one sends, one receives
    attributes = instruction.attributes
    if listed := _GROUPS_LISTED.search(attributes):
        return max(len(group.split(",")) for group in listed[1].split("},{"))
    if iota := _GROUPS_IOTA.search(attributes):
        return int(iota[1])
    if mesh := _GROUPS_MESH.search(attributes):
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", mesh[1]))
        axes = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", mesh[2])  # 'a':(2)4 is a part of 'a'
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return num_devices


def _wire_bytes(kind: str, size: int, group_size: int) -> int:
    passes = RING_PASSES[kind]
    return size if passes is None else passes * size * (group_size - 1) // group_size
