"""The pilot's page says what was found, in two languages alike, and nothing that was not looked at."""

import math
import re
import string
from pathlib import Path

import pytest

from ffalora_jax import pilot_page
from ffalora_jax.config_pilot import LANGUAGES
from ffalora_jax.pilot_page import advice, figures, sentences
from ffalora_jax.pilot_page.texts import Texts
from tests.pilot_examples import barely_begun, example, interval, with_links

HERE = Path(pilot_page.__file__).parent
EXAMPLES = {"whole": example, "links": with_links, "begun": barely_begun}


def fields(text) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(str(text)) if name}


def written(found, tmp_path, language="en") -> str:
    pilot_page.write_page(found, tmp_path / "pilot.html", language)
    return (tmp_path / "pilot.html").read_text(encoding="utf-8")


def test_every_language_has_the_same_texts_with_the_same_fields():
    first, *others = (Texts(language).table for language in LANGUAGES)
    for other in others:
        assert other.keys() == first.keys()
        for key in first:
            assert fields(other[key]) == fields(first[key]), key
            assert not isinstance(first[key], list) or len(other[key]) == len(first[key])


def test_no_text_of_a_language_is_left_in_another():
    english, japanese = Texts("en").table, Texts("ja").table
    same = {key for key in english if english[key] == japanese[key]}
    assert same <= {"ffa_lora", "number"}


def test_every_text_is_used_somewhere():
    code = "".join(file.read_text(encoding="utf-8") for file in HERE.glob("*.[ph][yt]*"))
    built = ("things_", "unit_", "setting_", "language", "number")
    decisions = "roll_out promising not_shown train_alone no_learning high medium low".split()
    verdicts = "better failing unlearned close alike".split()
    methods = ("ffa_lora", "fedavg_lora", "local_only")
    for key in Texts("en").table:
        assert (
            f'"{key}"' in code or key.startswith(built) or key in (*decisions, *verdicts, *methods)
        ), key


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", EXAMPLES)
def test_pages_render_without_a_gap(name, language, tmp_path):
    page = written(EXAMPLES[name](), tmp_path, language)
    assert f'<html lang="{language}">' in page
    text = re.sub(r"<(style|svg).*?</\1>", "", page, flags=re.S)
    assert not re.search(r"None|nan|inf\b|[{}]", text)


@pytest.mark.parametrize(
    "decision", ["roll_out", "promising", "not_shown", "train_alone", "no_learning"]
)
@pytest.mark.parametrize("language", LANGUAGES)
def test_each_decision_has_an_answer_and_a_next_step_of_its_own(decision, language, tmp_path):
    found = example()
    found["recommendation"] |= {"decision": decision}
    t = Texts(language)
    answer = sentences.recommendation(found, t)["answer"]
    assert answer == t(decision, method="FFA-LoRA")
    assert answer in written(found, tmp_path, language)
    assert advice.next_steps(found, t)


def test_the_answer_gives_its_reason_in_the_figures_that_were_compared(tmp_path):
    page = written(example(), tmp_path)
    assert "79.0 % of unseen texts are right at epsilon 6; each site alone" in page
    assert "nothing leaves it) reaches 76.0 %" in page
    assert "+3.0 points difference (95 % interval +2.0 to +4.0) over 5 repetitions" in page
    assert "do not differ by more than chance does, so the cheaper one is taken" in page
    assert "Certainty: high" in page


def test_who_gains_and_who_loses_is_said_by_interval_not_by_mean(tmp_path):
    found = example()
    said = sentences.sites(found, Texts("en"))["said"]
    assert said == ["Gain: movies.", "Lose: nyt.", "Not shown either way: amazon."]


def test_of_too_few_repetitions_nothing_is_said_of_single_sites():
    found, t = example(), Texts("en")
    for site in found["sites"]:
        site["gain"] = interval(0.05)
    shown = sentences.sites(found, t)
    assert shown["said"] == [t("few_repetitions")]
    assert shown["groups"]["winners"] == shown["groups"]["losers"] == []


def test_an_interval_that_says_nothing_is_not_shown_in_figures():
    found, t = example(), Texts("en")
    found["sites"][0]["gain"] = interval(0.067, 0.9)
    assert sentences.sites(found, t)["rows"][0][-1] == "+6.7 (not clear)"


@pytest.mark.parametrize("budget", [0.1, 1.0, 6.0])
def test_the_share_of_right_guesses_is_what_randomised_response_gives(budget):
    # The mechanism that answers truly with probability e^epsilon / (1 + e^epsilon) is epsilon-private, and
    # whoever believes its answer is right just as often; with delta it may tell all in that share of cases.
    truly = math.exp(budget) / (1 + math.exp(budget))
    assert sentences.most_guessed(budget, 0.0) == pytest.approx(truly)
    told, delta = 0.01, 0.01
    assert sentences.most_guessed(budget, delta) == pytest.approx(told + (1 - told) * truly)


