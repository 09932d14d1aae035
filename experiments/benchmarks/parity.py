"""Our models, gradients and adapters against PyTorch, transformers and PEFT, one table.

Claim: in float32 all agree within 1e-5, for every family, with padding in the batch.

Checkpoints are random, made and saved by transformers, every tensor perturbed; all queries and values get
adapters with random A and B. Columns: logits of the base model; gradients of B of a random projection of the
logits, against autograd through PEFT; an adapter saved by PEFT, loaded here; ours, loaded by PEFT; ours
merged, loaded by transformers. Numbers are the largest absolute differences; logits are of order 1 to 10.

Run: python experiments/benchmarks/parity.py [docs/parity.md]        Time: 2 minutes on two cores
Needs: pip install torch==2.13.0 peft==0.21.2
Result: docs/parity.md
"""

import importlib.metadata
import platform
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import peft
import tokenizers
import torch
import transformers

import ffalora_jax as ffa
from ffalora_jax import adapter_file, lora, merge, peft_io, pretrained, rng
from ffalora_jax.config import MethodConfig, ModelConfig
from ffalora_jax.peft_names import names_of

COLUMNS = ("logits", "gradients of B", "PEFT in", "PEFT out", "merged")
CLASSES, METHOD = 3, MethodConfig(rank=4, lora_alpha=6.0)
LENGTHS = np.array([12, 7, 3])
MASK = np.arange(12) < LENGTHS[:, None]
IDS = np.where(MASK, np.arange(36).reshape(3, 12) * 7 % 90 + 5, 1)
SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
TEXT = SIZES | {"vocab_size": 100, "max_position_embeddings": 32}
LLAMA = TEXT | {"num_key_value_heads": 4, "tie_word_embeddings": False}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


class Kind(NamedTuple):
    """A row of the table."""

    name: str
    config: Any
    loader: str
    task: str | None


def kinds() -> list[Kind]:
    """Returns the families, LLaMA in its variants."""
    text, images = "AutoModelForSequenceClassification", "AutoModelForImageClassification"
    causal = "AutoModelForCausalLM"
    return [
        Kind("BERT", transformers.BertConfig(**TEXT), text, "SEQ_CLS"),
        Kind("RoBERTa", transformers.RobertaConfig(**TEXT, pad_token_id=1), text, "SEQ_CLS"),
        Kind("ViT", transformers.ViTConfig(**SIZES, image_size=24, patch_size=8), images, None),
        Kind("LLaMA", transformers.LlamaConfig(**LLAMA), causal, "CAUSAL_LM"),
        Kind(
            "LLaMA, 2 key-value heads",
            transformers.LlamaConfig(**LLAMA | {"num_key_value_heads": 2}),
            causal,
            "CAUSAL_LM",
        ),
        Kind(
            "LLaMA, tied head",
            transformers.LlamaConfig(**LLAMA | {"tie_word_embeddings": True}),
            causal,
            "CAUSAL_LM",
        ),
        Kind(
            "LLaMA, llama3 scaling",
            transformers.LlamaConfig(**LLAMA, rope_parameters=LLAMA3),
            causal,
            "CAUSAL_LM",
        ),
    ]


def main(out: Path) -> None:
    """Measures every row and writes the table."""
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message=".is_gradient_checkpointing", category=FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = []
    with jax.default_matmul_precision("highest"), tempfile.TemporaryDirectory() as place:
        for number, kind in enumerate(kinds()):
            found = differences(kind, Path(place, str(number)))
            rows.append(f"| {kind.name} | {' | '.join(f'{x:.1e}' for x in found)} |")
            print(rows[-1], flush=True)
    out.write_text(page(rows), encoding="utf-8")
    print(out)


def differences(kind: Kind, place: Path) -> list[float]:
    """Returns the largest absolute differences of one row, in the order of ``COLUMNS``."""
    base = place / "base"
    write_base(kind, base)
    loaded = pretrained.load(str(base), CLASSES, 0, ModelConfig())
    placed = loaded.family.placements["qv"]
    model = lora.inject(
        loaded.model, placed, METHOD.rank, METHOD.lora_alpha, head=None,
        other_names=loaded.family.hf_names,
    )  # fmt: skip
    adapters = random_adapters(model)
    ours = lambda leaves: model.apply(model.backbone, leaves, *inputs(kind))  # noqa: E731
    write_ours(place / "ours", loaded, model, adapters)
    (place / "merged").mkdir()
    merge.write_merged(place / "merged", loaded, model, adapters, tuple("abc"))
    wrapped = peft.PeftModel.from_pretrained(theirs(kind, base), place / "ours", is_trainable=True)
    back = ffa.load_adapter(base, save_peft(kind, base, place / "peft", placed))
    plain = model.apply(model.backbone, jax.tree.map(jnp.zeros_like, adapters), *inputs(kind))
    return [
        largest(kind, plain, logits_of(kind, theirs(kind, base))),
        gradient_difference(kind, ours, adapters, wrapped, names_of(loaded).layers),
        largest(kind, back(*inputs(kind)), made_by_peft(kind, base, place / "peft")),
        largest(kind, ours(adapters), logits_of(kind, wrapped.eval())),
        largest(kind, ours(adapters), logits_of(kind, theirs(kind, place / "merged"))),
    ]


