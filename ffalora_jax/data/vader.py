"""VADER's human-rated snippets (Hutto & Gilbert, ICWSM 2014; MIT): four sources, four sites.

Movie reviews, Amazon reviews, New York Times editorials and tweets, each rated from -4 to 4 by about 20
people. Task: the sign of the mean rating, where it is at least 0.5 away from zero. The files lie in the
sdist of ``vaderSentiment==3.3.2``; its hash is checked before anything of it is looked at.
"""

from pathlib import Path

import numpy as np

from ffalora_jax import fetch
from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset
from ffalora_jax.errors import InputError

PACKAGE = "vaderSentiment==3.3.2"
SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "hutto_ICWSM_2014.tar.gz"
INNER_SHA256 = "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"
SITES = {
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}
LEAST_RATING = 0.5


def build(config: DataConfig, seed: int) -> Dataset:
    """Loads the four sources from ``config.path`` (a folder or the sdist), the cache or the index.

    Raises:
        InputError: none of the three has them; names the ways out.
    """
    files = fetch.read_tar(_archive(config.path))
    texts, labels, clients = [], [], []
    for client, name in enumerate(SITES.values()):
        for text, rating in _rated(files, name):
            if abs(rating) >= LEAST_RATING:
                texts.append(text)
                labels.append(int(rating > 0))
                clients.append(client)
    return Dataset(
        {"text": texts},
        np.array(labels, np.int64),
        ("negative", "positive"),
        np.array(clients, np.int64),
        tuple(SITES),
        source="VADER's rated snippets (Hutto & Gilbert 2014, MIT), sign of the mean rating",
    )


def _rated(files: dict[str, bytes], name: str):
    content = next((data for path, data in files.items() if Path(path).name == name), None)
    if content is None:
        raise InputError(f"No {name} in VADER's archive: expected the one inside {PACKAGE}.")
    for line in content.decode("utf-8").splitlines():
        if line.strip():
            _, rating, text = line.split("\t", 2)
            yield text.strip(), float(rating)


def _archive(path: str | None) -> bytes:
    if path is not None:
        return _from_path(Path(path))
    hashes = {INNER: INNER_SHA256}
    kept = fetch.stored("datasets", "vader", hashes)
    if kept is None:
        try:
            members = fetch.from_package(PACKAGE, archive_sha256=SDIST_SHA256)
        except fetch.Unavailable as error:
            raise InputError(
                f"Cannot fetch the default data ({error}). Ways out: --data.path FOLDER with {INNER} or "
                "the sdist of vaderSentiment 3.3.2; `--model.name tiny --data.name synthetic`, which "
                "need no download; or try again later."
            ) from None
        kept = fetch.store("datasets", "vader", _inner(members), hashes)
    return (kept / INNER).read_bytes()


def _from_path(path: Path) -> bytes:
    candidates = [path / INNER, *sorted(path.glob("vader*.tar.gz"))] if path.is_dir() else [path]
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        raise InputError(
            f"No {INNER} and no sdist of vaderSentiment in {str(path)!r}: check --data.path."
        )
    if found.name != INNER:
        fetch.check_hash(found, SDIST_SHA256)
        return _inner(fetch.read_tar(found.read_bytes()))[INNER]
    fetch.check_hash(found, INNER_SHA256)
    return found.read_bytes()


def _inner(members: dict[str, bytes]) -> dict[str, bytes]:
    found = [data for path, data in members.items() if Path(path).name == INNER]
    return {INNER: found[0]} if found else {}
