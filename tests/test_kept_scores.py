"""Scores of many runs: what lies below the adapters of a scored example is computed once for all of them."""

import json
from functools import partial

import jax
import numpy as np
import pytest

from ffalora_jax import prefix
from ffalora_jax.data import as_dataset
from ffalora_jax.evaluate import adapters_of, make_predictor
from ffalora_jax.held_out import scored_at_all
from ffalora_jax.loader import Loader
from ffalora_jax.many_runs import ManyRuns, Member
from ffalora_jax.prefix import Seen, scored_prefix
from ffalora_jax.prepare import Prepared, prepare
from tests.family_files import VIT, write_family
from tests.llama_files import write_llama
from tests.test_codec import write_tokenizer
from tests.test_prefix import UPPER, pictures
from tests.tiny_runs import tiny

FIGURES = ("loss", "accuracy", "validation_loss")


def texts(folder):
    return prepare(tiny(**UPPER))


def images(folder):
    deal = {"partition.name": "iid", "partition.num_clients": 2, "data.max_examples": None}
    return prepare(
        tiny(**UPPER, **deal, **{"model.name": str(write_family(folder / "vit", VIT))}), pictures()
    )


def answers(folder):
    llama = write_llama(folder / "llama")
    write_tokenizer(llama)
    asked = [f"what is one plus {w}" for w in ["two", "three"] * 30]
    worked = as_dataset({"prompt": asked, "response": ["one two three", "one"] * 30})
    changes = {"model.name": str(llama), "model.max_tokens": 16, "model.max_new_tokens": 4}
    deal = {"partition.name": "iid", "partition.num_clients": 2}
    return prepare(tiny(**UPPER, **deal, **changes), worked)


def seen_of(run: Prepared) -> Seen:
    return Seen(run.model, run.frozen.backbone, run.encoded, run.loaded.own)


def moved(run: Prepared):
    """A client's leaves, away from where they do nothing."""
    draw = np.random.default_rng(0)
    mine = adapters_of(run.state, 0)
    return jax.tree.map(lambda x: x + 0.3 * draw.standard_normal(x.shape, np.float32), mine)


@pytest.mark.parametrize("products", [True, False], ids=["products", "states"])
@pytest.mark.parametrize("form", [texts, images, answers])
def test_from_kept_states_the_outcomes_are_the_same(form, products, tmp_path, monkeypatch):
    run = form(tmp_path)
    if not products:
        room = prefix._form(seen_of(run), False).nbytes(scored_at_all(run)) / prefix.SHARE
        monkeypatch.setattr(prefix, "free_bytes", lambda: 1.01 * room)
    below = scored_prefix("auto", seen_of(run), scored_at_all(run))
    predict, mine = make_predictor(run.model, run.task), moved(run)
    rows = scored_at_all(run)[::-1]
    plain = predict(run.frozen, mine, run.encoded, rows)
    kept = predict(run.frozen, mine, run.encoded, rows, below.of(rows))
    np.testing.assert_allclose(kept, plain, atol=1e-5)
    assert np.ptp(plain, axis=0).max() > 0.01
    # It is the states that tell: without what they hold it is another outcome.
    nothing = [0 * state for state in below.of(rows)]
    assert np.abs(predict(run.frozen, mine, run.encoded, rows, nothing) - plain).max() > 0.01


def counted(monkeypatch) -> list[int]:
    """Tells how many examples are computed below the adapters, each time that some are."""
    found, fill = [], prefix._fill

    def counting(form, backbone, encoded, rows, in_file):
        found.append(len(rows))
        return fill(form, backbone, encoded, rows, in_file)

    monkeypatch.setattr(prefix, "_fill", counting)
    return found


def test_an_example_is_computed_once_and_again_only_where_there_is_no_room(monkeypatch):
    run = prepare(tiny(**UPPER))
    computed, rows = counted(monkeypatch), np.arange(12)
    below = scored_prefix("auto", seen_of(run), rows)
    first = below.of(rows[:8])
    assert [len(state) for state in first] == run.encoded.lengths[:8].tolist()
    assert all(a is b for a, b in zip(below.of(rows[4:])[:4], first[4:], strict=True))
    assert computed == [8, 4]
    below._room = below._form.nbytes(rows)
    again = below.of(np.arange(13))
    assert computed == [8, 4, 13]
    np.testing.assert_array_equal(again[0], first[0])


@pytest.mark.parametrize(
    "changes",
    [{"prefix_cache": "never"}, {"method.layers": "all"}],
    ids=["asked not to", "nothing lies below"],
)
def test_where_nothing_is_kept_of_training_nothing_is_of_scores(changes):
    run = prepare(tiny(**{**UPPER, **changes}))
    assert scored_prefix(run.experiment.prefix_cache, seen_of(run), np.arange(4)) is None


def test_runs_that_share_it_score_over_one_and_a_single_run_over_none():
    loader = Loader()
    experiments = [tiny(**UPPER, seed=seed) for seed in (0, 1)]
    runs = [prepare(experiment, loader=loader) for experiment in experiments]

    def ask(run):
        rows = partial(scored_at_all, run)
        return loader.scored_prefix(run.experiment, seen_of(run), rows)

    assert ask(runs[0]) is None
    loader.expect([experiments[0]], 2.0)
    assert ask(runs[0]) is ask(runs[0]) is not None


def test_the_runs_of_a_search_say_what_a_single_run_says(tmp_path, monkeypatch):
    experiment = tiny(**UPPER, rounds=2, evaluate_every=1)
    computed = counted(monkeypatch)

    def scores(place, share):
        many = ManyRuns(None, None, lambda *_: None)
        many.loader.expect([experiment], share)
        many.advance([Member(experiment, tmp_path / place, 7)], experiment.rounds)
        lines = (tmp_path / place / "metrics.jsonl").read_text().splitlines()
        return [[json.loads(line)[name] for name in FIGURES] for line in lines]

    alone = scores("alone", 1.0)
    assert not computed
    np.testing.assert_allclose(scores("many", 9.0), alone, atol=1e-5)
    assert computed
