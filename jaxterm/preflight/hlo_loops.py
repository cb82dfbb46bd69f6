"""How often a loop of a compiled program runs: scalar integers followed through its text.

The TPU compiler does not write trip counts down. A counted loop carries its counter in a tuple:
the value it starts from, what the body adds and the bound of the condition are found as constants,
through copies, fusions and the tuples of the loops outside. A loop that also ends when data says so
(one comparison of two) counts with what the other allows: the most that it runs.
"""

import dataclasses
import re

from jaxterm.preflight import hlo_text

_KNOWN_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
_CONSTANT = re.compile(r"(-?\d+)\)")
_SCALAR = re.compile(r"([su]\d+|pred)\[\]")
_DIRECTION = re.compile(r"direction=(\w+)")
_MIRRORED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE", "EQ": "EQ"}
# What hands its operand on.
_PASSING = ("copy", "bitcast", "convert", "reshape", "optimization-barrier")


@dataclasses.dataclass(frozen=True)
class Number:
    """A scalar integer: a constant, or the carried element `element` of a loop plus it."""

    constant: int
    element: int | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`left direction right`, with XLA's names of directions."""

    left: "Value"
    direction: str
    right: "Value"


@dataclasses.dataclass(frozen=True)
class Both:
    """`left and right`."""

    left: "Value"
    right: "Value"


# None is what is not followed: arrays, and scalars that depend on data.
Value = Number | Comparison | Both | tuple["Value", ...] | None


class Scope:
    """The values of one computation, given those of its parameters."""

    def __init__(self, loops: "Loops", computation: str, arguments: tuple[Value, ...]):
        self._loops = loops
        self._arguments = arguments
        self._values: dict[str, Value] = {}
        self.computation = loops.module.computations[computation]

    @property
    def result(self) -> Value:
        """The value of the computation."""
        return self.value(self.computation.root.name)

    def value(self, name: str) -> Value:
        """The value of an instruction."""
        if name not in self._values:
            instruction = self.computation.instructions[name]
            followed = instruction.result.startswith("(") or _SCALAR.match(instruction.result)
            self._values[name] = self._evaluate(instruction) if followed else None
        return self._values[name]

    def operands(self, instruction: hlo_text.Instruction) -> tuple[Value, ...]:
        """The values of an instruction's operands."""
        return tuple(self.value(name) for name in instruction.operands)

    def _evaluate(self, instruction: hlo_text.Instruction) -> Value:
        opcode = instruction.opcode
        if opcode == "parameter":
            return _element(self._arguments, instruction.index)
        if opcode == "constant":
            found = _CONSTANT.match(instruction.tail)
            return Number(int(found[1])) if found else None
        if opcode in _PASSING:
            return self.operands(instruction)[0]
        if opcode == "copy-start":  # its copy, its operand, and what the copy waits for
            return self.operands(instruction) * 2
        if opcode == "tuple":
            return self.operands(instruction)
        if opcode in ("copy-done", "get-tuple-element"):
            index = 0 if opcode == "copy-done" else instruction.index
            return _element(self.operands(instruction)[0], index)
        if opcode in ("add", "subtract"):
            return _sum(*self.operands(instruction), sign=1 if opcode == "add" else -1)
        if opcode == "compare" and (found := _DIRECTION.search(instruction.attributes)):
            left, right = self.operands(instruction)
            return Comparison(left, found[1], right)
        if opcode == "and":
            return Both(*self.operands(instruction))
        if opcode in ("fusion", "call"):
            (called,) = instruction.called("calls", "to_apply")
            return Scope(self._loops, called, self.operands(instruction)).result
        if opcode == "while":
            return self._loops.carried(instruction, self)
        return None


class Loops:
    """The loops of one program."""

    def __init__(self, module: hlo_text.Module):
        self.module = module
        self._kept: dict[str, tuple[bool, ...]] = {}

    def trip_count(self, loop: hlo_text.Instruction, scope: Scope) -> int | None:
        """How often the body of a `while` runs, at the most; None where that is not to be seen.

        Args:
            loop: the `while`.
            scope: the values of the computation that it lies in.
        """
        if known := _KNOWN_TRIP_COUNT.search(loop.tail):
            return int(known[1])
        named = _with_names(self.carried(loop, scope))
        test = Scope(self, loop.called("condition")[0], (named,)).result
        starts, after = (
            scope.operands(loop)[0],
            Scope(self, loop.called("body")[0], (named,)).result,
        )
        counts = [_trip_count(each, starts, after) for each in _comparisons(test)]
        return min((count for count in counts if count is not None), default=None)

    def carried(self, loop: hlo_text.Instruction, scope: Scope) -> tuple[Value, ...]:
        """What is known of a loop's carried elements in every iteration: those it never changes."""
        starts = scope.operands(loop)[0]
        kept = self._kept_elements(loop.called("body")[0])
        return tuple(_element(starts, i) if is_kept else None for i, is_kept in enumerate(kept))

    def _kept_elements(self, body: str) -> tuple[bool, ...]:
        """Of each carried element, whether the body hands it on as it came."""
        if body not in self._kept:
            size = len(self.module.computations[body].root.shapes)
            after = Scope(self, body, (_with_names((None,) * size),)).result
            self._kept[body] = tuple(
                _element(after, i) == Number(0, element=i) for i in range(size)
            )
        return self._kept[body]


def _comparisons(test: Value) -> list[Comparison]:
    """All of which a loop goes on only while they hold."""
    if isinstance(test, Both):
        return _comparisons(test.left) + _comparisons(test.right)
    return [test] if isinstance(test, Comparison) else []


def _trip_count(test: Comparison, starts: Value, after: Value) -> int | None:
    """How often a comparison holds of a loop's elements: what they start from, and after a turn."""
    counter, direction, bound = test.left, test.direction, test.right
    if _is_constant(counter):
        counter, direction, bound = bound, _MIRRORED[direction], counter
    if not isinstance(counter, Number) or counter.element is None:
        return None
    start, turned = _element(starts, counter.element), _element(after, counter.element)
    if not (isinstance(bound, Number) and isinstance(start, Number)):
        return None
    if not (isinstance(turned, Number) and turned.element == counter.element):
        return None
    if bound.element is not None or start.element is not None:
        return None
    first = start.constant + counter.constant
    return _iterations(first, turned.constant, direction, bound.constant)


def _with_names(values: tuple[Value, ...]) -> tuple[Value, ...]:
    """Unknown elements stand for themselves."""
    return tuple(Number(0, element=i) if value is None else value for i, value in enumerate(values))


def _iterations(start: int, step: int, direction: str, bound: int) -> int | None:
    """Iterations of `for i = start; i direction bound; i += step`; None where they never end."""
    if direction in ("LE", "GE"):
        direction, bound = direction[0] + "T", bound + (1 if direction == "LE" else -1)
    distance = bound - start
    if direction == "NE":
        return distance // step if step and distance % step == 0 and distance * step >= 0 else None
    if (direction, step > 0) not in (("LT", True), ("GT", False)) or not step:
        return None
    return max(-(-distance // step), 0)


def _sum(left: Value, right: Value, sign: int) -> Value:
    if not isinstance(left, Number) or not isinstance(right, Number):
        return None
    if right.element is not None and (left.element is not None or sign < 0):
        return None
    element = left.element if right.element is None else right.element
    return Number(left.constant + sign * right.constant, element)


def _element(value: Value, index: int) -> Value:
    return value[index] if isinstance(value, tuple) and index < len(value) else None


def _is_constant(value: Value) -> bool:
    return isinstance(value, Number) and value.element is None
