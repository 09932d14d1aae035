"""One workload of the peers in this library's form: the same weights, factors, batches and formula.

Used by `against_peers.py`; not run by itself. The peers' folder (`--peers`) is put on the path for its
`common` and `inputs`, which need NumPy alone.
"""

import itertools
import json
import re
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from safetensors.numpy import save_file

from ffalora_jax import adapters as leaves
from ffalora_jax import lora, registry, rng
from ffalora_jax.accounting import default_capacity
from ffalora_jax.chunking import LEAST_AT_ONCE, arrange, bytes_per_client, choose
from ffalora_jax.client import Frozen, make_local_update
from ffalora_jax.clipping import Blocks
from ffalora_jax.cohort import Batch, ClientData, client_data, threshold
from ffalora_jax.config import Experiment, PrivacyConfig
from ffalora_jax.pretrained import load_pretrained
from ffalora_jax.round import ClientNumbers, Keys, RoundSettings, RoundState, make_round
from ffalora_jax.server import Server
from ffalora_jax.tasks import classification
from ffalora_jax.text import Encoded

NAMES = {
    "minilm": ((r"encoder\.layer\.(\d+)\.attention\.self\.", r"layers.\1.attention."),),
    "vit": (
        (r"layers\.(\d+)\.attention\.q_proj", r"layers.\1.attention.query"),
        (r"layers\.(\d+)\.attention\.v_proj", r"layers.\1.attention.value"),
    ),
    "mlp": (),
}
VIT_FILES = (
    (r"layers\.(\d+)\.attention\.q_proj", r"encoder.layer.\1.attention.attention.query"),
    (r"layers\.(\d+)\.attention\.k_proj", r"encoder.layer.\1.attention.attention.key"),
    (r"layers\.(\d+)\.attention\.v_proj", r"encoder.layer.\1.attention.attention.value"),
    (r"layers\.(\d+)\.attention\.o_proj", r"encoder.layer.\1.attention.output.dense"),
    (r"layers\.(\d+)\.mlp\.fc1", r"encoder.layer.\1.intermediate.dense"),
    (r"layers\.(\d+)\.mlp\.fc2", r"encoder.layer.\1.output.dense"),
    (r"layers\.(\d+)\.layernorm", r"encoder.layer.\1.layernorm"),
)


class Mlp(nnx.Module):
    """The peers' toy: two adapted dense layers, the second its own head."""

    def __init__(self, parameters: dict[str, np.ndarray]):
        self.fc1 = self._dense(parameters, "fc1")
        self.fc2 = self._dense(parameters, "fc2")

    @staticmethod
    def _dense(parameters, name):
        weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
        layer = nnx.Linear(*weight.shape[::-1], rngs=nnx.Rngs(0))
        layer.kernel[...], layer.bias[...] = jnp.asarray(weight.T), jnp.asarray(bias)
        return layer

    def __call__(self, x):
        return self.fc2(nnx.relu(self.fc1(x)))


class Work(NamedTuple):
    """A workload ready to run."""

    round_step: Any
    arguments: tuple
    """(keys, state, frozen, data, numbers)."""
    batches: Batch
    """The peers' own draws: (client, step, slot)."""
    flat: Any
    """adapters -> the peers' flat vector."""
    chunk: int
    blocks: tuple
    """Examples, or rows, at once: ``Blocks`` and ``Packing``."""


def peers_modules(folder: str) -> tuple[Any, Any]:
    """Returns the peers' `common` and `inputs`."""
    sys.path.insert(0, folder)
    import common
    import inputs

    return common, inputs


def build(
    workload: Any, inputs: Any, weights: str | None, seed: int, noise: bool, packing: bool = True
) -> Work:
    """Builds a workload; without `noise` the multiplier is zero, without `packing` the work is fixed."""
    model = _model(workload, inputs, weights, seed)
    names = {_ours(workload.model, name): name for name in inputs.targets(workload)}
    injected = lora.inject(
        model, "|".join(map(re.escape, names)), workload.rank, workload.alpha, head=None
    )
    trained = {"lora_a", "lora_b"} if "A" in workload.trained else {"lora_b"}
    factors = _factors(workload, inputs, seed, names)
    state = RoundState(leaves.select(factors, trained), {}, jnp.int32(0))
    frozen = Frozen(injected.backbone, leaves.without(factors, trained))
    data, batches = _data(workload, inputs, weights, seed)
    mechanism = registry.lookup("mechanisms", "dp_sgd" if workload.private else "none")(
        Experiment(
            batch_size=workload.batch,
            privacy=PrivacyConfig(
                noise_multiplier=workload.noise_multiplier, clip_norm=workload.clip_norm
            ),
        )
    )
    capacity = batches.rows.shape[-1]
    facts = injected, classification(), frozen, state.adapters, Encoded(data.inputs, data.lengths)
    needed = partial(bytes_per_client, *facts)
    chunk = choose(
        "auto", workload.clients, injected.backbone, lambda: needed(min(capacity, LEAST_AT_ONCE))
    ).chunk
    # As `prepare` chooses, but for the one width.
    blocks, rows = arrange(
        facts[4], injected, capacity, workload.batch, chunk, lambda: needed(1) - needed(0)
    )
    blocks = Blocks(blocks.size if packing else capacity, (workload.length,))
    method = registry.lookup("methods", "fedavg_lora" if "A" in workload.trained else "ffa_lora")()
    update = make_local_update(
        injected,
        classification(),
        mechanism,
        method,
        optax.sgd(workload.learning_rate),
        workload.local_steps,
        capacity,
        blocks,
        rows if packing else None,
    )
    count = workload.clients
    settings = RoundSettings(count, count, "fixed", chunk, False, 1)
    sizes = np.asarray(data.sizes)
    numbers = ClientNumbers(
        jnp.asarray([threshold(min(1.0, workload.batch / n)) for n in sizes], jnp.uint32),
        jnp.full(count, workload.noise_multiplier if noise else 0.0, jnp.float32),
    )
    keys = Keys(rng.public_root(seed), rng.secret_root(seed))
    return Work(
        make_round(update, Server(method), settings),
        (keys, state, frozen, data, numbers),
        batches,
        lambda adapters: _flat(workload, inputs, adapters),
        chunk,
        (blocks, rows),
    )


