"""The model card of an exported model: README.md, which the Hugging Face hub shows as its page.

It says what is known of the run: what it started from, what it read, with which settings, and its
held-out loss. What only its owner knows (licence, intended use) is left for them to add.
"""

import os
import pathlib
from typing import Any

import huggingface_hub

FILE_NAME = "README.md"

_TEXT = """\
---
{metadata}
---

# {name}

A terminal agent: {base}, fine-tuned on terminal sessions with jaxterm {version}.

{results}
## Training

| | |
| --- | --- |
{settings}

Conversations are rendered by this folder's chat template; the loss is that of the assistant's
turns, `<|im_end|>` included. Plan of rows: `{plan_hash}`.

Made with {versions}.
"""


def write(values: dict[str, Any], workdir: pathlib.Path) -> None:
    """Write the card into the exported folder, unless one is there.

    Args:
        values: what summary.json holds.
        workdir: folder of the run; its name is the model's.
    """
    path = pathlib.Path(values["hf_dir"]) / FILE_NAME
    if path.exists():
        return
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(_text(values, workdir.name), "utf-8")
    os.replace(temporary, path)


def _text(values: dict[str, Any], name: str) -> str:
    settings, versions = values["config"], values["versions"]
    metadata = huggingface_hub.ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["jaxterm", "terminal", "agent", "qwen3"],
    )
    start = settings["start"]
    return _TEXT.format(
        metadata=metadata.to_yaml(),
        name=name,
        base="a random Qwen3" if start["random"] else pathlib.Path(start["hf_dir"]).name,
        version=versions["jaxterm"],
        results=_results(values),
        settings="\n".join(f"| {key} | {value} |" for key, value in _settings(values)),
        plan_hash=values["plan_hash"],
        versions=", ".join(f"{package} {version}" for package, version in versions.items()),
    )


def _results(values: dict[str, Any]) -> str:
    """Held-out loss by source, as a table; empty where nothing was held out."""
    if values["heldout_loss"] is None:
        return ""
    rows = dict(values["heldout_by_source"])
    rows["all"] = (values["heldout_loss_before"], values["heldout_loss"])
    lines = [f"| {source} | {old:.4f} | {new:.4f} |" for source, (old, new) in rows.items()]
    head = "| held-out loss, nats a token | before | after |\n| --- | --- | --- |\n"
    return head + "\n".join(lines) + "\n\n"


def _stage(stage: dict[str, Any]) -> tuple[str, str]:
    times = sorted({round(source["epochs"], 2) for source in stage["sources"].values()})
    drawn = f"{times[0]:g}" if len(times) == 1 else f"{times[0]:g} to {times[-1]:g}"
    told = (
        f"{stage['steps']:,} steps of {stage['global_batch_size']} rows of "
        f"{stage['row_length']:,} tokens; each source {drawn} times"
    )
    return f"stage {stage['name']}", told


def _settings(values: dict[str, Any]) -> list[tuple[str, str]]:
    data, optimizer = values["config"]["data"], values["config"]["optimizer"]
    return [
        ("corpus", ", ".join(pathlib.Path(c).name for c in data["corpus"]) or data["prepared_dir"]),
        ("steps", f"{values['steps']:,}, rows filled {values['fill']:.1%}"),
        ("curriculum", values["curriculum"]),
        *(_stage(stage) for stage in values["stages"]),
        ("thinking in earlier turns", data["think"]),
        *_lora(values["config"]["lora"]),
        ("optimizer", f"{_optimizer(optimizer)}, weight decay {optimizer['weight_decay']}"),
        ("learning rate", f"{optimizer['peak_lr']}, {_schedule(optimizer)}"),
    ]  # fmt: skip


def _lora(settings: dict[str, Any]) -> list[tuple[str, str]]:
    if not settings["rank"]:
        return []
    base = "" if settings["base_dtype"] == "param" else f", base in {settings['base_dtype']}"
    told = f"rank {settings['rank']}, alpha {settings['alpha']:g}{base}"
    return [("LoRA, merged here", f"{told}, on {', '.join(settings['weights'])}")]


def _optimizer(settings: dict[str, Any]) -> str:
    adamw = f"AdamW ({settings['beta1']}, {settings['beta2']})"
    if settings["name"] == "muon":
        return f"Muon ({settings['muon_momentum']}) for the blocks' matrices, {adamw} for the rest"
    return adamw


def _schedule(settings: dict[str, Any]) -> str:
    warmup = f"{settings['warmup_fraction']:.0%} warm-up"
    if settings["schedule"] == "wsd":
        return f"level after {warmup}, linear over the last {settings['decay_fraction']:.0%}"
    return f"cosine after {warmup}"
