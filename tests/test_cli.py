"""The command as outside scripts use it: a process of its own, its streams and its files."""

import html.parser
import json
import os
import tomllib
from pathlib import Path

import pytest

from tests.command import ffalora, here

TINY = "--data.name synthetic --model.name tiny --model.max-tokens 16"
RUN = f"run {TINY} --rounds 2 --seed 3 --noise-seed 4 --out"
FAST = f"{TINY} --rounds 1 --local-steps 1 --privacy.mechanism none"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def run(place):
    ffalora(*RUN.split(), place / "run")
    return place / "run"


def test_a_run_leaves_the_promised_files(run):
    found = {path.name for path in run.iterdir()}
    assert {
        "experiment.toml",
        "environment.json",
        "metrics.jsonl",
        "privacy.json",
        "communication.json",
        "checkpoints",
        "adapter",
        "report.html",
    } <= found
    adapter = {path.name for path in (run / "adapter").iterdir()}
    own = {"run.json", "head.safetensors"}  # mean pooling: no class of transformers has the head
    assert adapter == {"adapter_model.safetensors", "adapter_config.json"} | own


def test_metrics_have_the_promised_fields_in_every_round(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["round_index"] for line in lines] == [0, 1]
    for line in lines:
        assert {"accuracy", "loss", "epsilon", "bytes_up", "bytes_down", "seconds"} <= set(line)
    assert lines[0]["accuracy"] is None
    assert 0 < lines[0]["epsilon"] < lines[1]["epsilon"] <= 6
    last = lines[-1]
    assert set(last["test_accuracy_per_client"]) == {f"site_{k}" for k in range(4)}
    for name in ("accuracy", "test_accuracy", "majority_accuracy"):
        assert 0 <= last[name] <= 1


def test_privacy_file_has_the_promised_fields(run):
    found = json.loads((run / "privacy.json").read_text())
    assert found["unit"] == "example"
    assert found["accountant"] == "pld"
    assert found["delta"] == 1e-5
    assert "add or remove" in found["neighbours"]
    assert "server" in found["trust_model"]
    assert found["releasable"] is False
    assert len(found["clients"]) == 4
    for client in found["clients"]:
        assert client["sampling_probability"] == pytest.approx(32 / client["num_examples"])
        assert client["noise_multiplier"] > 0
        assert client["steps"] == 2 * 3
        assert client["epsilon"] <= found["epsilon"] <= 6


def test_communication_adds_up(run):
    found = json.loads((run / "communication.json").read_text())
    for name in ("bytes_up", "bytes_down"):
        assert found[name] == sum(client[name] for client in found["clients"]) > 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert found["bytes_up"] == sum(line["bytes_up"] for line in lines)


