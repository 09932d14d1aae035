"""LoRA by module surgery: swap target ``nnx.Linear``s, split once, and leave modules behind.

``inject`` turns any NNX model into ``LoraModel(apply, backbone, shapes, ...)``: past this room there are
only pure functions on plain dict pytrees. y = x W + scaling * (x A) B (Hu et al. 2021, arXiv:2106.09685).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ffalora_jax import rng
from ffalora_jax.errors import InputError
from ffalora_jax.layers import StackedBlocks
from ffalora_jax.lora_layers import AdapterLeaf, DropoutKey, LoraLinear, Probe, TrainableHead
from ffalora_jax.packing import Packed
from ffalora_jax.targets import Adapted, Targets
from ffalora_jax.types import Adapters, Tree


class LoraModel(NamedTuple):
    """A model past its modules: pure functions and facts."""

    apply: Callable[..., Float[Array, "*batch classes"]]
    """(backbone, adapters, *inputs) -> logits, without dropout."""
    apply_training: Callable[..., Float[Array, "*batch classes"]]
    """(backbone, adapters, dropout key, *inputs) -> logits of one example in a training step."""
    backbone: Tree
    shapes: dict[str, dict[str, tuple[int, ...]]]
    """Shapes of the adapter leaves, layer by layer."""
    head: Adapters
    """Initial values of a head that is among the adapters; empty if the head stays in the backbone."""
    adapted: dict[str, Adapted]
    """Rank and scaling of every layer that has a detour."""
    dropout: float = 0.0
    apply_probed: Callable[..., tuple[Array, dict[str, Array]]] | None = None
    """(backbone, adapters, probes by layer, packed rows) -> logits by slot, and what each probed layer was
    given; None where a model has no form for packed rows."""


def inject(
    model: nnx.Module,
    targets: str,
    rank: int,
    lora_alpha: float = 8.0,
    layers: str = "all",
    head: str | None = "head",
    *,
    dropout: float = 0.0,
    scan_layers: bool = False,
    **more: Any,
) -> LoraModel:
    """Puts adapters beside every ``nnx.Linear`` that ``targets`` names.

    Args:
        model: any NNX model; it is not changed, and its arrays are shared, not copied.
        targets: layer names like ``query,value``, or a regular expression over whole dotted paths.
        rank: width of the detour.
        lora_alpha: ``scaling = lora_alpha / rank``.
        layers: blocks (the first number in the path) that get adapters: ``all``, ``4-5``, ``0,2``.
        head: path of the head whose kernel and bias join the adapters; None leaves it frozen.
        dropout: share of a detour's inputs that ``apply_training`` leaves out.
        scan_layers: stack ``model.layers`` and scan over them; needs the same adapters in each. The
            backbone's arrays are copied then.
        **more: ``exclude``, ``rank_pattern``, ``alpha_pattern``, ``use_rslora``, ``other_names``, as in
            ``Targets``.

    Raises:
        InputError: no layer matches (lists those there are), a rank at or above a layer's width, a
            regular expression that does not compile, a head that is not a dense layer.
    """
    wanted = Targets(targets, rank, lora_alpha, layers, **more)
    plain = _operate(model, wanted, head, 0.0, scan_layers)
    dropping = plain
    if dropout:  # only its form: stacked, its backbone would be a copy of its own
        dropping = _operate(model, wanted, head, dropout, scan_layers)._replace(backbone={})

    def apply(backbone, adapters, *inputs, **named):
        tree = _placed(plain.places, adapters)
        return nnx.merge(plain.graph, tree, {}, backbone)(*inputs, **named)

    def apply_training(backbone, adapters, key, *inputs, **named):
        if not dropout:
            return apply(backbone, adapters, *inputs, **named)
        names = [name for stack in dropping.places.values() for name in stack]
        keys = {
            name: {"dropout_key": rng.leaf(key, index)}
            for index, name in enumerate(sorted(names))
            if name in dropping.adapted
        }
        drops = {path: stack for path, stack in dropping.places.items() if stack[0] in keys}
        parts = _placed(dropping.places, adapters), _placed(drops, keys), backbone
        return nnx.merge(dropping.graph, *parts)(*inputs, **named)

    def apply_probed(backbone, adapters, probes, packed: Packed):
        module: Any = nnx.merge(plain.graph, _placed(plain.places, adapters), {}, backbone)
        probed = {name: _at(module, name) for name in probes}
        for name, layer in probed.items():
            layer.probe = Probe(probes[name])
        logits = module.packed(packed)
        return logits, {name: layer.given[...] for name, layer in probed.items()}

    can_pack = hasattr(model, "packed") and not (scan_layers or dropout)
    return LoraModel(
        apply,
        apply_training,
        plain.backbone,
        plain.shapes,
        plain.start,
        plain.adapted,
        dropout,
        apply_probed if can_pack else None,
    )


class _Operated(NamedTuple):
    """A model after surgery, split by the type of its variables."""

    graph: Any
    backbone: Tree
    places: dict[tuple, tuple[str, ...]]
    """Where leaves go -> the layers they come from: one, or all of a stack in order."""
    shapes: dict[str, dict[str, tuple[int, ...]]]
    start: Adapters
    adapted: dict[str, Adapted]


def _operate(
    given: nnx.Module, wanted: Targets, head: str | None, dropout: float, scan_layers: bool
) -> _Operated:
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
    for path, found in adapted.items():
        _replace(model, path, LoraLinear(dense[path], found, dropout))
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
    return _Operated(graph, nnx.to_pure_dict(rest), places, shapes, start, adapted)


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


def _placed(places: dict[tuple, tuple[str, ...]], leaves: Adapters) -> dict[Any, Any]:
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


def init_factors(model: LoraModel, draw: Callable, key: Array, factor: str) -> Adapters:
    """Draws ``factor`` (``lora_a`` or ``lora_b``) for every layer, each from a key of its own.

    B is drawn as the mirror image of A: its transpose meets the layer's outputs as A meets its inputs.
    """
    purpose = {"lora_a": rng.Purpose.LORA_INIT, "lora_b": rng.Purpose.LORA_INIT_B}[factor]
    drawn: Adapters = {}
    for index, name in enumerate(sorted(lora_layers(model.shapes))):
        features = {
            "lora_a": model.shapes[name]["lora_a"][0],
            "lora_b": model.shapes[name]["lora_b"][1],
        }
        layer_key = rng.stream(key, purpose, index)
        value = draw(layer_key, features[factor], model.adapted[name].rank)
        drawn[name] = {factor: value if factor == "lora_a" else value.T}
    return drawn


def lora_layers(shapes: dict[str, dict[str, tuple[int, ...]]]) -> list[str]:
    """Returns the layers that have a low-rank detour."""
    return [name for name, leaves in shapes.items() if "lora_a" in leaves]


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


def _dotted(path) -> str:
    return ".".join(str(part) for part in path)


def _replace(model: nnx.Module, path: str, module: nnx.Module) -> None:
    parents, _, last = path.rpartition(".")
    owner = _at(model, parents)
    if last.isdigit():
        owner[int(last)] = module
    else:
        setattr(owner, last, module)


def _at(model: Any, path: str) -> Any:
    for part in path.split(".") if path else ():
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model


def _leaf_parents(tree, path=()) -> list[tuple[tuple, dict]]:
    """Returns (path, leaves) of every module that holds some."""
    if all(not isinstance(value, dict) for value in tree.values()):
        return [(path, tree)]
    return [found for part, value in tree.items() for found in _leaf_parents(value, (*path, part))]
