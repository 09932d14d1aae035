"""``ffalora prepare``: files one has become TFDS folders that TFDS itself reads, whole or not at all."""

import gzip
import json
import shutil

import pytest

from ffalora_jax import cache, cli, glue_files, prepare_data
from ffalora_jax.config import DataConfig
from ffalora_jax.data import glue
from ffalora_jax.errors import InputError
from ffalora_jax.prepare_data import MADE_FROM, prepare

TSV = {  # GLUE's own files, two rows a part; quotes mean nothing in them
    "cola": 'gj04\t1\t\tShe said "no\ngj04\t0\t*\tThem is here.\n',
    "sst2": 'sentence\tlabel\nShe said "no\t1\nbad \t0\n',
    "mrpc": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    '1\t7\t8\tShe said "no\tSame.\n0\t9\t3\tOne.\tOther.\n',
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    '1\t2\t3\tShe said "no\tSame?\t1\n4\t5\t6\tCut in\n two?\tO\n7\t8\t9\tOne?\t\t0\n',
    "mnli": "index\tgenre\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
    '0\tfiction\t( x )\tShe said "no\tSame.\tneutral\tneutral\n'
    "1\tslate\t( y )\tOne.\tOther.\tneutral\tcontradiction\n",
    "qnli": 'index\tquestion\tsentence\tlabel\n0\tShe said "no\tSame.\tentailment\n'
    "1\tOne?\tOther.\tnot_entailment\n",
    "rte": 'index\tsentence1\tsentence2\tlabel\n0\tShe said "no\tSame.\tnot_entailment\n'
    "1\tOne.\tOther.\tentailment\n",
}
LABELS = {"mnli": [1, 2], "qnli": [0, 1]}
SST2 = [{"idx": 5, "sentence": "fine", "label": 1}, {"idx": 9, "sentence": "bad", "label": 0}]


def parts_of(task):
    if task == "mnli":
        return {"train": "train", "validation_matched": "dev_matched"}
    return {"train": "train", "validation": "dev"}


def write_tsv(folder, task):
    folder.mkdir(parents=True, exist_ok=True)
    for stem in parts_of(task).values():
        (folder / f"{stem}.tsv").write_text(TSV[task], encoding="utf-8")
    return folder


def write_jsonl(folder, **parts):
    folder.mkdir(parents=True, exist_ok=True)
    for stem, rows in parts.items():
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / f"{stem}.jsonl.gz").write_bytes(gzip.compress(content))
    return folder


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "from", train=SST2, validation=SST2[:1])


def refused(name, source, to):
    with pytest.raises(InputError) as raised:
        prepare(name, source, to)
    assert not list(to.glob("glue/*/*"))
    assert not list(to.glob(".*"))
    return str(raised.value)


@pytest.mark.parametrize("task", TSV)
def test_the_tsv_of_glue_becomes_what_tfds_and_we_read(task, tmp_path):
    import tensorflow_datasets as tfds

    made = prepare(f"glue/{task}", write_tsv(tmp_path / "from", task), tmp_path / "to")
    assert made.counts == dict.fromkeys(parts_of(task), 2)
    assert made.broken == (4 if task == "qqp" else 0)
    dataset = glue.build(DataConfig(name=f"glue/{task}", path=str(tmp_path / "to")), 0)
    assert dataset.labels.tolist() == 2 * LABELS.get(task, [1, 0])
    assert dataset.inputs["text"][0] == 'She said "no'
    if "text_pair" in dataset.inputs:
        assert dataset.inputs["text_pair"][0] in ("Same.", "Same?")
    assert dataset.held_out.tolist() == [False, False, True, True]
    theirs = tfds.data_source(f"glue/{task}:2.0.0", split="train", data_dir=str(tmp_path / "to"))
    field = glue.TASKS[task].fields[0]
    assert [row[field].decode() for row in theirs] == dataset.inputs["text"][:2]
    assert [int(row["label"]) for row in theirs] == dataset.labels[:2].tolist()


def test_jsonl_keeps_its_numbers_and_takes_words_or_numbers_as_labels(tmp_path):
    import tensorflow_datasets as tfds

    rows = [*SST2, {"sentence": "good", "label": "positive"}, {"sentence": "", "label": "0"}]
    write_jsonl(tmp_path / "from", train_3k=rows, dev=SST2)
    prepare("glue/sst2", tmp_path / "from", tmp_path / "to")
    theirs = tfds.data_source("glue/sst2:2.0.0", split="train", data_dir=str(tmp_path / "to"))
    assert [(int(r["idx"]), int(r["label"])) for r in theirs] == [(5, 1), (9, 0), (2, 1), (3, 0)]


