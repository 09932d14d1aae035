"""How much memory a round takes, from sizes alone: one formula, nothing is allocated or fitted.

For choosing ``model.dtype``, ``model.remat``, ``client_chunk`` and the lengths before a big model is loaded.
``docs/memory.md`` holds the formula against measurements.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from ffalora_jax import lora, registry
from ffalora_jax.errors import InputError, one_of, positive
from ffalora_jax.models import Model

WIDTHS = {"float32": 4, "bfloat16": 2}
COPIES = 5
"""Of a client's trained leaves: where it starts, the same in the model's form, sum, noise, where it ends."""


class Kept(NamedTuple):
    """What a block keeps of a token for its backward pass, counted in the family's own operations."""

    features: int
    """Values as wide as the model, float32: in and around the norms."""
    inner: int
    """Values as wide as the feed-forward layer, in the backbone's type."""


# Frozen weights need no gradient, so what goes into a dense layer is not kept, only into a nonlinear one.
# A norm keeps its input and the normalised one (layer norm: the centred one too); SwiGLU the two factors,
# the sigmoid and two products, GELU its input and two functions of it.
KEPT = {"llama": Kept(4, 5), "bert": Kept(6, 3), "roberta": Kept(6, 3), "vit": Kept(6, 3)}


class Memory(NamedTuple):
    """Bytes on the device at the worst moment of a round, data set and program left out."""

    backbone: int
    adapters: int
    """The frozen factor and the trained leaves, at the server and at every client of the moment."""
    gradients: int
    """Per-example gradients of the trained leaves, before they are clipped and summed."""
    activations: int
    """What the backward pass needs, of all examples of the moment."""

    @property
    def total(self) -> int:
        """All together."""
        return sum(self)


class Sizes(NamedTuple):
    """Sizes of a model, read off its shapes."""

    parameters: int
    frozen: int
    """Numbers of the factor that stays as drawn (``lora_a``)."""
    trained: int
    """Numbers of ``lora_b`` and of a classifier's head."""
    layers: int
    features: int
    inner: int
    heads: int
    channels: int
    """Of query, keys and values of a token together."""
    vocabulary: int
    """Logits a token: a language model's; 0 for a classifier, whose few ones do not count."""
    ranks: int
    """Ranks of a block's adapters together."""
    kept: Kept


def estimate(
    config: dict[str, Any],
    *,
    tokens: int,
    examples: int = 1,
    clients: int = 1,
    dtype: str = "float32",
    remat: bool = False,
    rank: int = 8,
    targets: str = "qv",
) -> Memory:
    """Estimates the memory of a private round of FFA-LoRA.

        backbone     P w
        adapters     4 (A + 2 B + 5 C B)
        gradients    4 C E B
        activations  C E (L k + 5 H T^2 + max(k + 2 w T F, 8 T V)),      with remat: L w T D for L k

        k = T (4 n D + w (q + m F) + (4 + w) H T + w R)     bytes that one block keeps of one example

    with w bytes of ``dtype``; P parameters; A and B numbers of the frozen and the trained leaves; C clients
    and E examples at once; L layers, D features, F inner features, H heads, q channels of query, keys and
    values, R ranks of a block; T tokens; V vocabulary; n and m as in ``KEPT``. ``5 H T^2`` is the mask (a
    bool and a float32); the maximum is what is in hand while the backward pass begins: one block's values
    with the gradients of its two widest, or the logits with theirs. Training A as well keeps its inputs
    too, at most D numbers a token and adapter.

    Args:
        config: a config.json as a dict.
        tokens: length of an example (ViT: patches and one).
        examples: examples of a client at once (on an accelerator the capacity of a draw; on a CPU 8).
        clients: clients at once (``client_chunk``; all of the cohort on an accelerator).
        dtype: ``model.dtype``. Where the hardware does not compute in bfloat16 (CPUs), activations count as
            float32's and the backbone once more in float32.
        remat: ``model.remat``; on a CPU it needs ``model.scan_layers``.
        rank: of the adapters.
        targets: of the adapters: a placement of the family's, names or a regular expression.

    Raises:
        InputError: an unknown architecture, sizes below one.
    """
    positive(tokens=tokens, examples=examples, clients=clients, rank=rank)
    one_of(tuple(WIDTHS), dtype=dtype)
    size, width = sizes_of(config, rank=rank, targets=targets), WIDTHS[dtype]
    block = block_bytes(size, tokens, width)
    through = width * tokens * size.features if remat else block
    in_hand = max(block + 2 * width * tokens * size.inner, 8 * tokens * size.vocabulary)
    mask = 5 * size.heads * tokens**2
    return Memory(
        backbone=size.parameters * width,
        adapters=4 * (size.frozen + (2 + COPIES * clients) * size.trained),
        gradients=4 * clients * examples * size.trained,
        activations=clients * examples * (size.layers * through + mask + in_hand),
    )


