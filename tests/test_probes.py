"""The packed form is the padded one: same clipped sums for every model and leaf; no text meets another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffalora_jax import adapters as leaves
from ffalora_jax import lora, registry
from ffalora_jax.client import Frozen
from ffalora_jax.clipping import Blocks, clipped_sum_in_blocks
from ffalora_jax.cohort import Batch, client_data
from ffalora_jax.detours import LORA
from ffalora_jax.evaluate import make_predictor
from ffalora_jax.packing import Packed
from ffalora_jax.pretrained import load_pretrained
from ffalora_jax.probes import Packing, Pair, _squared_norms, packed_clipped_sum, packing_for
from ffalora_jax.tasks import classification
from ffalora_jax.text import Encoded
from tests.checkpoint_files import ENCODER, bert_tensors, write_checkpoint
from tests.family_files import ROBERTA, write_family

TOKENS, EXAMPLES, CAPACITY = 10, 14, 11
MODELS = ("mean pooling", "pooler", "roberta")
TRAINED = {
    "B": {"lora_b"},
    "A": {"lora_a"},
    "A and B": {"lora_a", "lora_b"},
    "B and head": {"lora_b", "head_kernel", "head_bias"},
    "all": {"lora_a", "lora_b", "head_kernel", "head_bias"},
}


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    directories = {
        "mean pooling": write_checkpoint(
            folder / "bare", bert_tensors(ENCODER), architecture=ENCODER
        ),
        "pooler": write_checkpoint(folder / "bert"),
        "roberta": write_family(folder / "roberta", ROBERTA),
    }
    return {name: load_pretrained(path, num_classes=3) for name, path in directories.items()}


def draw(seed=0, num_real=8):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, TOKENS + 1, EXAMPLES)
    mask = np.arange(TOKENS) < lengths[:, None]
    ids = np.where(mask, rng.integers(3, 40, (EXAMPLES, TOKENS)), 1).astype(np.int32)
    types = np.where(mask & (np.arange(TOKENS) > 4), 1, 0).astype(np.int32)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    data = client_data(inputs, rng.integers(0, 3, EXAMPLES), lengths, [np.arange(EXAMPLES)])
    rows = jnp.asarray(rng.permutation(EXAMPLES)[:CAPACITY], jnp.int32)
    return data, Batch(rows, jnp.arange(CAPACITY) < num_real)


def case(model, trained, detour=LORA):
    head = "head" if "head_kernel" in trained else None
    injected = lora.inject(model, "query,value", 2, 6.0, head=head, detour=detour)
    drawn = {
        layer: {
            name: 0.4 * jnp.sin(1.0 + jnp.arange(np.prod(shape)) ** 1.5).reshape(shape)
            for name, shape in found.items()
        }
        for layer, found in injected.shapes.items()
    }
    return injected, leaves.without(drawn, trained), leaves.select(drawn, trained)


def padded(injected, frozen, trained, data, batch, clip_norm):
    def loss(trained, example):
        def forward(**inputs):
            joined = leaves.merge(frozen, trained)
            return injected.apply(injected.backbone, joined, **inputs)

        return classification().loss(forward, example.inputs, example.labels)

    blocks = Blocks(CAPACITY, (TOKENS,))
    return clipped_sum_in_blocks(loss, trained, data, batch, clip_norm, blocks, 1)


def in_rows(injected, frozen, trained, data, batch, clip_norm, packing=None):
    packing = packing or Packing(16, 2)
    parts = injected.backbone, frozen, trained
    return packed_clipped_sum(injected, classification(), *parts, data, batch, clip_norm, packing)


def assert_same(one, other, **tolerance):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.parametrize(
    "trained", [x if x == "all" else pytest.param(x, marks=pytest.mark.slow) for x in TRAINED]
)
@pytest.mark.parametrize("name", MODELS)
def test_rows_and_padded_examples_give_the_same_clipped_sum(models, name, trained):
    here = case(models[name], TRAINED[trained])
    data, batch = draw()
    _, free = padded(*here, data, batch, jnp.inf)
    clip_norm = float(free.norm_sum / free.num_real)  # clips some and leaves some
    expected, facts = padded(*here, data, batch, clip_norm)
    assert 0 < float(facts.num_clipped) < float(facts.num_real)
    found, more = in_rows(*here, data, batch, clip_norm)
    assert_same(found, expected, rtol=1e-5, atol=1e-5 * clip_norm)
    np.testing.assert_allclose(np.array(more), np.array(facts), rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        *("full", "bitfit", "vera"),
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("fed_sb", "ravan", "fedex_lora")),
    ],
)
@pytest.mark.thorough
def test_other_forms_beside_a_layer_give_the_padded_sum_too(models, name):
    method = registry.lookup("methods", name)()
    here = case(models["pooler"], method.trained | {"head_kernel", "head_bias"}, method.detour)
    data, batch = draw(seed=2)
    _, free = padded(*here, data, batch, jnp.inf)
    clip_norm = float(free.norm_sum / free.num_real)
    expected, facts = padded(*here, data, batch, clip_norm)
    assert 0 < float(facts.num_clipped) < float(facts.num_real)
    found, more = in_rows(*here, data, batch, clip_norm)
    assert_same(found, expected, rtol=1e-5, atol=1e-5 * clip_norm)
    np.testing.assert_allclose(np.array(more), np.array(facts), rtol=1e-5)


@pytest.mark.parametrize(
    "packing",
    [Packing(10, 1), pytest.param(Packing(16, 3), marks=pytest.mark.thorough), Packing(64, 4)],
)
@pytest.mark.parametrize("num_real", [0, 1, CAPACITY])
def test_neither_width_nor_rows_nor_how_much_was_drawn_matter(models, packing, num_real):
    here = case(models["mean pooling"], TRAINED["B and head"])
    data, batch = draw(seed=3, num_real=num_real)
    expected, facts = padded(*here, data, batch, 0.3)
    found, more = in_rows(*here, data, batch, 0.3, packing)
    assert_same(found, expected, rtol=1e-5, atol=1e-6)
    assert float(more.num_real) == float(facts.num_real) == num_real


@pytest.mark.parametrize("name", MODELS)
def test_a_broken_example_is_counted_out_and_harms_nobody_in_its_row(models, name):
    here = injected, _, _ = case(models[name], TRAINED["all"])
    data, batch = draw(seed=1)
    broken = int(batch.rows[2])
    ids = data.inputs["input_ids"].at[broken, 0].set(2)  # a word that nobody else has
    data = data._replace(inputs=data.inputs | {"input_ids": ids})
    assert int((ids == 2).sum()) == 1
    table = injected.backbone["words"]["embedding"]
    injected.backbone["words"]["embedding"] = table.at[2].set(jnp.nan)
    found, facts = in_rows(*here, data, batch, 0.5, Packing(64, 4))
    rest = batch._replace(is_real=batch.is_real & (batch.rows != broken))
    expected, _ = in_rows(*here, data, rest, 0.5, Packing(64, 4))
    assert float(facts.num_broken) == 1
    assert_same(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [x if x == MODELS[0] else pytest.param(x, marks=pytest.mark.thorough) for x in MODELS],
)
def test_a_text_without_tokens_adds_its_own_gradient_and_changes_no_other(models, name):
    here = case(models[name], TRAINED["all"])
    data, batch = draw(seed=2, num_real=CAPACITY)
    empty = int(batch.rows[3])
    lengths = np.asarray(data.lengths).copy()
    lengths[empty] = 0
    mask = np.arange(TOKENS) < lengths[:, None]
    ids = jnp.where(mask, data.inputs["input_ids"], 1)
    inputs = data.inputs | {"input_ids": ids, "attention_mask": mask}
    data = client_data(inputs, data.labels, lengths, [np.arange(EXAMPLES)])
    alone, rest = (
        in_rows(*here, data, batch._replace(is_real=kept), 0.3)[0]
        for kept in (batch.rows == empty, batch.rows != empty)
    )
    together, facts = in_rows(*here, data, batch, 0.3)
    assert float(facts.num_real) == CAPACITY
    assert_same(together, jax.tree.map(jnp.add, alone, rest), rtol=1e-5, atol=1e-6)


def test_logits_do_not_depend_at_all_on_the_other_texts_of_the_row(models):
    injected, frozen, trained = case(models["roberta"], TRAINED["B"])
    owner = np.repeat([[0, 1, 2, -1]], 4, axis=1).reshape(1, 16)
    owner = np.array([[0] * 5 + [1] * 6 + [2] * 3 + [-1] * 2])
    places = np.array([[*range(5), *range(6), *range(3), 0, 0]])
    ids = np.arange(16)[None] + 5
    first = np.array([0, 5, 11])

    def logits(ids):
        packed = Packed(*(jnp.asarray(x) for x in (ids, 0 * ids, owner, places, first)))
        joined = leaves.merge(frozen, trained)
        return np.asarray(injected.apply_probed(injected.backbone, joined, {}, packed)[0])

    other = np.where(owner == 1, 39 - ids, ids)
    np.testing.assert_array_equal(logits(ids)[[0, 2]], logits(other)[[0, 2]])
    assert (logits(ids)[1] != logits(other)[1]).any()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.thorough
def test_evaluation_in_rows_gives_the_logits_of_each_text_alone(models, name):
    injected, frozen, trained = case(models[name], TRAINED["all"])
    data, _ = draw(seed=5)
    encoded = Encoded(jax.tree.map(np.asarray, data.inputs), np.asarray(data.lengths))
    rows = np.array([3, 0, 7, 7, 12, 5])
    assert packing_for(injected, encoded.inputs) is not None
    parts = Frozen(injected.backbone, frozen), trained
    found = make_predictor(injected, classification())(*parts, encoded, rows)
    for row, logits in zip(rows, found, strict=True):
        inputs = {key: leaf[row] for key, leaf in data.inputs.items()}
        joined = leaves.merge(frozen, trained)
        alone = injected.apply(injected.backbone, joined, **inputs)
        np.testing.assert_allclose(logits, alone, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(0, CAPACITY - 1), st.sampled_from([0.05, 0.5]))
def test_removing_an_example_moves_the_sum_by_at_most_the_clip_norm(seed, changed, clip_norm):
    here = _shared_case()
    data, batch = draw(seed, CAPACITY)
    with_it = _shared_sum(*here, data, batch, clip_norm)
    less = batch._replace(is_real=batch.is_real.at[changed].set(False))
    without = _shared_sum(*here, data, less, clip_norm)
    moved = np.sqrt(
        sum(
            np.sum((np.asarray(a, np.float64) - b) ** 2)
            for a, b in zip(jax.tree.leaves(with_it), jax.tree.leaves(without), strict=True)
        )
    )
    assert moved <= clip_norm * (1 + 1e-5 * (1 + CAPACITY))


_CASES: dict = {}


def _shared_case():
    return _CASES["case"]


@pytest.fixture(autouse=True, scope="module")
def _remember(models):
    injected, frozen, trained = case(models["mean pooling"], TRAINED["all"])
    _CASES["case"] = (injected.backbone, frozen, trained)

    @jax.jit
    def total(backbone, frozen, trained, data, batch, clip_norm):
        parts = injected._replace(backbone=backbone), frozen, trained
        return in_rows(*parts, data, batch, clip_norm, Packing(24, 2))[0]

    _CASES["sum"] = total


def _shared_sum(*arguments):
    return _CASES["sum"](*arguments)


def test_where_tokens_cancel_the_norm_is_not_taken_for_smaller_than_it_is():
    """A large part that cancels leaves rounding of its own size: the norm may only come out larger."""
    random = np.random.default_rng(0)
    for _ in range(50):
        part = random.normal(size=(1, 8, 6)) * 10.0 ** random.uniform(0, 4)
        left = np.concatenate([part, part], axis=1).astype(np.float32)
        sides = random.normal(size=(1, 8, 20))
        small = random.normal(size=(1, 8, 20)) * 1e-4
        right = np.concatenate([sides, small - sides], axis=1).astype(np.float32)
        owner = jnp.zeros((1, 16), jnp.int32)
        packed = Packed(owner, owner, owner, owner, jnp.zeros(1, jnp.int32))
        pairs = {"layer": {"lora_b": (Pair(jnp.asarray(left), jnp.asarray(right)),)}}
        found = float(jnp.sqrt(_squared_norms(pairs, packed)[0]))
        exact = np.linalg.norm(left[0].astype(np.float64).T @ right[0].astype(np.float64))
        assert found >= exact * (1 - 1e-5)


@pytest.mark.parametrize("tokens", [64, 512])
@pytest.mark.parametrize("small", [1e-2, 1e-3, 1e-4])
def test_of_many_nearly_parallel_tokens_that_alternate_the_norm_is_not_too_small(tokens, small):
    """The pairs' products are then T times the tokens' own squares, and so is their rounding."""
    random = np.random.default_rng(tokens)
    for _ in range(10):
        base, side = random.normal(size=6), random.normal(size=20)
        left = (base + small * random.normal(size=(1, tokens, 6))).astype(np.float32)
        signs = np.where(np.arange(tokens) % 2, -1.0, 1.0)[None, :, None]
        right = (signs * side + small * random.normal(size=(1, tokens, 20))).astype(np.float32)
        owner = jnp.zeros((1, tokens), jnp.int32)
        packed = Packed(owner, owner, owner, owner, jnp.zeros(1, jnp.int32))
        pairs = {"layer": {"lora_b": (Pair(jnp.asarray(left), jnp.asarray(right)),)}}
        found = float(jnp.sqrt(_squared_norms(pairs, packed)[0]))
        exact = np.linalg.norm(left[0].astype(np.float64).T @ right[0].astype(np.float64))
        assert found >= exact * (1 - 1e-5)
