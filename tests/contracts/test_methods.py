"""Every method on the shelf, with every mechanism: two rounds, same trees, no retrace, its promises kept."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffalora_jax import adapters as leaves
from ffalora_jax import registry
from ffalora_jax.errors import InputError
from ffalora_jax.methods import Method
from tests.helpers import go_together, keys, prepared, run_rounds

METHODS = registry.available("methods")
MECHANISMS = registry.available("mechanisms")
BEGUN_ANEW = {"flora": "lora_b", "ravan": "gain"}
"""Leaves that every round trains and the server then sets back."""


INITS = registry.available("inits")


def small(name, mechanism="dp_sgd", init="kaiming"):
    return prepared(method=name, mechanism=mechanism, init=init, num_examples=192)


def inits_of(name):
    """Initialisers that a method can have: not one that gives the same A again where A is drawn anew."""
    method = registry.lookup("methods", name)()
    return [x for x in INITS if not method.redrawn or registry.lookup("inits", x)().draw]


PAIRS = [(name, mechanism) for name in METHODS for mechanism in MECHANISMS]
TOGETHER = [pair for pair in PAIRS if go_together(*pair)]


def covering(pairs):
    """Every method with a mechanism and an initialiser in turn, so that each comes up; the rest is slow."""
    having = {name: [m for n, m in pairs if n == name] for name, _ in pairs}
    turn = {name: ms[i % len(ms)] for i, (name, ms) in enumerate(having.items())}
    found = []
    for index, (name, mechanism) in enumerate(pairs):
        inits = inits_of(name)
        chosen = inits[index % len(inits)]
        for init in inits if mechanism == "dp_sgd" else [chosen]:
            is_fast = mechanism == turn[name] and init == chosen
            found.append(
                pytest.param(name, mechanism, init, marks=() if is_fast else pytest.mark.slow)
            )
    return found


@pytest.mark.parametrize(("name", "mechanism"), [x for x in PAIRS if not go_together(*x)])
def test_a_mechanism_that_a_method_cannot_have_is_refused_with_the_reason(name, mechanism):
    why = "reads each client's upload|yardstick|keeps leaves|trains? (other|all its) leaves|linear"
    with pytest.raises(InputError, match=rf"{name}.*({why})"):
        small(name, mechanism)


@pytest.mark.parametrize(("name", "mechanism", "init"), covering(TOGETHER))
def test_two_rounds_keep_trees_and_dtypes_and_trace_once(name, mechanism, init):
    run = small(name, mechanism, init)
    rounds, state = run.rounds(), run.state
    for _ in range(2):
        state, info = rounds(keys(run), state, run.frozen, run.data, run.numbers, jnp.int32(1))
    assert rounds._cache_size() == 1
    before, after = (jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (run.state, state))
    assert before == after
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    differs = jax.tree.map(
        lambda a, b: bool((a != b).any()),
        (run.state.adapters, run.state.personal),
        (state.adapters, state.personal),
    )
    moves = [
        move
        for tree in differs
        for found in tree.values()
        for leaf, move in found.items()
        if leaf != BEGUN_ANEW.get(name)
    ]
    # Without noise a leaf may move by less than its last digit.
    assert all(moves) if mechanism == "dp_sgd" else np.mean(moves) > 0.6, (
        "trained leaves are trained"
    )
    assert int(np.asarray(info.took_part[0]).sum()) == run.settings.num_clients


@pytest.mark.parametrize("name", METHODS)
def test_a_fresh_adapter_leaves_the_model_unchanged(name):
    run = small(name)
    inputs = {key: leaf[:4] for key, leaf in run.data.inputs.items()}
    start = jax.tree.map(lambda leaf: leaf[0], run.state.personal)
    layers = {*run.frozen.adapters, *run.state.adapters, *start}
    joined = {
        layer: {
            **run.frozen.adapters.get(layer, {}),
            **run.state.adapters.get(layer, {}),
            **start.get(layer, {}),
        }
        for layer in layers
    }
    np.testing.assert_allclose(
        run.model.apply(run.model.backbone, joined, **inputs), run.loaded.model(**inputs), atol=1e-6
    )


@pytest.mark.parametrize("name", METHODS)
def test_leaves_are_sent_kept_or_frozen_and_never_two_of_these(name):
    run, method = small(name), registry.lookup("methods", name)()
    parts = [
        {(layer, leaf) for layer, found in tree.items() for leaf in found}
        for tree in (run.state.adapters, run.state.personal, run.frozen.adapters)
    ]
    assert sum(map(len, parts)) == len(set().union(*parts))
    every = {leaf for found in run.model.adapted for leaf in run.model.shapes[found]}
    assert {leaf for _, leaf in parts[2]} == every - method.trained - method.kept
    everything = {(layer, leaf) for layer, found in run.model.shapes.items() for leaf in found}
    assert set().union(*parts) == everything


def centralised_twin(name):
    """The plain method that trains the same leaves in every round, if there is one."""
    method = registry.lookup("methods", name)()
    parts = None if method.local_parts else method.parts
    plain = ("ffa_lora", "freeze_b", "fedavg_lora")
    return next((x for x in plain if registry.lookup("methods", x)().parts == parts), None)


def changed(name):
    """Which of its rules a method has of its own."""
    method, plain = registry.lookup("methods", name)(), Method((), frozenset())
    return {
        rule for rule in ("read", "upload") if getattr(method, rule) is not getattr(plain, rule)
    }


def everything(run, state):
    """All leaves of the first client, frozen ones included."""
    own = jax.tree.map(lambda leaf: leaf[0], state.personal)
    return leaves.merge(run.frozen.adapters, state.adapters, own)


@pytest.mark.parametrize("name", [name for name in METHODS if centralised_twin(name)])
@pytest.mark.thorough
def test_with_one_client_all_methods_of_the_same_leaves_have_one_model(name):
    """After a round; from then on a server that turns A and B has other gradients for them."""
    runs = [
        prepared(method=each, mechanism="none", clients=1)
        for each in (name, centralised_twin(name))
    ]
    inputs = {key: leaf[:8] for key, leaf in runs[0].data.inputs.items()}
    mine, other = (
        run.model.apply(run.model.backbone, everything(run, run_rounds(run, 1)[0]), **inputs)
        for run in runs
    )
    np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


PLAIN = [name for name in METHODS if centralised_twin(name) and not changed(name)]


@pytest.mark.parametrize("name", PLAIN)
def test_with_one_client_all_plain_means_of_the_same_leaves_stay_one(name):
    one, other = (
        prepared(method=each, mechanism="none", clients=1)
        for each in (name, centralised_twin(name))
    )
    both = everything(one, run_rounds(one, 2)[0]), everything(other, run_rounds(other, 2)[0])
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def from_outside() -> Method:
    """A method that lives in no shelf."""
    return Method(
        drawn=("lora_a",),
        trained=frozenset({"lora_b"}),
        read=lambda state, mean, uploads, weights: jax.tree.map(
            lambda a, b: a + 0.5 * (b - a), state, mean
        ),
    )


def test_a_method_from_outside_runs_by_module_and_function():
    half, _ = run_rounds(prepared(method="tests.contracts.test_methods:from_outside"), 1)
    whole, _ = run_rounds(prepared(method="ffa_lora"), 1)
    start = prepared(method="ffa_lora").state.adapters
    for a, b, s in zip(*map(jax.tree.leaves, (half.adapters, whole.adapters, start)), strict=True):
        np.testing.assert_allclose(a - s, 0.5 * (b - s), atol=1e-6)


@pytest.mark.thorough
def test_contributings_example_is_ffa_lora_sent_another_way(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    (tmp_path / "sends_change.py").write_text(
        re.findall(r"```python\n(.*?)```", text, flags=re.S)[0]
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for mechanism in ("dp_sgd", "dp_fedavg"):
        ours, _ = run_rounds(prepared(method="sends_change:build", mechanism=mechanism), 2)
        plain, _ = run_rounds(prepared(method="ffa_lora", mechanism=mechanism), 2)
        for a, b in zip(*map(jax.tree.leaves, (ours.adapters, plain.adapters)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_entry_points_of_installed_packages_are_members(monkeypatch):
    from importlib.metadata import EntryPoint

    point = EntryPoint(
        "half_step", "tests.contracts.test_methods:from_outside", "ffalora_jax.methods"
    )
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: [point] if group == point.group else []
    )
    assert "half_step" in registry.available("methods")
    assert registry.lookup("methods", "half_step") is from_outside


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is(name):
    module = __import__(f"ffalora_jax.methods.{name}", fromlist=["build"])
    assert module.__doc__
    assert registry.lookup("methods", name)().sentence
