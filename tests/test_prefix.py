"""The prefix cache: same numbers from what frozen blocks gave once, in every form, with clipping active."""

import jax
import numpy as np
import pytest

from ffalora_jax.cache import folder
from ffalora_jax.config import Experiment
from ffalora_jax.data import as_dataset
from ffalora_jax.engine import Engine
from ffalora_jax.errors import InputError
from ffalora_jax.loader import Loader
from ffalora_jax.memory import UNKNOWN_BYTES, free_bytes
from ffalora_jax.prepare import prepare
from tests.family_files import ROBERTA, VIT, vit_tensors, write_family
from tests.helpers import keys
from tests.llama_files import write_llama
from tests.test_codec import write_tokenizer
from tests.tiny_runs import tiny

UPPER = {"method.layers": "1", "privacy.clip_norm": 0.2}
FORMS = {
    "packed": {},
    "blocks, with dropout": {"method.dropout": 0.2},
    "dealt from the host": {"client_data": "host", "cohort_size": 2},
}
MORE = {
    "padded": {"packing": False},
    "plain LoRA": {"method.name": "fedavg_lora"},
    "all at once": {"client_chunk": "4"},
}


def two_rounds(experiment: Experiment, setting: str, data=None):
    """Returns the leaves after two rounds, the number of clipped gradients, the FLOPs of a round, the run."""
    run = prepare(experiment.replace(prefix_cache=setting), data)
    engine = Engine(run)
    state, infos = engine(keys(run), run.state, 2)
    clipped = float(np.asarray(infos.facts.clip.num_clipped).sum())
    leaves = jax.tree.map(np.asarray, (state.adapters, state.personal))
    return leaves, clipped, engine._call.cost_analysis()["flops"], run


def compared(experiment: Experiment, data=None):
    """Runs with and without; returns the largest difference, FLOPs with over FLOPs without, the run."""
    whole, clipped, flops, _ = two_rounds(experiment, "never", data)
    kept, _, fewer, run = two_rounds(experiment, "always", data)
    assert clipped > 10
    pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(kept), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs), fewer / flops, run


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.thorough
def test_the_numbers_are_those_without_and_the_lower_block_is_gone(form):
    difference, flops, run = compared(tiny(**UPPER, **FORMS[form]))
    assert difference < 1e-6
    assert flops < 0.75
    assert run.prefix_note.startswith("1 block computed once")


@pytest.mark.slow
@pytest.mark.parametrize("form", MORE)
def test_so_are_they_in_every_other_form(form):
    difference, flops, _ = compared(tiny(**UPPER, **MORE[form]))
    assert difference < 1e-6
    assert flops < 0.75


@pytest.mark.slow
def test_images_and_answers_have_it_too(tmp_path):
    draw = np.random.default_rng(0)
    labels = np.arange(60) % 3
    pixels = draw.normal(labels[:, None, None, None] * 60 + 60, 20, (60, 16, 16, 3))
    images = [np.clip(x, 0, 255).astype(np.uint8) for x in pixels]
    deal = {"partition.name": "iid", "partition.num_clients": 2, "method.layers": "1"}
    clip = {"privacy.clip_norm": 1e-3}
    vit = str(write_family(tmp_path / "vit", VIT))
    seen = as_dataset({"image": images, "label": labels})
    difference, flops, _ = compared(tiny(**deal, **clip, **{"model.name": vit}), seen)
    assert difference < 1e-6
    assert flops < 0.75
    llama = write_llama(tmp_path / "llama")
    write_tokenizer(llama)
    worked = as_dataset(
        {
            "prompt": [f"what is one plus {w}" for w in ["two", "three"] * 30],
            "response": ["one two three"] * 60,
        }
    )
    changes = {**deal, **clip, "model.name": str(llama), "model.max_tokens": 16}
    difference, _, run = compared(tiny(**changes, **{"model.max_new_tokens": 4}), worked)
    assert difference < 1e-6
    assert run.data.prefix is not None


