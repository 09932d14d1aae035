"""Weights of the clients in the mean: by size in the known mistakes, by inverse loss here."""

import jax
import numpy as np
import pytest

from ffalora_jax.errors import InputError
from ffalora_jax.prepare import prepare
from tests.helpers import prepared
from tests.test_sites import after


@pytest.mark.parametrize("method", ["fedavg_lora", pytest.param("flora", marks=pytest.mark.slow)])
@pytest.mark.thorough
def test_the_mean_is_weighted_by_one_over_the_training_loss(method):
    """Of single clients' rounds, put together by hand."""
    run = prepare(
        prepared(method=method, mechanism="none").experiment.replace(weights="inverse_loss")
    )
    state, info = after(run, [0, 1, 2, 3])
    clip = info.facts.clip
    weights = np.asarray(clip.num_real / clip.loss_sum)
    assert weights.std() > 1e-3
    shares = weights / weights.sum()
    alone = [after(run, [client])[0].adapters for client in range(4)]
    name = "residual" if method == "flora" else "lora_b"
    for layer in run.model.adapted:
        mean = sum(share * one[layer][name] for share, one in zip(shares, alone, strict=True))
        np.testing.assert_allclose(state.adapters[layer][name], mean, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_all_chunks_and_rounds_of_a_call_weigh_alike():
    base = prepared(mechanism="none").experiment.replace(weights="inverse_loss")
    one, all_ = (prepare(base.replace(client_chunk=chunk)) for chunk in ("1", "4"))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        after(one, [0, 1, 2, 3])[0].adapters,
        after(all_, [0, 1, 2, 3])[0].adapters,
    )


@pytest.mark.parametrize("mechanism", ["dp_sgd", "dp_fedavg", "dp_sgd_secagg"])
def test_under_privacy_a_loss_is_no_weight(mechanism):
    with pytest.raises(InputError, match="Expected weights = 'uniform'"):
        prepare(prepared(mechanism=mechanism).experiment.replace(weights="inverse_loss"))
