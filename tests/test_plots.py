"""Pictures draw what stands in the files: values, intervals, and nothing where there is nothing."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot

import ffalora_jax as ffa
from ffalora_jax.errors import InputError
from ffalora_jax.plots import _axes
from ffalora_jax.sweep_results import interval_of, trials_of
from ffalora_jax.sweeps import Sweep
from tests.tiny_runs import tiny

pytestmark = pytest.mark.thorough
RATE, RANK = "optimizer.learning_rate", "method.rank"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A private run, one without privacy, one of whole sites."""
    folder = tmp_path_factory.mktemp("runs")
    changes = {
        "private": {},
        "open": {"privacy.mechanism": "none", "privacy.noise_multiplier": None},
        "whole": {"privacy.mechanism": "dp_fedavg", "privacy.delta": 1e-3},
    }
    return {name: ffa.simulate(tiny(**some), out=folder / name) for name, some in changes.items()}


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


def row(trial, repeat, rate, rank, accuracy, status="done"):
    """A row of a search's table, as far as summaries and pictures look at it."""
    return {
        "trial": trial,
        "repeat": repeat,
        RATE: rate,
        RANK: rank,
        "status": status,
        "why": None,
        "rounds": 3,
        "validation_accuracy": accuracy,
        "test_accuracy": None if accuracy is None else accuracy - 0.1,
        "bytes_per_client": 1000.0 * rank,
        "epsilon_spent": 2.0,
        "seconds": 1.0,
    }


@pytest.fixture
def search(tmp_path):
    """Two rates, two ranks, two repetitions; all runs of one combination failed."""
    scores = {(0.1, 2): (0.6, 0.7), (0.1, 8): (0.8, 0.9), (1.0, 2): (0.5, 0.7)}
    rows = [
        row(trial, repeat, *place, score)
        for trial, (place, both) in enumerate(scores.items())
        for repeat, score in enumerate(both)
    ]
    rows += [row(3, repeat, 1.0, 8, None, "failed") for repeat in range(2)]
    trials = trials_of(rows, [RATE, RANK], "accuracy")
    return Sweep(tmp_path, rows, {"trials": trials, "best": 1})


def drawn(ax, label=None):
    """The points of a line, by its label."""
    (line,) = [one for one in ax.get_lines() if label in (None, one.get_label())]
    return [list(map(float, line.get_xdata())), list(map(float, line.get_ydata()))]


def test_accuracy_draws_the_evaluated_rounds_and_what_guessing_gives(runs):
    run = runs["private"]
    ax = ffa.plot.accuracy([run, runs["open"]], labels=["a", "b"])
    there = [line for line in run.metrics if line["accuracy"] is not None]
    assert len(there) == 3
    assert drawn(ax, "a") == [[2, 4, 6], [line["accuracy"] for line in there]]
    guessing = drawn(ax, "always the site's commonest class")[1]
    assert guessing == [run.metrics[-1]["majority_accuracy"]] * 2
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("round", "validation accuracy")


def test_one_run_is_as_good_as_a_list_of_one_and_given_axes_are_drawn_on(runs):
    _, given = pyplot.subplots()
    ax = ffa.plot.accuracy(runs["open"], ax=given)
    assert ax is given
    alone = ffa.plot.accuracy([runs["open"]])
    assert alone is not given
    assert drawn(ax, "FFA-LoRA, no privacy") == drawn(alone, "FFA-LoRA, no privacy")


def test_privacy_draws_what_was_spent_and_a_level_for_what_spends_nothing(runs):
    run = runs["private"]
    ax = ffa.plot.privacy([run, runs["open"]], labels=["a", "b"])
    there = [line for line in run.metrics if line["accuracy"] is not None]
    assert drawn(ax, "a")[0] == [line["epsilon"] for line in there]
    assert drawn(ax, "b")[1] == [runs["open"].metrics[-1]["accuracy"]] * 2
    with pytest.raises(InputError, match="epsilon"):
        ffa.plot.privacy(runs["open"])


def test_traffic_ends_at_the_bytes_of_a_site(runs):
    sent = runs["private"].communication
    x, _ = drawn(ffa.plot.traffic(runs["private"]))
    each = sent["bytes_total"] / sent["num_clients"]
    assert x[-1] == pytest.approx(each / 1e3)
    assert x[0] == pytest.approx(each / 1e3 * 2 / 6)


