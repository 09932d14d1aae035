"""LoRA by module surgery: swap target ``nnx.Linear``s, split once, and leave modules behind.

``inject`` turns any NNX model into ``LoraModel(apply, backbone, shapes, ...)``: past this room there are
only pure functions on plain dict pytrees. y = x W + scaling * (x A) B (Hu et al. 2021, arXiv:2106.09685).
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float

from ffalora_jax import rng
from ffalora_jax.errors import InputError
from ffalora_jax.types import Adapters, Tree


class AdapterLeaf(nnx.Variable):
    """A leaf that may be trained; the type by which the model is split."""


class LoraLinear(nnx.Module):
    """A dense layer with a low-rank detour."""

    def __init__(self, base: nnx.Linear, rank: int, scaling: float):
        self.base, self.scaling = base, scaling
        self.lora_a = AdapterLeaf(jax.ShapeDtypeStruct((base.in_features, rank), "float32"))
        self.lora_b = AdapterLeaf(jax.ShapeDtypeStruct((rank, base.out_features), "float32"))

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        detour = (x @ self.lora_a[...].astype(x.dtype)) @ self.lora_b[...].astype(x.dtype)
        return self.base(x) + self.scaling * detour


class TrainableHead(nnx.Module):
    """The last dense layer, with its kernel and bias among the adapters."""

    def __init__(self, base: nnx.Linear):
        self.head_kernel = AdapterLeaf(jax.ShapeDtypeStruct(base.kernel.shape, "float32"))
        self.head_bias = AdapterLeaf(jax.ShapeDtypeStruct((base.out_features,), "float32"))

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        logits = x @ self.head_kernel[...]
        bias = self.head_bias[...]
        return logits + bias.reshape((1,) * (logits.ndim - 1) + bias.shape)


class LoraModel(NamedTuple):
    """A model past its modules: pure functions and facts."""

    apply: Callable[..., Float[Array, "*batch classes"]]
    """(backbone, adapters, *inputs) -> logits."""
    backbone: Tree
    shapes: dict[str, dict[str, tuple[int, ...]]]
    """Shapes of the adapter leaves, layer by layer."""
    head: Adapters
    """Initial values of a head that is among the adapters; empty if the head stays in the backbone."""
    scaling: float
    rank: int


def inject(
    model: nnx.Module,
    targets: str,
    rank: int,
    lora_alpha: float,
    layers: str = "all",
    head: str | None = "head",
) -> LoraModel:
    """Puts adapters beside every ``nnx.Linear`` whose dotted path matches ``targets`` in full.

    Args:
        model: any NNX model; it is not changed, and its arrays are shared, not copied.
        targets: regular expression, e.g. ``r".*(query|value)"``.
        rank: width of the detour.
        lora_alpha: ``scaling = lora_alpha / rank``.
        layers: blocks (the first number in the path) that get adapters: ``all``, ``4-5``, ``0,2``.
        head: path of the head whose kernel and bias join the adapters; None leaves it frozen.

    Raises:
        InputError: no layer matches (lists those there are), a rank at or above a layer's width, a
            regular expression that does not compile, a head that is not a dense layer.
    """
    model = nnx.merge(*nnx.split(model))
    model.eval()  # no dropout: its mask would be the same in every call
    _refuse_batch_statistics(model)
    dense = {
        _dotted(path): module
        for path, module in nnx.iter_modules(model)
        if type(module) is nnx.Linear
    }
    chosen = _choose(dense, targets, layers, rank, head)
    scaling = lora_alpha / rank
    for path in chosen:
        _replace(model, path, LoraLinear(dense[path], rank, scaling))
    start: Adapters = {}
    if head is not None:
        if head not in dense:
            raise InputError(
                f"No dense layer {head!r} to train as head: there are {sorted(dense)}."
            )
        base = dense[head]
        bias = jax.numpy.zeros(base.out_features) if base.bias is None else base.bias[...]
        head_leaves = {"head_kernel": base.kernel[...], "head_bias": bias}
        start[head] = {name: leaf.astype("float32") for name, leaf in head_leaves.items()}
        _replace(model, head, TrainableHead(base))
    graph, leaves, rest = nnx.split(model, AdapterLeaf, ...)
    nested = nnx.to_pure_dict(leaves)
    places = {_dotted(path): path for path in _leaf_parents(nested)}

    def apply(backbone, adapters, *inputs, **named):
        tree: dict[Any, Any] = {}
        for name, leaves in adapters.items():
            _put(tree, places[name], leaves)
        return nnx.merge(graph, tree, backbone)(*inputs, **named)

    shapes = {
        name: {leaf: tuple(x.shape) for leaf, x in _get(nested, path).items()}
        for name, path in places.items()
    }
    return LoraModel(apply, nnx.to_pure_dict(rest), shapes, start, scaling, rank)


def init_factors(model: LoraModel, draw: Callable, key: Array, factor: str) -> Adapters:
    """Draws ``factor`` (``lora_a`` or ``lora_b``) for every layer, each from a key of its own.

    B is drawn as the mirror image of A: its transpose meets the layer's outputs as A meets its inputs.
    """
    drawn: Adapters = {}
    for index, name in enumerate(sorted(lora_layers(model.shapes))):
        features = {
            "lora_a": model.shapes[name]["lora_a"][0],
            "lora_b": model.shapes[name]["lora_b"][1],
        }
        value = draw(rng.stream(key, rng.Purpose.LORA_INIT, index), features[factor], model.rank)
        drawn[name] = {factor: value if factor == "lora_a" else value.T}
    return drawn


def lora_layers(shapes: dict[str, dict[str, tuple[int, ...]]]) -> list[str]:
    """Returns the layers that have a low-rank detour."""
    return [name for name, leaves in shapes.items() if "lora_a" in leaves]


def _choose(dense: dict[str, nnx.Linear], targets: str, layers: str, rank: int, head: str | None):
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise InputError(
            f"Cannot read method.targets {targets!r} as a regular expression: {error}."
        ) from None
    blocks = parse_blocks(layers)
    chosen = [
        name
        for name in dense
        if pattern.fullmatch(name) and name != head and (blocks is None or _block(name) in blocks)
    ]
    if not chosen:
        raise InputError(
            f"No layer matches method.targets {targets!r} with method.layers {layers!r}: there are "
            f"{', '.join(sorted(dense)[:12])}, ..."
        )
    for name in chosen:
        width = min(dense[name].in_features, dense[name].out_features)
        if rank >= width:
            raise InputError(
                f"Expected method.rank below the width {width} of layer {name}, got {rank}: at that "
                "rank LoRA saves nothing."
            )
    return chosen


def parse_blocks(layers: str) -> set[int] | None:
    """Reads ``all``, ``4-5`` or ``0,2,4`` into block numbers (None: all)."""
    if layers == "all":
        return None
    try:
        spans = [part.split("-") for part in layers.split(",")]
        return {i for span in spans for i in range(int(span[0]), int(span[-1]) + 1)}
    except ValueError:
        raise InputError(f"Expected method.layers as all, 4-5 or 0,2,4, got {layers!r}.") from None


def _block(name: str) -> int | None:
    numbers = [part for part in name.split(".") if part.isdigit()]
    return int(numbers[0]) if numbers else None


def _refuse_batch_statistics(model: nnx.Module) -> None:
    for path, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            raise InputError(
                f"Layer {_dotted(path)!r} is a BatchNorm: it mixes the examples of a batch, so clipping "
                "one example's gradient would not bound its influence. Use LayerNorm or GroupNorm."
            )


def _dotted(path) -> str:
    return ".".join(str(part) for part in path)


def _replace(model: nnx.Module, path: str, module: nnx.Module) -> None:
    *parents, last = path.split(".")
    owner: Any = model
    for part in parents:
        owner = owner[int(part)] if part.isdigit() else getattr(owner, part)
    if last.isdigit():
        owner[int(last)] = module
    else:
        setattr(owner, last, module)


def _leaf_parents(tree, path=()):
    if all(not isinstance(value, dict) for value in tree.values()):
        return [path]
    return [found for part, value in tree.items() for found in _leaf_parents(value, (*path, part))]


def _put(tree: dict, path, value) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = dict(value)


def _get(tree: dict, path):
    for part in path:
        tree = tree[part]
    return tree
