"""Schedules of what is frozen: the rounds are those of the methods that they are made of."""

import dataclasses

import jax
import numpy as np
import pytest

from ffalora_jax import adapters as leaves
from ffalora_jax.errors import InputError
from ffalora_jax.prepare import prepare
from ffalora_jax.run_facts import message_bytes
from tests.helpers import prepared, run_rounds


def frozen(text, mechanism="dp_sgd", **changes):
    base = prepared(method="fedavg_lora", mechanism=mechanism).experiment
    return prepare(base.replace(**{"method.freeze": text, **changes}))


def assert_same(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), one, other)


@pytest.mark.parametrize("mechanism", ["dp_sgd", pytest.param("dp_fedavg", marks=pytest.mark.slow)])
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


@pytest.mark.parametrize("text", ["", "ffa_from", "alternate x", "thaw 2", "ffa_from -1", "none 2"])
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
