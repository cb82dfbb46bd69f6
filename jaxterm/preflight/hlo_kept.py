"""What the forward pass keeps for the backward pass, read from the text of a compiled train step.

The layers are one loop forward and one backward. What a layer keeps is a slice that the forward
loop writes into an array with a leading dim of layers, which the backward loop then takes. Stacked
parameters are taken too, but never written; stacked gradients are written, but by the last loop.
Where slices travel to the host, the compiler takes an iteration of each loop out of it, so that the
next one's slice is under way: the loops then run once less.
"""

import dataclasses

from jaxterm.preflight import hlo_loops, hlo_text

# What gives its first operand, moved or seen differently.
_MOVES = (
    "copy", "copy-start", "copy-done", "bitcast", "reshape", "transpose", "optimization-barrier",
    "dynamic-update-slice-done",
)  # fmt: skip
_WRITES = ("dynamic-update-slice", "dynamic-update-slice-start")


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where an array comes from, and whether slices were written into it on the way."""

    instruction: hlo_text.Instruction
    element: int | None  # of the instruction, where that gives a tuple
    written: bool


def kept_stacks(text: str, num_layers: int) -> tuple[hlo_text.Shape, ...]:
    """The arrays [num_layers, ...] that a device keeps from the forward to the backward pass.

    Their `bytes` add up to what the passes keep; those with `space == hlo_text.HOST_MEMORY` lie in
    the host's memory. What one layer keeps in pieces of another leading dim is not seen; other
    loops that happen to run `num_layers` times and hand stacks on are.

    Args:
        text: what `compiled.as_text()` gives.
        num_layers: over which both loops run.

    Raises:
        ValueError: `text` is not the text of a compiled program.
    """
    module = hlo_text.parse(text)
    loops = hlo_loops.Loops(module)
    return tuple(
        shape
        for name, computation in module.computations.items()
        for shape in _kept_in(module, computation, _loops_of(loops, name, num_layers))
        if shape.dims[:1] == (num_layers,)
    )


def _loops_of(loops: hlo_loops.Loops, name: str, num_layers: int) -> list[hlo_text.Instruction]:
    """The loops of a computation that are known to run over the layers, or all but one."""
    scope = hlo_loops.Scope(loops, name, ())
    return [
        instruction
        for instruction in scope.computation.instructions.values()
        if instruction.opcode == "while"
        and loops.trip_count(instruction, scope) in (num_layers - 1, num_layers)
    ]


def _kept_in(
    module: hlo_text.Module, computation: hlo_text.Computation, loops: list[hlo_text.Instruction]
) -> list[hlo_text.Shape]:
    handed_on = set()
    for loop in loops:
        for element, shape in enumerate(loop.shapes):
            source = _trace(module, computation, loop.operands[0], element)
            if source.instruction in loops and source.element is not None:
                given = source.instruction.shapes[source.element]
                if given.dims == shape.dims and _writes(module, source.instruction, source.element):
                    handed_on.add((source.instruction.name, source.element, given))
    return [shape for _, _, shape in sorted(handed_on, key=lambda each: each[:2])]


def _writes(module: hlo_text.Module, loop: hlo_text.Instruction, element: int) -> bool:
    """Whether a loop writes slices of the element of its tuple that it carries, once an iteration.

    It then has a leading dim with one slice for every iteration.
    """
    body = module.computations[loop.called("body")[0]]
    source = _trace(module, body, body.root.name, element)
    return source.written and (source.instruction.opcode, source.element) == ("parameter", element)


def _trace(
    module: hlo_text.Module,
    computation: hlo_text.Computation,
    name: str,
    element: int | None,
    written: bool = False,
) -> _Source:
    """Follow an array back through moves, writes of slices, tuples and fusions."""
    while True:
        instruction = computation.instructions[name]
        opcode = instruction.opcode
        if opcode in _MOVES or opcode in _WRITES:
            name, written = instruction.operands[0], written or opcode in _WRITES
        elif opcode == "get-tuple-element":
            name, element = instruction.operands[0], instruction.index
        elif opcode == "tuple" and element is not None:
            name, element = instruction.operands[element], None
        elif opcode == "fusion":
            inner = module.computations[instruction.called("calls")[0]]
            source = _trace(module, inner, inner.root.name, element, written)
            if source.instruction.opcode != "parameter":
                return source
            name, element = instruction.operands[source.instruction.index], None
            written = source.written
        else:
            return _Source(instruction, element, written)
