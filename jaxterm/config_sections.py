"""The sections of a run's settings: what each setting means, its default, and its rule.

`jaxterm/config.py` puts them together.
"""

import dataclasses
import typing
from typing import Any, Literal

REMAT_TENSORS = ("stream", "q", "k", "v", "attention", "middle", "gate", "up")
DType = Literal["float32", "bfloat16"]
LORA_WEIGHTS = ("q", "k", "v", "o", "gate", "up", "down")


def require(condition: bool, message: str) -> None:
    """ValueError with `message` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def _check_choices(settings: Any, section: str) -> None:
    """Every field annotated as a Literal holds one of its values."""
    for name, hint in typing.get_type_hints(type(settings)).items():
        if typing.get_origin(hint) is Literal:
            value, allowed = getattr(settings, name), typing.get_args(hint)
            require(
                value in allowed,
                f"{section}.{name}={value!r} must be one of {', '.join(map(repr, allowed))}",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Where the weights and the tokenizer come from."""

    hf_dir: str = ""  # a Hugging Face folder: config.json, safetensors, tokenizer
    checkpoint_dir: str = ""  # hf_dir already converted; empty: converted to WORKDIR/start
    random: bool = False  # make such a folder with random weights in WORKDIR/start
    tokenizer_dir: str = ""  # with random=True; empty: the tokenizer shipped with data_pipeline


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How the model is computed: number formats, what is recomputed, sizes of the chunks."""

    param_dtype: DType = "float32"
    compute_dtype: DType = "bfloat16"
    # What a block keeps for its backward pass, see jaxterm/remat.py: everything, or less and less.
    remat: Literal["none", "dots", "projections", "attention", "full"] = "full"
    remat_keep: tuple[str, ...] = ()  # tensors more to keep: q, k, v, attention, middle, gate, up
    remat_offload: tuple[str, ...] = ()  # tensors kept in the host's memory; stream too
    # One body for all blocks; False: each by itself, which copies less and compiles longer.
    scan_layers: bool = True
    attention: Literal[
        "auto",
        "reference",
        "blockwise",
        "splash",
        "jax_splash",
        "cudnn",
        "mosaic_gpu",
        "triton_gpu",
    ] = "auto"
    attention_block: int = 128  # tokens a side of one tile of blockwise attention
    # Number format of the products with the blocks' weights, see jaxterm/product.py.
    quantization: Literal["none", "int8", "fp8"] = "none"
    mlp_chunks: int = 1  # parts of the MLP that are computed one after another, to save memory
    loss_chunk_tokens: int = 1024  # positions of a row whose logits exist at one time

    def __post_init__(self):
        _check_choices(self, "config.compute")
        for name, allowed in (("remat_keep", REMAT_TENSORS[1:]), ("remat_offload", REMAT_TENSORS)):
            unknown = sorted(set(getattr(self, name)) - set(allowed))
            require(
                not unknown,
                f"config.compute.{name}={','.join(unknown)}: a tensor is one of "
                f"{', '.join(allowed)}",
            )
        require(
            self.remat != "none" or not (self.remat_keep or self.remat_offload),
            "config.compute.remat=none keeps everything: leave remat_keep and remat_offload empty, "
            "or set remat=full to begin with nothing",
        )
        in_chunks = sorted({"gate", "up"} & set(self.remat_offload))
        require(
            self.mlp_chunks == 1 or not in_chunks,
            f"config.compute.remat_offload={','.join(in_chunks)}: pieces of the MLP cannot go to "
            f"the host; set config.compute.mlp_chunks=1, it is {self.mlp_chunks}",
        )
        for name in ("attention_block", "mlp_chunks", "loss_chunk_tokens"):
            value = getattr(self, name)
            require(value > 0, f"config.compute.{name}={value} must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh axes; at most one may be -1 and takes the devices that are left."""

    data: int = 1  # copies of the model; across slices, over the data-centre network
    fsdp: int = -1  # rows of the batch, and the parameters cut along their embed dim
    context: int = 1  # the length of a row
    tensor: int = 1  # heads, mlp and vocabulary
    num_slices: int = 1  # pods joined by the data-centre network; divides `data`
    num_cpu_devices: int = 1  # a CPU works as so many devices: cores share the rows, not each tile

    def __post_init__(self):
        sizes = {name: getattr(self, name) for name in ("data", "fsdp", "context", "tensor")}
        bad = {name: size for name, size in sizes.items() if size < 1 and size != -1}
        require(not bad, f"config.mesh {bad}: an axis has a positive size, or -1 for what is left")
        require(
            list(sizes.values()).count(-1) <= 1, f"config.mesh {sizes}: only one axis may be -1"
        )
        for name in ("num_slices", "num_cpu_devices"):
            value = getattr(self, name)
            require(value > 0, f"config.mesh.{name}={value} must be positive")

    def sizes(self, num_devices: int) -> dict[str, int]:
        """Mesh axis -> size on `num_devices` devices; ValueError where they do not fit."""
        sizes = {name: getattr(self, name) for name in ("data", "fsdp", "context", "tensor")}
        fixed = 1
        for size in sizes.values():
            fixed *= size if size != -1 else 1
        sizes = {k: num_devices // fixed if v == -1 else v for k, v in sizes.items()}
        product = 1
        for size in sizes.values():
            product *= size
        require(
            product == num_devices and num_devices % fixed == 0,
            f"config.mesh {dataclasses.asdict(self)} does not fit {num_devices} devices: "
            "the product of its axes must be the number of devices; set one axis to -1",
        )
        return sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which conversations are trained, and how they become rows."""

    corpus: tuple[str, ...] = ()  # Parquet or JSONL files or folders; `embedded` is the shipped one
    prepared_dir: str = ""  # instead of corpus: a folder made by `python -m data_pipeline.prepare`
    row_length: int = 32_768  # tokens
    global_batch_size: int = 128  # rows a step, over all devices and micro-batches
    epochs: float = 2.0  # passes over each example
    think: Literal["keep", "strip_history"] = "keep"
    overlong: Literal["split", "truncate", "drop"] = "split"
    curriculum: Literal[
        "mixed", "in_order", "short_to_long", "easy_to_hard", "two_stage", "staged"
    ] = "mixed"
    first_sources: tuple[str, ...] = ()  # of the first stage of two_stage
    replay: float = 0.0  # of two_stage: the first stage's tokens again in the second, a share
    difficulty_by: Literal["length", "turns", "difficulty"] = "length"  # of easy_to_hard
    stages: str = ""  # of staged: a TOML file, see data_pipeline/planning/stages_file.py
    max_tokens: int = 0  # a pass trains a part of each source, so many tokens in all; 0: all
    window_rows: int = 4096  # rows packed together; an example moves no further
    max_segments: int = 0  # examples a row may hold; 0: no limit
    carry_prompt: bool = True  # in front of each part of a split example, untrained
    num_shards: int = 32  # data shards between which attention work is evened
    trajectory_filter: Literal["none", "complete", "success"] = "none"
    parse_failures: Literal["keep", "mask", "splice", "drop"] = "keep"  # replies not parsed
    benchmarks: tuple[str, ...] = ()  # task folders or .jsonl that no trained task may overlap
    strict: bool = False  # stop at malformed rows and damaged files, instead of removing them
    heldout_fraction: float = 0.0  # of the tasks, whole tasks at a time
    num_workers: int = 0  # Grain processes that read rows; 0 reads in the training process

    def __post_init__(self):
        _check_choices(self, "config.data")
        for name in ("row_length", "global_batch_size", "epochs", "window_rows", "num_shards"):
            value = getattr(self, name)
            require(value > 0, f"config.data.{name}={value} must be positive")
        for name in ("replay", "max_tokens", "max_segments"):
            value = getattr(self, name)
            require(value >= 0, f"config.data.{name}={value} must not be negative")
        require(
            bool(self.stages) == (self.curriculum == "staged"),
            f"config.data.stages={self.stages!r} and config.data.curriculum={self.curriculum}: "
            "staged, and only that, reads a file of stages",
        )
        require(
            0 <= self.heldout_fraction < 1,
            f"config.data.heldout_fraction={self.heldout_fraction} must be in [0, 1)",
        )
        require(
            self.num_workers >= 0,
            f"config.data.num_workers={self.num_workers} must not be negative",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How gradients become updates; the defaults are the paper's (section 5.1): AdamW, cosine."""

    name: Literal["adamw", "muon"] = "adamw"  # muon: for the blocks' matrices, AdamW for all else
    peak_lr: float = 2e-5
    schedule: Literal["cosine", "wsd"] = "cosine"  # wsd: level after the warm-up, then a line down
    warmup_fraction: float = 0.1  # of all steps
    decay_fraction: float = 0.1  # of all steps, the last ones: where wsd goes down
    final_lr_fraction: float = 0.0  # of peak_lr, where the schedule ends
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    muon_momentum: float = 0.95
    weight_decay: float = 1e-4  # on matrices; never on norm scales
    max_grad_norm: float = 1.0  # global; 0 does not clip
    num_micro_batches: int = 1  # a step's batch is computed in this many parts
    moment_dtype: DType = "float32"  # as moments are kept; every update is computed in float32
    state_memory: Literal["device", "host"] = "device"  # where moments lie between two updates

    def __post_init__(self):
        _check_choices(self, "config.optimizer")
        for name in ("peak_lr", "epsilon", "num_micro_batches"):
            value = getattr(self, name)
            require(value > 0, f"config.optimizer.{name}={value} must be positive")
        for name in ("warmup_fraction", "decay_fraction", "final_lr_fraction"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"config.optimizer.{name}={value} must be in [0, 1]")
        require(
            self.schedule != "wsd" or self.warmup_fraction + self.decay_fraction <= 1,
            f"config.optimizer.warmup_fraction={self.warmup_fraction} and config.optimizer."
            f"decay_fraction={self.decay_fraction} must not be more than 1 together",
        )
        for name in ("beta1", "beta2", "muon_momentum"):  # 1: the bias's correction divides by 0
            value = getattr(self, name)
            require(0 <= value < 1, f"config.optimizer.{name}={value} must be in [0, 1)")
            # Of its eight bits, a change of less than half the last one is rounded away.
            require(
                self.moment_dtype == "float32" or value <= 0.99,
                f"config.optimizer.{name}={value} must be at most 0.99 with config.optimizer."
                "moment_dtype='bfloat16', which cannot hold so small a change of a moment",
            )
        for name in ("weight_decay", "max_grad_norm"):
            value = getattr(self, name)
            require(value >= 0, f"config.optimizer.{name}={value} must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Train small matrices beside frozen weights instead of all weights, see jaxterm/lora.py."""

    rank: int = 0  # of the matrices; 0 trains all weights
    alpha: float = 16.0  # what they add counts alpha / rank times
    weights: tuple[str, ...] = LORA_WEIGHTS  # of each block, those that get such matrices
    # How the blocks' frozen weights are stored: as compute.param_dtype says, or in 8 or 4 bits.
    base_dtype: Literal["param", "int8", "nf4"] = "param"

    def __post_init__(self):
        _check_choices(self, "config.lora")
        require(self.rank >= 0, f"config.lora.rank={self.rank} must not be negative; 0 is no LoRA")
        require(self.alpha > 0, f"config.lora.alpha={self.alpha} must be positive")
        unknown = sorted(set(self.weights) - set(LORA_WEIGHTS))
        require(
            bool(self.weights) and not unknown,
            f"config.lora.weights={','.join(unknown or self.weights)}: name at least one of "
            f"{', '.join(LORA_WEIGHTS)}, and no other",
        )
        require(
            self.rank > 0 or self.base_dtype == "param",
            f"config.lora.base_dtype={self.base_dtype!r} freezes the weights, and config.lora."
            "rank=0 trains nothing else; set a rank, or base_dtype=param",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What a run writes while it goes on."""

    metrics_every_steps: int = 1
    eval_every_steps: int = 200  # held-out loss; 0 only at the end
    checkpoint_every_steps: int = 200  # 0 only at the end
    keep_checkpoints: int = 2
    wandb_project: str = ""  # empty: no Weights & Biases

    def __post_init__(self):
        require(
            self.metrics_every_steps > 0,
            f"config.log.metrics_every_steps={self.metrics_every_steps} must be positive",
        )
        require(
            self.keep_checkpoints > 0,
            f"config.log.keep_checkpoints={self.keep_checkpoints} must be positive",
        )
        for name in ("eval_every_steps", "checkpoint_every_steps"):
            value = getattr(self, name)
            require(value >= 0, f"config.log.{name}={value} must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The Hugging Face folder that a finished run leaves in WORKDIR/hf."""

    enabled: bool = True
    dtype: DType = "bfloat16"
    max_shard_gb: float = 5.0
    eos: Literal["refuse", "fix"] = "refuse"  # a start whose eos ids lack what ends trained turns

    def __post_init__(self):
        _check_choices(self, "config.export")
        require(
            self.max_shard_gb > 0,
            f"config.export.max_shard_gb={self.max_shard_gb} must be positive",
        )