def test_what_an_epsilon_promises_is_said_as_a_share_of_right_guesses(tmp_path):
    found = example()
    found["about"] |= {"epsilon": 9.0}
    page = written(found, tmp_path)
    assert "99.9 %+ of the time at epsilon 9, 99.8 % of the time at epsilon 6, 95.3 % of" in page
    assert "whether one training example took part" in page
    found["about"] |= {"unit": "client"}
    assert "whether one whole site took part" in written(found, tmp_path)


def test_few_scored_examples_are_named_as_a_limit(tmp_path):
    found, fine = example(), "each of them counts"
    assert fine not in written(found, tmp_path)
    assert "1,234 examples a repetition" in written(found, tmp_path)
    found["about"] |= {"tested": 41}
    assert "scores 41 examples, so each of them counts 2.4 points" in written(found, tmp_path)


def test_a_single_run_is_drawn_hollow(tmp_path):
    found = example()
    filled = figures.by_epsilon(found, Texts("en"))
    found["privacy"][2]["each"] = {0: 0.775}
    assert figures.by_epsilon(found, Texts("en")) != filled


def test_half_the_traffic_is_told_in_bytes_time_and_money_of_a_month(tmp_path):
    found = example()
    found["asked"]["price_per_gb"] = 1000.0
    (said,) = sentences.traffic(found, Texts("en"))["said"]
    saved = (2.68e6 - 1.355e6) * 3 * 4
    assert f"{saved / 1e6:.1f} MB less a month" in said
    assert f"{saved / 1e9 * 1000:.2f} USD less to pay" in said
    seconds = 8 * (2.68e6 - 1.355e6) / 1e7 * 4
    assert f"{seconds:.3g} s less waiting for messages on 10 Mbit/s" in said


def test_traffic_of_a_method_that_was_not_run_is_told_unless_it_hangs_on_machines():
    found, t = example(), Texts("en")
    told = sentences.traffic(found, t)["said"][0]
    found["methods"][1]["accuracy"] = interval(None)
    shown = sentences.traffic(found, t)
    assert shown["said"][0] == told
    assert shown["rows"][1][1] == "not run yet"
    found["methods"][0]["simulated_seconds"] = 3.0
    assert len(sentences.traffic(found, t)["rows"]) == 1
    found["methods"][0]["simulated_seconds"], found["methods"][1]["bytes_per_site"] = None, 0.0
    assert len(sentences.traffic(found, t)["rows"]) == 1


def test_without_a_price_nothing_is_said_of_money_but_how_to_give_one(tmp_path):
    page = written(barely_begun(), tmp_path)
    assert "USD" not in page
    assert "--price-per-gb" in page


def test_given_machines_and_links_replace_the_common_lines(tmp_path):
    page = written(with_links(), tmp_path)
    assert "on the given links" in page
    assert "100 Mbit/s" not in page
    assert "nyt: it needs 1.58 min for a round, the next slowest 3.5 s" in page.replace(
        "Nyt", "nyt"
    )
    assert "a training takes 4.68 min in place of" in page


def test_figures_of_one_method_never_carry_anothers_name(tmp_path):
    found = with_links()
    found["recommendation"] |= {"method": "fedavg_lora", "alike": ["fedavg_lora"]}
    found["against_the_other"] = {
        "method": "ffa_lora",
        "verdict": "better",
        **interval(0.03, 0.01),
    }
    page = written(found, tmp_path)
    assert "train together with plain LoRA (FedAvg)" in page
    assert "Plain LoRA (FedAvg) was better than FFA-LoRA, by more than chance does" in page
    assert "1 of 11 repetitions and initialisations of FFA-LoRA failed" in page
    assert "unseen texts with FFA-LoRA" in page
    assert "accuracy of FFA-LoRA on the validation part" in page
    assert "a training takes 4.68 min in place of 22.6 min" in page


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("close", "There are too few repetitions to tell"),
        ("alike", "do not differ by more than chance does"),
        ("better", "FFA-LoRA was better than plain LoRA (FedAvg), by more than chance does"),
        ("unlearned", "Plain LoRA (FedAvg) has hardly learnt more than the commonest class"),
        ("failing", "Too many runs of plain LoRA (FedAvg) failed"),
    ],
)
def test_the_reason_why_not_the_other_method_is_the_rules(verdict, words, tmp_path):
    found = example()
    found["against_the_other"] |= {"verdict": verdict}
    assert words in written(found, tmp_path)


def test_training_again_on_the_same_examples_is_said_to_cost_again(tmp_path):
    assert "4 trainings on the same examples in the first month come to epsilon 13.4" in written(
        example(), tmp_path
    )
    once = example(month={"trainings": 1, "epsilon": None})
    assert "each further one on the same examples adds to it" in written(once, tmp_path)


