"""Settings: their way to ConfigDict, flags and JSON and back, and what they refuse."""

import dataclasses
import json
import pathlib
import re
import sys
import textwrap
import typing

import packed_rows
import pytest
from absl import flags
from ml_collections import config_flags

from jaxterm import architecture, config

REPOSITORY = pathlib.Path(config.__file__).resolve().parents[1]
YARN = architecture.RopeScaling(kind="yarn", factor=4.0, original_max_positions=32_768)
FULL = config.TrainConfig(
    model=dataclasses.replace(architecture.QWEN3["14b"], rope_scaling=YARN),
    data=config.DataConfig(corpus=("embedded", "more.parquet")),
)

CONFIG_FILE = """
    from jaxterm import architecture, config

    def get_config(variant=""):
        return config.to_config_dict(
            config.TrainConfig(
                model=architecture.QWEN3["14b"],
                seed=7,
                max_steps=20 if variant == "smoke" else 0,
            )
        )
"""


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    """The settings as `train.main` sees them: a real flag, a real file, real overrides."""
    path = tmp_path / "14b.py"  # not importable by name: the flag loads it by path
    path.write_text(textwrap.dedent(CONFIG_FILE))

    def parse(*overrides, variant=""):
        # ml-collections finds the overrides in the process's own command line.
        monkeypatch.setattr(sys, "argv", ["train", f"--config={path}{variant}", *overrides])
        values = flags.FlagValues()
        holder = config_flags.DEFINE_config_file("config", flag_values=values)
        values(sys.argv)
        return config.from_config_dict(holder.value)

    return parse


@pytest.mark.parametrize("settings", [FULL, packed_rows.tiny_run(rows=8, length=64)])
def test_config_dict_and_json_are_round_trips(settings):
    assert config.from_config_dict(config.to_config_dict(settings)) == settings
    text = json.dumps(config.to_json_dict(settings))
    assert config.from_config_dict(json.loads(text)) == settings


def test_flag_gives_what_the_file_says(parsed):
    expected = config.TrainConfig(model=architecture.QWEN3["14b"], seed=7)
    assert parsed() == expected
    assert parsed(variant=":smoke") == dataclasses.replace(expected, max_steps=20)


def test_overrides_reach_every_kind_of_setting(parsed):
    settings = parsed(
        "--config.optimizer.peak_lr=1",  # a whole number for a float
        "--config.data.corpus=('a.parquet', 'b.jsonl')",
        "--config.data.row_length=4096",
        "--config.compute.remat=dots",
        "--config.export.enabled=false",
        "--config.model.rope_scaling.kind=yarn",
        "--config.model.rope_scaling.factor=2",
        "--config.model.rope_scaling.original_max_positions=32768",
        "--config.model.rope_scaling.attention_factor=1.25",  # None until here
    )
    assert settings.optimizer.peak_lr == 1.0
    assert isinstance(settings.optimizer.peak_lr, float)
    assert settings.data.corpus == ("a.parquet", "b.jsonl")
    assert settings.data.row_length == 4096
    assert settings.compute.remat == "dots"
    assert settings.export.enabled is False
    assert settings.model.rope_scaling == dataclasses.replace(
        YARN, factor=2.0, attention_factor=1.25
    )


def test_one_corpus_is_a_tuple_of_one(parsed):
    assert parsed("--config.data.corpus=embedded").data.corpus == ("embedded",)


def test_commas_separate_corpora(parsed):
    assert parsed("--config.data.corpus=a.parquet,b").data.corpus == ("a.parquet", "b")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.data.row_length=0", r"config\.data\.row_length=0 must be positive"),
        ("--config.optimizer.num_micro_batches=3",
         r"config\.data\.global_batch_size=128 must be a multiple of "
         r"config\.optimizer\.num_micro_batches=3"),
        ("--config.compute.remat=some", r"config\.compute\.remat='some' must be one of 'none'"),
        ("--config.compute.param_dtype=float16", r"config\.compute\.param_dtype='float16' must be"),
        ("--config.data.think=maybe", r"config\.data\.think='maybe' must be one of"),
        ("--config.data.curriculum=foo", r"config\.data\.curriculum='foo' must be one of 'mixed'"),
        ("--config.data.trajectory_filter=some", r"config\.data\.trajectory_filter='some' must be"),
        ("--config.compute.attention=flash", r"config\.compute\.attention='flash' must be one of"),
        ("--config.export.dtype=float16", r"config\.export\.dtype='float16' must be one of"),
        ("--config.data.num_workers=-1", r"config\.data\.num_workers=-1 must not be negative"),
        ("--config.data.heldout_fraction=1.0", r"config\.data\.heldout_fraction=1\.0 must be in"),
        ("--config.mesh.tensor=-1", r"config\.mesh .* only one axis may be -1"),
        ("--config.mesh.tensor=0", r"config\.mesh \{'tensor': 0\}: an axis has a positive size"),
        ("--config.model.num_kv_heads=7", r"config\.model\.num_heads=40 must be a multiple of"),
        ("--config.model.head_dim=127", r"config\.model\.head_dim=127 must be even"),
        ("--config.model.rope_scaling.kind=yarn", r"kind='yarn' needs original_max_positions > 0"),
        ("--config.model.rope_scaling.factor=0.5", r"rope_scaling\.factor=0\.5 must be >= 1"),
        ("--config.optimizer.peak_lr=0.0", r"config\.optimizer\.peak_lr=0\.0 must be positive"),
        ("--config.optimizer.beta1=1.0", r"config\.optimizer\.beta1=1\.0 must be in \[0, 1\)"),
        ("--config.optimizer.beta2=1.5", r"config\.optimizer\.beta2=1\.5 must be in"),
        ("--config.optimizer.epsilon=0.0", r"config\.optimizer\.epsilon=0\.0 must be positive"),
        ("--config.optimizer.name=lion", r"optimizer\.name='lion' must be one of 'adamw', 'muon'"),
        ("--config.optimizer.muon_momentum=1.0", r"muon_momentum=1\.0 must be in \[0, 1\)"),
        ("--config.optimizer.decay_fraction=1.5", r"decay_fraction=1\.5 must be in \[0, 1\]"),
        ("--config.log.metrics_every_steps=0", r"metrics_every_steps=0 must be positive"),
        ("--config.export.max_shard_gb=0.0", r"config\.export\.max_shard_gb=0\.0 must be positive"),
        ("--config.max_steps=-1", r"config\.max_steps=-1 must not be negative"),
    ],
)  # fmt: skip
def test_rules_hold_after_overrides(parsed, override, message):
    with pytest.raises(ValueError, match=message):
        parsed(override)