def write_base(kind: Kind, folder: Path) -> None:
    """Saves a random checkpoint in which no tensor is at a special value."""
    kind.config.num_labels = CLASSES
    model = getattr(transformers, kind.loader).from_config(kind.config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"</s>": 0, "?": 1}, unk_token="?"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(
        folder
    )


def random_adapters(model: lora.LoraModel) -> dict[str, dict[str, jax.Array]]:
    """Returns A and B of order .3."""
    root = rng.public_root(1)
    return {
        layer: {
            leaf: 0.3 * jax.random.normal(rng.leaf(rng.leaf(root, row), column), shape)
            for column, (leaf, shape) in enumerate(sorted(leaves.items()))
        }
        for row, (layer, leaves) in enumerate(sorted(model.shapes.items()))
    }


def write_ours(folder: Path, loaded, model: lora.LoraModel, adapters) -> None:
    """Writes our adapter as PEFT reads it."""
    folder.mkdir()
    adapter_file.write_peft(folder, peft_io.to_peft(METHOD, loaded, model, adapters))


def save_peft(kind: Kind, base: Path, folder: Path, placed: str) -> Path:
    """Lets PEFT make and save an adapter with random factors and head."""
    targets = {"LLaMA": ["q_proj", "v_proj"], "ViT": ["q_proj", "v_proj"]}
    chosen = targets.get(kind.name.partition(",")[0], ["query", "value"])
    head = {} if kind.task else {"modules_to_save": ["classifier"]}
    config = peft.LoraConfig(task_type=kind.task, r=4, lora_alpha=6, target_modules=chosen, **head)
    model = peft.get_peft_model(theirs(kind, base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder


def made_by_peft(kind: Kind, base: Path, folder: Path) -> np.ndarray:
    """Returns what PEFT's own adapter says in PyTorch."""
    return logits_of(kind, peft.PeftModel.from_pretrained(theirs(kind, base), folder).eval())


def gradient_difference(kind: Kind, ours, adapters, wrapped, names: dict[str, str]) -> float:
    """Returns the largest difference of the gradients of B of ``sum(P * logits)``, P random."""
    shape = ours(adapters).shape
    weights = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    weights *= MASK[..., None] if kind.task == "CAUSAL_LM" else 1
    grads = jax.grad(lambda leaves: jnp.sum(weights * ours(leaves)))(adapters)
    wrapped.eval()
    (torch.from_numpy(weights) * wrapped(**torch_inputs(kind)).logits).sum().backward()
    found = {name: p.grad for name, p in wrapped.named_parameters() if p.grad is not None}
    differences = []
    for layer, leaves in grads.items():
        grad = found[f"{peft_io.PREFIX}{names[layer]}.lora_B.default.weight"].numpy().T
        scale = max(1.0, np.abs(grad).max())  # relative where gradients are large
        differences.append(np.abs(grad - np.asarray(leaves["lora_b"])).max() / scale)
    return max(differences)


def theirs(kind: Kind, folder: Path):
    """Loads a checkpoint with transformers."""
    return getattr(transformers, kind.loader).from_pretrained(folder).eval()


def images() -> np.ndarray:
    """Returns three images (example, height, width, channel)."""
    return np.sin(np.arange(3 * 24 * 24 * 3.0) ** 2).reshape(3, 24, 24, 3).astype(np.float32)


def inputs(kind: Kind) -> tuple[jax.Array, ...]:
    """Returns what our model takes."""
    return (jnp.asarray(images()),) if kind.name == "ViT" else (jnp.asarray(IDS), jnp.asarray(MASK))


def torch_inputs(kind: Kind) -> dict[str, torch.Tensor]:
    """Returns what a model of transformers takes."""
    if kind.name == "ViT":
        return {"pixel_values": torch.from_numpy(images()).permute(0, 3, 1, 2)}
    mask = torch.from_numpy(MASK.astype(np.int64))
    return {"input_ids": torch.from_numpy(IDS.astype(np.int64)), "attention_mask": mask}


def logits_of(kind: Kind, model) -> np.ndarray:
    """Returns logits from PyTorch."""
    with torch.no_grad():
        return model(**torch_inputs(kind)).logits.numpy()


def largest(kind: Kind, ours, others: np.ndarray) -> float:
    """Returns the largest absolute difference; logits of padding mean nothing."""
    apart = np.abs(np.asarray(ours) - others)
    return float((apart[MASK] if kind.task == "CAUSAL_LM" else apart).max())


def page(rows: list[str]) -> str:
    """Returns the table with what it was made of."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("jax", "flax", "torch", "transformers", "peft")
    )
    opening = __doc__.partition("\n\nRun:")[0].partition("\n\n")[2].strip()
    return "\n".join(
        [
            "# Parity with PyTorch, transformers and PEFT",
            "",
            opening,
            "Gradients are divided by the largest one of their layer where that is above 1.",
            "",
            f"Made by `python experiments/benchmarks/parity.py`: {platform.machine()} CPU, float32,",
            f"{versions}.",
            "",
            f"| family | {' | '.join(COLUMNS)} |",
            "|---" * (len(COLUMNS) + 1) + "|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/parity.md"))
