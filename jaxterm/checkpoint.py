"""Orbax checkpoints of everything a run is.

A step's folder, CHECKPOINT_DIR elsewhere in jaxterm:

    params/     nested dict of stacked arrays (jaxterm/model.py; with LoRA jaxterm/trainable.py)
    optimizer/  optax's state                                    (a run's checkpoints only)
    progress/   step, plan hash, seed                            (a run's checkpoints only)
    config/     config.json: {"model": ..., "run": ... or null}

Saving is asynchronous; Orbax renames a step's folder into place when all of it is written, so a
kill at any moment leaves the last complete one. `python -m convert hf-to-orbax` writes the first
and the last of the four.
"""

import dataclasses
import json
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from jaxterm import architecture, config, model

CONFIG_FILE = "config.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands: with the plan, all that decides which batch comes next."""

    step: int  # steps done
    plan_hash: str
    seed: int


class Checkpointer:
    """The checkpoints of one run, in WORKDIR/checkpoints."""

    def __init__(self, directory: epath.PathLike, *, keep: int):
        handlers = {
            "params": ocp.StandardCheckpointHandler(),
            "optimizer": ocp.StandardCheckpointHandler(),
            "progress": ocp.JsonCheckpointHandler(),
            "config": ocp.JsonCheckpointHandler(CONFIG_FILE),
        }
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(
            epath.Path(directory).resolve(), options=options, item_handlers=handlers
        )

    def latest_step(self) -> int | None:
        """The newest complete step, None in a fresh run."""
        return self._manager.latest_step()

    def save(
        self, params: model.Params, optimizer: Any, progress: Progress, run: config.TrainConfig
    ) -> None:
        """Start saving; returns when the arrays are copied off the devices."""
        self._manager.save(
            progress.step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params, save_args=params_save_args(params)),
                optimizer=ocp.args.StandardSave(optimizer),
                progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
                config=ocp.args.JsonSave(config_values(run.model, run)),
            ),
        )

    def wait(self) -> None:
        """Until all that is being saved is on disk."""
        self._manager.wait_until_finished()

    def restore(
        self, step: int, abstract_params: model.Params, abstract_optimizer: Any
    ) -> tuple[model.Params, Any, Progress]:
        """Everything saved at `step`, on the shardings of the abstract trees."""
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract_params),
                optimizer=ocp.args.StandardRestore(abstract_optimizer),
                progress=ocp.args.JsonRestore(),
            ),
        )
        return restored["params"], restored["optimizer"], Progress(**restored["progress"])

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is being saved, then let go of Orbax's threads."""
        self._manager.wait_until_finished()
        self._manager.close()


def config_values(
    architecture_: architecture.ModelConfig, run: config.TrainConfig | None
) -> dict[str, Any]:
    """What config/config.json of a checkpoint holds."""
    return {
        "model": config.to_json_dict(architecture_),
        "run": None if run is None else config.to_json_dict(run),
    }


def find_step_dir(path: epath.PathLike) -> epath.Path:
    """The step folder that `path` means: itself, or the newest of a run's or of its checkpoints/.

    Raises:
        ValueError: no complete checkpoint is there.
    """
    root = epath.Path(path)
    if (root / "params").exists():
        return root
    for folder in (root, root / "checkpoints"):
        steps = _complete_steps(folder)
        if steps:
            return folder / str(max(steps))
    raise ValueError(
        f"{path} holds no complete checkpoint: give a folder with params/ and config/ in it, "
        "a run's --workdir, or its checkpoints/ folder"
    )


def load_model_config(step_dir: epath.PathLike) -> architecture.ModelConfig:
    """The architecture of the checkpoint in `step_dir`."""
    path = epath.Path(step_dir) / "config" / CONFIG_FILE
    try:
        values = json.loads(path.read_text())
        of_model = values["model"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is missing, not JSON or without a model ({error!r}): the checkpoint is not "
            "complete; take another, or convert the Hugging Face folder again"
        ) from error
    return config.from_config_dict(of_model, architecture.ModelConfig)


def load_lora_config(step_dir: epath.PathLike) -> config.LoraConfig:
    """The LoRA settings of the run that wrote the checkpoint in `step_dir`; rank 0 without LoRA."""
    path = epath.Path(step_dir) / "config" / CONFIG_FILE
    run = json.loads(path.read_text()).get("run") or {}
    return config.from_config_dict(run.get("lora", {}), config.LoraConfig)


def load_progress(step_dir: epath.PathLike) -> Progress:
    """Where the run stood that wrote the checkpoint in `step_dir`."""
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return Progress(**checkpointer.restore(epath.Path(step_dir).resolve() / "progress"))


def load_params(step_dir: epath.PathLike, abstract_params: model.Params) -> model.Params:
    """The parameters in `step_dir`, on the shardings and in the dtypes of `abstract_params`.

    Raises:
        ValueError: listing every parameter that is missing, unexpected or of another shape.
    """
    folder = (epath.Path(step_dir) / "params").resolve()
    with ocp.StandardCheckpointer() as checkpointer:
        stored = checkpointer.metadata(folder).item_metadata
        _check_same_tree(folder, dict(stored), abstract_params)
        return checkpointer.restore(folder, abstract_params)


def params_save_args(params: model.Params) -> Any:
    """How Orbax is to cut the parameters: for a converter that never holds a whole array.

    A chunk has one layer. Left to itself Orbax keeps all layers together and cuts the sharded dim
    again and again: chunks of a few columns, whose rows are a few bytes long in a tensor's file.
    """

    def describe(path: tuple[Any, ...], _: Any) -> ocp.SaveArgs:
        is_stacked = path[0].key in ("layers", "lora")
        return ocp.SaveArgs(chunk_byte_size=64 * 2**20, shard_axes=(0,) if is_stacked else ())

    return jax.tree_util.tree_map_with_path(describe, params)


def _check_same_tree(folder: epath.Path, stored: Any, wanted: model.Params) -> None:
    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}

    have, want = shapes(stored), shapes(wanted)
    faults = [f"{name} is missing" for name in sorted(want.keys() - have.keys())]
    faults += [
        f"{name} is not a parameter of the model" for name in sorted(have.keys() - want.keys())
    ]
    faults += [
        f"{name} is {have[name]}, the model wants {want[name]}"
        for name in sorted(want.keys() & have.keys())
        if have[name] != want[name]
    ]
    if faults:
        raise ValueError(
            f"{folder} does not fit config.model: {'; '.join(faults)}; "
            "use the config of that checkpoint, or convert the Hugging Face folder again"
        )


def _complete_steps(folder: epath.Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(child.name) for child in folder.iterdir()
            if child.name.isdigit() and (child / "params").exists()]  # fmt: skip