def test_sites_draws_each_sites_accuracy_and_its_commonest_class(runs):
    run = runs["private"]
    ax = ffa.plot.sites([run, runs["open"]])
    heights = [bar.get_height() for bar in ax.patches]
    both = (run, runs["open"])
    expected = [x for one in both for x in one.metrics[-1]["test_accuracy_per_client"].values()]
    assert heights == expected
    strokes = [segment[0][1] for segment in ax.collections[0].get_segments()]
    table = run.folder.read_json("partition.json")["clients"]
    counts = [site["examples_per_class"] for site in table]
    assert strokes == [max(one) / sum(one) for one in counts]


def test_classes_draws_the_counts_of_the_partition(runs):
    table = runs["private"].folder.read_json("partition.json")
    widths = [bar.get_width() for bar in ffa.plot.classes(runs["private"]).patches]
    counts = np.array([site["examples_per_class"] for site in table["clients"]])
    assert widths == counts.T.reshape(-1).tolist()


def test_clipping_draws_the_shares(runs):
    ax = ffa.plot.clipping(runs["private"])
    assert drawn(ax)[1] == [line["clipped_share"] for line in runs["private"].metrics]
    assert ax.get_ylabel() == "share of examples clipped"
    assert ffa.plot.clipping(runs["whole"]).get_ylabel() == "share of sites clipped"


def test_the_noise_beside_the_norms_is_that_of_a_mean(runs):
    """sigma C sqrt(d) / B at a step of examples; over the cohort where whole sites are protected."""
    for name, what, divisor in (("private", "a step", 8), ("whole", "a round", 4)):
        run = runs[name]
        numbers = run.folder.read_json("environment.json")["trained_parameters"]
        ax = ffa.plot.norms(run)
        noise = drawn(ax, f"noise in the mean of {what}")[1]
        clip = run.experiment.privacy.clip_norm
        assert noise == pytest.approx([clip * np.sqrt(numbers) / divisor] * 6)
    gradients = drawn(ffa.plot.norms(runs["private"]), "an example's gradient, mean")[1]
    assert gradients == [line["gradient_norm"] for line in runs["private"].metrics]


def test_noise_of_another_form_is_not_drawn(runs):
    run = ffa.load_run(runs["private"].path)
    run.experiment = run.experiment.replace(**{"privacy.mechanism": "dp_sgd_banded"})
    assert not [x for x in ffa.plot.norms(run).get_lines() if "noise" in str(x.get_label())]


def test_scheduled_noise_and_clip_norm_are_drawn_as_scheduled(runs):
    run = ffa.load_run(runs["private"].path)
    halved = {"privacy.noise_schedule": "steps 3:0.5", "privacy.clip_schedule": "steps 3:0.1"}
    plain = drawn(ffa.plot.norms(run), "noise in the mean of a step")[1]
    run.experiment = run.experiment.replace(**halved)
    ax = ffa.plot.norms(run)
    assert drawn(ax, "clip norm")[1] == pytest.approx([1.0] * 3 + [0.1] * 3)
    noise = drawn(ax, "noise in the mean of a step")[1]
    assert noise == pytest.approx([*plain[:3], *(0.05 * x for x in plain[3:])])


def test_what_a_run_keeps_out_of_its_files_is_not_drawn(runs):
    run = ffa.load_run(runs["private"].path)
    run.experiment = run.experiment.replace(**{"monitor.private": True})
    for draw in (ffa.plot.clipping, ffa.plot.norms):
        with pytest.raises(InputError, match=r"monitor\.private = false"):
            draw(run)


def test_runs_are_named_by_what_tells_them_apart(runs):
    run = runs["private"]
    other = ffa.load_run(run.path)
    other.experiment = other.experiment.replace(**{RANK: 4})
    assert _axes.names_of([run, runs["open"]])[1] == "FFA-LoRA, no privacy"
    assert _axes.names_of([run, other]) == ["rank 2", "rank 4"]
    assert _axes.names_of([run, run]) == ["private", "private"]
    assert _axes.names_of([run], ["$x$"]) == [r"\$x\$"]


def test_what_cannot_be_drawn_is_refused(runs):
    with pytest.raises(InputError, match="at least one run"):
        ffa.plot.accuracy([])
    with pytest.raises(InputError, match="a label a run, 1 of them, got 2"):
        ffa.plot.accuracy(runs["private"], labels=["a", "b"])
    unfinished = ffa.load_run(runs["private"].path)
    unfinished.metrics = []
    with pytest.raises(InputError, match="no finished round"):
        ffa.plot.accuracy(unfinished)
    stopped = ffa.load_run(runs["private"].path)
    stopped.metrics = [dict(stopped.metrics[0])]
    with pytest.raises(InputError, match="no test accuracy by site"):
        ffa.plot.sites(stopped)


