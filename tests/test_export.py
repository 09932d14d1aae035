"""The command ``ffalora export`` as a user meets it: folders, cards whose code runs, refusals."""

import json
import re
import shlex
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import ffalora_jax as ffa
from ffalora_jax import cli
from ffalora_jax.experiment_file import from_table
from ffalora_jax.export import export_run
from tests.peft_files import write
from tests.refusals import assert_says

SETTINGS = {
    "name": "two *sites*",
    "rounds": 1,
    "local_steps": 1,
    "batch_size": 8,
    "noise_seed": 3,
    "evaluate_every": 1,
    "data": {"client": "site"},
    "model": {"max_tokens": 16},
    "method": {"rank": 2, "init": "kaiming"},
    "optimizer": {"learning_rate": 5.0},
    "privacy": {"noise_multiplier": 1.0},
}
TEXTS = ["what is one", "two plus three ?"]


def columns():
    words = ["one", "two", "three"]
    return {
        "text": [f"what is {words[i % 3]} plus {words[i % 2]} ?" for i in range(90)],
        "label": [words[i % 3] for i in range(90)],
        "site": ["north" if i < 45 else "south" for i in range(90)],
    }


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """A run on a tiny RoBERTa checkpoint that a user might have."""
    place = tmp_path_factory.mktemp("roberta")
    base = write(place / "base", "roberta")
    experiment = from_table(SETTINGS).replace(**{"model.name": str(base)})
    return ffa.simulate(experiment, columns(), out=place / "run")


@pytest.fixture(scope="module", params=["pissa", pytest.param("olora", marks=pytest.mark.slow)])
def begun(request, roberta, tmp_path_factory):
    """A run that began from a part of W, on the same checkpoint."""
    changes = {
        "method.init": request.param,
        "method.name": "fedavg_lora",
        "method.use_rslora": True,
    }
    out = tmp_path_factory.mktemp(request.param) / "run"
    return ffa.simulate(roberta.experiment.replace(**changes), columns(), out=out)


@pytest.fixture(scope="module")
def personal(tmp_path_factory):
    """A run whose head stays at each client."""
    changes = {"model.name": "tiny", "model.head": "personal"}
    out = tmp_path_factory.mktemp("personal") / "run"
    return ffa.simulate(from_table(SETTINGS).replace(**changes), columns(), out=out)


def snippet_of(card):
    return re.search(r"~~~~~~~~python\n(.*?)~~~~~~~~", card, re.DOTALL)[1]


