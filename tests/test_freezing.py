"""Schedules of what is frozen: the rounds are those of the methods that they are made of."""

import dataclasses

import jax
import numpy as np
import pytest

from ffalora_jax import adapters as leaves
from ffalora_jax.detours import whole_a
from ffalora_jax.errors import InputError
from ffalora_jax.prepare import prepare
from ffalora_jax.run_facts import message_bytes
from tests.helpers import prepared, run_rounds, silent


def frozen(text, mechanism="dp_sgd", **changes):
    base = prepared(method="fedavg_lora", mechanism=mechanism).experiment
    return prepare(base.replace(**{"method.freeze": text, **changes}))


def assert_same(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), one, other)


@pytest.mark.parametrize("mechanism", ["dp_sgd", pytest.param("dp_fedavg", marks=pytest.mark.slow)])
@pytest.mark.thorough
def test_alternating_every_round_is_rolora(mechanism):
    rolora = prepared(method="rolora", mechanism=mechanism)
    assert_same(
        run_rounds(frozen("alternate 1", mechanism), 3)[0].adapters,
        run_rounds(rolora, 3)[0].adapters,
    )


@pytest.mark.slow
def test_freezing_from_the_first_round_on_is_ffa_lora():
    ffa, _ = run_rounds(prepared(method="ffa_lora"), 2)
    state, _ = run_rounds(frozen("ffa_from 0"), 2)
    assert_same(leaves.without(state.adapters, ["lora_a"]), ffa.adapters)


@pytest.mark.slow
def test_rounds_before_are_fedavgs_and_rounds_after_are_ffas_with_the_a_that_came_of_it():
    """Noise included: what is frozen is out of the clipped and noised vector."""
    first, _ = run_rounds(prepared(method="fedavg_lora"), 2)
    ffa = prepared(method="ffa_lora")
    a = leaves.select(first.adapters, ["lora_a"])
    held = ffa._replace(frozen=ffa.frozen._replace(adapters=a))
    begun = dataclasses.replace(first, adapters=leaves.without(first.adapters, ["lora_a"]))
    after, _ = run_rounds(held, 2, begun)
    state, _ = run_rounds(frozen("ffa_from 2"), 4)
    assert_same(leaves.select(state.adapters, ["lora_a"]), a)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7),
        leaves.without(state.adapters, ["lora_a"]),
        after.adapters,
    )


def test_bytes_follow_what_is_trained():
    run, both = frozen("ffa_from 3"), prepared(method="fedavg_lora")
    ffa = prepared(method="ffa_lora")
    assert message_bytes(run, 2) == message_bytes(both, 2)
    assert message_bytes(run, 3) == (message_bytes(ffa, 3)[0], message_bytes(both, 3)[1])
    assert message_bytes(run, 4) == message_bytes(ffa, 4)


def test_the_bill_is_that_of_every_round():
    """A frozen factor makes no sum cheaper: the epsilon is per noised sum, whatever its length."""
    assert frozen("alternate 2").plan.spent(0, 12) == prepared().plan.spent(0, 12)


@pytest.mark.parametrize("text", ["", "ffa_from", "alternate x", "ffa_from -1", "none 2"])
def test_another_text_is_refused(text):
    with pytest.raises(InputError, match=r"Expected method\.freeze to be one of"):
        frozen(text)


@pytest.mark.parametrize("text", ["ffa_from 12", "alternate 0", "alternate 12"])
def test_a_schedule_that_never_comes_to_it_is_refused(text):
    with pytest.raises(InputError, match="< 12 rounds"):
        frozen(text)


@pytest.mark.parametrize(
    "method",
    ["ffa_lora", "fedsa_lora", "rolora", "flora", "fed_sb", "la_lora", "fedrot_lora", "hetlora"],
)
def test_methods_that_do_not_train_and_average_both_factors_are_refused(method):
    with pytest.raises(InputError, match="fedavg_lora"):
        prepare(prepared(method=method).experiment.replace(**{"method.freeze": "alternate 2"}))


def with_thawed_a(text, **changes):
    base = prepared(method="ffa_lora").experiment
    return prepare(base.replace(**{"method.freeze": text, **changes}))


def whole(run, state):
    joined = leaves.merge(run.frozen.adapters, state.adapters)
    return {name: whole_a(found) for name, found in joined.items()}


@pytest.mark.thorough
def test_a_share_that_is_all_of_the_layers_is_fedavg_and_less_leaves_the_lower_ones_frozen():
    """Noise apart: with clipping, the vector that is clipped is the same."""
    run = silent(with_thawed_a("thaw 0.99 layers"))
    plain = silent(prepared(method="fedavg_lora"))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7),
        whole(run, run_rounds(run, 2)[0]),
        whole(plain, run_rounds(plain, 2)[0]),
    )
    half = with_thawed_a("thaw 0.5 layers")
    thawed = sorted(name for name, found in half.state.adapters.items() if "thawed_a" in found)
    assert thawed == sorted(half.model.adapted)[len(half.model.adapted) // 2 :]


@pytest.mark.parametrize("text", ["thaw 0.5 rank", "thaw 0.5 layers"])
@pytest.mark.thorough
def test_what_is_not_thawed_stays_as_it_was_drawn(text):
    """Whatever the initialiser drew; half of A, to the bit, and the other half moves."""
    run = with_thawed_a(text)
    begun = whole(prepared(method="fedavg_lora"), prepared(method="fedavg_lora").state)
    state, _ = run_rounds(run, 1)
    moved = 0
    for name, found in whole(run, state).items():
        if "lora_a" in found:
            changed = np.any(np.asarray(found["lora_a"] != begun[name]["lora_a"]), axis=0)
            width = state.adapters[name].get("thawed_a", np.zeros((1, 0))).shape[1]
            assert changed.sum() == width
            assert changed[changed.size - width :].all()
            moved += width
    assert 0 < moved == sum(one.rank for one in run.model.adapted.values()) // 2


@pytest.mark.parametrize(
    "text", ["thaw 0.5 rank", pytest.param("thaw 0.5 layers", marks=pytest.mark.slow)]
)
def test_packed_rows_give_a_thawed_part_the_gradient_of_the_padded_form(text):
    packed, padded = silent(with_thawed_a(text)), silent(with_thawed_a(text, packing=False))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
        run_rounds(packed, 2)[0].adapters,
        run_rounds(padded, 2)[0].adapters,
    )


def test_half_of_the_rank_costs_half_of_the_bytes_of_a():
    def up(run):
        return message_bytes(run, 0)[0]

    ffa, both = prepared(method="ffa_lora"), prepared(method="fedavg_lora")
    assert 2 * (up(with_thawed_a("thaw 0.5 rank")) - up(ffa)) == up(both) - up(ffa)


@pytest.mark.parametrize(
    "text", ["thaw", "thaw 0 rank", "thaw 1 layers", "thaw half rank", "thaw .5 x"]
)
def test_a_share_outside_its_bounds_is_refused(text):
    with pytest.raises(InputError, match="0 < F < 1"):
        with_thawed_a(text)


def test_a_method_without_a_frozen_a_is_not_thawed():
    with pytest.raises(InputError, match="ffa_lora"):
        frozen("thaw 0.5 rank")