def test_a_grid_has_the_mean_of_each_combination_in_its_cell(search):
    ax = ffa.plot.grid(search, RATE, RANK)
    cells = np.asarray(ax.images[0].get_array())
    assert cells[0] == pytest.approx([0.65, 0.6])
    assert cells[1, 0] == pytest.approx(0.85)
    assert np.ma.getmaskarray(ax.images[0].get_array())[1, 1] or np.isnan(cells[1, 1])
    written = {text.get_position(): text.get_text() for text in ax.texts}
    assert written == {(0, 0): "65.0 %", (1, 0): "60.0 %", (0, 1): "85.0 %"}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.1", "1"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["2", "8"]


def test_lines_has_the_interval_of_the_repetitions(search):
    ax = ffa.plot.lines(search, RATE, by=RANK)
    assert drawn(ax, "rank 2") == [[0.1, 1.0], pytest.approx([0.55, 0.5])]
    assert drawn(ax, "rank 8") == [[0.1], pytest.approx([0.75])]  # the other one failed
    bars = ax.collections[0].get_segments()
    for (low, high), scores in zip(bars, ((0.5, 0.6), (0.4, 0.6)), strict=True):
        expected = interval_of(scores)
        assert (low[1], high[1]) == pytest.approx((expected.low, expected.high))
    assert 0 <= ax.get_ylim()[0] < ax.get_ylim()[1] <= 1
    assert ax.get_xscale() == "log"


def test_further_settings_are_chosen_by_validation(search):
    """Of the two ranks at rate 0.1 the one with 0.85 on validation is drawn, though both were tried."""
    assert drawn(ffa.plot.lines(search, RATE))[1] == pytest.approx([0.75, 0.5])


def test_one_repetition_has_no_bar(search):
    rows = [one for one in search.rows if one["repeat"] == 0]
    single = search._replace(
        rows=rows, summary={"trials": trials_of(rows, [RATE, RANK], "accuracy"), "best": 1}
    )
    assert not ffa.plot.lines(single, RATE, by=RANK).collections


def test_other_figures_of_a_search_are_drawn_too(search):
    ax = ffa.plot.lines(search, RANK, value="bytes_per_client")
    assert drawn(ax)[1] == [2000.0, 8000.0]
    assert {text.get_text() for text in ffa.plot.grid(search, RATE, RANK, "epsilon").texts} == {
        "2.00"
    }


def test_settings_that_were_not_varied_are_refused(search):
    with pytest.raises(InputError, match=r"did not vary 'method.rnk'.*Did you mean 'method.rank'"):
        ffa.plot.grid(search, RATE, "method.rnk")
    with pytest.raises(InputError, match="two different settings"):
        ffa.plot.grid(search, RATE, RATE)
    with pytest.raises(InputError, match="two different settings"):
        ffa.plot.lines(search, RATE, by=RATE)
    with pytest.raises(InputError, match="No value 'loss'"):
        ffa.plot.lines(search, RATE, value="loss")


def test_of_a_search_the_first_run_of_each_combination_is_drawn(runs):
    folder = runs["private"].path.parent
    rows = [
        {"trial": trial, "folder": name}
        for trial, name in ((0, "private"), (0, "whole"), (1, "open"))
    ]
    found = _axes.runs_of(Sweep(folder, [*rows, {"trial": 2, "folder": None}], {}))
    assert [run.path.name for run in found] == ["private", "open"]


def test_the_colours_are_those_of_the_report():
    style = (Path(ffa.__file__).parent / "report" / "style.css").read_text()
    light = style[: style.index("@media")]
    assert re.findall(r"--line\d: (#\w+);", light) == list(_axes.COLORS)
    assert f"--ink: {_axes.INK};" in light
    assert f"--faint: {_axes.FAINT};" in light


def test_the_namespace_is_loaded_when_it_is_first_used():
    assert ffa.plot.__name__ == "ffalora_jax.plots"
    assert "plot" in dir(ffa)
    for name in ffa.plot.__all__:
        assert inspect.signature(getattr(ffa.plot, name)).parameters["ax"].default is None
