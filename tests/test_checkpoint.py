"""Checkpoints: whole or not at all, and only of the same experiment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffalora_jax.checkpoint import KEPT, Checkpoints, Ledger
from ffalora_jax.errors import InputError
from ffalora_jax.round import RoundState

LEDGER = Ledger(3, 9, 6.0, (0.5, 0.7), 2.5, 2**63 + 5, "abc", "def", "ghi")


def state(shift=0.0, rank=2):
    leaves = {"layer": {"lora_b": jnp.arange(4.0 * rank).reshape(rank, 4) + shift}}
    return RoundState(leaves, {"head": {"head_bias": jnp.ones((3, 2)) * shift}}, jnp.int32(3))


@pytest.fixture
def checkpoints(tmp_path):
    kept = Checkpoints(tmp_path / "checkpoints")
    yield kept
    kept.close()


def test_what_is_restored_is_what_was_saved_bit_for_bit(checkpoints):
    checkpoints.save(state(0.1), LEDGER)
    assert checkpoints.newest()._replace(state="") == LEDGER
    restored = checkpoints.restore(state(), LEDGER)
    for a, b in zip(jax.tree.leaves(state(0.1)), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(a, b)
    assert restored.round_index.dtype == jnp.int32


def test_only_the_newest_are_kept(checkpoints):
    for done in range(1, 7):
        checkpoints.save(state(), LEDGER._replace(rounds_done=done))
    assert checkpoints.steps() == [6, 5, 4]
    assert len(checkpoints.steps()) == KEPT


def test_an_empty_step_folder_falls_back_to_the_step_before(checkpoints):
    checkpoints.save(state(), LEDGER)
    checkpoints.close()
    (checkpoints.folder / "11").mkdir()
    again = Checkpoints(checkpoints.folder)
    assert again.newest()._replace(state="") == LEDGER
    again.close()


def test_a_checkpoint_of_another_shape_is_refused(checkpoints):
    checkpoints.save(state(rank=3), LEDGER)
    with pytest.raises(InputError, match="another one"):
        checkpoints.restore(state(rank=2), LEDGER)


def test_no_checkpoint_is_none(checkpoints):
    assert checkpoints.newest() is None