def _ours(model: str, name: str) -> str:
    """The peers' name of an adapted layer as this library's."""
    for theirs, ours in NAMES[model]:
        name = re.sub(theirs, ours, name)
    return name


def _factors(workload, inputs, seed: int, names: dict[str, str]):
    """A as the peers draw it, B zero."""
    a, shapes = inputs.frozen_a(workload, seed), inputs.targets(workload)
    return {
        ours: {
            "lora_a": jnp.asarray(a[theirs].T),
            "lora_b": jnp.zeros((workload.rank, shapes[theirs][1])),
        }
        for ours, theirs in names.items()
    }


def _flat(workload, inputs, adapters) -> np.ndarray:
    """Trained leaves as the peers' vector: PEFT's shapes are ours transposed."""
    parts = []
    for slot in inputs.layout(workload):
        found = adapters[_ours(workload.model, slot.module)][f"lora_{slot.factor.lower()}"]
        parts.append(np.asarray(found).T.ravel())
    return np.concatenate(parts)


def _model(workload, inputs, weights: str | None, seed: int) -> nnx.Module:
    parameters = inputs.backbone(workload, weights, seed)
    if workload.model == "mlp":
        return Mlp(parameters)
    arch = workload.architecture
    config = {
        "hidden_size": arch.hidden,
        "num_attention_heads": arch.heads,
        "num_hidden_layers": arch.layers,
        "intermediate_size": arch.intermediate,
        "layer_norm_eps": 1e-12,
    }
    if workload.model == "vit":
        config |= {"model_type": "vit", "architectures": ["ViTModel"], "num_channels": 3}
        config |= {"image_size": arch.image, "patch_size": arch.patch, "hidden_act": "gelu"}
        for theirs, files in VIT_FILES:
            parameters = {re.sub(theirs, files, name): x for name, x in parameters.items()}
    else:
        config |= {"model_type": "bert", "architectures": ["BertModel"], "type_vocab_size": 2}
        config |= {"vocab_size": arch.vocabulary, "max_position_embeddings": 512}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        save_file(parameters, Path(folder) / "model.safetensors")
        model: Any = load_pretrained(folder, workload.classes)
    model.head.kernel[...] = jnp.asarray(inputs.head(workload, seed).T)
    model.head.bias[...] = jnp.zeros(workload.classes)
    return model


def _data(workload, inputs, weights, seed) -> tuple[ClientData, Batch]:
    """All examples of every client on the device, and the peers' draws as rows of them."""
    if workload.text:
        return _text_data(workload, inputs, weights, seed)
    drawn = inputs.all_batches(workload, weights, seed)
    every = [batch for client in drawn for batch in client]
    number = len(every) * workload.batch
    rows = np.arange(number).reshape(workload.clients, workload.local_steps, workload.batch)
    x = np.concatenate([batch.inputs for batch in every])
    if workload.model == "minilm":
        named = {"input_ids": x.astype(np.int32), "attention_mask": np.ones(x.shape, bool)}
    elif workload.model == "vit":
        named = {"images": x.transpose(0, 2, 3, 1)}
    else:
        named = {"x": x}
    labels = np.concatenate([batch.labels for batch in every])
    lengths = np.full(number, workload.length)
    data = client_data(named, labels, lengths, list(rows.reshape(workload.clients, -1)))
    return data, Batch(jnp.asarray(rows), jnp.ones(rows.shape, bool))


def _text_data(workload, inputs, weights, seed) -> tuple[ClientData, Batch]:
    shards = inputs.text_shards(workload.text, workload.clients, workload.length, weights, seed)
    starts = np.cumsum([0, *(len(shard) for shard in shards)])
    ids = np.zeros((starts[-1], workload.length), np.int32)
    lengths = np.array([len(tokens) for shard in shards for tokens, _ in shard])
    labels = np.array([label for shard in shards for _, label in shard])
    mask = np.arange(workload.length) < lengths[:, None]
    ids[mask] = np.concatenate([tokens for shard in shards for tokens, _ in shard])
    owners = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
    data = client_data({"input_ids": ids, "attention_mask": mask}, labels, lengths, owners)
    capacity = default_capacity(workload.batch)
    shape = (workload.clients, workload.local_steps, capacity)
    rows, real = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for c, shard in enumerate(shards):
        for s in range(workload.local_steps):
            draw = np.random.default_rng([seed, 4, c, s]).random(len(shard))
            found = np.flatnonzero(draw < workload.batch / len(shard))  # as inputs.poisson_batch
            if len(found) > capacity:
                raise SystemExit(f"a draw of {len(found)} passes the capacity of {capacity}")
            rows[c, s, : len(found)] = found + starts[c]
            real[c, s, : len(found)] = True
    return data, Batch(jnp.asarray(rows), jnp.asarray(real))
