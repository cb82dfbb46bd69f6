"""Convert Qwen3 weights between Hugging Face folders and Orbax checkpoints.

    python -m convert hf-to-orbax HF_DIR CHECKPOINT_DIR [--dtype=float32] [--vocab_multiple=256]
    python -m convert orbax-to-hf CHECKPOINT_DIR HF_DIR --reference=HF_DIR [--dtype=bfloat16]
                                  [--max_shard_gb=5] [--eos=fix]
    python -m convert verify A B [--logits]
    python -m convert random-hf HF_DIR --size=0.6b --tokenizer=HF_DIR [--dtype=bfloat16] [--seed=0]

HF_DIR holds config.json, safetensors and a tokenizer; CHECKPOINT_DIR is a step's folder, or a
run's workdir or its checkpoints/, of which the newest step is read. A and B are of either kind.
Weights are read and written in parts: memory does not grow with the model (--logits alone holds
one model after the other).

Nothing lies at the output's place before it is complete. `verify` ends with exit code 1 when the
two differ (logits too: by anything where the dtypes are the same, by more than rounding explains
where they are not), every command when it could not do its work.

Examples:
    python -m convert hf-to-orbax ~/models/Qwen3-8B ~/checkpoints/Qwen3-8B
    python -m convert orbax-to-hf ~/runs/8b ~/models/my-agent-8B --reference=~/models/Qwen3-8B
    python -m convert verify ~/models/my-agent-8B ~/runs/8b --logits
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging

from convert import (
    hf_metadata,
    hf_to_orbax,
    orbax_to_hf,
    progress,
    random_hf,
    verify,
    verify_logits,
    verify_table,
)
from jaxterm import architecture

_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["bfloat16", "float32"],
    "of the weights that are written; hf-to-orbax keeps what they are, the others write bfloat16",
)  # fmt: skip
_VOCAB_MULTIPLE = flags.DEFINE_integer(
    "vocab_multiple", 1, "hf-to-orbax: pad the vocabulary's rows to a multiple of this",
    lower_bound=1,
)  # fmt: skip
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace the output, once the new one is there")
_REFERENCE = flags.DEFINE_string(
    "reference", None, "orbax-to-hf: the Hugging Face folder that training started from"
)
_MAX_SHARD_GB = flags.DEFINE_float(
    "max_shard_gb", 5.0, "most 10**9 bytes of one safetensors file", lower_bound=1e-6
)
_EOS = flags.DEFINE_enum(
    "eos", "refuse", list(hf_metadata.EOS_RULES),
    "orbax-to-hf: when the reference's eos ids lack <|im_end|>, which ends every trained turn",
)  # fmt: skip
_LOGITS = flags.DEFINE_bool("logits", False, "verify: also run both models on random tokens")
_SIZE = flags.DEFINE_enum("size", None, list(architecture.QWEN3), "random-hf: the published size")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "random-hf: a folder with tokenizer.json")
_SEED = flags.DEFINE_integer("seed", 0, "random-hf: of the weights; verify: of --logits' tokens")


@dataclasses.dataclass(frozen=True)
class _Command:
    run: Callable[..., int]
    arguments: tuple[str, ...]
    flags: frozenset[str]
    required: frozenset[str] = frozenset()


def _hf_to_orbax(hf_dir: str, checkpoint_dir: str) -> int:
    with progress.bar("hf-to-orbax") as on_bytes:
        opened = hf_to_orbax.convert(
            hf_dir, checkpoint_dir, dtype=_DTYPE.value, vocab_multiple=_VOCAB_MULTIPLE.value,
            overwrite=_OVERWRITE.value, on_bytes=on_bytes,
        )  # fmt: skip
    if opened.has_tied_head:
        print("lm_head.weight equals the embedding, to which it is tied: stored once")
    return 0


def _orbax_to_hf(checkpoint_dir: str, hf_dir: str) -> int:
    with progress.bar("orbax-to-hf") as on_bytes:
        orbax_to_hf.convert(
            checkpoint_dir, hf_dir, reference=_path(_required(_REFERENCE)),
            dtype=_DTYPE.value or "bfloat16", max_shard_gb=_MAX_SHARD_GB.value,
            eos=_required(_EOS),
            overwrite=_OVERWRITE.value, on_bytes=on_bytes,
        )  # fmt: skip
    return 0


def _verify(a: str, b: str) -> int:
    with progress.bar("verify") as on_bytes:
        report = verify.compare(a, b, on_bytes=on_bytes)
    verify_table.show(report)
    is_equal = report.is_equal
    if _LOGITS.value:
        logits = verify_logits.compare(a, b, seed=_SEED.value)
        are_logits_equal = logits.is_close if report.is_rounded else logits.is_equal
        verify_table.show_logits(logits, is_equal=are_logits_equal)
        is_equal = is_equal and are_logits_equal
    return 0 if is_equal else 1


def _random_hf(hf_dir: str) -> int:
    with progress.bar("random-hf") as on_bytes:
        random_hf.make_random_hf_folder(
            architecture.QWEN3[_required(_SIZE)], _path(_required(_TOKENIZER)), hf_dir,
            _SEED.value,
            dtype=_DTYPE.value or "bfloat16", max_shard_gb=_MAX_SHARD_GB.value,
            overwrite=_OVERWRITE.value, on_bytes=on_bytes,
        )  # fmt: skip
    return 0


_COMMANDS = {
    "hf-to-orbax": _Command(
        _hf_to_orbax, ("HF_DIR", "CHECKPOINT_DIR"),
        frozenset({"dtype", "vocab_multiple", "overwrite"}),
    ),
    "orbax-to-hf": _Command(
        _orbax_to_hf, ("CHECKPOINT_DIR", "HF_DIR"),
        frozenset({"reference", "dtype", "max_shard_gb", "eos", "overwrite"}),
        required=frozenset({"reference"}),
    ),
    "verify": _Command(_verify, ("A", "B"), frozenset({"logits", "seed"})),
    "random-hf": _Command(
        _random_hf, ("HF_DIR",),
        frozenset({"size", "tokenizer", "dtype", "max_shard_gb", "seed", "overwrite"}),
        required=frozenset({"size", "tokenizer"}),
    ),
}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run one command; its exit code."""
    logging.set_verbosity(logging.FATAL)  # Orbax logs what is raised, and what the bar shows
    jax.config.update("jax_platforms", "cpu")  # an accelerator may be busy with training
    start = time.monotonic()
    try:
        command = _command(argv[1:])
        code = command.run(*map(_path, argv[2:]))
    except (ValueError, OSError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 1
    if command.run is not _verify:
        print(f"{_path(argv[1 + len(command.arguments)])}: done in "
              f"{time.monotonic() - start:.1f} s")  # fmt: skip
    return code


def _command(words: Sequence[str]) -> _Command:
    """The command that the words call; ValueError when they or the flags do not fit it."""
    name = words[0] if words else "no command"
    command = _COMMANDS.get(name)
    if command is None:
        raise ValueError(f"{name}: give one of {', '.join(_COMMANDS)} (--help has examples)")
    if len(words) - 1 != len(command.arguments):
        raise ValueError(f"usage: python -m convert {name} {' '.join(command.arguments)} [--flags]")
    own = frozenset().union(*(other.flags for other in _COMMANDS.values()))
    foreign = sorted(flag for flag in own - command.flags if flags.FLAGS[flag].present)
    if foreign:
        raise ValueError(f"{name} has no --{', --'.join(foreign)}; it has "
                         f"--{', --'.join(sorted(command.flags))}")  # fmt: skip
    missing = sorted(flag for flag in command.required if not flags.FLAGS[flag].value)
    if missing:
        raise ValueError(f"{name} needs --{', --'.join(missing)} (--help has examples)")
    return command


def _required(flag: flags.FlagHolder[str | None]) -> str:
    assert flag.value, flag.name  # `_command` has checked it
    return flag.value


def _path(word: str) -> str:
    """A path whose `~` the shell left alone, as in --reference=~/models/x."""
    return os.path.expanduser(word)


if __name__ == "__main__":
    app.run(main)
