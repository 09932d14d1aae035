"""Tiny LLaMA checkpoints in Hugging Face's form, from a fixed formula: nothing is downloaded."""

import json
from pathlib import Path

import numpy as np
from safetensors.flax import save_file

SIZES = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "vocab_size": 50,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
"""Of the four frequencies of a tiny head one is kept, one lies on the ramp and two are divided."""
KINDS = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
    "llama3": {"rope_parameters": LLAMA3},
    "modern": {"num_key_value_heads": 2, "tie_word_embeddings": True, "rope_parameters": LLAMA3},
}


def llama_tensors(**config) -> dict[str, np.ndarray]:
    """Weights by Hugging Face name: 0.3 sin(0.37 j^2 + i) for number j of tensor i (norms: 1 +)."""
    return {
        name: _wave(index, shape, around=float(name.endswith("norm.weight")))
        for index, (name, shape) in enumerate(_shapes(SIZES | config).items())
    }


def write_llama(directory: Path, tensors=None, kind="plain", **config) -> Path:
    """Writes config.json and model.safetensors, and returns the directory."""
    config = SIZES | KINDS[kind] | config
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    tensors = llama_tensors(**config) if tensors is None else tensors
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _wave(phase: float, shape: tuple[int, ...], around: float) -> np.ndarray:
    places = np.arange(np.prod(shape), dtype=np.float64)
    return (around + 0.3 * np.sin(0.37 * places**2 + phase)).reshape(shape).astype(np.float32)


def _shapes(config) -> dict[str, tuple[int, ...]]:
    features, inner = config["hidden_size"], config["intermediate_size"]
    channels = config.get("head_dim") or features // config["num_attention_heads"]
    queries = config["num_attention_heads"] * channels
    shared = (config.get("num_key_value_heads") or config["num_attention_heads"]) * channels
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], features)}
    for layer in range(config["num_hidden_layers"]):
        dense = {
            "self_attn.q_proj": (queries, features),
            "self_attn.k_proj": (shared, features),
            "self_attn.v_proj": (shared, features),
            "self_attn.o_proj": (features, queries),
            "mlp.gate_proj": (inner, features),
            "mlp.up_proj": (inner, features),
            "mlp.down_proj": (features, inner),
        }
        at = f"model.layers.{layer}"
        for name, shape in dense.items():
            shapes[f"{at}.{name}.weight"] = shape
            if config.get("mlp_bias" if name.startswith("mlp") else "attention_bias"):
                shapes[f"{at}.{name}.bias"] = shape[:1]
        shapes[f"{at}.input_layernorm.weight"] = (features,)
        shapes[f"{at}.post_attention_layernorm.weight"] = (features,)
    shapes["model.norm.weight"] = (features,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], features)
    return shapes
