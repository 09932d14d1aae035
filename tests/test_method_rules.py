"""Each method's own sums by hand: what it says of itself, adds to a layer, begins with and sends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffalora_jax import registry, rng
from ffalora_jax.errors import InputError
from ffalora_jax.methods import Method
from ffalora_jax.methods.la_lora import smoothed

BOTH = {"lora_a", "lora_b"}
FACTS = {
    "bitfit": ("exact", "linear"),
    "centralized": ("exact", "linear", "pooled", "is_baseline"),
    "fed_sb": ("exact", "linear", "begins_alike"),
    "fedask": ("exact", "linear"),
    "fedavg_lora": ("linear",),
    "fedex_lora": ("exact", "linear", "reads_uploads"),
    "fedrot_lora": (),
    "fedsa_lora": ("linear",),
    "fedsvd": ("exact", "linear"),
    "ffa_lora": ("exact", "linear"),
    "flexlora": ("linear", "reads_uploads", "mixed_ranks"),
    "flora": ("exact", "linear", "reads_uploads", "mixed_ranks"),
    "freeze_b": ("exact", "linear"),
    "full": ("exact", "linear"),
    "head_only": ("exact", "linear"),
    "hetlora": ("linear", "reads_uploads", "mixed_ranks"),
    "la_lora": ("linear",),
    "local_only": ("exact", "linear", "shares_nothing", "is_baseline"),
    "lora_fair": ("linear", "reads_uploads"),
    "ravan": ("exact",),
    "rolora": ("exact", "linear"),
    "vera": ("linear",),
    "vera_b": ("exact", "linear"),
}
"""What is true of it: other rooms refuse by this, and count messages, noise and ranks by it."""


def method_of(name) -> Method:
    return registry.lookup("methods", name)()


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def assert_near(found, expected, rtol=1e-4, atol=1e-5):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", registry.available("methods"))
def test_the_facts_of_a_method_are_these_and_no_others(name):
    method = method_of(name)
    asked = ("exact", "linear", "reads_uploads", "mixed_ranks", "begins_alike")
    asked += ("pooled", "shares_nothing", "is_baseline")
    assert tuple(fact for fact in asked if getattr(method, fact)) == FACTS[name]


def test_the_phases_that_freezing_and_rolora_take_come_one_after_another():
    rolora, plain = method_of("rolora"), method_of("fedavg_lora")
    assert rolora.parts == (frozenset({"lora_b"}), frozenset({"lora_a"}))
    assert [rolora.phase_at(n) for n in range(5)] == [0, 1, 0, 1, 0]
    assert plain.parts == (frozenset(BOTH),)
    assert plain.phase_at(3) == 0
    own = rolora._replace(phase_of=lambda round_index: round_index // 3)
    assert [own.phase_at(n) for n in range(5)] == [0, 0, 0, 1, 1]


DETOURS = ["bitfit", "fed_sb", "full", "ravan", "vera", "vera_b", "fedavg_lora"]


def added(name, leaves, x, scaling):
    """What a detour adds, as a product with a matrix or as a vector, in NumPy."""
    a, b = (np.asarray(leaves.get(key, 0.0)) for key in ("lora_a", "lora_b"))
    if name == "bitfit":
        return np.broadcast_to(leaves["bias"], (*x.shape[:-1], 9))
    if name == "full":
        return x @ np.asarray(leaves["weight"])
    if name == "fed_sb":
        return scaling * x @ a @ np.asarray(leaves["core"]) @ b
    if name.startswith("vera"):
        inner = np.asarray(leaves["vera_d"])[:, None] * b * np.asarray(leaves["vera_b"])
        return scaling * x @ a @ inner
    if name == "ravan":
        heads = zip(np.split(a, 4, axis=1), np.split(b, 4), strict=True)
        cores = zip(heads, leaves["core"], leaves["gain"], strict=True)
        return scaling * sum(
            x @ left @ np.asarray(c * core) @ right for (left, right), core, c in cores
        )
    return scaling * x @ a @ b


@pytest.mark.parametrize("lead", [(), (4,), (2, 3)], ids=["one", "tokens", "batch"])
@pytest.mark.parametrize("name", DETOURS)
def test_a_detour_adds_its_formula_and_its_pairs_are_its_gradient(name, lead):
    method = method_of(name)
    shapes = method.detour.shapes(8, 9, 2)
    leaves = {key: normal(place, shapes[key]) for place, key in enumerate(sorted(shapes))}
    x, slope = normal(20, (*lead, 8)), normal(21, (*lead, 9))
    assert_near(method.detour.apply(leaves, x, 0.5), added(name, leaves, np.asarray(x), 0.5))

    def loss(trained):
        return jnp.sum(slope * method.detour.apply({**leaves, **trained}, x, 0.5))

    expected = jax.grad(loss)({key: leaves[key] for key in method.trained})
    pairs = method.detour.pairs(leaves, x, slope, 0.5)
    for key, gradient in expected.items():
        parts = [
            pair.left.reshape(-1, pair.left.shape[-1]).T
            @ pair.right.reshape(-1, pair.right.shape[-1])
            for pair in pairs[key]
        ]
        assert_near(jnp.concatenate([part.ravel() for part in parts]), gradient.ravel(), 1e-3, 1e-4)


def test_fed_sb_begins_between_the_first_singular_vectors_of_the_weights():
    for inputs, outputs in ((5, 8), (8, 5)):
        kernel = normal(0, (inputs, outputs))
        shapes = method_of("fed_sb").detour.shapes(inputs, outputs, 3)
        begun = method_of("fed_sb").begin(kernel, shapes, rng.public_root(0), 1)
        u, _, vt = np.linalg.svd(np.asarray(kernel), full_matrices=False)
        assert {key: leaf.shape for key, leaf in begun.items()} == {
            key: shapes[key] for key in BOTH
        }
        assert_near(abs(begun["lora_a"].T @ u[:, :3]), np.eye(3))
        assert_near(abs(begun["lora_b"] @ vt[:3].T), np.eye(3))


def test_ravan_begins_with_two_frames_of_the_layers_own_and_gains_of_one():
    method, key = method_of("ravan"), rng.public_root(0)
    shapes = method.detour.shapes(9, 9, 2)
    assert shapes == {"lora_a": (9, 8), "lora_b": (8, 9), "core": (4, 2, 2), "gain": (4,)}
    begun = method.begin(None, shapes, key, 5)
    for factor, leaf in enumerate((begun["lora_a"], begun["lora_b"].T)):
        drawn = jax.random.normal(rng.stream(key, rng.Purpose.FRAME, 5, factor), (9, 8))
        assert_near(leaf, jnp.linalg.qr(drawn)[0])
        assert_near(leaf.T @ leaf, np.eye(8))
    assert begun["gain"].tolist() == [1.0] * 4
    assert set(begun) == {"lora_a", "lora_b", "gain"}
    assert method.detour.shapes(8, 20, 2)["lora_a"] == (8, 8)
    for inputs, outputs in ((11, 30), (30, 11)):
        with pytest.raises(InputError, match="rank <= 2 for ravan"):
            method.detour.shapes(inputs, outputs, 3)


def test_ravan_sends_its_cores_times_their_gains_and_heads_as_they_are():
    core, gain = normal(0, (4, 2, 2)), normal(1, (4,))
    end = {"layer": {"core": core, "gain": gain}, "head": {"head_bias": jnp.ones(2)}}
    sent = method_of("ravan").upload({}, end)
    assert set(sent["layer"]) == {"core"}
    assert_near(sent["layer"]["core"], np.asarray(core) * np.asarray(gain)[:, None, None])
    assert sent["head"] is end["head"]


@pytest.mark.parametrize("name", ["vera", "vera_b"])
def test_vera_cuts_every_layers_pair_from_one_of_2_to_the_14_features(name):
    method, key = method_of(name), rng.public_root(3)
    shapes = method.detour.shapes(5, 7, 2)
    assert shapes == {"lora_a": (5, 2), "lora_b": (2, 7), "vera_d": (2,), "vera_b": (7,)}
    begun = method.begin(None, shapes, key, 4)
    for factor, leaf in enumerate((begun["lora_a"] * np.sqrt(5), begun["lora_b"].T * np.sqrt(2))):
        place = rng.stream(key, rng.Purpose.SHARED_PAIR, factor)
        whole = jax.random.uniform(place, (2**14, 2), minval=-1.0, maxval=1.0)
        assert_near(leaf, whole[: len(leaf)])
    assert_near(begun["vera_d"], [0.1, 0.1])
    widest = method.begin(None, method.detour.shapes(2**14, 3, 1), key, 4)
    assert widest["lora_a"].shape == (2**14, 1)
    other = method.begin(None, method.detour.shapes(3, 9, 2), key, 6)
    assert_near(other["lora_a"] * np.sqrt(3 / 5), begun["lora_a"][:3])


def pair_of(seed, inputs=6, outputs=5, rank=2, lead=()):
    made = {"lora_a": (*lead, inputs, rank), "lora_b": (*lead, rank, outputs)}
    return {key: normal(seed + place, shape) for place, (key, shape) in enumerate(made.items())}


def test_fedask_sends_both_factors_and_receives_a_second_sketch_of_bs_size():
    state = {"layer": {**pair_of(0), "other": jnp.ones(3)}, "head": {"head_bias": jnp.ones(2)}}
    up, down = (jax.tree.map(jnp.shape, tree) for tree in method_of("fedask").wire(state))
    factors = {"lora_a": (6, 2), "lora_b": (2, 5)}
    assert up == {"layer": factors, "head": {"head_bias": (2,)}}
    assert down == {"layer": {**factors, "q": (5, 2)}, "head": {"head_bias": (2,)}}


def test_fedrot_lora_turns_a_client_back_to_the_last_global_a_and_leaves_heads_alone():
    start, angle = pair_of(0), 0.7
    turn = np.asarray([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    end = {"lora_a": start["lora_a"] @ turn, "lora_b": turn.T @ start["lora_b"]}
    ends = {"layer": end, "head": {"head_bias": jnp.ones(2)}}
    sent = method_of("fedrot_lora").upload({"layer": start, "head": {}}, ends)
    assert_near(sent["layer"]["lora_a"], start["lora_a"])
    assert_near(sent["layer"]["lora_b"], start["lora_b"])
    assert sent["head"] is ends["head"]


def test_la_lora_smooths_the_factors_around_a_circle_of_columns_and_nothing_else():
    """One, four, six, four, one sixteenths, down the columns of the leaf."""
    leaf = jnp.zeros((4, 3)).at[1, 0].set(16.0)
    around = np.zeros(12)
    around[[11, 0, 1, 2, 3]] = [1, 4, 6, 4, 1]
    assert_near(smoothed(leaf), around.reshape(3, 4).T)
    gradient = {"layer": {"lora_a": leaf, "lora_b": leaf.T, "head_bias": leaf[:, 0]}}
    found = method_of("la_lora").filtered(gradient)["layer"]
    assert_near(found["lora_a"], smoothed(leaf))
    assert_near(found["lora_b"], smoothed(leaf.T))
    assert found["head_bias"] is gradient["layer"]["head_bias"]
