r"""GSM8K, grade-school word problems (Cobbe et al. 2021, arXiv:2110.14168; MIT), as OpenAI publishes it.

``config.path`` is a folder with ``train.jsonl`` and ``test.jsonl`` (or ``.jsonl.gz``): fields question and
answer, the answer a rationale that ends in ``#### number``. The prompt is ``Question: {question}\nAnswer:``,
and the response begins with a space, so that the two put together are the text as one would write it.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ffalora_jax.answers import final_number
from ffalora_jax.cache import shared_folder
from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset, _columns, _files
from ffalora_jax.errors import InputError

PROMPT = "Question: {question}\nAnswer:"
RESPONSE = " {answer}"


def build(config: DataConfig, seed: int) -> Dataset:
    """Reads both parts; the published test part is held out, and judged by the final number.

    Raises:
        InputError: a part is missing, or a line has no question or no answer with a final number.
    """
    folder = _folder(config)
    prompts, responses, held_out = [], [], []
    for part in ("train", "test"):
        file = _part(folder, part)
        found = _files.checked(file, lambda path: list(_examples(path)))
        if not found:
            raise InputError(f"{file} holds no examples: expected one a line.")
        prompts += [PROMPT.format(question=question) for question, _ in found]
        responses += [RESPONSE.format(answer=answer) for _, answer in found]
        held_out += [part == "test"] * len(found)
    return Dataset(
        {"prompt": prompts, "response": responses},
        np.zeros(len(prompts), np.int64),
        _columns.RESPONSE,
        source="GSM8K (Cobbe et al. 2021, MIT)",
        held_out=np.array(held_out),
        metric="exact_match",
    )


def _folder(config: DataConfig) -> Path:
    if config.path is not None:
        return Path(config.path)
    found = shared_folder("data", "gsm8k")
    if found is None:
        raise InputError(
            "No GSM8K here: expected --data.path, a folder with train.jsonl and test.jsonl as OpenAI's "
            "repository grade-school-math has them in grade_school_math/data (or FFALORA_SHARED, a folder "
            "with data/gsm8k)."
        )
    return found


def _part(folder: Path, part: str) -> Path:
    for name in (f"{part}.jsonl", f"{part}.jsonl.gz"):
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"No {part}.jsonl and no {part}.jsonl.gz in {str(folder)!r}: expected both parts, train and test, "
        "as OpenAI publishes them; check --data.path."
    )


def _examples(path: Path) -> Iterator[tuple[str, str]]:
    for where, row in _files.json_lines(path):
        for name in ("question", "answer"):
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise InputError(f"{where} has {name} {row.get(name)!r:.80}, expected text.")
        if final_number(row["answer"]) is None:
            raise InputError(f"{where}: the answer does not end in '#### number'.")
        yield row["question"], row["answer"]
