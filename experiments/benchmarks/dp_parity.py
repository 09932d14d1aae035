"""Three private rounds of LoRA with FedAvg in PyTorch + PEFT, and ours, with the same draws and noise.

Claim: after three rounds of three clients, two clipped and noised steps each, adapters and head agree within
1e-5. The twin is written from the formulas: one example at a time through autograd, clipping over all
trained tensors, noise that is handed over, division by the expected batch, SGD, a mean over the clients.

Run: python experiments/benchmarks/dp_parity.py        Time: 20 seconds on two cores
Needs: pip install torch==2.13.0 peft==0.21.2
Result: largest difference 6e-08 of numbers up to .39 that moved by up to .35, 85 % of the examples clipped
(x86_64 CPU, jax 0.10.2, torch 2.13.0+cpu, transformers 5.23.0, peft 0.21.2)
"""

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

from ffalora_jax import adapter_file, peft_io, rng
from ffalora_jax import adapters as leaves
from ffalora_jax.cohort import draw_local_batches
from ffalora_jax.config import Experiment
from ffalora_jax.mechanisms._noise import add_noise
from ffalora_jax.peft_names import names_of
from ffalora_jax.prepare import Prepared, prepare
from ffalora_jax.rng import Keys
from ffalora_jax.types import Adapters

ROUNDS, CLIENTS, STEPS, BATCH, RATE, CLIP, NOISE = 3, 3, 2, 4, 0.5, 1.0, 0.6
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS = [f"w{index}" for index in range(60)]
HEAD = {"weight": "head_kernel", "bias": "head_bias"}


class Found(NamedTuple):
    """How far apart they are."""

    largest_difference: float
    largest_number: float
    moved: float
    """Largest change of a number over the rounds: what there was to agree on."""
    clipped: float
    """Share of the examples that were clipped."""


def compare() -> Found:
    """Runs both and compares every trained number."""
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message=".is_gradient_checkpointing", category=FutureWarning)
    with jax.default_matmul_precision("highest"), tempfile.TemporaryDirectory() as place:
        base = Path(place, "base")
        write_base(base)
        run = prepare(experiment(base), texts())
        roots = Keys(rng.public_root(0), rng.secret_root(7))
        state, info = run.rounds()(
            roots, run.state, run.frozen, run.data, run.numbers, jnp.int32(ROUNDS)
        )
        model, names = wrapped(run, base, Path(place, "adapter"))
    for index in range(ROUNDS):
        before = numbers_of(names)
        ends = []
        for client in range(CLIENTS):
            put(names, before)
            local_steps(model, names, run, roots.secret, index, client)
            ends.append(numbers_of(names))
        put(names, {key: np.mean([end[key] for end in ends], axis=0) for key in before})
    ours, theirs, begun = flat(state.adapters), numbers_of(names), flat(run.state.adapters)
    apart = max(float(np.abs(ours[key] - theirs[key]).max()) for key in theirs)
    facts = jax.tree.map(lambda leaf: float(np.sum(leaf)), info.facts.clip)
    return Found(
        apart,
        max(float(np.abs(leaf).max()) for leaf in ours.values()),
        max(float(np.abs(ours[key] - begun[key]).max()) for key in ours),
        facts.num_clipped / facts.num_real,
    )


def write_base(folder: Path) -> None:
    """Saves a random BERT in which no tensor is at a special value, with a tokenizer of words."""
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    config = transformers.BertConfig(
        **SIZES, intermediate_size=64, vocab_size=len(vocabulary), max_position_embeddings=16,
        num_labels=2,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)


def texts() -> dict[str, list]:
    """Returns texts of different lengths with classes."""
    draw = np.random.default_rng(3)
    lengths = draw.integers(2, 12, 120)
    return {
        "text": [" ".join(draw.choice(WORDS, length)) for length in lengths],
        "label": [int(label) for label in draw.integers(0, 2, 120)],
    }


def experiment(base: Path) -> Experiment:
    """Returns plain LoRA under DP-SGD, head included, with clipping that bites."""
    start = Experiment(rounds=ROUNDS, local_steps=STEPS, batch_size=BATCH, evaluate_every=ROUNDS)
    return start.replace(
        **{
            "model.name": str(base),
            "model.max_tokens": 14,
            "method.name": "fedavg_lora",
            "method.rank": 4,
            "partition.name": "iid",
            "partition.num_clients": CLIENTS,
            "optimizer.learning_rate": RATE,
            "privacy.clip_norm": CLIP,
            "privacy.noise_multiplier": NOISE,
            "privacy.delta": 1e-3,
        }
    )


