"""What GLUE and GSM8K judge by, against other ways to compute the same."""

import numpy as np
import pytest
from scipy.stats import binomtest

from ffalora_jax.metrics import class_metrics, proportion_interval
from ffalora_jax.respond import exact_match

DRAW = np.random.default_rng(0)
LABELS = DRAW.integers(0, 2, 200)
PREDICTED = np.where(DRAW.random(200) < 0.7, LABELS, 1 - LABELS)


def test_f1_is_the_harmonic_mean_of_precision_and_recall_of_class_one():
    precision = np.mean(LABELS[PREDICTED == 1] == 1)
    recall = np.mean(PREDICTED[LABELS == 1] == 1)
    found = class_metrics("f1", PREDICTED, LABELS)
    assert found == {"f1": pytest.approx(2 / (1 / precision + 1 / recall))}


def test_matthews_is_the_correlation_of_predictions_and_labels():
    expected = np.corrcoef(PREDICTED, LABELS)[0, 1]
    assert class_metrics("matthews", PREDICTED, LABELS) == {"matthews": pytest.approx(expected)}


@pytest.mark.parametrize("metric", ["f1", "matthews"])
def test_a_model_that_says_one_class_only_scores_zero(metric):
    zeros = np.zeros_like(LABELS)
    assert class_metrics(metric, zeros, LABELS) == {metric: 0.0}


def test_other_tasks_have_accuracy_alone():
    assert class_metrics("accuracy", PREDICTED, LABELS) == {}


@pytest.mark.parametrize(("right", "count"), [(0, 7), (3, 7), (7, 7), (226, 1319)])
def test_the_interval_is_wilsons(right, count):
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert proportion_interval(right, count) == pytest.approx(tuple(expected), abs=1e-4)


def test_no_observation_says_nothing():
    assert proportion_interval(0, 0) == (0.0, 1.0)


def test_exact_match_compares_final_numbers_and_counts_answers_without_one_as_wrong():
    said = ["so #### 1,200", "#### 7.", "no number", "#### -3"]
    found = exact_match(said, ["#### 1200", "#### 7", "#### 5", "#### 3"])
    assert found["exact_match"] == 0.5
    assert found["answered"] == 0.75
    assert found["exact_match_low"] < 0.5 < found["exact_match_high"]