def test_the_noise_seed_is_kept_in_the_checkpoints_alone(place):
    out = place / "secret"
    here("run", *FAST.split(), "--noise-seed", 987654321987, "--out", out)
    for path in out.rglob("*"):
        if path.is_file() and "checkpoints" not in path.parts:
            assert b"987654321987" not in path.read_bytes(), path
    for path in [out / "checkpoints", *(out / "checkpoints").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.thorough
def test_the_same_command_gives_the_same_adapter(run, place):
    ffalora(*RUN.split(), place / "again")
    file = "adapter/adapter_model.safetensors"
    assert (place / "again" / file).read_bytes() == (run / file).read_bytes()


@pytest.mark.thorough
def test_another_noise_seed_gives_another_adapter(run, place):
    here(*RUN.replace("--noise-seed 4", "--noise-seed 5").split(), place / "other")
    file = "adapter/adapter_model.safetensors"
    assert (place / "other" / file).read_bytes() != (run / file).read_bytes()


@pytest.mark.thorough
def test_a_run_repeats_from_its_own_experiment_file(run, place):
    here("run", run / "experiment.toml", "--noise-seed", 4, "--out", place / "repeated")
    file = "adapter/adapter_model.safetensors"
    assert (place / "repeated" / file).read_bytes() == (run / file).read_bytes()


TEXTS = ["a great lovely film", "an awful, broken phone"]


@pytest.fixture(scope="module")
def texts(place):
    """The same two texts as CSV and as lines."""
    lines = "\n".join(TEXTS)
    (place / "texts.txt").write_text(lines + "\n")
    (place / "texts.csv").write_text(
        "id,review\n" + "".join(f'{n},"{t}"\n' for n, t in enumerate(TEXTS))
    )
    return place


def test_predict_reads_lines_and_csv_alike(run, texts):
    lines = here("predict", run, "--input", texts / "texts.txt")
    assert here("predict", run, "--input", texts / "texts.csv", "--text", "review") == lines
    header, *rows = [line.split("\t") for line in lines.splitlines()]
    assert header == ["label", "p(negative)", "p(positive)"]
    assert len(rows) == 2
    for label, negative, positive in rows:
        assert float(negative) + float(positive) == pytest.approx(1, abs=1e-3)
        assert label == ("positive" if float(positive) > float(negative) else "negative")


@pytest.mark.thorough
def test_predict_in_json_is_one_object(run, texts):
    found = json.loads(ffalora("predict", run, "--input", texts / "texts.txt", "--json"))[
        "predictions"
    ]
    assert len(found) == 2
    for one in found:
        assert one["label"] == max(one["probabilities"], key=one["probabilities"].get)
        assert sum(one["probabilities"].values()) == pytest.approx(1)


@pytest.mark.thorough
def test_evaluate_counts_what_predict_says(run, texts):
    (texts / "labelled.csv").write_text(
        "text,label\n"
        + "".join(f'"{text}",{label}\n' for text in TEXTS for label in ("negative", "positive"))
    )
    command = ["evaluate", run, "--data.name", "csv", "--data.path", texts / "labelled.csv"]
    found = json.loads(ffalora(*command, "--json"))
    # Every text stands there with both labels: whatever is predicted, half of it is right.
    assert (found["accuracy"], found["num_examples"]) == (0.5, 4)
    predicted = json.loads(ffalora("predict", run, "--input", texts / "texts.txt", "--json"))[
        "predictions"
    ]
    for name, one in found["per_class"].items():
        share = sum(prediction["label"] == name for prediction in predicted) / 2
        assert one == {"accuracy": share, "num_examples": 2}
    assert here(*command).startswith("accuracy 0.5000 on 4 examples")
    few = json.loads(here(*command, "--data.max_examples", "3", "--json"))
    assert few["num_examples"] == 3


class Addresses(html.parser.HTMLParser):
    """Collects what a page would load."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in {"src", "href"} and value]


@pytest.mark.thorough
def test_report_compares_two_runs_in_one_file_that_loads_nothing(run, place):
    here("run", *FAST.split(), "--name", "open<b>", "--out", place / "open")
    out = place / "both" / "page.html"
    assert here("report", run, place / "open", "--out", out).strip() == str(out)
    page = out.read_text()
    addresses = Addresses()
    addresses.feed(page)
    assert [a for a in addresses.found if not a.startswith(("#", "data:"))] == []
    assert "open<b>" not in page


@pytest.mark.thorough
def test_init_makes_a_file_that_runs(place, monkeypatch):
    monkeypatch.chdir(place)
    Path("my.toml").write_text(here("init"))
    here("run", "my.toml", *FAST.split())
    assert tomllib.loads(Path("runs/run/experiment.toml").read_text())["rounds"] == 1
    here("run", "my.toml", *FAST.split())
    assert {path.name for path in Path("runs").iterdir()} == {"run", "run-2"}


@pytest.mark.slow
def test_a_moved_data_file_can_be_named_on_resume(place, monkeypatch):
    monkeypatch.chdir(place)
    rows = "good film,pos\nbad film,neg\n" * 60
    Path("data.csv").write_text("text,label\n" + rows)
    flags = "--data.name csv --data.path data.csv --partition.name iid --partition.num-clients 2"
    here("run", *FAST.split(), *flags.split(), "--batch-size", 8, "--out", "moved")
    Path("data.csv").rename("elsewhere.csv")
    here("resume", "moved", "--rounds", 1, code=2)
    here("resume", "moved", "--rounds", 1, "--data.path", "elsewhere.csv")
    assert len(Path("moved/metrics.jsonl").read_text().splitlines()) == 2


def test_compiled_programs_are_kept_in_the_cache(run):
    assert any(Path(os.environ["FFALORA_CACHE"], "xla").iterdir())
