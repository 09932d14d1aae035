"""Options that save memory change no result: a private round with and without each, for two families."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ffalora_jax.clipping import clipped_sum
from ffalora_jax.cohort import take
from ffalora_jax.config import (
    Experiment,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    PartitionConfig,
    PrivacyConfig,
)
from ffalora_jax.prepare import prepare
from tests.checkpoint_files import write_checkpoint
from tests.helpers import run_rounds
from tests.llama_files import write_llama
from tests.test_codec import write_tokenizer

EXACT = {
    "remat": {"remat": True},
    "scan_layers": {"scan_layers": True},
    "both": {"remat": True, "scan_layers": True},
}
NOISE = 0.1
WORDS = "what is one two three and plus ?".split()
SENTENCES = [" ".join(WORDS[(i * j) % 8] for j in range(1, 5 + i % 7)) for i in range(40)]
DATA = {
    "bert": {"text": SENTENCES, "label": [i % 3 for i in range(40)]},
    "llama": {"prompt": SENTENCES, "response": [WORDS[i % 5] for i in range(40)]},
}


@pytest.fixture(scope="module", params=["bert", "llama"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def make(family, tmp_path_factory):
    """(options of the model) -> a run before its first round; runs are made once."""
    folder = tmp_path_factory.mktemp(family)
    write_tokenizer({"bert": write_checkpoint, "llama": write_llama}[family](folder))
    runs = {}

    def made(**options):
        name = tuple(sorted(options.items()))
        if name not in runs:
            runs[name] = prepare(_experiment(str(folder), options), DATA[family])
        return runs[name]

    return made


def _experiment(folder, options):
    return Experiment(
        rounds=1,
        local_steps=1,
        batch_size=8,
        evaluate_every=1,
        partition=PartitionConfig(name="iid", num_clients=2),
        model=ModelConfig(name=folder, max_tokens=16, max_new_tokens=8, **options),
        method=MethodConfig(rank=2, lora_alpha=8),
        optimizer=OptimizerConfig(learning_rate=0.5),
        privacy=PrivacyConfig(noise_multiplier=NOISE, clip_norm=0.3, delta=1e-3),
    )


@pytest.fixture(scope="module")
def plain(make):
    """What a round without options changes, and what it tells."""
    return changed(make())


def changed(run):
    """What one round adds to the trained leaves, as one vector, and what it tells."""
    state, infos = run_rounds(run, 1)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.adapters)} == {jnp.dtype("float32")}
    moved = jax.tree.map(jnp.subtract, state.adapters, run.state.adapters)
    return vector(moved), infos[0].facts.clip


def vector(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


# On a CPU remat alone compiles to the program without it; test_llama holds its gradients.
@pytest.mark.parametrize("option", ["scan_layers", "both"])
@pytest.mark.thorough
def test_a_private_round_is_the_same_to_rounding(option, make, plain):
    found, clip = changed(make(**EXACT[option]))
    expected = plain[0]
    assert float(clip.num_clipped.sum()) > 4, "clipping is active"
    np.testing.assert_allclose(clip.num_clipped, plain[1].num_clipped)
    np.testing.assert_allclose(clip.norm_sum, plain[1].norm_sum, rtol=1e-4)
    assert np.linalg.norm(expected) > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("option", EXACT)
@pytest.mark.thorough
def test_the_option_is_at_work(option, make):
    def primitives(run):
        trace = jax.make_jaxpr(jax.grad(loss_of(run)))(run.state.adapters)
        return [equation.primitive.name for equation in equations(trace.jaxpr)]

    names, before = primitives(make(**EXACT[option])), primitives(make())
    wanted = {"remat": "remat2", "scan_layers": "scan"}
    for setting, primitive in wanted.items():
        assert primitive not in before
        assert (primitive in names) == EXACT[option].get(setting, False)


def test_stacked_blocks_are_not_kept_a_second_time(make):
    run = make(scan_layers=True)
    stacked = run.frozen.backbone["layers"]["block"]
    given = jax.tree.leaves(nnx.to_pure_dict(nnx.state(run.loaded.model.layers)))
    assert not any(isinstance(leaf, jax.Array) for leaf in given)
    sizes = [sum(leaf.size for leaf in leaves) for leaves in (given, jax.tree.leaves(stacked))]
    assert sizes[0] == sizes[1] > 10_000
    plain = jax.tree.leaves(nnx.to_pure_dict(nnx.state(make().loaded.model.layers)))
    assert all(isinstance(leaf, jax.Array) for leaf in plain)


@pytest.mark.thorough
def test_a_round_on_bfloat16_weights_is_the_same_to_their_rounding(make, plain):
    run = make(dtype="bfloat16")
    found, clip = changed(run)
    assert {leaf.dtype for leaf in jax.tree.leaves(run.frozen.backbone)} == {jnp.bfloat16.dtype}
    error = np.linalg.norm(found - plain[0]) / np.linalg.norm(plain[0])
    # Weights have 8 bits; a wrong scale or noise drawn anew would be off by tenths.
    assert 1e-5 < error < 0.05
    np.testing.assert_allclose(clip.norm_sum, plain[1].norm_sum, rtol=0.05)


def test_on_bfloat16_weights_all_that_privacy_rests_on_is_float32(make, key):
    run = make(dtype="bfloat16")
    examples, is_real = take(run.data, jnp.arange(8)), jnp.ones(8, bool)
    loss = loss_of(run, examples=True)

    @jax.jit
    def step(trained):
        total, facts = clipped_sum(loss, trained, examples, is_real, 0.3)
        return total, facts, run.mechanism.private_grad(key, total, jnp.float32(1))

    total, facts, noised = step(run.state.adapters)
    for tree in (total, facts, noised, run.state.adapters, run.frozen.adapters):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
    assert float(facts.num_clipped) > 4
    assert float(optax.tree.norm(total)) <= 8 * 0.3 * (1 + 1e-5)
    # Coarse noise would show in its last bits: bfloat16 leaves 16 of them empty.
    bits = vector(noised).view(np.uint32)
    assert np.count_nonzero(bits & 0xFFFF) > 0.9 * len(bits)


def test_on_bfloat16_weights_norms_and_softmax_are_float32(make):
    run = make(dtype="bfloat16")
    trace = jax.make_jaxpr(loss_of(run))(run.state.adapters)
    kinds = {"rsqrt": set(), "exp": set(), "dot_general": set()}
    for equation in equations(trace.jaxpr):
        if equation.primitive.name in kinds:
            kinds[equation.primitive.name].add(str(equation.outvars[0].aval.dtype))
    assert kinds["rsqrt"] == {"float32"}
    assert kinds["exp"] == {"float32"}
    assert "bfloat16" in kinds["dot_general"]


def loss_of(run, examples=False):
    """``adapters -> loss`` of the first example, or ``(adapters, example) -> loss``."""
    from ffalora_jax import adapters as leaves

    def one(trained, example):
        everything = leaves.merge(run.frozen.adapters, trained)

        def forward(**inputs):
            return run.model.apply_training(run.frozen.backbone, everything, None, **inputs)

        return run.task.loss(forward, example.inputs, example.labels)

    first = jax.tree.map(lambda leaf: leaf[0], take(run.data, jnp.arange(1)))
    return one if examples else lambda trained: one(trained, first)


def equations(jaxpr):
    """All equations, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)
