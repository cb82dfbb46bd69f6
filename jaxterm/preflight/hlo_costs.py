"""What one call of a compiled program costs one device, read from `compiled.as_text()`.

Every loop's trip count is multiplied in (XLA's own cost analysis counts a loop's body once). Of a
conditional the most expensive branch counts. What is begun by one instruction and ended by another
(`-start`, `-done`) counts where it begins. `hlo_operations` says what bytes are.
"""

import dataclasses
import re
from collections.abc import Iterable

from jaxterm.preflight import hlo_loops, hlo_operations, hlo_text

_CHAIN = re.compile(r'chain_id="(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclasses.dataclass(frozen=True)
class UnknownLoop:
    """A loop whose trip count the text does not tell: its body is counted once."""

    name: str
    op_name: str
    times: int  # how often the loop as a whole is run


@dataclasses.dataclass(frozen=True)
class Costs:
    """One call of a program, on one device."""

    collectives: tuple[hlo_operations.Collective, ...] = ()
    dot_flops: int = 0  # of dots and convolutions
    kernels: tuple[hlo_operations.Kernel, ...] = ()
    unknown_loops: tuple[UnknownLoop, ...] = ()
    to_host_bytes: int = 0  # copied from the device's memory to the host's
    from_host_bytes: int = 0

    @property
    def kernel_flops(self) -> int:
        """FLOPs of the kernels that estimate theirs."""
        return sum(kernel.flops * kernel.times for kernel in self.kernels)

    @property
    def collective_bytes(self) -> int:
        """Bytes of all collectives."""
        return sum(each.bytes * each.times for each in self.collectives)

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Kind of collective -> how many are executed (count), bytes and wire_bytes of them all."""
        result: dict[str, dict[str, int]] = {}
        for each in self.collectives:
            sums = result.setdefault(each.kind, {"count": 0, "bytes": 0, "wire_bytes": 0})
            sums["count"] += each.times
            sums["bytes"] += each.times * each.bytes
            sums["wire_bytes"] += each.times * each.wire_bytes
        return result

    def largest(self, num: int, kind: str | None = None) -> list[hlo_operations.Collective]:
        """The collectives with the most bytes in one execution, of one kind or of all."""
        found = [each for each in self.collectives if kind in (None, each.kind)]
        return sorted(found, key=lambda each: each.bytes, reverse=True)[:num]

    def repeated(self, times: int) -> "Costs":
        """The costs of so many calls."""

        def scaled(entries):
            return tuple(dataclasses.replace(each, times=each.times * times) for each in entries)

        return Costs(
            collectives=scaled(self.collectives),
            dot_flops=self.dot_flops * times,
            kernels=scaled(self.kernels),
            unknown_loops=scaled(self.unknown_loops),
            to_host_bytes=self.to_host_bytes * times,
            from_host_bytes=self.from_host_bytes * times,
        )


_NOTHING = Costs()


def read(text: str) -> Costs:
    """Costs of one call of a compiled program on one device.

    Args:
        text: what `compiled.as_text()` gives.

    Raises:
        ValueError: it is not the text of a compiled program.
    """
    module = hlo_text.parse(text)
    return _Reader(module).computation(module.entry, ())


class _Reader:
    """Adds up the costs of computations, each once for what is known of its arguments."""

    def __init__(self, module: hlo_text.Module):
        self._num_devices = module.num_devices
        self._loops = hlo_loops.Loops(module)
        self._costs: dict[tuple[str, tuple[hlo_loops.Value, ...]], Costs] = {}
        self._chains = {
            _chain(instruction)
            for computation in module.computations.values()
            if _starts_chain(computation)
            for instruction in computation.instructions.values()
        } - {None}

    def computation(self, name: str, arguments: tuple[hlo_loops.Value, ...]) -> Costs:
        """Costs of one call of a computation."""
        if (name, arguments) not in self._costs:
            scope = hlo_loops.Scope(self._loops, name, arguments)
            self._costs[name, arguments] = _total(
                self._instruction(instruction, scope)
                for instruction in scope.computation.instructions.values()
            )
        return self._costs[name, arguments]

    def _instruction(self, instruction: hlo_text.Instruction, scope: hlo_loops.Scope) -> Costs:
        opcode = instruction.opcode.removesuffix("-start")
        if opcode in hlo_operations.PRODUCTS:
            flops = hlo_operations.product_flops(instruction, scope.computation)
            return Costs(dot_flops=flops)
        if opcode in hlo_operations.RING_PASSES:
            return self._collective(opcode, instruction, scope.computation)
        if opcode in hlo_operations.COPIES:
            moved = hlo_operations.host_transfer(opcode, instruction, scope.computation)
            return Costs(to_host_bytes=moved[0], from_host_bytes=moved[1])
        if opcode == "while":
            return self._loop(instruction, scope)
        if opcode == "conditional":
            return self._conditional(instruction, scope)
        if opcode == "fusion":
            return self._fusion(instruction)
        if opcode == "custom-call":
            kernel = hlo_operations.kernel(instruction)
            own = Costs(kernels=(kernel,)) if kernel else _NOTHING
            called = instruction.called("called_computations")
            return _total([own, *(self.computation(name, ()) for name in called)])
        if opcode in ("call", "async"):
            (called,) = instruction.called("to_apply", "calls")
            return self.computation(called, scope.operands(instruction))
        return _NOTHING

    def _collective(
        self, kind: str, instruction: hlo_text.Instruction, computation: hlo_text.Computation
    ) -> Costs:
        # A collective that the TPU compiler runs beside others is written into the fusion that
        # starts it, into each one that it goes on beside, and into the one that ends it.
        if _chain(instruction) in self._chains and not _starts_chain(computation):
            return _NOTHING
        found = hlo_operations.collective(kind, instruction, computation, self._num_devices)
        return Costs(collectives=(found,))

    def _fusion(self, fusion: hlo_text.Instruction) -> Costs:
        (called,) = fusion.called("calls")
        costs = self.computation(called, ())
        if not costs.collectives or "kind=kCustom" not in fusion.attributes:
            return costs
        output_bytes = sum(shape.bytes for shape in fusion.shapes)
        collectives = tuple(
            hlo_operations.scattered(each, output_bytes) for each in costs.collectives
        )
        return dataclasses.replace(costs, collectives=collectives)

    def _loop(self, loop: hlo_text.Instruction, scope: hlo_loops.Scope) -> Costs:
        arguments = (self._loops.carried(loop, scope),)
        called = loop.called("condition", "body")
        once = _total(self.computation(name, arguments) for name in called)
        times = self._loops.trip_count(loop, scope)
        if times is not None:
            return once.repeated(times)
        unknown = UnknownLoop(loop.name, loop.op_name, times=1)
        return _total([once, Costs(unknown_loops=(unknown,))])

    def _conditional(self, conditional: hlo_text.Instruction, scope: hlo_loops.Scope) -> Costs:
        names = conditional.called("branch_computations", "true_computation", "false_computation")
        arguments = scope.operands(conditional)[1:]
        branches = [
            self.computation(name, (argument,))
            for name, argument in zip(names, arguments, strict=True)
        ]
        most = max(
            branches, key=lambda each: (each.dot_flops + each.kernel_flops, each.collective_bytes)
        )
        unknown = tuple(loop for branch in branches for loop in branch.unknown_loops)
        return dataclasses.replace(most, unknown_loops=unknown)


def _total(parts: Iterable[Costs]) -> Costs:
    parts = [part for part in parts if part is not _NOTHING]
    return Costs(
        collectives=tuple(each for part in parts for each in part.collectives),
        dot_flops=sum(part.dot_flops for part in parts),
        kernels=tuple(each for part in parts for each in part.kernels),
        unknown_loops=tuple(each for part in parts for each in part.unknown_loops),
        to_host_bytes=sum(part.to_host_bytes for part in parts),
        from_host_bytes=sum(part.from_host_bytes for part in parts),
    )


def _starts_chain(computation: hlo_text.Computation) -> bool:
    return '"AsyncCollectiveStart"' in computation.root.tail


def _chain(instruction: hlo_text.Instruction) -> tuple[str, str] | None:
    """What the copies of one collective in several fusions have in common."""
    found = _CHAIN.search(instruction.tail), _CHANNEL.search(instruction.tail)
    return (found[0][1], found[1][1]) if found[0] and found[1] else None