def run_snippet(folder):
    """Runs the card's code in the card's folder, as its reader would; returns what it prints."""
    code = snippet_of((folder / "README.md").read_text()).replace(
        '["a text"]', json.dumps(TEXTS[:1])
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_exported_adapter_is_peft_with_a_card_that_says_what_is_protected(roberta, tmp_path):
    out = tmp_path / "adapter"
    assert cli.main(["export", str(roberta.path), str(out)]) == 0
    assert {file.name for file in out.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "run.json",
    }
    card = (out / "README.md").read_text()
    assert f"epsilon {roberta.epsilon:.4g}" in card
    assert "Not protected" in card
    assert "two \\*sites\\*" in card


@pytest.mark.parametrize("more", [[], ["--merge"]], ids=["adapter", "merged"])
@pytest.mark.thorough
def test_the_cards_code_gives_the_runs_answer(roberta, tmp_path, more):
    pytest.importorskip("peft")
    out = tmp_path / "out"
    assert cli.main(["export", str(roberta.path), str(out), *more]) == 0
    assert run_snippet(out) == roberta.predict(TEXTS[:1])[0].label


def test_an_export_loads_here_to_the_same_answers(roberta, tmp_path):
    export_run(roberta, tmp_path / "adapter")
    back = ffa.load_adapter(roberta.experiment.model.name, tmp_path / "adapter", max_tokens=16)
    for mine, theirs in zip(roberta.predict(TEXTS), back.predict(TEXTS), strict=True):
        assert mine.label == theirs.label
        for name, share in mine.probabilities.items():
            assert theirs.probabilities[name] == pytest.approx(share, abs=1e-6)
    export_run(roberta, tmp_path / "merged", merge=True)
    merged = ffa.load_pretrained(tmp_path / "merged")
    ids = jnp.arange(20).reshape(2, 10) % 12 + 4
    expected = back(ids, jnp.ones_like(ids))
    np.testing.assert_allclose(merged(ids, jnp.ones_like(ids)), expected, atol=1e-5)


def test_training_can_start_from_an_exported_adapter(roberta, tmp_path):
    export_run(roberta, tmp_path / "adapter")
    changes = {"method.start": str(tmp_path / "adapter"), "optimizer.learning_rate": 1e-9}
    again = ffa.simulate(roberta.experiment.replace(**changes), columns(), out=tmp_path / "run")
    for mine, theirs in zip(roberta.predict(TEXTS), again.predict(TEXTS), strict=True):
        for name, share in mine.probabilities.items():
            assert theirs.probabilities[name] == pytest.approx(share, abs=1e-5)


@pytest.mark.slow
def test_a_preset_of_this_package_travels_with_its_own_loader(personal, tmp_path):
    export_run(personal, tmp_path / "out", client="south")
    assert run_snippet(tmp_path / "out").startswith("[Prediction")


@pytest.mark.thorough
def test_personal_leaves_are_exported_by_name_of_the_client(personal, tmp_path):
    for name in ("north", "south"):
        export_run(personal, tmp_path / name, client=name)
        back = ffa.load_adapter("tiny", tmp_path / name, max_tokens=16)
        expected = personal.predict(TEXTS, client=name)
        for mine, theirs in zip(expected, back.predict(TEXTS), strict=True):
            assert theirs.probabilities == pytest.approx(mine.probabilities, abs=1e-6)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("{run} {run}", ["exists"]),
        ("nowhere out", ["No run in 'nowhere'"]),
        ("{run} out --client east", ["one model", "--client"]),
        ("{run} file/out", ["file/out"]),
    ],
)
def test_what_cannot_be_exported_is_refused(
    command, words, roberta, tmp_path, monkeypatch, refused
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert_says(refused("export " + command.format(run=shlex.quote(str(roberta.path)))), words)


def test_a_model_of_no_checkpoint_cannot_be_merged(personal, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = shlex.quote(str(personal.path))
    assert_says(refused(f"export {path} out --merge"), ["--client"])
    assert_says(refused(f"export {path} out --merge --client north"), ["Cannot merge", "--merge"])


@pytest.mark.thorough
def test_an_adapter_that_began_from_a_part_of_w_is_plain_lora_of_twice_the_rank(begun, tmp_path):
    """On the published base; so PEFT reads it, whatever it makes of PiSSA itself."""
    export_run(begun, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (4, True)
    assert "| LoRA | rank 4," in (tmp_path / "adapter" / "README.md").read_text()
    export_run(begun, tmp_path / "merged", merge=True)
    again = ffa.load_run(begun.path)
    back = ffa.load_adapter(begun.experiment.model.name, tmp_path / "adapter", max_tokens=16)
    for mine, twice, theirs in zip(*(r.predict(TEXTS) for r in (begun, again, back)), strict=True):
        for name, share in mine.probabilities.items():
            assert twice.probabilities[name] == pytest.approx(share, abs=1e-6)
            assert theirs.probabilities[name] == pytest.approx(share, abs=1e-5)
    pytest.importorskip("peft")
    assert run_snippet(tmp_path / "adapter") == begun.predict(TEXTS[:1])[0].label
    assert run_snippet(tmp_path / "merged") == begun.predict(TEXTS[:1])[0].label


@pytest.mark.thorough
def test_leaves_that_peft_has_no_form_for_are_refused_by_name(tmp_path):
    changes = {"model.name": "tiny", "method.name": "fedex_lora"}
    run = ffa.simulate(from_table(SETTINGS).replace(**changes), columns(), out=tmp_path / "run")
    with pytest.raises(ffa.InputError, match="no form for the method's leaves residual"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.thorough
def test_leaves_that_never_got_noise_are_exported_with_no_claim(tmp_path):
    changes = {"model.name": "tiny", "model.head": "personal", "privacy.mechanism": "dp_fedavg"}
    run = ffa.simulate(from_table(SETTINGS).replace(**changes), columns(), out=tmp_path / "run")
    export_run(run, tmp_path / "north", client="north")
    card = (tmp_path / "north" / "README.md").read_text()
    assert "**No privacy is claimed.**" in card
    assert "not to be handed on" in card
    assert "epsilon" not in card.partition("Not protected:")[0]
    said = json.loads((tmp_path / "north" / "run.json").read_text())["privacy"]
    assert said == {"unit": None, "epsilon": None, "delta": None}
