"""Operations of matrix products, counted in the program that JAX would run; nothing is computed."""

import math
from functools import partial
from typing import Any

import jax

from ffalora_jax import adapters as leaves
from ffalora_jax.client import Frozen
from ffalora_jax.cohort import ClientData
from ffalora_jax.lora import LoraModel
from ffalora_jax.tasks import Task
from ffalora_jax.types import Adapters


def of_example(
    model: LoraModel, task: Task, frozen: Frozen, trained: Adapters, data: ClientData
) -> int:
    """Returns the operations of one example's gradient at full width: forward, back to the lowest adapter.

    Matrix products only: one of (m, k) and (k, n) counts 2 m k n. A loop counts as often as it runs where
    that is known, a ``while`` once.

    Args:
        model: with its adapters.
        task: gives the loss.
        frozen: backbone and frozen factor.
        trained: one client's trained leaves.
        data: training examples; only shapes matter, and whether the frozen blocks' states are kept.
    """

    def loss(trained, frozen, inputs, label):
        adapters = leaves.merge(frozen.adapters, trained)
        return task.loss(partial(model.apply, frozen.backbone, adapters), inputs, label)

    inputs = {
        name: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for name, leaf in data.inputs.items()
    }
    if data.prefix is not None:
        width, features = data.prefix.places.shape[0], data.prefix.hidden.shape[1]
        inputs["hidden"] = jax.ShapeDtypeStruct((width, features), data.prefix.hidden.dtype)
    label = jax.ShapeDtypeStruct((), "int32")
    compiled = jax.make_jaxpr(jax.grad(loss))(trained, frozen, inputs, label)
    return _of_jaxpr(_needed(compiled).jaxpr)


def _needed(closed: Any) -> Any:
    """Leaves out what no result depends on, as XLA does."""
    jaxpr = closed.jaxpr
    wanted = {id(v) for v in jaxpr.outvars}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if any(id(v) in wanted for v in equation.outvars):
            kept.append(equation)
            wanted |= {id(v) for v in equation.invars}
    return closed.replace(jaxpr=jaxpr.replace(eqns=kept[::-1]))


def _of_jaxpr(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    if equation.primitive.name == "dot_general":
        left, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        contracted = equation.params["dimension_numbers"][0][0]
        return 2 * math.prod(result) * math.prod(left[axis] for axis in contracted)
    inner = [_inside(value) for value in equation.params.values()]
    found = [count for counts in inner for count in counts]
    if not found:
        return 0
    if equation.primitive.name == "cond":
        return max(found)
    return sum(found) * equation.params.get("length", 1)


def _inside(value: Any) -> list[int]:
    """Returns the operations of every program among an equation's parameters."""
    if isinstance(value, tuple | list):
        return [count for one in value for count in _inside(one)]
    inner = getattr(value, "jaxpr", value)
    return [_of_jaxpr(inner)] if hasattr(inner, "eqns") else []
