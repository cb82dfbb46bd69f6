"""The text of a compiled program (`compiled.as_text()`), parsed: computations of instructions.

Only what costs are read from is taken apart, and only when it is asked for: the text of a large
model is tens of megabytes, of which few instructions matter. A line looks like

    %name = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} opcode(%a, %b), attribute=..., metadata={...}

and may go on over further lines, when a kernel put line breaks into its metadata.
"""

import dataclasses
import functools
import math
import re

# Memory spaces of a layout's S(n), as the TPU compiler numbers them; without S(n) it is 0.
HOST_MEMORY = 5

_SHAPE = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_BITS = re.compile(r"[a-z]+(\d+)")
_HEADER = re.compile(r"(ENTRY )?%(\S+) .*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%(\S+) = (.*?) ([a-z][\w-]*)\(")
_NAME = re.compile(r"%([^\s,(){}]+)")
_OP_NAME = re.compile(r'metadata=\{op_name="((?:[^"\\]|\\.)*)"')
_DEVICES = re.compile(r"(?:num_partitions|replica_count)=(\d+)")
# Behind these an attribute's text is no longer the compiler's but a caller's or a kernel's.
_FREE_TEXT = re.compile(r", (?:frontend_attributes|metadata|backend_config)=")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array: element type, dims, and the memory space it lies in."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def num_elements(self) -> int:
        """Product of the dims; 1 for a scalar."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes of the elements, without the padding that tiles add."""
        if self.dtype == "pred":
            return self.num_elements
        bits = _BITS.match(self.dtype)  # a token has none
        return -(-self.num_elements * int(bits[1]) // 8) if bits else 0

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@functools.lru_cache(maxsize=1 << 16)
def shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a shape's text, tuples flattened."""
    return tuple(
        Shape(
            dtype,
            tuple(int(dim.lstrip("<=")) for dim in dims.split(",") if dim),
            int(space[1]) if (space := _SPACE.search(layout)) else 0,
        )
        for dtype, dims, layout in _SHAPE.findall(text)
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; `tail` is its text behind the opcode's parenthesis."""

    name: str
    result: str
    opcode: str
    tail: str

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The arrays of the result."""
        return shapes(self.result)

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return _NAME.findall(self.tail[: self._end_of_operands()])

    @property
    def attributes(self) -> str:
        """The text behind the operands, up to the free text of metadata and configurations."""
        rest = self.tail[self._end_of_operands() :]
        free = _FREE_TEXT.search(rest)
        return rest[: free.start()] if free else rest

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from; empty where the text does not say."""
        found = _OP_NAME.search(self.tail)
        return found[1] if found else ""

    @property
    def index(self) -> int:
        """Which parameter this is, or which element of a tuple it takes."""
        text = self.tail if self.opcode == "parameter" else self.attributes.split("index=")[1]
        return int(re.split(r"[,)]", text, maxsplit=1)[0])

    def numbers(self, attribute: str) -> tuple[int, ...]:
        """The numbers of `attribute={1,2}`; none where it is not there."""
        found = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.attributes)
        return tuple(map(int, filter(None, found[1].split(",")))) if found else ()

    def called(self, *attributes: str) -> list[str]:
        """Names of the computations in these attributes (`calls=%a`, `calls={%a, %b}`)."""
        found = re.findall(
            rf"\b(?:{'|'.join(attributes)})=(%[^\s,]+|\{{[^}}]*\}})", self.attributes
        )
        return [name for text in found for name in _NAME.findall(text)]

    def _end_of_operands(self) -> int:
        depth = 1
        for bracket in re.finditer(r"[()]", self.tail):
            depth += 1 if bracket[0] == "(" else -1
            if not depth:
                return bracket.start()
        return len(self.tail)


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order of the text."""

    name: str
    instructions: dict[str, Instruction]
    root: Instruction

    def operand_shapes(self, instruction: Instruction) -> tuple[Shape, ...]:
        """The arrays of all operands, tuples flattened."""
        return tuple(
            shape
            for name in instruction.operands
            for shape in shapes(self.instructions[name].result)
        )


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program: what one of `num_devices` devices runs."""

    computations: dict[str, Computation]
    entry: str
    num_devices: int


def parse(text: str) -> Module:
    """Take the text of an optimised program apart.

    Raises:
        ValueError: the text holds no ENTRY computation.
    """
    computations: dict[str, Computation] = {}
    entry = name = ""
    lines: list[str] = []
    for line in text.splitlines():
        if not name:
            if header := _HEADER.match(line):
                name, lines = header[2], []
                entry = name if header[1] else entry
        elif line.rstrip() == "}" or line.startswith("}, execution_thread="):
            computations[name] = _computation(name, lines)
            name = ""
        else:
            lines.append(line)
    if entry not in computations:
        raise ValueError(
            "this is not the text of a compiled program: it has no ENTRY computation; "
            "pass what `compiled.as_text()` gives"
        )
    devices = [int(number) for number in _DEVICES.findall(text.split("\n", 1)[0])]
    return Module(computations, entry, math.prod(devices))


def _computation(name: str, lines: list[str]) -> Computation:
    instructions: dict[str, Instruction] = {}
    root = latest = ""
    continued: dict[str, list[str]] = {}
    for line in lines:
        if found := _INSTRUCTION.match(line):
            latest = found[2]
            instructions[latest] = Instruction(latest, found[3], found[4], line[found.end() :])
            root = latest if found[1] else root
        else:
            continued.setdefault(latest, []).append(line)
    for latest, rest in continued.items():
        first = instructions[latest]
        tail = "\n".join([first.tail, *rest])
        instructions[latest] = dataclasses.replace(first, tail=tail)
    return Computation(name, instructions, instructions[root])
