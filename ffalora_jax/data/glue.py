"""GLUE (Wang et al. 2019, arXiv:1804.07461), tasks with classes, from TFDS folders.

The validation part is held out, as everywhere where the test labels are not public. MNLI has two of them:
``glue/mnli`` holds out the matched one, ``glue/mnli_mismatched`` the other; both learn from the same part.
"""

from typing import NamedTuple

from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset, _tfds

VERSION = "2.0.0"
_NLI = ("entailment", "neutral", "contradiction")
_ENTAILS = ("entailment", "not_entailment")


class Task(NamedTuple):
    """One task: its text fields in order, its classes in the order of their numbers, and its judge."""

    fields: tuple[str, ...]
    class_names: tuple[str, ...]
    metric: str
    cites: str


TASKS = {
    "cola": Task(
        ("sentence",), ("unacceptable", "acceptable"), "matthews", "CoLA, Warstadt et al. 2018"
    ),
    "mnli": Task(("premise", "hypothesis"), _NLI, "accuracy", "MNLI, Williams et al. 2018"),
    "mrpc": Task(
        ("sentence1", "sentence2"),
        ("not_equivalent", "equivalent"),
        "f1",
        "MRPC, Dolan & Brockett 2005",
    ),
    "qnli": Task(
        ("question", "sentence"), _ENTAILS, "accuracy", "QNLI, after Rajpurkar et al. 2016"
    ),
    "qqp": Task(
        ("question1", "question2"), ("not_duplicate", "duplicate"), "f1", "QQP, Iyer et al. 2017"
    ),
    "rte": Task(
        ("sentence1", "sentence2"), _ENTAILS, "accuracy", "RTE, Dagan et al. 2006 and later"
    ),
    "sst2": Task(("sentence",), ("negative", "positive"), "accuracy", "SST-2, Socher et al. 2013"),
}
VARIANTS = tuple(sorted([*TASKS, "mnli_mismatched"]))
REFUSED = {
    "stsb": "it is a regression task, scores from 0 to 5, and has no classes",
    "ax": "it has no training part and no public labels",
}


def build(config: DataConfig, seed: int) -> Dataset:
    """Reads the task that ``config.name`` says from ``config.path``, a TFDS ``data_dir``.

    Raises:
        InputError: the task is not prepared there; names the ways to it.
    """
    task, fields = TASKS[task_of(config.name)], ("text", "text_pair")
    inputs = {name: (field,) for name, field in zip(fields, task.fields, strict=False)}
    return _tfds.load_texts(config, folder(config.name), inputs, task.metric)


def task_of(name: str) -> str:
    """Returns the task whose folder a variant is read from: ``glue/mnli_mismatched`` -> ``mnli``."""
    return name.partition("/")[2].removesuffix("_mismatched")


def folder(name: str) -> _tfds.Folder:
    """Returns how TFDS keeps a variant."""
    task = task_of(name)
    parts = {"glue/mnli": "validation_matched", "glue/mnli_mismatched": "validation_mismatched"}
    return _tfds.Folder(
        f"glue/{task}",
        VERSION,
        parts.get(name, "validation"),
        f"GLUE {TASKS[task].cites}",
        f"From GLUE's own files (train.tsv, dev.tsv) or JSONL: ffalora prepare glue/{task} --from DIR "
        "--to {data_dir}.",
    )