def test_the_folder_above_the_tasks_will_do(tmp_path):
    write_tsv(tmp_path / "glue_data" / "SST-2", "sst2")
    write_tsv(tmp_path / "glue_data" / "RTE", "rte")
    assert prepare("glue/rte", tmp_path / "glue_data", tmp_path / "to").counts["train"] == 2


def test_both_validation_parts_of_mnli_are_taken_where_they_are(tmp_path):
    folder = write_tsv(tmp_path / "from", "mnli")
    shutil.copy(folder / "dev_matched.tsv", folder / "dev_mismatched.tsv")
    made = prepare("glue/mnli", folder, tmp_path / "to")
    assert list(made.counts) == ["train", "validation_matched", "validation_mismatched"]
    dataset = glue.build(DataConfig(name="glue/mnli_mismatched", path=str(tmp_path / "to")), 0)
    assert len(dataset) == 4


def test_a_second_call_does_nothing_and_other_files_are_refused(source, tmp_path, capsys):
    command = ["prepare", "glue/sst2", "--from", str(source), "--to", str(tmp_path / "to")]
    place = tmp_path / "to" / "glue" / "sst2" / "2.0.0"
    assert cli.main(command) == 0
    assert str(place) in capsys.readouterr().out
    before = {file: file.stat().st_mtime_ns for file in place.iterdir()}
    assert cli.main(command) == 0
    assert "is there already" in capsys.readouterr().out
    write_jsonl(source, train=SST2[:1])
    assert cli.main(command) == 2
    assert "made from other files" in capsys.readouterr().err
    (place / MADE_FROM).unlink()
    assert cli.main(command) == 2
    assert "not by this command" in capsys.readouterr().err
    assert before.keys() - {place / MADE_FROM} == set(place.iterdir())
    assert all(before[file] == file.stat().st_mtime_ns for file in place.iterdir())


def test_a_folder_that_is_not_whole_is_never_taken_for_one(source, tmp_path):
    place = tmp_path / "to" / "glue" / "sst2" / "2.0.0"
    place.mkdir(parents=True)
    (place / "features.json").write_text("{}")
    with pytest.raises(InputError, match="not whole"):
        prepare("glue/sst2", source, tmp_path / "to")


def test_an_interrupted_call_leaves_nothing_that_could_be_read(source, tmp_path, monkeypatch):
    real, written = prepare_data._write_part, []

    def interrupted(*arguments):
        written.append(real(*arguments))
        if len(written) == 2:
            raise KeyboardInterrupt
        return written[-1]

    monkeypatch.setattr(prepare_data, "_write_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare("glue/sst2", source, tmp_path / "to")
    assert [path.name for path in (tmp_path / "to").rglob("*")] == ["glue", "sst2"]
    # What a kill leaves behind, which nobody can tidy up:
    left = tmp_path / "to" / ".ffalora-prepare-killed" / "2.0.0"
    left.mkdir(parents=True)
    (left / "glue-train.array_record-00000-of-00001").write_bytes(b"a part")
    with pytest.raises(InputError, match="not prepared"):
        glue.build(DataConfig(name="glue/sst2", path=str(tmp_path / "to")), 0)
    monkeypatch.undo()
    assert prepare("glue/sst2", source, tmp_path / "to").counts == {"train": 2, "validation": 1}


def test_it_goes_where_reading_looks(source, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "there"))
    assert prepare("glue/sst2", source).place.is_relative_to(tmp_path / "there")
    assert len(glue.build(DataConfig(name="glue/sst2"), 0)) == 3


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([SST2[0], {"sentence": "x"}], ["Line 2", "no 'label'", "sentence, label"]),
        ([SST2[0], {"text": "x", "label": 1}], ["Line 2", "no 'sentence'"]),
        ([{"sentence": 3, "label": 1}], ["Line 1", "sentence 3", "expected text"]),
        ([{"sentence": "x", "label": 2}], ["Line 1", "label 2", "0 negative, 1 positive"]),
        ([{"sentence": "x", "label": -1}], ["Line 1", "label -1", "without a label"]),
        ([{"sentence": "x", "label": "good"}], ["Line 1", "'good'"]),
        ([{"sentence": "x", "label": True}], ["Line 1", "label True"]),
        ([{"sentence": "x", "label": 1, "idx": "a"}], ["Line 1", "idx 'a'"]),
        ([], ["no examples"]),
    ],
)
def test_rows_that_cannot_be_used_are_refused_with_their_line(rows, words, source, tmp_path):
    write_jsonl(source, train=rows)
    said = refused("glue/sst2", source, tmp_path / "to")
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text\tlabel\nx\t1\n", ["no column 'sentence'", "'text', 'label'"]),
        ("sentence\tlabel\nfine\t1\nbad\n", ["Line 3", "no 'label'"]),
        ("sentence\tlabel\nfine\tbad\t1\n", ["Line 2", "label 'bad'"]),
        ("sentence\tlabel\n", ["no examples"]),
        ("", ["no column 'sentence'"]),
    ],
)
def test_a_tsv_that_is_not_glues_is_refused_with_the_place(content, words, tmp_path):
    folder = write_tsv(tmp_path / "from", "sst2")
    (folder / "train.tsv").write_text(content)
    said = refused("glue/sst2", folder, tmp_path / "to")
    assert all(word in said for word in words), said


