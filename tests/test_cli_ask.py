"""Answers to questions become flags: checked one by one, asked again where they cannot be used."""

import io
import shlex
from pathlib import Path

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
    assert "The same without questions: ffalora pilot\n" in capsys.readouterr().err


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
    found, _ = answered(answers)
    experiment, asked, _ = flags.read_pilot(found)
    data = experiment.data
    assert (data.name, data.path, data.text, data.label, data.client) == (
        *("csv", reviews, "review", "verdict", "shop"),
    )
    assert (experiment.privacy.epsilon, experiment.sites.speed) == (3.0, "10, 1")
    assert experiment.sites.up == experiment.sites.down == "20"
    assert (asked.price_per_gb, asked.currency, asked.trainings_per_month) == (0.1, "EUR", 2)
    assert (asked.minutes, asked.language) == (5, "ja")
    said = capsys.readouterr().err
    assert "2 sites, in this order: Bonn, Kyoto." in said
    command = said.strip().splitlines()[-1].partition(": ")[2]
    assert shlex.split(command) == ["ffalora", "pilot", *found]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["nowhere.csv"], "Expected a CSV file"),
        (["{reviews}", ""], "No column 'text': choose from review, verdict, shop"),
        (["{reviews}", "review", "verdikt"], "No column 'verdikt'"),
        (["", "-3"], "privacy.epsilon"),
        (
            ["{reviews}", "review", "verdict", "shop", "", "1, 2, 3"],
            "or 2 of them, one for each site",
        ),
        (["", "", "fast"], "Expected sites.speed to be a number"),
        (["", "", "", "10, 0"], "Expected sites.up > 0"),
        (
            ["", "", "", "", "cheap"],
            "--pilot.price-per-gb takes a number such as 6 or 0.5, got 'cheap'",
        ),
        (["", "", "", "", "", "", "", "fr"], "choose from en, ja"),
    ],
)
def test_what_cannot_be_used_is_said_and_asked_again(wrong, said, reviews, capsys):
    heard = []
    with pytest.raises(InputError, match="answers ended before the question"):
        answered([answer.format(reviews=reviews) for answer in wrong], heard=heard)
    assert said in capsys.readouterr().err
    assert heard[-1] == heard[-2]


def test_rows_of_no_site_are_dealt_out_and_a_folder_has_a_site_a_file(reviews, tmp_path):
    found, _ = answered([reviews, "review", "verdict", "", "4", *[""] * OTHERS])
    experiment = flags.read_pilot(found)[0]
    assert (experiment.partition.name, experiment.partition.num_clients) == ("iid", 4)
    found, heard = answered([str(tmp_path), "review", "verdict", "shop", *[""] * OTHERS])
    assert flags.read_pilot(found)[0].partition.name == "natural"
    assert any("Column that names each row's site" in line for line in heard)  # of one file alone
    (tmp_path / "other.csv").write_text(ROWS)
    found, heard = answered([str(tmp_path), "review", "verdict", *[""] * OTHERS])
    assert flags.read_pilot(found)[0].partition.name == "natural"
    assert not any("Column that names" in line for line in heard)


def test_sites_are_named_in_the_order_in_which_runs_have_them(reviews, tmp_path, capsys):
    place = tmp_path / "stores"
    place.mkdir()
    for name in ("1", "2", "10"):
        (place / f"{name}.CSV").write_text(ROWS)
    answered([str(place), "review", "verdict", *[""] * OTHERS])
    assert "3 sites, in this order: 1, 2, 10." in capsys.readouterr().err
    answered([str(place), "review", "verdict", *[""] * OTHERS], ["--data.client=shop"])
    assert "2 sites, in this order: Bonn, Kyoto." in capsys.readouterr().err


def test_what_was_given_is_what_enter_takes_and_its_questions_are_asked_all_the_same(reviews):
    columns = ["--data.path", reviews, "--data.text=review", "--data.label=verdict"]
    found, heard = answered(
        ["", "", "", "shop", *[""] * OTHERS], [*columns, "--partition.name=iid"]
    )
    experiment = flags.read_pilot(found)[0]
    assert (experiment.data.name, experiment.data.client) == ("csv", "shop")
    assert experiment.partition.name == "natural"
    assert heard[0].endswith(f"[{reviews}]: ")
    found, _ = answered(["", "", "", "", "2", *[""] * OTHERS], [*columns, "--data.client=gone"])
    experiment = flags.read_pilot(found)[0]
    assert (experiment.data.client, experiment.partition.num_clients) == (None, 2)


def test_of_other_data_and_of_what_does_nothing_nobody_is_asked():
    given = ["--data.name=glue/sst2", "--quick"]
    found, heard = answered([""] * OTHERS, given)
    assert found == given
    assert not any("data" in line or "minutes" in line for line in heard)


def test_a_path_may_be_quoted_or_begin_at_home(reviews, monkeypatch):
    monkeypatch.setenv("HOME", str(Path(reviews).parent))
    answers = ["review", "verdict", "shop", *[""] * OTHERS]
    for path in ("~/reviews.csv", f"'{reviews}'", f'"{reviews}"'):
        assert flags.read_pilot(answered([path, *answers])[0])[0].data.path == reviews


def test_where_nobody_answers_it_is_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli.main(["pilot", "--ask", "--json"]) == BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].endswith("where nobody can be asked.")
