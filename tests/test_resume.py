"""What may change between two starts of a run, and what would make it another."""

import json

import jax.numpy as jnp
import packed_rows
import pytest

from jaxterm import checkpoint, resume

RUN = packed_rows.tiny_run(rows=8, length=24)


@pytest.fixture
def saved(tmp_path):
    """Saves a checkpoint of a run; returns its folder."""

    def save(run):
        done = checkpoint.Progress(step=3, plan_hash="abc", seed=42)
        with checkpoint.Checkpointer(tmp_path, keep=1) as checkpoints:
            checkpoints.save({"x": jnp.ones(2)}, {"y": jnp.ones(2)}, done, run)
        return tmp_path / "3"

    return save


@pytest.mark.parametrize(
    "change", [{"state_memory": "host"}, {"num_micro_batches": 2}], ids=lambda x: next(iter(x))
)
def test_where_moments_lie_may_change(saved, change):
    changed = packed_rows.replace_fields(RUN, optimizer=change)
    resume.refuse_changes(changed, saved(RUN), "abc")


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [("name", "adamw", "muon"), ("schedule", "cosine", "wsd"),
     ("moment_dtype", "float32", "bfloat16"), ("decay_fraction", 0.1, 0.2),
     ("muon_momentum", 0.95, 0.9)],
)  # fmt: skip
def test_another_optimizer_or_schedule_is_another_run(saved, name, before, now):
    changed = packed_rows.replace_fields(RUN, optimizer={name: now})
    with pytest.raises(
        ValueError, match=rf"config\.optimizer\.{name} is {before!r} there, now {now!r}"
    ):
        resume.refuse_changes(changed, saved(RUN), "abc")


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_a_checkpoint_from_before_these_settings_has_what_there_was(saved, param_dtype):
    """AdamW and a cosine, with moments of the dtype of their parameters."""
    run = packed_rows.replace_fields(
        RUN, compute={"param_dtype": param_dtype}, optimizer={"moment_dtype": param_dtype}
    )
    folder = saved(run)
    path = folder / "config" / checkpoint.CONFIG_FILE
    values = json.loads(path.read_text())
    for name in ("name", "schedule", "moment_dtype", "decay_fraction", "muon_momentum",
                 "state_memory"):  # fmt: skip
        del values["run"]["optimizer"][name]
    path.write_text(json.dumps(values))
    resume.refuse_changes(run, folder, "abc")
    other = {"float32": "bfloat16", "bfloat16": "float32"}[param_dtype]
    for change in ({"name": "muon"}, {"schedule": "wsd"}, {"moment_dtype": other}):
        with pytest.raises(ValueError, match=rf"{next(iter(change))} is '.*' there, now"):
            resume.refuse_changes(packed_rows.replace_fields(run, optimizer=change), folder, "abc")
