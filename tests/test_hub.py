"""Checkpoints by hub name, downloaded for real from a server on loopback that speaks the hub's paths."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ffalora_jax import fetch
from ffalora_jax.errors import InputError
from ffalora_jax.locate import directory_of, locate
from ffalora_jax.models import Source
from ffalora_jax.pretrained import load
from ffalora_jax.weights import INDEX, WEIGHTS
from tests.checkpoint_files import CLASSIFIER, bert_tensors, write_checkpoint
from tests.hub_server import COMMIT, HubServer

NAME = "somebody/tiny-bert"
WORDS = "[PAD]\n[UNK]\n[CLS]\n[SEP]\ngood\nfilm\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    """What the hub serves: a checkpoint, and beside it what nobody should ask for."""
    folder = write_checkpoint(tmp_path / "served")
    (folder / "vocab.txt").write_text(WORDS)
    for name in ("pytorch_model.bin", "modeling_tiny.py", "README.md", "training_args.bin"):
        (folder / name).write_bytes(b"not to be fetched")
    return folder


@pytest.fixture
def hub(folder, monkeypatch, tmp_path):
    """The server, and the hub's client pointed at it with an empty cache."""
    from huggingface_hub import close_session, constants

    server = HubServer({NAME: folder})
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FFALORA_CACHE", str(tmp_path / "ours"))
    close_session()
    yield server
    server.close()
    close_session()


