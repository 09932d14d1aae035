"""Tiny RoBERTa and ViT checkpoints in Hugging Face's form, from a fixed formula: nothing is downloaded."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests import checkpoint_files

ROBERTA = "RobertaForSequenceClassification"
VIT = "ViTForImageClassification"
LABELS = {str(index): f"class {index}" for index in range(3)}
ROBERTA_SIZES = checkpoint_files.SIZES | {
    "max_position_embeddings": 18,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
VIT_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 12,
    "patch_size": 4,
    "num_channels": 3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def roberta_tensors() -> dict[str, np.ndarray]:
    """BERT's formula under RoBERTa's names, with its own tables and head."""
    shapes = {
        name.replace("bert.", "roberta."): array.shape
        for name, array in checkpoint_files.bert_tensors().items()
        if "pooler" not in name and "classifier" not in name
    }
    shapes["roberta.embeddings.position_embeddings.weight"] = (18, 32)
    shapes["roberta.embeddings.token_type_embeddings.weight"] = (1, 32)
    shapes |= dense("classifier.dense", 32, 32) | dense("classifier.out_proj", 32, 3)
    return filled(shapes)


def vit_tensors() -> dict[str, np.ndarray]:
    """The formula under the names of ViT's files."""
    shapes = {
        "vit.embeddings.cls_token": (1, 1, 32),
        "vit.embeddings.position_embeddings": (1, 10, 32),
        "vit.embeddings.patch_embeddings.projection.weight": (32, 3, 4, 4),
        "vit.embeddings.patch_embeddings.projection.bias": (32,),
        **norm("vit.layernorm"),
    }
    for layer in ("vit.encoder.layer.0", "vit.encoder.layer.1"):
        for part in ("query", "key", "value"):
            shapes |= dense(f"{layer}.attention.attention.{part}", 32, 32)
        shapes |= dense(f"{layer}.attention.output.dense", 32, 32)
        shapes |= dense(f"{layer}.intermediate.dense", 32, 64)
        shapes |= dense(f"{layer}.output.dense", 64, 32)
        shapes |= norm(f"{layer}.layernorm_before") | norm(f"{layer}.layernorm_after")
    return filled(shapes | dense("classifier", 32, 3))


def write_family(directory: Path, architecture: str, tensors=None, **config) -> Path:
    """Writes a formula checkpoint of RoBERTa or ViT and returns the directory."""
    kind, sizes, made = {
        ROBERTA: ("roberta", ROBERTA_SIZES, roberta_tensors),
        VIT: ("vit", VIT_SIZES, vit_tensors),
    }[architecture]
    directory.mkdir(parents=True, exist_ok=True)
    found = {"model_type": kind, "architectures": [architecture], "id2label": LABELS}
    (directory / "config.json").write_text(json.dumps(found | sizes | config))
    tensors = made() if tensors is None else tensors
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """0.3 sin(0.37 j^2 + i) for number j of tensor i; norms' scales lie around 1."""
    is_norm = ("norm.weight", "norm_before.weight", "norm_after.weight")
    return {
        name: _wave(index, shape, float(name.lower().endswith(is_norm)))
        for index, (name, shape) in enumerate(shapes.items())
    }


def _wave(phase: float, shape: tuple[int, ...], around: float) -> np.ndarray:
    places = np.arange(np.prod(shape), dtype=np.float64)
    return (around + 0.3 * np.sin(0.37 * places**2 + phase)).reshape(shape).astype(np.float32)


def dense(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a dense layer in PyTorch's order."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer norm."""
    return {f"{name}.weight": (32,), f"{name}.bias": (32,)}
