"""Module surgery: layers swapped for LoRA ones, and the model split by the type of its variables."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from ffalora_jax.blocks import StackedBlocks
from ffalora_jax.detours import LORA, Detour
from ffalora_jax.errors import InputError
from ffalora_jax.lora_layers import AdapterLeaf, DropoutKey, LoraLinear, TrainableHead
from ffalora_jax.targets import Adapted, Targets
from ffalora_jax.types import Adapters, Tree


class Operated(NamedTuple):
    """A model after surgery, split by the type of its variables."""

    graph: Any
    backbone: Tree
    places: dict[tuple, tuple[str, ...]]
    """Where leaves go -> the layers they come from: one, or all of a stack in order."""
    shapes: dict[str, dict[str, tuple[int, ...]]]
    start: Adapters
    adapted: dict[str, Adapted]
    outputs: dict[str, int]
    """Width of what each layer gives."""


def operate(
    given: nnx.Module,
    wanted: Targets,
    head: str | None,
    dropout: float,
    scan_layers: bool,
    detour: Detour = LORA,
) -> Operated:
    """Puts adapters into a copy of a model and splits it; see ``lora.inject`` for the arguments."""
    model: Any = nnx.merge(*nnx.split(given))
    model.eval()  # no dropout of its own: its mask would be the same in every call
    _refuse_batch_statistics(model)
    dense = {
        _dotted(path): module
        for path, module in nnx.iter_modules(model)
        if type(module) is nnx.Linear
    }
    adapted = wanted.choose(dense, head)
    _refuse_shared(model, [*adapted, *([] if head is None else [head])])
    for place, (path, found) in enumerate(sorted(adapted.items(), key=_by_number)):
        form = detour
        if detour.shapes_at is not None:
            form = detour._replace(shapes=detour.shapes_at(place, len(adapted)))
        _replace(model, path, LoraLinear(dense[path], found, dropout, form))
    start = {} if head is None else {head: _take_head(model, dense, head)}
    shapes = {
        _dotted(path): {leaf: tuple(x.shape) for leaf, x in leaves.items()}
        for path, leaves in _leaf_parents(nnx.to_pure_dict(nnx.state(model, AdapterLeaf)))
    }
    depth = 0
    if scan_layers:
        depth = len(_blocks_of(model))
        model.layers = StackedBlocks(_blocks_of(model))
    graph, leaves, _, rest = nnx.split(model, AdapterLeaf, DropoutKey, ...)
    places = {path: _sources(path, depth) for path, _ in _leaf_parents(nnx.to_pure_dict(leaves))}
    outputs = {name: dense[name].out_features for name in shapes}
    return Operated(graph, nnx.to_pure_dict(rest), places, shapes, start, adapted, outputs)


def _take_head(model: nnx.Module, dense: dict[str, nnx.Linear], head: str) -> dict[str, Array]:
    """Moves the head among the adapters and returns its leaves."""
    if head not in dense:
        raise InputError(f"No dense layer {head!r} to train as head: there are {sorted(dense)}.")
    base = dense[head]
    bias = jnp.zeros(base.out_features) if base.bias is None else base.bias[...]
    _replace(model, head, TrainableHead(base))
    leaves = {"head_kernel": base.kernel[...], "head_bias": bias}
    return {name: leaf.astype("float32") for name, leaf in leaves.items()}


def _blocks_of(model: Any) -> list[nnx.Module]:
    """Returns the blocks to be stacked.

    Raises:
        InputError: the model has none, or they differ in shape or adapters.
    """
    blocks: list[nnx.Module] = list(getattr(model, "layers", ()))
    if not blocks:
        raise InputError("model.scan_layers needs a model with a list of blocks called 'layers'.")
    split = [nnx.split(block) for block in blocks]
    forms = [(g, jax.tree.map(lambda x: x.shape, nnx.to_pure_dict(state))) for g, state in split]
    if any(form != forms[0] for form in forms):
        raise InputError(
            "model.scan_layers needs the same adapters in every block: leave method.layers at all and the "
            "patterns empty, or switch it off."
        )
    return blocks


def _sources(path: tuple, depth: int) -> tuple[str, ...]:
    """Returns the layers whose leaves go to a place: all of a stack, or the place's own."""
    if depth and path[:2] == ("layers", "block"):
        return tuple(_dotted(("layers", index, *path[2:])) for index in range(depth))
    return (_dotted(path),)


def placed(places: dict[tuple, tuple[str, ...]], leaves: Adapters) -> dict[Any, Any]:
    """Returns leaves by layer as the nested tree of the module, those of a stack stacked."""
    tree: dict[Any, Any] = {}
    for path, names in places.items():
        if path[:2] == ("layers", "block"):
            value = jax.tree.map(lambda *each: jnp.stack(each), *[leaves[name] for name in names])
        else:
            value = leaves[names[0]]
        here = tree
        for part in path[:-1]:
            here = here.setdefault(part, {})
        here[path[-1]] = dict(value)
    return tree


def _refuse_batch_statistics(model: nnx.Module) -> None:
    for path, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            raise InputError(
                f"Layer {_dotted(path)!r} is a BatchNorm: it mixes the examples of a batch, so clipping "
                "one example's gradient would not bound its influence. Use LayerNorm or GroupNorm."
            )


def _refuse_shared(model: nnx.Module, chosen: list[str]) -> None:
    for places in nnx.find_duplicates(model):
        names = [_dotted(path) for path in places]
        for name in chosen:
            if any(name == one or name.startswith(f"{one}.") for one in names):
                raise InputError(
                    f"Layer {name!r} is used in several places ({', '.join(names)}): an adapter would stand "
                    "at one of them only. Exclude it with method.exclude, or give each place its own layer."
                )


def _by_number(item: tuple[str, Any]) -> list[tuple[bool, int, str]]:
    """Orders layers from the input to the output: block 2 before block 10."""
    parts = item[0].split(".")
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _dotted(path) -> str:
    return ".".join(str(part) for part in path)


def _replace(model: nnx.Module, path: str, module: nnx.Module) -> None:
    parents, _, last = path.rpartition(".")
    owner = at(model, parents)
    if last.isdigit():
        owner[int(last)] = module
    else:
        setattr(owner, last, module)


def at(model: Any, path: str) -> Any:
    """Returns the module at a dotted path."""
    for part in path.split(".") if path else ():
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model


def _leaf_parents(tree, path=()) -> list[tuple[tuple, dict]]:
    """Returns (path, leaves) of every module that holds some."""
    if all(not isinstance(value, dict) for value in tree.values()):
        return [(path, tree)]
    return [found for part, value in tree.items() for found in _leaf_parents(value, (*path, part))]
