"""The very train step of a run, compiled for a pod that need not be there."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp

from jaxterm import config, sharding, train_step
from jaxterm.preflight import chips

_BATCH_NAMES = ("tokens", "positions", "segment_ids", "loss_mask")


class DoesNotFitError(ValueError):
    """The compiler found no way to hold the program in the device's memory."""


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A compiled train step, and what it was compiled for."""

    run: config.TrainConfig
    topology: str
    mesh_sizes: dict[str, int]
    text: str  # of the optimised program, of one device
    memory: Any  # jax's memory analysis
    state: train_step.TrainState  # abstract
    seconds: float  # that compiling took

    @property
    def num_devices(self) -> int:
        """Of the mesh."""
        return self.state.step.sharding.mesh.size


def compile_step(run: config.TrainConfig, topology: str) -> CompiledStep:
    """Compile what `jaxterm.train` would run on each step.

    Raises:
        ValueError: an unknown topology, settings that do not fit its devices, or that libtpu cannot
            compile.
        DoesNotFitError: the step needs more memory than a device has.
    """
    jax.config.update("jax_platforms", "cpu")
    devices = chips.devices_of(topology)
    sizes = config.validate_on_devices(run, len(devices))
    mesh = sharding.make_mesh(sizes, num_slices=run.mesh.num_slices, devices=devices)
    # Its length decides the schedule's constants alone.
    num_steps = run.max_steps or 1000
    state = train_step.abstract_state(run, mesh, num_steps)
    step = train_step.jit_train_step(run, mesh, num_steps)
    shape = (run.data.global_batch_size, run.data.row_length)
    placed = sharding.named_sharding(mesh, "batch", "length")
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=placed) for name in _BATCH_NAMES}
    began = time.monotonic()
    with jax.set_mesh(mesh):
        lowered = step.lower(state, batch)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise DoesNotFitError(_first_line(error)) from error
        raise ValueError(f"libtpu cannot compile these settings: {_first_line(error)}") from error
    return CompiledStep(
        run=run,
        topology=topology,
        mesh_sizes=sizes,
        text=compiled.as_text(),
        memory=compiled.memory_analysis(),
        state=state,
        seconds=time.monotonic() - began,
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
