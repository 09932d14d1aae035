"""LoRA by module surgery: swap target ``nnx.Linear``s, split once, and leave modules behind.

``inject`` turns any NNX model into ``LoraModel(apply, backbone, shapes, ...)``: past this room there are
only pure functions on plain dict pytrees. y = x W + scaling * (x A) B (Hu et al. 2021, arXiv:2106.09685).
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ffalora_jax import adapters as leaves
from ffalora_jax import rng
from ffalora_jax.blocks import LowerBlocks, UpperBlocks
from ffalora_jax.detours import LORA, Detour
from ffalora_jax.errors import InputError
from ffalora_jax.lora_init import LoraInit
from ffalora_jax.lora_layers import Probe
from ffalora_jax.packing import Packed
from ffalora_jax.surgery import at, operate, placed
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
    outputs: dict[str, int]
    """Width of what every layer with leaves gives."""
    detour: Detour = LORA
    dropout: float = 0.0
    apply_probed: Callable[..., tuple[Array, dict[str, Array]]] | None = None
    """(backbone, adapters, probes by layer, packed rows) -> logits by slot, and what each probed layer was
    given; None where a model has no form for packed rows."""
    num_frozen: int = 0
    """Blocks below the lowest adapter: what they give an example never changes. With ``hidden`` among the
    named inputs the three functions above go on from it."""
    apply_frozen: Callable[..., Float[Array, "*batch token feature"]] | None = None
    """(backbone, *inputs, products) -> what those blocks give; with ``products``, beside it what the frozen
    weights of the block above make of it."""
    members: int = 1
    """Adapters side by side, on a leading axis of every leaf (``ensemble``)."""


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
    detour: Detour = LORA,
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
        detour: what stands beside each layer; the method says (``Method.detour``).
        **more: ``exclude``, ``rank_pattern``, ``alpha_pattern``, ``use_rslora``, ``other_names``, as in
            ``Targets``.

    Raises:
        InputError: no layer matches (lists those there are), a rank at or above a layer's width, a
            regular expression that does not compile, a head that is not a dense layer.
    """
    wanted = Targets(targets, rank, lora_alpha, layers, **more)
    plain = operate(model, wanted, head, 0.0, scan_layers, detour)
    dropping = plain
    if dropout:  # only its form: stacked, its backbone would be a copy of its own
        dropping = operate(model, wanted, head, dropout, scan_layers, detour)._replace(backbone={})

    num_frozen = 0 if scan_layers else _below(model, plain.shapes)

    def module_of(backbone, adapters, hidden=None) -> Any:
        module: Any = nnx.merge(plain.graph, placed(plain.places, adapters), {}, backbone)
        return _going_on(module, num_frozen, hidden)

    def apply(backbone, adapters, *inputs, hidden=None, **named):
        return module_of(backbone, adapters, hidden)(*inputs, **named)

    def apply_frozen(backbone, *inputs, products=True, **named):
        unused = jax.tree.map(jnp.zeros, plain.shapes, is_leaf=lambda x: isinstance(x, tuple))
        module = module_of(backbone, unused)
        lower = LowerBlocks(module.layers, num_frozen, products)
        object.__setattr__(module, "layers", lower)
        module(*inputs, **named)
        return lower.kept

    def apply_training(backbone, adapters, key, *inputs, hidden=None, **named):
        if not dropout:
            return apply(backbone, adapters, *inputs, hidden=hidden, **named)
        names = [name for stack in dropping.places.values() for name in stack]
        keys = {
            name: {"dropout_key": rng.leaf(key, index)}
            for index, name in enumerate(sorted(names))
            if name in dropping.adapted
        }
        drops = {path: stack for path, stack in dropping.places.items() if stack[0] in keys}
        parts = placed(dropping.places, adapters), placed(drops, keys), backbone
        module = _going_on(nnx.merge(dropping.graph, *parts), num_frozen, hidden)
        return module(*inputs, **named)

    def apply_probed(backbone, adapters, probes, packed: Packed):
        module = module_of(backbone, adapters)
        probed = {name: at(module, name) for name in probes}
        for name, layer in probed.items():
            layer.probe = Probe(probes[name])
        logits = _going_on(module, num_frozen, packed.hidden).packed(packed)
        return logits, {name: layer.given[...] for name, layer in probed.items()}

    can_pack = hasattr(model, "packed") and not (scan_layers or dropout)
    return LoraModel(
        apply,
        apply_training,
        plain.backbone,
        plain.shapes,
        plain.start,
        plain.adapted,
        plain.outputs,
        detour,
        dropout,
        apply_probed if can_pack else None,
        num_frozen,
        apply_frozen,
    )


def _below(model: Any, shapes: dict[str, Any]) -> int:
    """Returns how many of a model's blocks lie below all adapters; 0 where one stands elsewhere."""
    blocks = getattr(model, "layers", ())
    inside = [re.match(r"layers\.(\d+)\.", name) for name in shapes if name != "head"]
    places = [int(found[1]) for found in inside if found]
    return min(places) if blocks and places and len(places) == len(inside) else 0


def _going_on(module: Any, begin: int, hidden: Array | None) -> Any:
    """Lets a module's upper blocks go on from what the lower ones gave, if that is given."""
    if hidden is not None:
        object.__setattr__(module, "layers", UpperBlocks(module.layers, begin, hidden))
    return module


def kernel_of(backbone: Tree, layer: str) -> Float[Array, "in out"]:
    """Returns the frozen weights of an adapted layer."""
    for part in layer.split("."):
        backbone = backbone[int(part) if part.isdigit() else part]
    return backbone["base"]["kernel"]


def init_factors(
    model: LoraModel, init: LoraInit, key: Array, factor: str, round_index: Any = None
) -> Adapters:
    """Draws ``factor`` (``lora_a`` or ``lora_b``) for every layer, each from a key of its own.

    B is drawn as the mirror image of A: its transpose meets the layer's outputs as A meets its inputs. With
    ``round_index`` it is A's draw before that round. An initialiser that looks at W draws nothing.
    """
    if init.of_weights is not None:
        return leaves.select(factors_of_weights(model, init), {factor})
    assert init.draw is not None
    purpose = {"lora_a": rng.Purpose.LORA_INIT, "lora_b": rng.Purpose.LORA_INIT_B}[factor]
    before = ()
    if round_index is not None:
        purpose, before = rng.Purpose.LORA_REDRAW, (round_index,)
    drawn: Adapters = {}
    for index, name in enumerate(sorted(model.adapted)):
        features = {
            "lora_a": model.shapes[name]["lora_a"][0],
            "lora_b": model.shapes[name]["lora_b"][1],
        }
        layer_key = rng.stream(key, purpose, *before, index)
        value = init.draw(layer_key, features[factor], model.adapted[name].rank)
        drawn[name] = {factor: value if factor == "lora_a" else value.T}
    return drawn


def factors_of_weights(model: LoraModel, init: LoraInit) -> Adapters:
    """Returns A and B of every layer as an initialiser takes them from its W.

    Raises:
        InputError: the blocks are stacked (``scan_layers``).
    """
    assert init.of_weights is not None
    if "block" in model.backbone.get("layers", {}):
        raise InputError(
            "This initialiser looks at each layer's weights, and model.scan_layers stacks them: set it to "
            "false, or take one that draws from the seed."
        )
    found: Adapters = {}
    for name, facts in model.adapted.items():
        a, b = init.of_weights(kernel_of(model.backbone, name), facts.rank, facts.scaling)
        found[name] = {"lora_a": a, "lora_b": b}
    return found
