"""Greedy decoding with a cache against greedy decoding by computing everything again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ffalora_jax import generate, lora
from ffalora_jax.errors import InputError
from ffalora_jax.generate import greedy
from ffalora_jax.pretrained import load_pretrained
from tests.llama_files import write_llama

IDS = np.arange(21).reshape(3, 7) * 11 % 50
LENGTHS = np.array([7, 4, 1])
MASK = np.arange(7) < LENGTHS[:, None]
NEW = 9
NEVER = (-1, -1, -1)
"""Three end tokens that no model chooses: as many as elsewhere, so that the program is the same."""


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A module of the formula's weights: fewer heads of keys than of queries, a tied head, long RoPE."""
    return load_pretrained(write_llama(tmp_path_factory.mktemp("modern"), kind="modern"))


@pytest.fixture(scope="module")
def injected(model):
    """The same as a pure function, with adapters that matter."""
    return with_adapters(model)


def with_adapters(model):
    found = lora.inject(model, r".*(q_proj|v_proj|down_proj)", 3, 6, head=None)
    adapters = {
        layer: {
            leaf: 0.1 * jnp.sin(jnp.arange(np.prod(shape)) ** 2.0).reshape(shape)
            for leaf, shape in leaves.items()
        }
        for layer, leaves in found.shapes.items()
    }
    return found.apply, (found.backbone, adapters)


def full_recomputation(step, params, row):
    """One row, token by token, with no cache and no slots: real tokens lie side by side."""
    row, start = list(row), len(row)
    while len(row) < start + NEW:
        ids = np.zeros(IDS.shape[1] + NEW, int)
        ids[: len(row)] = row
        logits = step(params, ids, np.arange(len(ids)) < len(row))
        row.append(int(jnp.argmax(logits[len(row) - 1])))
    return row[start:]


@pytest.mark.parametrize("kind", ["modern", "plain"])
def test_cached_greedy_equals_full_recomputation_for_ragged_prompts(kind, injected, tmp_path):
    if kind == "plain":
        injected = with_adapters(load_pretrained(write_llama(tmp_path, num_hidden_layers=1)))
    ids, lengths = greedy(*injected, IDS, MASK, NEW, NEVER)
    assert ids.shape == (3, NEW)
    assert lengths.tolist() == [NEW] * 3
    step = jax.jit(lambda params, *inputs: injected[0](*params, *inputs))
    expected = [
        full_recomputation(step, injected[1], row[:length])
        for row, length in zip(IDS, LENGTHS, strict=True)
    ]
    assert ids.tolist() == expected
    assert len({tuple(row) for row in expected}) == 3
    assert len({token for row in expected for token in row}) > 8


def test_a_row_does_not_depend_on_its_neighbours_or_the_padding(injected):
    ids, _ = greedy(*injected, IDS, MASK, NEW, NEVER)
    alone, lengths = greedy(*injected, IDS[1:2, :4], MASK[1:2, :4], NEW, NEVER)
    assert lengths.tolist() == [NEW]
    np.testing.assert_array_equal(alone[0], ids[1])
    np.testing.assert_array_equal(greedy(*injected, IDS[0], MASK[0], NEW, NEVER)[0], ids[0])
    others = np.where(MASK, IDS, 49 - IDS)[::-1]
    swapped, _ = greedy(*injected, others, MASK[::-1], NEW, NEVER)
    np.testing.assert_array_equal(swapped[::-1], ids)


def test_rows_end_one_by_one_and_are_zero_from_there_on(injected):
    free = np.asarray(greedy(*injected, IDS, MASK, NEW, NEVER)[0])
    ends = (int(free[0, 5]), int(free[1, 2]), -1)
    ids, lengths = greedy(*injected, IDS, MASK, NEW, ends)
    for row in range(3):
        stop = next((at for at, token in enumerate(free[row]) if token in ends), NEW)
        assert lengths[row] == stop
        np.testing.assert_array_equal(ids[row, :stop], free[row, :stop])
        assert not ids[row, stop:].any()
    assert len(set(lengths.tolist())) > 1


def test_no_step_is_computed_once_every_row_has_ended(injected):
    forward, params = injected
    calls = []

    def counted(*inputs, **named):
        jax.debug.callback(lambda: calls.append(1))
        return forward(*inputs, **named)

    free = np.asarray(greedy(forward, params, IDS, MASK, NEW, NEVER)[0])
    for last in (0, 3):  # the first token comes from the prompts' pass
        calls.clear()
        _, lengths = greedy(counted, params, IDS, MASK, NEW, free[:, last].tolist())
        jax.effects_barrier()
        assert len(calls) == 1 + lengths.max() <= 1 + last


def test_a_plain_module_decodes_as_well_and_equal_ones_share_a_program(model):
    ids, _ = greedy(model, (), IDS, MASK, NEW, NEVER)
    graph, leaves = nnx.split(model)
    step = jax.jit(lambda leaves, *inputs: nnx.merge(graph, leaves)(*inputs))
    assert ids[1].tolist() == full_recomputation(step, leaves, IDS[1, :4])
    before = generate._decode._cache_size()
    twin = nnx.merge(graph, jax.tree.map(lambda leaf: 2 * leaf, leaves))
    greedy(twin, (), IDS, MASK, NEW, NEVER)
    assert generate._decode._cache_size() == before


def test_cached_logits_equal_those_without_a_cache(model):
    ids, mask = jnp.asarray(IDS), jnp.asarray(MASK)
    expected = jax.jit(lambda *inputs: model(*inputs))(ids, mask)
    first, cache = jax.jit(lambda *inputs: model(*inputs, cache=10))(ids[:, :4], mask[:, :4])
    more = jax.jit(lambda *inputs, cache: model(*inputs, cache=cache))
    second, cache = more(ids[:, 4:], mask[:, 4:], cache=cache)
    together = jnp.concatenate([first, second], axis=1)
    np.testing.assert_allclose(together[MASK], expected[MASK], atol=1e-5)
    assert cache.next_slot == 7
    assert cache.is_token.sum(axis=1).tolist() == LENGTHS.tolist()


def test_what_cannot_be_is_refused(model):
    with pytest.raises(InputError, match="max_new_tokens > 0"):
        greedy(model, (), IDS, MASK, 0, NEVER)
    with pytest.raises(InputError, match=r"at most 128 tokens.*got 137"):
        greedy(model, (), IDS, MASK, 130, NEVER)