def test_what_failed_beside_the_recommended_method_is_counted_too(tmp_path):
    found = example(failed=4)
    assert "Of all 31 runs of the pilot 4 failed." in written(found, tmp_path)
    assert "runs of the pilot" not in written(example(), tmp_path)


def test_a_site_that_is_seldom_there_is_not_called_the_next_slowest(tmp_path):
    found = with_links()
    found["clock"] |= {"second": 2 * found["clock"]["seconds"]}
    page = written(found, tmp_path)
    assert "most rounds wait for it" in page
    assert "the next slowest" not in page


def test_a_loss_inside_its_interval_is_not_called_a_cost(tmp_path):
    found = example(privacy_cost=interval(0.004, 0.02))
    assert "too little to tell from chance" in written(found, tmp_path)
    assert "With FFA-LoRA, epsilon 6 costs 2.0 points" in written(example(), tmp_path)


@pytest.mark.parametrize(
    ("mechanism", "words"),
    [
        ("dp_sgd", "the server included"),
        ("dp_sgd_banded", "the server included"),
        ("dp_sgd_secagg", "secure aggregation has to hide each upload"),
        ("dp_fedavg", "has to be trusted"),
        ("mine:own", "privacy.json of each run says against whom"),
    ],
)
def test_the_claim_says_against_whom_it_holds(mechanism, words, tmp_path):
    found = example()
    found["about"] |= {"mechanism": mechanism}
    assert words in written(found, tmp_path)


def test_an_audit_too_small_to_contradict_says_so(tmp_path):
    found = example()
    found["audit"] |= {"ceiling": 3.2}
    page = written(found, tmp_path)
    assert "could not have contradicted the claim of 6" in page
    assert "they show 3.2 at most" in page


def test_of_many_sites_the_furthest_apart_are_shown_and_the_others_counted(tmp_path):
    found = example()
    one = found["sites"][0]
    found["sites"] = [
        one | {"name": f"s{k:03d}", "gain": interval(k / 1000, 0.5)} for k in range(300)
    ]
    page = written(found, tmp_path)
    assert page.count('<th scope="row">s') == 8
    assert "292 more lie in between, and some of them may gain or lose too" in page
    assert "s000" in page
    assert "s299" in page


def test_sites_that_are_dealt_out_are_not_taken_for_real_ones(tmp_path):
    found = example()
    found["about"] |= {"own_sites": False}
    assert "not of real sites" in written(found, tmp_path)


def test_with_a_deadline_nobody_is_said_to_wait(tmp_path):
    found = with_links()
    found["about"] |= {"deadline": 31.0}
    page = written(found, tmp_path)
    assert "after the deadline of 31 s are late" in page
    assert "wait for it" not in page


def test_advice_to_go_on_is_given_only_where_there_is_something_to_go_on_with():
    t, found = Texts("en"), example()
    found["recommendation"] |= {"certainty": "medium"}
    assert t("next_other") in advice.next_steps(found, t)
    assert t("next_resume") in advice.next_steps(found | {"whole": False}, t)
    found["asked"] |= {"quick": True}
    assert t("next_not_quick") in advice.next_steps(found, t)


def test_a_claim_that_the_audit_contradicts_is_not_whispered(tmp_path):
    found = example()
    found["audit"] |= {"holds": False, "lower_bound": 9.0}
    assert "THE AUDIT CONTRADICTS THE CLAIM" in written(found, tmp_path)


def test_what_was_left_out_stands_on_the_page(tmp_path):
    page = written(barely_begun(), tmp_path)
    assert "Let the pilot go on" in page
    assert "Quick look: adapters in the blocks 4-5 alone, up to 300 test examples a site" in page
    assert "The time was over before all questions were asked" in page
    assert "Client &#39;c&#39; has 1 training examples." in page
    assert "No audit was made" in page
    assert "nothing of it may be given out" in page
    assert "Training alone was not compared yet" in page
    assert "Left out by the quick pilot" in page
    assert "What privacy costs in accuracy was not compared yet." in page
    assert page.count("Not compared yet.") == 1  # what each site gains


def test_names_of_others_stay_text(tmp_path):
    found = example(name="</title><script>alert(1)</script>")
    found["about"]["data"] = "<img src=x onerror=alert(1)>"
    found["sites"][0]["name"] = "<b>bold</b>$x$"
    page = written(found, tmp_path)
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;b&gt;bold&lt;/b&gt;$x$" in page


def test_the_rules_stand_in_the_appendix(tmp_path):
    page = written(example(), tmp_path)
    for rule in Texts("en").table["rules"]:
        assert rule.replace("'", "&#39;") in page
