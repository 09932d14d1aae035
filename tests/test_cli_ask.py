"""Answers to questions become flags: checked one by one, asked again where they cannot be used."""

import io
import shlex

import pytest

from ffalora_jax import cli, cli_ask, flags
from ffalora_jax.errors import BAD_INPUT, InputError

ROWS = "review,verdict,shop\nfine,keep,Bonn\nloud,return,Kyoto\nfine,keep,Kyoto\n"
OTHERS = len(cli_ask.LAST)


def answered(answers, given=(), heard=None):
    """Returns the flags and the questions."""
    lines, heard = iter(answers), [] if heard is None else heard

    def ask(line):
        heard.append(line)
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    return cli_ask.asked(given, flags.read_pilot, ask), heard


@pytest.fixture
def reviews(tmp_path):
    (tmp_path / "reviews.csv").write_text(ROWS)
    return str(tmp_path / "reviews.csv")


def test_enter_throughout_is_the_pilot_of_the_demo(capsys):
    found, heard = answered([""] * OTHERS)
    assert found == []
    assert len(heard) == OTHERS  # no price, so no currency
    assert heard[1].endswith("[6.0]: ")
    assert "The same without questions: ffalora pilot\n" in capsys.readouterr().out


def test_answers_are_the_settings_that_they_stand_for(reviews, capsys):
    answers = [
        reviews,
        "review",
        "verdict",
        "shop",
        "3",
        "10, 1",
        "20",
        "0.1",
        "EUR",
        "2",
        "5",
        "ja",
    ]
    found, _ = answered(answers, ["--quick"])
    experiment, asked, _ = flags.read_pilot(found)
    data = experiment.data
    assert (data.name, data.path, data.text, data.label, data.client) == (
        *("csv", reviews, "review", "verdict", "shop"),
    )
    assert (experiment.privacy.epsilon, experiment.sites.speed) == (3.0, "10, 1")
    assert experiment.sites.up == experiment.sites.down == "20"
    assert (asked.price_per_gb, asked.currency, asked.trainings_per_month) == (0.1, "EUR", 2)
    assert (asked.minutes, asked.language, asked.quick) == (5, "ja", True)
    command = capsys.readouterr().out.strip().splitlines()[-1].partition(": ")[2]
    assert shlex.split(command) == ["ffalora", "pilot", *found]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["nowhere.csv"], "Expected a CSV file"),
        (["{reviews}", ""], "No column 'text': choose from review, verdict, shop"),
        (["{reviews}", "review", "verdikt"], "No column 'verdikt'"),
        (["", "-3"], "privacy.epsilon"),
        (["", "", "", "", "cheap"], "price-per-gb"),
        (["", "", "", "", "", "", "", "fr"], "choose from en, ja"),
    ],
)
def test_what_cannot_be_used_is_said_and_asked_again(wrong, said, reviews, capsys):
    heard = []
    with pytest.raises(InputError, match="answers ended before the question"):
        answered([answer.format(reviews=reviews) for answer in wrong], heard=heard)
    assert said in capsys.readouterr().out
    assert heard[-1] == heard[-2]


def test_rows_of_no_site_are_dealt_out_and_a_folder_has_a_site_a_file(reviews, tmp_path):
    found, _ = answered([reviews, "review", "verdict", "", "4", *[""] * OTHERS])
    experiment = flags.read_pilot(found)[0]
    assert (experiment.partition.name, experiment.partition.num_clients) == ("iid", 4)
    found, heard = answered([str(tmp_path), "review", "verdict", *[""] * OTHERS])
    assert flags.read_pilot(found)[0].partition.name == "natural"
    assert not any("site" in line and "Column" in line for line in heard)


def test_where_nobody_answers_it_is_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli.main(["pilot", "--ask"]) == BAD_INPUT
    assert capsys.readouterr().err.count("\n") == 1
