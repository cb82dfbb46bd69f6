"""What an exported Hugging Face folder says about its weights: two JSON files, and where to stop.

The reference folder says everything that training does not change; the architecture and the dtype
are the checkpoint's.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from convert import tokenizer_files
from jaxterm import architecture

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

# Where the ids that end a turn are not among those a server stops at: refuse, or write them.
EOS_RULES = ("refuse", "fix")

# What a reference for other weights would have otherwise.
_SHAPE_FIELDS = (
    "vocab_size", "num_layers", "embed_dim", "mlp_dim", "num_heads", "num_kv_heads", "head_dim",
    "tie_embeddings",
)  # fmt: skip


def files(
    reference: pathlib.Path,
    model: architecture.ModelConfig,
    tokenizer: tokenizer_files.Tokenizer,
    *,
    dtype: str,
    eos: str,
) -> dict[str, str]:
    """The text of config.json and generation_config.json for an export.

    A file whose values are those of the reference keeps the reference's bytes.

    Raises:
        ValueError: the reference is of another model; or, with eos="refuse", a server that reads
            these files would not stop at the token that ends the trained turns.
    """
    model = dataclasses.replace(model, vocab_multiple=1)
    _check_same_shapes(reference, model)
    tokenizer.check_vocabulary(model.vocab_size)
    originals = {CONFIG: _read_json(reference / CONFIG)}
    if (reference / GENERATION_CONFIG).exists():
        originals[GENERATION_CONFIG] = _read_json(reference / GENERATION_CONFIG)
    values = {
        CONFIG: _config(originals[CONFIG], model, reference, dtype),
        GENERATION_CONFIG: dict(originals.get(GENERATION_CONFIG) or tokenizer.generation_config()),
    }
    _settle_eos(values, tokenizer, reference, eos)
    return {
        name: (reference / name).read_text(encoding="utf-8")
        if values[name] == originals.get(name)
        else json_text(values[name])
        for name in values
    }


def json_text(values: Mapping[str, Any]) -> str:
    """A JSON file's text in the form that transformers writes."""
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _check_same_shapes(reference: pathlib.Path, model: architecture.ModelConfig) -> None:
    of_reference = architecture.from_hf_folder(reference)
    faults = [
        f"{name} is {getattr(of_reference, name)}, the checkpoint's is {getattr(model, name)}"
        for name in _SHAPE_FIELDS
        if getattr(of_reference, name) != getattr(model, name)
    ]
    if faults:
        raise ValueError(
            f"--reference={reference} describes another model: {'; '.join(faults)}; "
            "give the Hugging Face folder that training started from"
        )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a JSON object; download it again")
    return values


def _config(
    original: dict[str, Any], model: architecture.ModelConfig, reference: pathlib.Path, dtype: str
) -> dict[str, Any]:
    values = original | {"torch_dtype" if "torch_dtype" in original else "dtype": dtype}
    if architecture.from_hf_json(original, str(reference / CONFIG)) == model:
        return values
    trained = architecture.to_hf_json(model)
    rope = trained.pop("rope_parameters")
    if "rope_theta" in original:  # the form before transformers 5, which every version reads
        scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
        trained["rope_theta"] = rope["rope_theta"]
        trained["rope_scaling"] = None if scaling == {"rope_type": "default"} else scaling
    if "rope_parameters" in original or "rope_theta" not in original:
        trained["rope_parameters"] = rope
    return values | trained


def _settle_eos(
    values: dict[str, dict[str, Any]],
    tokenizer: tokenizer_files.Tokenizer,
    reference: pathlib.Path,
    rule: str,
) -> None:
    """See that a server stops where a trained turn ends.

    generation_config.json decides for those that read it; config.json for others, so it may leave
    the ids out but not name wrong ones.
    """
    if rule not in EOS_RULES:
        raise ValueError(f"--eos={rule} must be one of {', '.join(EOS_RULES)}")
    wanted = tokenizer.turn_end_id
    wrong = {
        name: values[name].get("eos_token_id")
        for name in (CONFIG, GENERATION_CONFIG)
        if wanted not in _as_list(values[name].get("eos_token_id"))
        and (name == GENERATION_CONFIG or values[name].get("eos_token_id") is not None)
    }
    if wrong and rule == "refuse":
        found = ", ".join(
            f"{reference / name} has eos_token_id={ids}" for name, ids in wrong.items()
        )
        raise ValueError(
            f"{found}, without {wanted} ({tokenizer_files.TURN_END}), which ends every trained "
            "turn: a server would never stop; --eos=fix writes it, or put it into those files"
        )
    if CONFIG in wrong:
        values[CONFIG]["eos_token_id"] = wanted
    if GENERATION_CONFIG in wrong:
        values[GENERATION_CONFIG]["eos_token_id"] = [wanted, *_as_list(wrong[GENERATION_CONFIG])]


def _as_list(ids: Any) -> list[Any]:
    if ids is None:
        return []
    return list(ids) if isinstance(ids, list) else [ids]
