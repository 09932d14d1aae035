"""Packed rows: every example whole and alone in them, whatever was drawn."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffalora_jax.cohort import Batch, client_data, longest_first
from ffalora_jax.layers import attend
from ffalora_jax.models.llama import attend_in_groups
from ffalora_jax.packing import NOBODY, gather, pack, pack_on_host

WIDTH, CAPACITY = 12, 9
DRAWS = st.lists(st.tuples(st.integers(1, WIDTH), st.booleans()), min_size=9, max_size=9)


def laid_out(draw, rows_at_once=CAPACITY, begin=0):
    """Packs a draw; token t of example e is 100 e + t + 1."""
    lengths = np.array([length for length, _ in draw])
    ids = 100 * np.arange(CAPACITY)[:, None] + np.arange(WIDTH) + 1
    ids = np.where(np.arange(WIDTH) < lengths[:, None], ids, 0).astype(np.int32)
    types = np.where(np.arange(WIDTH) < lengths[:, None] // 2, 0, 1).astype(np.int32)
    inputs = {"input_ids": ids, "token_type_ids": types}
    data = client_data(inputs, np.zeros(CAPACITY), lengths, [np.arange(CAPACITY)])
    batch = Batch(jnp.arange(CAPACITY), jnp.array([real for _, real in draw]))
    return data, *laid(data, batch, jnp.int32(begin), rows_at_once)


@partial(jax.jit, static_argnums=3)
def laid(data, batch, begin, rows_at_once):
    batch = longest_first(batch, data.lengths)
    rows = pack(batch, data.lengths[batch.rows], WIDTH)
    return batch, rows, gather(data, rows, begin, rows_at_once, WIDTH)


@settings(max_examples=60, deadline=None)
@given(DRAWS)
def test_every_example_lies_whole_in_one_row_and_no_token_belongs_to_two(draw):
    data, batch, rows, packed = laid_out(draw)
    owner, ids, places = (np.asarray(x) for x in (packed.owner, packed.input_ids, packed.places))
    for slot, (example, real) in enumerate(zip(batch.rows, batch.is_real, strict=True)):
        where = np.argwhere(owner == slot)
        if not real:
            assert len(where) == 0
            continue
        length = int(data.lengths[example])
        row, start = int(rows.row[slot]), int(rows.start[slot])
        assert where.tolist() == [[row, start + t] for t in range(length)]
        here = ids[row, start : start + length]
        assert here.tolist() == [100 * int(example) + t + 1 for t in range(length)]
        assert places[row, start : start + length].tolist() == list(range(length))
        types = np.asarray(packed.token_type_ids)[row, start : start + length]
        assert (
            types.tolist() == np.asarray(data.inputs["token_type_ids"])[example, :length].tolist()
        )
        assert int(packed.first[slot]) == row * WIDTH + start
    assert (ids[owner == NOBODY] == 0).all()
    assert int(rows.count) == len(
        {int(r) for r, real in zip(rows.row, batch.is_real, strict=True) if real}
    )


@settings(max_examples=30, deadline=None)
@given(DRAWS, st.integers(1, 3))
def test_rows_taken_some_at_a_time_are_the_rows_taken_at_once(draw, at_once):
    whole = laid_out(draw)[3]
    for begin in range(0, CAPACITY - at_once + 1, at_once):
        part = laid_out(draw, at_once, begin)[3]
        for name in ("input_ids", "token_type_ids", "owner", "places"):
            np.testing.assert_array_equal(
                getattr(part, name), getattr(whole, name)[begin : begin + at_once]
            )


def test_longest_first_leaves_next_to_nothing_empty():
    lengths = [3, 9, 4, 8, 5, 7, 6, 6, 12]
    _, _, rows, _ = laid_out([(n, True) for n in lengths])
    assert int(rows.count) == -(-sum(lengths) // WIDTH)


def test_tokens_see_their_own_example_and_means_are_over_it():
    draw = [(5, True), (4, True), (3, True)] + [(2, False)] * 6
    _, _, _, packed = laid_out(draw)
    owner, seen = np.asarray(packed.owner), np.asarray(packed.seen)
    expected = (owner[:, :, None] == owner[:, None, :]) & (owner[:, :, None] >= 0)
    np.testing.assert_array_equal(seen, expected)
    values = np.random.default_rng(0).normal(size=(*owner.shape, 4)).astype(np.float32)
    means = np.asarray(packed.means(jnp.asarray(values)))
    firsts = np.asarray(packed.first_tokens(jnp.asarray(values)))
    for slot in range(3):
        np.testing.assert_allclose(means[slot], values[owner == slot].mean(0), rtol=1e-5)
        np.testing.assert_array_equal(firsts[slot], values[owner == slot][0])
    assert (means[3:] == 0).all()


def test_an_empty_draw_fills_no_row():
    _, _, rows, packed = laid_out([(3, False)] * CAPACITY)
    assert int(rows.count) == 0
    assert (np.asarray(packed.owner) == NOBODY).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 16), min_size=1, max_size=60), st.integers(1, 3))
def test_on_the_host_every_example_lies_once_and_whole_in_blocks_of_one_shape(lengths, count):
    lengths = np.array(lengths)
    ids = 100 * np.arange(len(lengths))[:, None] + np.arange(16) + 1
    seen = []
    for chosen, packed in pack_on_host({"input_ids": ids}, lengths, 16, count):
        assert packed.owner.shape == (count, 16)
        assert packed.first.shape == (count * 4,)
        for slot, example in enumerate(chosen):
            row, start = divmod(int(packed.first[slot]), 16)
            here = slice(start, start + lengths[example])
            assert packed.input_ids[row, here].tolist() == ids[example, : lengths[example]].tolist()
            assert packed.places[row, here].tolist() == list(range(lengths[example]))
            assert (packed.owner == slot).sum() == lengths[example]
        assert (packed.owner >= 0).sum() == lengths[chosen].sum()
        seen += chosen.tolist()
    assert sorted(seen) == list(range(len(lengths)))


def test_on_the_host_longest_first_leaves_next_to_nothing_empty():
    lengths = np.random.default_rng(0).geometric(1 / 13, 2000).clip(3, 64)
    rows = sum(len(packed.owner) for _, packed in pack_on_host(_ids(lengths), lengths, 64, 1))
    assert lengths.sum() / (64 * rows) > 0.98


def _ids(lengths):
    return {"input_ids": np.zeros((len(lengths), 64), np.int32)}


@pytest.mark.parametrize("family", [attend, attend_in_groups])
def test_what_is_not_seen_has_no_share_however_low_the_scores_are(family):
    """Scores of a diverged model lie below any number that could stand for what is not seen."""
    owner = jnp.array([0, 0, 1, 1])
    seen = owner[:, None] == owner[None]
    query = jnp.full((4, 1, 1), 1e5)
    key = jnp.array([-1e5, -2e5, -1e5, -1e5]).reshape(4, 1, 1)
    mine = [
        family(query, key, value.reshape(4, 1, 1), seen)
        for value in jnp.array([[1.0, 4.0, 0.0, 0.0], [1.0, 4.0, 100.0, -7.0]])
    ]
    assert jnp.isfinite(jnp.stack(mine)).all()
    np.testing.assert_array_equal(mine[0][:2], mine[1][:2])