def test_files_that_are_missing_or_too_many_are_named(source, tmp_path):
    to = tmp_path / "to"
    assert "No folder" in refused("glue/sst2", tmp_path / "nowhere", to)
    assert "part 'train' of sst2" in refused("glue/sst2", tmp_path, to)
    (source / "validation.jsonl.gz").rename(source / "other.jsonl.gz")
    said = refused("glue/sst2", source, to)
    assert "part 'validation'" in said
    assert "dev.tsv" in said
    write_jsonl(source, dev=SST2, validation=SST2)
    assert "dev.jsonl.gz" in refused("glue/sst2", source, to)
    (source / "dev.jsonl.gz").unlink()
    (source / "validation.jsonl.gz").write_bytes(b"no gzip")
    assert "Cannot read" in refused("glue/sst2", source, to)


def test_names_that_cannot_be_prepared_are_refused_with_those_that_can(source, tmp_path):
    for name in ("glue/sst3", "glue/stsb", "cifar10", "sst2"):
        assert "glue/sst2" in refused(name, source, tmp_path / "to")


def test_a_place_that_cannot_be_written_is_said(source, tmp_path):
    (tmp_path / "to").write_text("a file")
    with pytest.raises(InputError, match=r"Cannot write.*--to"):
        prepare("glue/sst2", source, tmp_path / "to")


SHARED = [("sst2", 67349, 872), ("qnli", 2000, 5463), ("mnli", 3000, 9815)]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "train", "validation"), SHARED)
def test_the_shared_files_become_whole_folders(task, train, validation, tmp_path):
    source = cache.shared_folder("data", f"glue_{task}")
    if source is None:
        pytest.skip(f"no data/glue_{task} in ../shared or FFALORA_SHARED")
    made = prepare(f"glue/{task}", source, tmp_path)
    assert list(made.counts.values()) == [train, validation]
    dataset = glue.build(DataConfig(name=f"glue/{task}", path=str(tmp_path)), 0)
    rows = glue_files.read(glue_files.find(source, task)["train"], task).rows
    field = glue.TASKS[task].fields[0]
    assert dataset.inputs["text"][:train] == [row[field] for row in rows]
    assert dataset.labels[:train].tolist() == [row["label"] for row in rows]
    assert dataset.held_out.sum() == validation


def test_a_small_shared_set_becomes_a_whole_folder(tmp_path):
    source = cache.shared_folder("data", "glue_sst2")
    if source is None:
        pytest.skip("no data/glue_sst2 in ../shared or FFALORA_SHARED")
    (tmp_path / "from").mkdir()
    for part in ("train", "validation"):
        shutil.copy(source / "validation.jsonl.gz", tmp_path / "from" / f"{part}.jsonl.gz")
    prepare("glue/sst2", tmp_path / "from", tmp_path / "to")
    dataset = glue.build(DataConfig(name="glue/sst2", path=str(tmp_path / "to")), 0)
    assert len(dataset) == 2 * 872
    assert dataset.labels.sum() == 2 * 444