def test_pieces_of_the_mlp_do_not_go_to_the_host(parsed):
    up = "--config.compute.remat_offload=up"
    assert parsed(up, "--config.compute.mlp_chunks=1").compute.remat_offload == ("up",)
    with pytest.raises(ValueError, match=r"offload=up: .* set config\.compute\.mlp_chunks=1"):
        parsed(up, "--config.compute.mlp_chunks=4")


def test_the_parts_of_a_schedule_fit_into_the_run(parsed):
    wsd, most = "--config.optimizer.schedule=wsd", "--config.optimizer.warmup_fraction=0.9"
    assert parsed(wsd, most).optimizer.warmup_fraction == 0.9
    with pytest.raises(
        ValueError, match=r"warmup_fraction=0\.9 and .*decay_fraction=0\.2 must not"
    ):
        parsed(wsd, most, "--config.optimizer.decay_fraction=0.2")
    assert parsed(most, "--config.optimizer.decay_fraction=0.2")  # a cosine has no such part


def test_bfloat16_holds_no_moment_that_moves_too_little(parsed):
    """0.4 % of a value is half of its last bit: 0.999 would leave it as it is for ever."""
    import ml_dtypes

    assert ml_dtypes.bfloat16(1.0) * ml_dtypes.bfloat16(0.999) == 1.0
    dtype = "--config.optimizer.moment_dtype=bfloat16"
    assert parsed(dtype, "--config.optimizer.beta2=0.99").optimizer.moment_dtype == "bfloat16"
    with pytest.raises(ValueError, match=r"beta2=0\.999 must be at most 0\.99 with .*bfloat16"):
        parsed(dtype, "--config.optimizer.beta2=0.999")


@pytest.mark.parametrize("schema", [type(getattr(FULL, f.name)) for f in dataclasses.fields(FULL)])
def test_every_choice_is_checked(schema):
    """Whatever is annotated as a Literal refuses what is not in it, by the user's name."""
    if not dataclasses.is_dataclass(schema) or schema is architecture.ModelConfig:
        return
    (section,) = (f.name for f in dataclasses.fields(FULL) if f.type is schema)
    for name, hint in typing.get_type_hints(schema).items():
        if typing.get_origin(hint) is typing.Literal:
            with pytest.raises(ValueError, match=rf"config\.{section}\.{name}='zebra' must be one"):
                schema(**{name: "zebra"})


def test_names_of_settings_are_what_the_command_line_takes():
    def names(values, prefix=""):
        for name, value in values.items():
            yield prefix + name
            if isinstance(value, dict):
                yield from names(value, f"{prefix}{name}.")

    assert sorted(config.setting_names()) == sorted(names(config.to_json_dict(FULL)))


@pytest.mark.parametrize(("size", "num_gpus"), [("8b", 32), ("14b", 32), ("32b", 128)])
def test_the_files_of_the_published_sizes_are_the_papers_recipe(size, num_gpus, monkeypatch):
    """arXiv 2602.21193, 5.1: the same recipe on 32, 32 and 128 GPUs."""
    monkeypatch.setattr(sys, "argv", ["train", f"--config={REPOSITORY}/configs/{size}.py"])
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    values(sys.argv)
    run = config.from_config_dict(holder.value)
    assert config.validate_on_devices(run, num_gpus)["fsdp"] == num_gpus
    assert run.model == architecture.QWEN3[size]
    assert (run.data.epochs, run.data.row_length, run.data.global_batch_size) == (2, 32_768, 128)
    assert run.data.curriculum == "mixed"
    recipe = run.optimizer
    assert (recipe.peak_lr, recipe.warmup_fraction, recipe.final_lr_fraction) == (2e-5, 0.1, 0.0)
    assert (recipe.beta1, recipe.beta2, recipe.weight_decay) == (0.9, 0.95, 1e-4)
    assert recipe.max_grad_norm == 1.0


