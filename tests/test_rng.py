"""Keys: by purpose and place, public and secret apart."""

import ast
from pathlib import Path

import jax
import numpy as np
import pytest

import ffalora_jax
from ffalora_jax import rng

PACKAGE = Path(ffalora_jax.__file__).parent


def bits(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_streams_differ_by_purpose_and_every_index():
    root = rng.public_root(0)
    places = [(p, i, j) for p in rng.Purpose for i in range(2) for j in range(2)]
    assert len({bits(rng.stream(root, *place)) for place in places}) == len(places)


@pytest.mark.parametrize("seed", [0, 1, 7, 2**32 - 1])
def test_public_and_secret_roots_differ_even_for_equal_seeds(seed):
    assert bits(rng.public_root(seed)) != bits(rng.secret_root(seed))


def test_all_64_bits_of_the_noise_seed_count():
    seeds = [0, 1, 2**31, 2**32, 2**32 + 1, 2**63, 2**64 - 1]
    assert len({bits(rng.secret_root(seed)) for seed in seeds}) == len(seeds)


def test_fresh_noise_seeds_do_not_repeat_and_have_64_bits(monkeypatch):
    assert len({rng.fresh_noise_seed() for _ in range(100)}) == 100
    monkeypatch.setattr(rng.secrets, "randbits", lambda count: count)
    assert rng.fresh_noise_seed() == 64


def test_the_noise_seed_of_a_trial_has_both_words_of_its_own_draw():
    seeds = {rng.noise_seed_of(9, trial, repeat) for trial in range(4) for repeat in range(3)}
    assert len(seeds) == 12
    key = rng.stream(rng.secret_root(9), rng.Purpose.TRIAL_NOISE, 3, 1)
    high, low = np.asarray(jax.random.bits(key, (2,), "uint32")).tolist()
    assert rng.noise_seed_of(9, 3, 1) == high * 2**32 + low


def test_every_published_result_begins_with_these_keys():
    public, secret = rng.public_root(7), rng.secret_root(7)
    stream = rng.stream(public, rng.Purpose.NOISE, 1, 2, 3)
    assert [jax.random.key_data(key).tolist() for key in (public, secret, stream)] == [
        [2717258299, 2589057937],
        [2739486391, 2452007987],
        [3459983013, 476821789],
    ]
    host = rng.numpy_rng(7, rng.Purpose.SPLIT, 2).integers(0, 2**32, 3)
    assert host.tolist() == [2770767165, 1252094036, 2233310500]


def test_streams_are_the_same_under_vmap_as_in_a_loop():
    root = rng.secret_root(5)
    at_once = jax.vmap(lambda i: jax.random.normal(rng.stream(root, rng.Purpose.NOISE, 0, i, 0)))(
        np.arange(4)
    )
    one_by_one = [jax.random.normal(rng.stream(root, rng.Purpose.NOISE, 0, i, 0)) for i in range(4)]
    np.testing.assert_array_equal(at_once, np.array(one_by_one))


def test_purposes_keep_their_numbers():
    assert {p.name: p.value for p in rng.Purpose} == {
        "PARTITION": 1,
        "SPLIT": 2,
        "SUBSET": 3,
        "SYNTHETIC": 4,
        "LORA_INIT": 5,
        "HEAD": 6,
        "BACKBONE": 7,
        "COHORT": 8,
        "VALIDATION": 9,
        "POOLER": 10,
        "HELD_OUT": 11,
        "LORA_INIT_B": 12,
        "LORA_REDRAW": 13,
        "SHARED_PAIR": 14,
        "FRAME": 15,
        "SITES": 16,
        "PRESENCE": 17,
        "ENSEMBLE": 18,
        "BATCH": 20,
        "NOISE": 21,
        "DROPOUT": 22,
        "SERVER_NOISE": 23,
        "SECRET_COHORT": 24,
        "MASK": 25,
        "COUNT_NOISE": 26,
        "SERVER_COUNT_NOISE": 27,
        "COMPRESSION": 28,
        "CANARY": 30,
        "CANARY_COIN": 31,
        "SEARCH": 19,
        "TRIAL_NOISE": 32,
        "NUM_TRIALS": 33,
        "SECRET_SEARCH": 34,
    }


def test_only_rng_derives_keys():
    derive = {"split", "fold_in", "key", "PRNGKey", "wrap_key_data", "default_rng"}
    for path in PACKAGE.rglob("*.py"):
        if path.name == "rng.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in derive:
                owner = ast.unparse(node.value)
                assert not owner.endswith("random"), (
                    f"{path.name} derives a key: {ast.unparse(node)}"
                )