def block_bytes(size: Sizes, tokens: int, width: int) -> int:
    """Returns the bytes that one block keeps of one example for the backward pass (k of ``estimate``)."""
    norms = 4 * size.kept.features * size.features
    dense = width * (size.channels + size.kept.inner * size.inner + size.ranks)
    attention = (4 + width) * size.heads * tokens
    return tokens * (norms + dense + attention)


def sizes_of(config: dict[str, Any], rank: int = 8, targets: str = "qv") -> Sizes:
    """Returns the sizes of a model and its adapters, without making it.

    Raises:
        InputError: an unknown architecture, adapters that do not fit.
    """
    return _sizes(json.dumps(config, sort_keys=True), rank, targets)


@functools.lru_cache(
    maxsize=16
)  # tables ask for one model many times, and a deep one takes a second
def _sizes(config_json: str, rank: int, targets: str) -> Sizes:
    config = json.loads(config_json)
    family = _family_of(config)
    language = family.reads == "instructions"
    model: Any = nnx.eval_shape(lambda: family.build(config, 2, nnx.Rngs(0)))
    placed = lora.inject(model, family.placements.get(targets, targets), rank, rank, head=None)
    numbers = {"lora_a": 0, "lora_b": 0 if language else count(model.head)}
    for leaves in placed.shapes.values():
        for name, shape in leaves.items():
            numbers[name] += int(np.prod(shape))
    heads = config["num_attention_heads"]
    channels = config.get("head_dim") or config["hidden_size"] // heads
    groups = config.get("num_key_value_heads") or heads
    return Sizes(
        parameters=count(model),
        frozen=numbers["lora_a"],
        trained=numbers["lora_b"],
        layers=config["num_hidden_layers"],
        features=config["hidden_size"],
        inner=config["intermediate_size"],
        heads=heads,
        channels=(heads + 2 * groups) * channels,
        vocabulary=config["vocab_size"] if language else 0,
        ranks=sum(one.rank for one in placed.adapted.values()) // config["num_hidden_layers"],
        kept=KEPT[family.family],
    )


def count(model: nnx.Module) -> int:
    """Returns the number of parameters of a module, or of one that only has shapes yet."""
    leaves = jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    return sum(int(np.prod(leaf.shape)) for leaf in leaves)


def _family_of(config: dict[str, Any]) -> Model:
    for name in KEPT:
        family: Model = registry.lookup("models", name)()
        if set(family.architectures) & set(config.get("architectures") or ()):
            return family
    raise InputError(
        f"Expected a config.json with architectures of {', '.join(KEPT)}, got "
        f"{config.get('architectures')}: the memory of other models is not known here."
    )


CGROUPS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""Files of limit and use, of version 2 and 1."""


def free_bytes(cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")) -> int:
    """Returns what may still be allocated on the first device: its own memory, or the machine's.

    On a CPU the smaller of what is available and what the control group leaves.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if jax.default_backend() != "cpu" and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    lines = meminfo.read_text().splitlines() if meminfo.is_file() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for limit, used in CGROUPS:
        if (cgroup / limit).is_file():
            text = (cgroup / limit).read_text().strip()
            if text != "max":
                found.append(int(text) - int((cgroup / used).read_text()))
    return max(0, min(found, default=UNKNOWN_BYTES))


UNKNOWN_BYTES = 4 * 2**30
"""Taken as free where the system does not say."""