def wrapped(run: Prepared, base: Path, folder: Path):
    """Returns PEFT's model with our start, and (layer, leaf) -> its tensor as we hold it."""
    folder.mkdir()
    settings = run.experiment.method
    adapter_file.write_peft(
        folder, peft_io.to_peft(settings, run.loaded, run.model, run.state.adapters)
    )
    plain = transformers.BertForSequenceClassification.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(plain, folder, is_trainable=True).eval()
    by_name = dict(model.named_parameters())
    names = {}
    for layer, theirs in names_of(run.loaded).layers.items():
        for leaf, part in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
            found = by_name.get(f"{peft_io.PREFIX}{theirs}.{part}.default.weight")
            if found is not None:
                names[layer, leaf] = found
    for part, leaf in HEAD.items():
        names["head", leaf] = by_name[f"{peft_io.PREFIX}classifier.modules_to_save.default.{part}"]
    assert set(names) == set(flat(run.state.adapters))
    return model, names


def local_steps(
    model, names: dict[tuple[str, str], Any], run: Prepared, secret, index: int, client: int
) -> None:
    """Trains one client in place: clipped one by one, noised, divided by the expected batch."""
    batch = draw_local_batches(
        secret, index, client, run.data, client, run.numbers.threshold[client], STEPS,
        run.plan.capacity,
    )  # fmt: skip
    for step in range(STEPS):
        total = {key: np.zeros(tensor.shape) for key, tensor in names.items()}
        for row in np.asarray(batch.rows[step])[np.asarray(batch.is_real[step])]:
            gradient = gradient_of(model, names, run, int(row))
            norm = np.sqrt(sum((leaf**2).sum() for leaf in gradient.values()))
            for key in total:
                total[key] += gradient[key] * min(1.0, CLIP / norm)
        key = rng.stream(secret, rng.Purpose.NOISE, index, client, step)
        zeros = jax.tree.map(jnp.zeros_like, run.state.adapters)
        noise = flat(add_noise(key, zeros, NOISE * CLIP))
        with torch.no_grad():
            for where, tensor in names.items():
                added = total[where] + turned(where, noise[where])
                tensor -= torch.from_numpy(RATE / BATCH * added).float()


def gradient_of(model, names, run: Prepared, row: int) -> dict[tuple[str, str], np.ndarray]:
    """Returns one example's gradient in PyTorch's own layout."""
    given = {
        name: torch.from_numpy(np.asarray(leaf[row], np.int64))[None]
        for name, leaf in run.data.inputs.items()
    }
    logits = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
    label = torch.tensor([int(run.data.labels[row])])
    loss = torch.nn.functional.cross_entropy(logits, label)
    found = torch.autograd.grad(loss, list(names.values()))
    return {key: grad.double().numpy() for key, grad in zip(names, found, strict=True)}


def turned(where: tuple[str, str], leaf: np.ndarray) -> np.ndarray:
    """Turns a leaf between our layout (in, out) and PyTorch's."""
    return leaf if where[1] == "head_bias" else leaf.T


def numbers_of(names) -> dict[tuple[str, str], np.ndarray]:
    """Returns PyTorch's numbers in our layout."""
    return {
        where: turned(where, tensor.detach().double().numpy()).copy()
        for where, tensor in names.items()
    }


def put(names, numbers) -> None:
    """Writes numbers in our layout into PyTorch's tensors."""
    with torch.no_grad():
        for where, tensor in names.items():
            tensor.copy_(torch.from_numpy(turned(where, numbers[where]).copy()).float())


def flat(adapters: Adapters) -> dict[tuple[str, str], np.ndarray]:
    """Returns leaves by (layer, name)."""
    kept = leaves.select(adapters, {"lora_a", "lora_b", *HEAD.values()})
    return {
        (layer, name): np.asarray(leaf, np.float64)
        for layer, found in kept.items()
        for name, leaf in found.items()
    }


if __name__ == "__main__":
    print(compare())
