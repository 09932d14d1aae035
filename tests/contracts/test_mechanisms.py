"""Every mechanism on the shelf: its plan pays for what it runs, and its gradient keeps trees and float32."""

import math

import jax
import jax.numpy as jnp
import pytest

from ffalora_jax import registry
from ffalora_jax.config import Experiment, PrivacyConfig
from ffalora_jax.mechanisms import Schedule

MECHANISMS = registry.available("mechanisms")


def built(name):
    privacy = PrivacyConfig(mechanism=name, noise_multiplier=1.1)
    return registry.lookup("mechanisms", name)(
        Experiment(batch_size=4, local_steps=1, privacy=privacy)
    )


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_plan_has_an_entry_a_client_out_of_the_same_numbers(name):
    plan = built(name).plan([40, 80], Schedule(3, 2, 4), None)
    draws = [client.sampling for client in plan.clients]
    assert [draw.probability * draw.num_examples for draw in draws] == [4, 4]
    assert plan.capacity >= 4
    assert len(plan.epsilons(0, 3)) == 4
    assert (plan.unit is None) == (plan.clients[0].event is None)
    promised = plan.epsilons(0, 3)[-1]
    assert math.isfinite(promised) == (plan.unit is not None)


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_private_gradient_keeps_tree_shapes_and_float32(name, key):
    total = {"a": {"x": jnp.ones((2, 3))}, "b": {"y": jnp.ones(4)}}
    gradient = built(name).private_grad(key, total, jnp.float32(1.0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), gradient) == jax.tree.map(
        lambda x: (x.shape, jnp.dtype("float32")), total
    )


@pytest.mark.parametrize("name", MECHANISMS)
def test_without_noise_the_gradient_is_the_sum_over_the_expected_batch(name, key):
    gradient = built(name).private_grad(key, {"a": {"x": jnp.full(3, 8.0)}}, jnp.float32(0.0))
    assert gradient["a"]["x"].tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_mechanism_says_in_words_what_it_protects(name):
    assert built(name).statement
    assert built(name).trust_model