def test_only_real_tokens_of_training_examples_are_kept():
    run = prepare(tiny(**UPPER, prefix_cache="always"))
    prefix = run.data.prefix
    rows = np.concatenate(run.owners.train)
    assert prefix.hidden.shape[0] == run.encoded.lengths[rows].sum()
    others = np.setdiff1d(np.arange(len(run.encoded.lengths)), rows)
    assert not np.asarray(prefix.counts)[others].any()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "no block lies below all adapters"),
        ({"method.layers": "0"}, "no block lies below all adapters"),
        ({"method.layers": "1", "method.targets": "value|words"}, "No layer matches"),
        ({"model.scan_layers": True}, "stacked"),
    ],
)
def test_where_it_cannot_be_had_always_is_refused_and_auto_does_without(changes, reason):
    with pytest.raises(InputError, match=reason):
        prepare(tiny(**changes, prefix_cache="always"))
    if reason != "No layer matches":
        assert prepare(tiny(**changes)).data.prefix is None


def test_auto_takes_no_more_than_a_quarter_of_the_free_memory(monkeypatch):
    assert prepare(tiny(**UPPER)).data.prefix is not None
    monkeypatch.setattr("ffalora_jax.prefix.free_bytes", lambda: 1000)
    run = prepare(tiny(**UPPER))
    assert run.data.prefix is None
    assert "more than a quarter" in run.prefix_note


@pytest.mark.thorough
def test_where_memory_is_short_the_products_are_left_out_first(monkeypatch):
    wide = prepare(tiny(**UPPER)).data.prefix
    monkeypatch.setattr("ffalora_jax.prefix.free_bytes", lambda: 4 * wide.hidden.nbytes - 4)
    experiment = tiny(**UPPER)
    difference, flops, run = compared(experiment)
    features = wide.hidden.shape[1] // 4
    assert wide.hidden.shape[1] == 4 * features
    assert run.data.prefix.hidden.shape[1] == features
    assert difference < 1e-6
    assert flops < 0.75


