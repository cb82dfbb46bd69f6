"""Train: from a Hugging Face checkpoint and a corpus to a Hugging Face checkpoint.

    python -m jaxterm.train --config=configs/tiny.py
    python -m jaxterm.train --config=configs/14b.py --workdir=DIR \\
        --config.start.hf_dir=/models/Qwen3-14B --config.data.corpus=/data/corpus
    python -m jaxterm.train --config=configs/8b.py --config.optimizer.peak_lr=1e-5
    python -m jaxterm.train --config=configs/14b.py --workdir=DIR --profile=10:12

A run is its folder: with a checkpoint in it the same command goes on where it stopped.
"""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
from absl import flags

from jaxterm import (
    batches,
    checkpoint,
    command,
    config,
    distributed,
    export,
    goodput,
    heldout,
    inputs,
    model,
    model_card,
    profiling,
    report,
    resume,
    sharding,
    start,
    summary,
    train_step,
)

PROFILE = flags.DEFINE_string(
    "profile", None, "FIRST:LAST, steps to trace into WORKDIR/profile for xprof; both ends are"
)


def main(
    run: config.TrainConfig, workdir: pathlib.Path, *, profile: profiling.Steps | None = None
) -> int:
    """Train as `run` says in `workdir`; 0 when done, command.STOPPED when told to stop before."""
    ledger = goodput.Ledger()
    distributed.start(run.mesh.num_cpu_devices)
    sizes = config.validate_on_devices(run, jax.device_count())
    mesh = sharding.make_mesh(sizes, num_slices=run.mesh.num_slices)
    ready = inputs.make_ready(run, workdir, sizes)
    num_steps = min(run.max_steps or ready.train.num_steps, ready.train.num_steps)
    if profile:
        profile.check(num_steps)

    folder = workdir / "checkpoints"
    with ledger, checkpoint.Checkpointer(folder, keep=run.log.keep_checkpoints) as checkpoints:
        state = _first_state(run, workdir, ready, mesh, checkpoints, num_steps)
        distributed.once("settings", lambda: _write_settings(run, workdir))
        finished = _train(
            run, workdir, ready, mesh, checkpoints, state, num_steps, ledger=ledger, profile=profile
        )
    if not finished:
        return command.STOPPED

    distributed.once("finish", lambda: _finish(run, workdir, ready))
    return 0


def _first_state(
    run: config.TrainConfig,
    workdir: pathlib.Path,
    ready: inputs.Inputs,
    mesh: jax.sharding.Mesh,
    checkpoints: checkpoint.Checkpointer,
    num_steps: int,
) -> train_step.TrainState:
    """The newest checkpoint's state, or that of the start checkpoint before any step."""
    step = checkpoints.latest_step()
    abstract = train_step.abstract_state(run, mesh, num_steps)
    if step is None:
        folder = start.checkpoint_folder(run, workdir, ready.hf_dir)
        params = checkpoint.load_params(folder, model.abstract_params(run.model, run.compute, mesh))
        return train_step.init_state(run, mesh, params, num_steps)
    resume.refuse_changes(run, workdir / "checkpoints" / str(step), ready.train.plan_hash)
    params, moments, done = checkpoints.restore(step, abstract.params, abstract.optimizer)
    counter = jax.device_put(jnp.int32(done.step), abstract.step.sharding)
    return train_step.TrainState(params, moments, counter)


def _train(
    run: config.TrainConfig,
    workdir: pathlib.Path,
    ready: inputs.Inputs,
    mesh: jax.sharding.Mesh,
    checkpoints: checkpoint.Checkpointer,
    state: train_step.TrainState,
    num_steps: int,
    *,
    ledger: goodput.Ledger,
    profile: profiling.Steps | None,
) -> bool:
    """The loop. Returns whether all steps are done."""
    first_step = int(state.step)
    reports = report.Report(run, workdir, ledger, first_step=first_step, num_steps=num_steps)
    profiler = profiling.Profiler(profile, workdir, first_step=first_step, say=reports.say)
    heldout_loss = heldout.HeldoutLoss(run, ready.heldout, mesh) if ready.heldout else None
    step_function = train_step.jit_train_step(run, mesh, num_steps)
    rows = batches.iterate(
        ready.train, mesh, first_step=first_step, num_workers=run.data.num_workers
    )

    def evaluate(step: int) -> None:
        if heldout_loss is None:
            return
        reports.flush()
        with ledger.phase(goodput.EVALUATION):
            means = heldout_loss(state.params)
        reports.heldout(step, means)

    def save(step: int, *, is_end: bool) -> None:
        reports.flush()  # a saved step has its reports on disk: a run killed later lacks none
        done = checkpoint.Progress(step=step, plan_hash=ready.train.plan_hash, seed=run.seed)
        with ledger.phase(goodput.CHECKPOINT):
            checkpoints.save(state.params, state.optimizer, done, run)
            if is_end:
                checkpoints.wait()
        reports.goodput(step)

    note = ready.unevenness(mesh.shape["data"] * mesh.shape["fsdp"])
    with reports, profiler, distributed.StopSignal() as stop, jax.set_mesh(mesh):
        if note:
            reports.say(note)
        if first_step == 0:
            evaluate(0)
        for step in range(first_step + 1, num_steps + 1):
            profiler.before(step, state)
            with ledger.phase(goodput.INPUT):
                batch, _ = next(rows)
            num_positions = batch["tokens"].size
            with ledger.dispatch(batch["tokens"].shape), profiling.step_marker(step):
                state, values = step_function(state, batch)
            reports.step(step, values, num_positions)
            profiler.after(step, values)
            last, stopped = step == num_steps, stop.asked(step)
            if last or (_is_due(step, run.log.eval_every_steps) and not stopped):
                evaluate(step)
            if last or stopped or _is_due(step, run.log.checkpoint_every_steps):
                save(step, is_end=last or stopped)
            if stopped:
                break
    done = int(state.step) == num_steps
    if not done:
        reports.say(f"stopped after step {int(state.step)}; the same command goes on from there")
    return done


def _is_due(step: int, every_steps: int) -> bool:
    return every_steps > 0 and step % every_steps == 0


def _write_settings(run: config.TrainConfig, workdir: pathlib.Path) -> None:
    path = workdir / "config.json"
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(config.to_json_dict(run), indent=2) + "\n")
    os.replace(temporary, path)


def _finish(run: config.TrainConfig, workdir: pathlib.Path, ready: inputs.Inputs) -> None:
    """Export and sum up."""
    hf_dir = None
    if run.export.enabled:
        step_dir = pathlib.Path(checkpoint.find_step_dir(workdir))
        hf_dir = export.make(run.export, workdir, step_dir, reference=ready.hf_dir)
    values = summary.write(workdir, ready, settings=config.to_json_dict(run), hf_dir=hf_dir)
    if hf_dir is not None:
        model_card.write(values, workdir)
    summary.show(values, workdir)


if __name__ == "__main__":
    command.run(lambda run, workdir: main(run, workdir, profile=profiling.parse(PROFILE.value)))
