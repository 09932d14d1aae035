"""Tiny BERT checkpoints in Hugging Face's form, from a fixed formula: nothing is downloaded."""

import json
from pathlib import Path

import numpy as np
from safetensors.flax import save_file

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
    "vocab_size": 100,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
CLASSIFIER = "BertForSequenceClassification"
ENCODER = "BertModel"


def bert_tensors(architecture=CLASSIFIER, shift=0.0) -> dict[str, np.ndarray]:
    """Weights by Hugging Face name: 0.3 sin(0.37 j^2 + i) for number j of tensor i (norms: 1 +)."""
    prefix = "bert." if architecture == CLASSIFIER else ""
    shapes = {f"{prefix}{name}": shape for name, shape in _encoder_shapes().items()}
    if architecture == CLASSIFIER:
        shapes |= {"classifier.weight": (3, 32), "classifier.bias": (3,)}
    return {
        name: _wave(index + shift, shape, around=float(name.endswith("LayerNorm.weight")))
        for index, (name, shape) in enumerate(shapes.items())
    }


def write_checkpoint(directory: Path, tensors=None, architecture=CLASSIFIER, **config) -> Path:
    """Writes config.json and model.safetensors, and returns the directory."""
    tensors = bert_tensors(architecture) if tensors is None else tensors
    labels = {str(index): f"class {index}" for index in range(3)}
    found = {"model_type": "bert", "architectures": [architecture], "id2label": labels}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(found | SIZES | config))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _wave(phase: float, shape: tuple[int, ...], around: float) -> np.ndarray:
    places = np.arange(np.prod(shape), dtype=np.float64)
    return (around + 0.3 * np.sin(0.37 * places**2 + phase)).reshape(shape).astype(np.float32)


def _encoder_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {
        "embeddings.word_embeddings.weight": (100, 32),
        "embeddings.position_embeddings.weight": (16, 32),
        "embeddings.token_type_embeddings.weight": (2, 32),
        **_norm("embeddings"),
    }
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        for part in ("query", "key", "value"):
            shapes |= _dense(f"{layer}.attention.self.{part}", 32, 32)
        shapes |= _dense(f"{layer}.attention.output.dense", 32, 32)
        shapes |= _norm(f"{layer}.attention.output")
        shapes |= _dense(f"{layer}.intermediate.dense", 32, 64)
        shapes |= _dense(f"{layer}.output.dense", 64, 32)
        shapes |= _norm(f"{layer}.output")
    return shapes | _dense("pooler.dense", 32, 32)


def _dense(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.LayerNorm.weight": (32,), f"{name}.LayerNorm.bias": (32,)}