@pytest.mark.thorough
def test_of_few_clients_out_of_many_the_rest_may_lie_in_a_file(monkeypatch):
    experiment = tiny(**UPPER, **FORMS["dealt from the host"], rounds=20)
    whole = two_rounds(experiment, "never")
    monkeypatch.setattr("ffalora_jax.prefix.free_bytes", lambda: 1000)
    kept = two_rounds(experiment, "auto")
    for a, b in zip(jax.tree.leaves(whole[0]), jax.tree.leaves(kept[0]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    run = kept[3]
    assert isinstance(run.data.prefix.hidden, np.memmap)
    assert run.prefix_note.endswith("kept in a file")
    assert not list(folder("prefix").iterdir())
    assert prepare(tiny(**UPPER)).data.prefix is None


def test_a_short_run_does_not_keep_what_it_computes_once():
    run = prepare(tiny(**UPPER, rounds=1, cohort_size=1))
    assert run.data.prefix is None
    assert "the run computes 16 examples in all" in run.prefix_note


@pytest.mark.slow
def test_positions_that_depend_on_the_ids_come_out_of_the_kept_states(tmp_path):
    folder = write_family(tmp_path / "roberta", ROBERTA, pad_token_id=1)
    write_tokenizer(folder)
    experiment = tiny(**UPPER | {"model.name": str(folder), "privacy.clip_norm": 1e-3})
    assert compared(experiment)[0] < 1e-6


def test_free_memory_is_the_least_of_what_the_system_and_its_control_group_leave(tmp_path):
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert free_bytes(tmp_path, info) == 5000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("77\n")
    assert free_bytes(tmp_path, info) == 5000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    assert free_bytes(tmp_path, info) == 3000000 - 77
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("2000000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("1999999\n")
    assert free_bytes(tmp_path, info) == 1
    assert free_bytes(tmp_path / "none", tmp_path / "none") == UNKNOWN_BYTES


OTHERS = [
    {},
    {"seed": 3},
    {"method.name": "fedavg_lora"},
    {"method.name": "fedex_lora", "method.rank": 3},
    {"partition.validation_share": 0.3, "seed": 4},
    {"method.layers": "0"},
]


@pytest.fixture
def vit(tmp_path):
    """A tiny experiment on a checkpoint of images, too short to keep anything by itself."""
    name = str(write_family(tmp_path / "vit", VIT))
    deal = {"partition.name": "iid", "partition.num_clients": 2, "partition.validation_share": 0.1}
    return tiny(
        **UPPER, **deal, **{"model.name": name, "data.max_examples": None}, rounds=1, local_steps=3
    )


def pictures():
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 255, (120, 16, 16, 3), np.uint8)
    return as_dataset({"image": list(pixels), "label": np.arange(120) % 3})


@pytest.mark.thorough
def test_runs_that_are_each_too_short_keep_it_together_whatever_their_seed_method_or_split(vit):
    given = pictures()
    experiments = [vit.replace(**changes) for changes in OTHERS]
    alone = [prepare(e, given) for e in experiments]
    assert all(run.data.prefix is None for run in alone)
    loader = Loader(given)
    loader.expect(experiments)
    *sharing, other = [prepare(e, loader=loader) for e in experiments]
    hidden = [run.data.prefix.hidden for run in sharing]
    assert all(one is hidden[0] for one in hidden)
    assert other.data.prefix is None
    assert sharing[0].prefix_note.endswith("for all runs that share it")
    for mine, theirs in zip(alone, sharing, strict=False):
        expected, found = (
            Engine(run)(keys(run), run.state, 1)[0].adapters for run in (mine, theirs)
        )
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("changed", ["type of the weights", "weights", "number of heads"])
def test_what_changes_the_frozen_blocks_keeps_it_apart(changed, vit, tmp_path):
    halved = {name: tensor / 2 for name, tensor in vit_tensors().items()}
    changes = {
        "type of the weights": {"model.dtype": "bfloat16"},
        "weights": {"model.name": str(write_family(tmp_path / "halved", VIT, halved))},
        "number of heads": {
            "model.name": str(write_family(tmp_path / "deep", VIT, num_attention_heads=2))
        },
    }
    other = vit.replace(**changes[changed])
    loader = Loader(pictures())
    loader.expect([vit] * 9 + [other] * 9)
    mine, theirs = (prepare(e, loader=loader).data.prefix for e in (vit, other))
    assert not np.array_equal(mine.hidden, theirs.hidden)


def test_a_search_that_goes_on_decides_as_it_did(vit):
    loaders = [Loader(pictures()) for _ in range(2)]
    for loader in loaders:
        loader.expect([vit] * 9)
    prepare(vit, loader=loaders[0])
    for loader in loaders:  # a later wave has fewer runs
        loader.expect([vit])
        assert prepare(vit, loader=loader).data.prefix is not None


@pytest.mark.parametrize(
    ("kept", "times", "share"), [(True, 4, 1.0), (False, 4, 0.5), (True, 8, 0.5), (False, 3, 1.0)]
)
def test_it_is_kept_where_all_runs_together_compute_enough(vit, kept, times, share):
    loader = Loader(pictures())
    loader.expect([vit] * times, share)  # 48 examples a run; to keep 120 pays from 180 on
    assert (prepare(vit, loader=loader).data.prefix is not None) == kept


def test_seeds_share_what_holds_the_same_and_no_more():
    def words(experiment):
        columns = {
            "text": [f"a b {k % 7}" for k in range(120)],
            "label": [k % 2 for k in range(120)],
        }
        loader = Loader(columns)
        experiments = [experiment.replace(seed=seed) for seed in range(4)]
        loader.expect(experiments)
        return [prepare(e, loader=loader) for e in experiments]

    deal = {"partition.name": "iid", "partition.num_clients": 2, "local_steps": 3}
    experiment = tiny(**UPPER, **deal, rounds=1)
    runs = words(experiment)  # a random model of each seed, the same texts
    assert all(run.dataset is runs[0].dataset for run in runs)
    assert all(run.data.prefix is None for run in runs)
    cut = words(experiment.replace(**{"data.max_examples": 100}))
    assert cut[0].dataset is not cut[1].dataset


def test_two_meshes_have_a_prefix_each(vit):
    loader = Loader(pictures())
    loader.expect([vit] * 9)
    where = [
        prepare(vit.replace(client_data=place, cohort_size=2), loader=loader).data.prefix
        for place in ("host", "device")
    ]
    assert [type(prefix.hidden) for prefix in where] == [np.ndarray, type(jax.numpy.zeros(1))]