def shard(folder: Path) -> list[str]:
    """Cuts the weights of a checkpoint in two, in the hub's form; returns the files' names."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    files = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    for file, mine in zip(files, (names[:20], names[20:]), strict=True):
        save_file({name: tensors[name] for name in mine}, folder / file)
    where = {name: files[index >= 20] for index, name in enumerate(names)}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return files


def refusal(call) -> str:
    """The message of an InputError, which is one line."""
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def cached(tmp_path: Path) -> dict[str, bytes]:
    snapshots = tmp_path / "cache" / "models--somebody--tiny-bert" / "snapshots" / COMMIT
    return {path.name: path.read_bytes() for path in snapshots.glob("*")}


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
def test_a_hub_name_is_loaded_and_then_needs_no_hub(sharded, hub, folder):
    expected = load(str(folder), 3, 0)
    if sharded:
        shard(folder)
    first = load(NAME, 3, 0)
    count = len(hub.asked)
    assert load(NAME, 3, 0).fingerprint == first.fingerprint
    assert len(hub.asked) == count, "everything is known, so nobody is asked"
    hub.close()
    again = load(NAME, 3, 0)
    ids = jnp.arange(10)[None]
    for found in (first, again):
        logits = expected.model(ids, ids >= 0)
        np.testing.assert_array_equal(found.model(ids, ids >= 0), logits)
        tokens = found.tokenizer(["good film"], None, 6).inputs["input_ids"]
        np.testing.assert_array_equal(tokens, [[2, 4, 5, 3, 0, 0]])


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
def test_only_settings_words_and_safetensors_are_asked_for(sharded, hub, folder):
    files = shard(folder) if sharded else [WEIGHTS]
    home = directory_of(NAME)
    assert {"config.json", *files} <= hub.files_asked
    kinds = {Path(file).suffix for file in hub.files_asked}
    assert kinds == {".json", ".txt", ".jinja", ".safetensors"}
    assert {path.name for path in home.iterdir()} == {"config.json", "vocab.txt", *files} | (
        {INDEX} if sharded else set()
    )


def test_the_endpoint_of_the_environment_is_asked(hub, tmp_path):
    call = f"from ffalora_jax.locate import directory_of; print(directory_of({NAME!r}))"
    ours = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path / "other")}
    done = subprocess.run(
        [sys.executable, "-c", call],
        env={**os.environ, **ours},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert str(tmp_path / "other") in done.stdout
    assert ("GET", NAME, WEIGHTS) in hub.asked


def test_a_dead_hub_is_one_line_with_the_ways_out(hub):
    hub.close()
    message = refusal(lambda: directory_of(NAME))
    assert "hub:" in message
    assert "Ways out" in message


def test_a_hub_that_does_not_answer_is_not_waited_for(hub, monkeypatch):
    assert fetch._HUB_PATIENCE == 3
    monkeypatch.setattr(fetch, "_HUB_PATIENCE", 0.2)
    hub.awake.clear()
    message = refusal(lambda: directory_of(NAME))
    assert "no answer within 0.2 s" in message
    assert not hub.awake.is_set(), "it has not answered yet"


def test_a_name_that_is_not_there_is_one_line(hub):
    message = refusal(lambda: directory_of("nobody/nothing"))
    assert "no such model there" in message
    assert "Ways out" in message
    assert hub.files_asked - {""} == {"config.json"}  # "": the question whether it is there


@pytest.mark.parametrize("fault", ["forbidden", "short"])
def test_a_download_that_breaks_off_is_named_and_made_up_for_later(fault, hub, folder, tmp_path):
    if fault == "forbidden":
        hub.forbidden.add(WEIGHTS)
    else:
        hub.exchanged[WEIGHTS] = (folder / WEIGHTS).read_bytes()[:1000]
    message = refusal(lambda: directory_of(NAME))
    assert f"{NAME}/{WEIGHTS}" in message
    assert set(cached(tmp_path)) == {"config.json", "vocab.txt"}
    hub.forbidden.clear()
    hub.exchanged.clear()
    assert (directory_of(NAME) / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_a_checkpoint_that_another_program_left_in_the_cache_is_used(hub, tmp_path):
    import huggingface_hub

    for file in ("config.json", WEIGHTS):
        huggingface_hub.hf_hub_download(NAME, file)
    hub.close()
    assert {path.name for path in directory_of(NAME).iterdir()} == {"config.json", WEIGHTS}
    (directory_of(NAME) / WEIGHTS).unlink()
    assert "Ways out" in refusal(lambda: directory_of(NAME))


@pytest.mark.parametrize("bad", ["../../outside.safetensors", "pytorch_model.bin", "evil.py", ""])
def test_an_index_that_names_something_else_fetches_none_of_it(bad, hub, folder):
    shard(folder)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["bert.pooler.dense.bias"] = bad
    (folder / INDEX).write_text(json.dumps(index))
    assert f"names {bad}" in refusal(lambda: directory_of(NAME))
    assert not {file for file in hub.files_asked if Path(file).suffix in {".bin", ".py"}}
    assert not {file for file in hub.files_asked if "outside" in file or "-of-" in file}


def test_a_model_with_pickled_weights_alone_is_refused_with_the_command(hub, folder):
    (folder / WEIGHTS).unlink()
    message = refusal(lambda: directory_of(NAME))
    assert f"no {WEIGHTS}" in message
    assert f"transformers.{CLASSIFIER}.from_pretrained('{NAME}')" in message
    assert "pytorch_model.bin" not in hub.files_asked


@pytest.fixture
def source(folder) -> Source:
    """The served checkpoint as a published one of the shelf."""
    (folder / "tokenizer.json").write_text("{}")
    files = ("config.json", "tokenizer.json", WEIGHTS)
    return Source(NAME, (), {file: fetch.sha256(folder / file) for file in files}, "MIT")


def test_a_published_model_is_checked_by_its_hash(hub, source, folder):
    assert (locate("some", source) / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_other_weights_than_the_published_are_refused_and_nothing_kept(
    hub, source, folder, tmp_path
):
    save_file(bert_tensors(shift=0.5), folder / WEIGHTS)
    message = refusal(lambda: locate("some", source))
    assert "not the published" in message
    assert not [path for path in (tmp_path / "ours").rglob("*") if path.is_file()]


def test_a_broken_off_published_model_leaves_no_weights(hub, source, folder, tmp_path):
    hub.exchanged[WEIGHTS] = (folder / WEIGHTS).read_bytes()[:1000]
    assert f"{NAME}/{WEIGHTS}" in refusal(lambda: locate("some", source))
    assert WEIGHTS not in cached(tmp_path)
    assert not [path for path in (tmp_path / "ours").rglob("*") if path.is_file()]
    hub.exchanged.clear()
    shutil.rmtree(tmp_path / "cache")
    assert (locate("some", source) / WEIGHTS).is_file()
