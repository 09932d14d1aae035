"""What PEFT can do and this package does not: refused by name, since half an adapter gives wrong answers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ffalora_jax.errors import InputError

HEADS = {"classifier", "score"}
REFUSED = {
    "use_dora": "DoRA's magnitudes",
    "lora_bias": "biases of B",
    "fan_in_fan_out": "transposed base weights (GPT-2's Conv1D)",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "adapters on bare parameters",
    "megatron_config": "Megatron's parallel layers",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "kasa_config": "KaSA",
    "arrow_config": "Arrow's routing",
}
CHANGE_THE_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Initialisers of PEFT that also change the base model's weights."""


def refuse_config(config: Any, folder: Path) -> None:
    """Raises one InputError if an adapter_config.json asks for what is not supported."""
    if not isinstance(config, Mapping):
        raise InputError(f"Expected a JSON object in {folder}: it is no adapter of PEFT.")
    if config.get("peft_type") != "LORA":
        raise InputError(
            f"Expected peft_type 'LORA' in {folder}, got {config.get('peft_type')!r}: only LoRA is read."
        )
    for name, what in REFUSED.items():
        if config.get(name):
            raise InputError(
                f"The adapter in {folder} has {name} = {config[name]!r}: {what} are not supported. Merge "
                "it into its base model with PEFT's merge_and_unload, and give that as model.name."
            )
    if config.get("bias", "none") != "none":
        raise InputError(f"Expected bias 'none' in {folder}, got {config['bias']!r}: only A and B.")
    saved = set(config.get("modules_to_save") or ())
    if saved - HEADS:
        raise InputError(
            f"The adapter in {folder} saves the modules {', '.join(sorted(saved - HEADS))}: expected "
            f"none but heads ({', '.join(sorted(HEADS))})."
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGE_THE_BASE):
        raise InputError(
            f"The adapter in {folder} has init_lora_weights {start!r}, which changes the base model: save "
            "it as plain LoRA with PEFT's path_initial_model_for_weight_conversion."
        )


def refuse_tensor(name: str, family: str, bare: bool) -> NoReturn:
    """Raises the InputError about a tensor that has no place."""
    if "lora_embedding" in name:
        raise InputError(f"{name} is an adapter of an embedding: expected dense layers only.")
    if "lora_magnitude_vector" in name:
        raise InputError(f"{name} belongs to DoRA, which is not supported.")
    if bare and name.startswith("classifier"):
        raise InputError(
            f"{name} sits on {family}'s pooler, and this model has mean pooling: use the adapter with "
            "load_adapter, or a checkpoint for sequence classification."
        )
    raise InputError(
        f"{name} has no place in a model of the family {family}: expected lora_A and lora_B of its dense "
        "layers, and its head."
    )