def test_unknown_setting_on_the_command_line_names_its_neighbour(parsed):
    with pytest.raises(Exception, match=r'Did you mean "row_length" instead of "rowlength"'):
        parsed("--config.data.rowlength=77")


def test_wrong_type_on_the_command_line_is_refused(parsed):
    with pytest.raises(flags.IllegalFlagValueError, match="row_length"):
        parsed("--config.data.row_length=long")


def test_unknown_and_missing_settings_in_a_file():
    values = config.to_json_dict(FULL)
    values["data"]["rowlength"] = 77
    with pytest.raises(ValueError, match=r"unknown settings \['rowlength'\] in DataConfig"):
        config.from_config_dict(values)
    with pytest.raises(ValueError, match="'model'"):
        config.from_config_dict({"seed": 1})


@pytest.mark.parametrize(
    ("mesh", "num_devices", "expected"),
    [
        ({}, 8, (1, 8, 1, 1)),
        ({"data": 2, "context": 2}, 8, (2, 2, 2, 1)),
        ({"fsdp": 1}, 1, (1, 1, 1, 1)),
        ({"data": -1, "fsdp": 2}, 8, (4, 2, 1, 1)),
    ],
)
def test_mesh_takes_the_devices_that_are_left(mesh, num_devices, expected):
    sizes = config.MeshConfig(**mesh).sizes(num_devices)
    assert tuple(sizes.values()) == expected
    assert tuple(sizes) == ("data", "fsdp", "context", "tensor")


@pytest.mark.parametrize("mesh", [{"fsdp": 3}, {"data": 3}, {"fsdp": 4}, {"data": 16}])
def test_mesh_that_does_not_fit_the_devices(mesh):
    with pytest.raises(ValueError, match=r"config\.mesh .* does not fit 8 devices"):
        config.MeshConfig(**mesh).sizes(8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"global_batch_size": 12, "row_length": 64}},
         r"config\.data\.global_batch_size / optimizer\.num_micro_batches=12 must be a multiple of "
         r"data\*fsdp=8"),
        ({"mesh": {"fsdp": 1, "context": 8}, "data": {"row_length": 60}},
         r"config\.data\.row_length=60 must be a multiple of 2\*context=16"),
        ({"mesh": {"fsdp": 2, "tensor": 4}},
         r"config\.model\.num_kv_heads=2 must be a multiple of tensor=4"),
        ({"mesh": {"fsdp": 1, "tensor": 8}}, r"config\.model\.num_heads=4 must be a multiple of"),
        ({"model": {"vocab_multiple": 1}, "mesh": {"tensor": 2}},
         r"the padded vocabulary \(model\.vocab_multiple\)=99 must be a multiple of tensor=2"),
        ({"model": {"embed_dim": 36}}, r"config\.model\.embed_dim=36 must be .* fsdp\*context=8"),
        ({"model": {"mlp_dim": 49}, "mesh": {"tensor": 2}}, r"config\.model\.mlp_dim=49 must be"),
        ({"mesh": {"num_slices": 2}}, r"config\.mesh\.data=1 must be a multiple of "
         r"mesh\.num_slices=2"),
    ],
)  # fmt: skip
def test_settings_that_the_mesh_does_not_divide(changes, message):
    run = packed_rows.replace_fields(packed_rows.tiny_run(rows=8, length=64), **changes)
    with pytest.raises(ValueError, match=message):
        config.validate_on_devices(run, 8)


def test_all_faults_of_a_mesh_are_told_at_once():
    run = packed_rows.tiny_run(rows=3, length=63)
    run = packed_rows.replace_fields(run, mesh={"fsdp": 2, "context": 2, "tensor": 2})
    with pytest.raises(ValueError, match=r"=3 must be .*row_length=63.*--config\.mesh"):
        config.validate_on_devices(run, 8)


def settings_of(schema):
    """Every field of the schema and of the dataclasses in it."""
    for field in dataclasses.fields(schema):
        inner = field.type if isinstance(field.type, type) else None
        if dataclasses.is_dataclass(inner):
            yield from settings_of(inner)
        else:
            yield schema, field.name


def test_no_setting_without_a_reader():
    sources = "\n".join(
        path.read_text()
        for package in ("jaxterm", "convert")
        for path in sorted((REPOSITORY / package).glob("*.py"))
    )
    # What config.py and architecture.py do by a field's name, not as `.name`.
    by_name = {(config.MeshConfig, axis) for axis in ("data", "fsdp", "context", "tensor")}
    by_name |= {(architecture.ModelConfig, name) for name in architecture._HF_NAMES}
    unread = [
        f"{schema.__name__}.{name}"
        for schema, name in settings_of(config.TrainConfig)
        if (schema, name) not in by_name and not re.search(rf"(?<!self)\.{name}\b(?!=)", sources)
    ]
    assert not unread
