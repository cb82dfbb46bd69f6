"""Evaluate: the held-out loss of a run's newest checkpoint, over all sources and for each.

    python -m jaxterm.evaluate --config=configs/14b.py --workdir=DIR

The held-out sessions are those that the run put aside (config.data.heldout_fraction).
"""

import pathlib

import jax
import rich.console
import rich.table

from jaxterm import (
    checkpoint,
    command,
    config,
    distributed,
    heldout,
    inputs,
    sharding,
    trainable,
)


def main(run: config.TrainConfig, workdir: pathlib.Path) -> None:
    """Print the held-out loss of the newest checkpoint in `workdir`."""
    distributed.start(run.mesh.num_cpu_devices)
    sizes = config.validate_on_devices(run, jax.device_count())
    mesh = sharding.make_mesh(sizes, num_slices=run.mesh.num_slices)
    step_dir = checkpoint.find_step_dir(workdir)
    ready = inputs.make_ready(run, workdir)
    if ready.heldout is None:
        raise ValueError(
            f"config.data.heldout_fraction={run.data.heldout_fraction}: {workdir} has no held-out "
            "sessions; set a fraction and train in another --workdir"
        )
    wanted = trainable.abstract_params(run.model, run.compute, run.lora, mesh)
    params = checkpoint.load_params(step_dir, wanted)
    means = heldout.HeldoutLoss(run, ready.heldout, mesh)(params)
    if distributed.is_first():
        _show(means, title=f"Held-out loss, {workdir.name} after step {step_dir.name}")


def _show(means: dict[str, float], *, title: str) -> None:
    table = rich.table.Table(title=title)
    table.add_column("source")
    table.add_column("nats a token", justify="right")
    for source, mean in sorted(means.items()):
        table.add_row(source, f"{mean:.6f}")
    rich.console.Console().print(table)


if __name__ == "__main__":
    command.run(main)
