"""Data sets: every form of the same content gives the same examples."""

import csv
import gzip
import io
import json

import numpy as np
import pytest

from ffalora_jax.config import DataConfig, Experiment
from ffalora_jax.data import as_dataset, jsonl, parquet, synthetic
from ffalora_jax.data import csv as csv_files
from ffalora_jax.errors import InputError
from ffalora_jax.load import load_dataset

COLUMNS = {
    "text": ["fine, really", 'she said "no"', "two\nlines", "ünïcode ☂", "plain"],
    "second": ["a", "b", "c", "d", "e"],
    "label": ["good", "bad", "good", "bad", "good"],
    "site": ["north", "south", "north", "north", "south"],
}
ROWS = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]


def as_csv(rows, **options):
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def as_jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_parquet(rows):
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def assert_same(one, other):
    assert one.inputs == other.inputs
    np.testing.assert_array_equal(one.labels, other.labels)
    assert one.class_names == other.class_names
    assert one.client_names == other.client_names
    assert (one.clients is None) == (other.clients is None)
    if one.clients is not None:
        np.testing.assert_array_equal(one.clients, other.clients)


@pytest.fixture(scope="module")
def expected():
    return as_dataset(COLUMNS, text_pair="second", client="site")


def test_synthetic_text_depends_on_the_seed_alone():
    config = DataConfig(name="synthetic", max_examples=50)
    assert_same(synthetic.build(config, 3), synthetic.build(config, 3))
    assert synthetic.build(config, 3).inputs != synthetic.build(config, 4).inputs


def test_counting_opinion_words_solves_all_of_synthetic_but_the_flipped_labels():
    dataset = synthetic.build(DataConfig(name="synthetic"), 0)
    good, bad = set(synthetic.GOOD), set(synthetic.BAD)
    votes = [sum((w in good) - (w in bad) for w in t.split()) for t in dataset.inputs["text"]]
    right = ((np.array(votes) > 0) == dataset.labels).mean()
    assert abs(right - (1 - synthetic.FLIPPED)) < 0.02


def test_synthetic_sites_are_equally_large_and_differ_in_their_classes():
    dataset = synthetic.build(DataConfig(name="synthetic"), 0)
    sizes = np.bincount(dataset.clients)
    shares = np.bincount(dataset.clients, dataset.labels) / sizes
    assert set(sizes) == {synthetic.DEFAULT_SIZE // 4}
    assert shares.max() - shares.min() > 0.1


@pytest.mark.parametrize(
    ("name", "module", "content"),
    [
        ("a.csv", csv_files, as_csv(ROWS)),
        ("bom.csv", csv_files, b"\xef\xbb\xbf" + as_csv(ROWS)),
        ("quoted.csv", csv_files, as_csv(ROWS, quoting=csv.QUOTE_ALL)),
        ("lf.csv", csv_files, as_csv(ROWS, lineterminator="\n")),
        ("crlf.csv", csv_files, as_csv(ROWS, lineterminator="\r\n")),
        ("gap.csv", csv_files, as_csv(ROWS) + b"\r\n\r\n"),
        ("a.jsonl", jsonl, as_jsonl(ROWS)),
        ("gap.jsonl", jsonl, b"\n" + as_jsonl(ROWS) + b"\n"),
        ("a.jsonl.gz", jsonl, gzip.compress(as_jsonl(ROWS))),
        ("a.parquet", parquet, as_parquet(ROWS)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_equal_content_gives_equal_examples(name, module, content, tmp_path, expected):
    (tmp_path / name).write_bytes(content)
    config = DataConfig(path=str(tmp_path / name), text_pair="second", client="site")
    assert_same(module.build(config, 0), expected)


def mapping_of_arrays():
    return {name: np.array(column) for name, column in COLUMNS.items()}


def pandas_frame():
    return pytest.importorskip("pandas").DataFrame(COLUMNS)


def pandas_frame_with_an_odd_index():
    return pandas_frame().set_index(np.array([9, 7, 5, 3, 1]))


def hugging_face_dataset():
    return pytest.importorskip("datasets").Dataset.from_dict(COLUMNS)


def arrow_table():
    return pytest.importorskip("pyarrow").table(COLUMNS)


@pytest.mark.parametrize(
    "make",
    [
        mapping_of_arrays,
        pandas_frame,
        pandas_frame_with_an_odd_index,
        hugging_face_dataset,
        arrow_table,
    ],
)
def test_what_people_have_in_python_gives_equal_examples(make, expected):
    assert_same(as_dataset(make(), text_pair="second", client="site"), expected)


def test_a_dataset_is_passed_through(expected):
    assert as_dataset(expected) is expected


def test_taking_rows_keeps_the_numbers_of_classes_and_clients(expected):
    part = expected.take(np.array([4, 1]))
    assert len(part) == 2
    assert part.inputs == {"text": ["plain", 'she said "no"'], "text_pair": ["e", "b"]}
    assert part.labels.tolist() == expected.labels[[4, 1]].tolist()
    assert part.clients.tolist() == expected.clients[[4, 1]].tolist()
    assert (part.class_names, part.client_names) == (expected.class_names, expected.client_names)


def test_max_examples_keeps_a_part_drawn_from_the_seed(tmp_path):
    (tmp_path / "a.csv").write_bytes(as_csv(ROWS * 20))
    config = DataConfig(name="csv", path=str(tmp_path / "a.csv"), max_examples=30)
    kept = [load_dataset(Experiment(seed=seed, data=config)) for seed in (0, 0, 1)]
    assert [len(dataset) for dataset in kept] == [30, 30, 30]
    assert_same(kept[0], kept[1])
    assert kept[0].inputs != kept[2].inputs


def test_a_thing_without_columns_is_refused():
    with pytest.raises(InputError, match="list"):
        as_dataset([1, 2, 3])


def test_a_folder_is_one_client_a_file(tmp_path):
    for name, rows in {"b_site": ROWS[:2], "a_site": ROWS[2:]}.items():
        (tmp_path / f"{name}.csv").write_bytes(as_csv(rows))
    dataset = csv_files.build(DataConfig(path=str(tmp_path)), 0)
    assert dataset.client_names == ("a_site", "b_site")
    assert dataset.clients.tolist() == [0, 0, 0, 1, 1]
    assert dataset.inputs["text"] == COLUMNS["text"][2:] + COLUMNS["text"][:2]


def test_a_named_client_column_goes_before_the_files(tmp_path):
    for name, rows in {"a": ROWS[:2], "b": ROWS[2:]}.items():
        (tmp_path / f"{name}.csv").write_bytes(as_csv(rows))
    dataset = csv_files.build(DataConfig(path=str(tmp_path), client="site"), 0)
    assert dataset.client_names == ("north", "south")


def test_capitals_in_an_ending_and_compressed_lines_are_files_too(tmp_path):
    (tmp_path / "a.csv").write_bytes(as_csv(ROWS[:2]))
    (tmp_path / "B.CSV").write_bytes(as_csv(ROWS[2:]))
    assert csv_files.build(DataConfig(path=str(tmp_path)), 0).client_names == ("B", "a")
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(ROWS[:2]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(as_jsonl(ROWS[2:])))
    dataset = jsonl.build(DataConfig(name="jsonl", path=str(tmp_path)), 0)
    assert dataset.client_names == ("a", "b")
    assert len(dataset) == len(ROWS)


def test_a_column_named_like_the_one_of_the_files_is_never_taken_for_it(tmp_path):
    for name in ("bonn", "kyoto"):
        (tmp_path / f"{name}.csv").write_text("text,label,file\nx,good,1\ny,bad,2\n")
    with pytest.raises(InputError, match=r"has a column 'file'.*--data.client"):
        csv_files.build(DataConfig(path=str(tmp_path)), 0)
    asked = csv_files.build(DataConfig(path=str(tmp_path), client="file"), 0)
    assert asked.client_names == ("1", "2")


def test_files_of_a_folder_must_agree_in_their_columns(tmp_path):
    (tmp_path / "a.csv").write_bytes(as_csv(ROWS))
    (tmp_path / "b.csv").write_text("text,label,extra\nx,good,1\ny,bad,2\n")
    with pytest.raises(InputError, match="extra"):
        csv_files.build(DataConfig(path=str(tmp_path)), 0)


@pytest.mark.parametrize(
    ("labels", "names", "codes"),
    [
        (["pos", "neg", "pos"], ("neg", "pos"), [1, 0, 1]),
        ([10, 9, 10], ("9", "10"), [1, 0, 1]),
        (["10", "9", "10"], ("9", "10"), [1, 0, 1]),
        ([-1, 0, 1], ("-1", "0", "1"), [0, 1, 2]),
        (np.array([1.0, 0.0, 1.0]), ("0", "1"), [1, 0, 1]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        ([" pos", "neg ", "pos"], ("neg", "pos"), [1, 0, 1]),
    ],
)
def test_labels_are_words_or_numbers_in_their_own_order(labels, names, codes):
    dataset = as_dataset({"text": ["a", "b", "c"], "label": labels})
    assert dataset.class_names == names
    assert dataset.labels.tolist() == codes


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"words": ["a"], "label": [0]}, ["'text'", "'words', 'label'", "--data.text"]),
        ({"text": ["a", "b"], "label": [0]}, ["unequal", "[1, 2]"]),
        ({"text": [], "label": []}, ["No examples"]),
        ({"text": ["a", "b"], "label": [1, 1]}, ["one class", "'1'"]),
        ({"text": ["a", None], "label": [0, 1]}, ["Row 2", "'text'", "None"]),
        ({"text": ["a", 3], "label": [0, 1]}, ["Row 2", "'text'", "3"]),
        ({"text": ["a", "b"], "label": [0, None]}, ["Row 2", "'label'", "empty"]),
        ({"text": ["a", "b"], "label": [float("nan"), 1]}, ["Row 1", "'label'", "empty"]),
        ({"text": ["a", "b"], "label": ["x", " "]}, ["Row 2", "'label'", "empty"]),
    ],
)
def test_columns_that_cannot_be_used_are_refused_with_the_place(columns, words):
    with pytest.raises(InputError) as raised:
        as_dataset(columns)
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize(
    ("name", "module", "content", "words"),
    [
        ("a.csv", csv_files, b"text,label\na,b,c\n", ["Line 2", "3 fields", "expected 2"]),
        ("a.csv", csv_files, b"text,text\na,b\n", ["twice"]),
        ("a.csv", csv_files, b'text,label\n"a,b\n', ["Line 2", "not CSV"]),
        ("a.csv", csv_files, b"text,label\n\xff,b\n", ["UTF-8", "byte 11"]),
        ("a.jsonl", jsonl, b'{"text": "a", "label": 1}\n{"text": "b"\n', ["Line 2", "not JSON"]),
        ("a.jsonl", jsonl, b'{"text": "a", "label": 1}\n{"text": "b"}\n', ["Line 2", "label"]),
        ("a.jsonl", jsonl, b"[1, 2]\n", ["Line 1", "JSON object"]),
        (
            *("a.jsonl", jsonl, b'{"text": "nice \\ud83d", "label": 1}\n'),
            ["Row 1", "'text'", "half a character", "place 6"],
        ),
        (
            *("a.jsonl", jsonl, b'{"text": "a", "label": "\\ud83d"}\n'),
            ["Row 1", "'label'", "half a character"],
        ),
        ("a.jsonl", jsonl, b'{"text": "a", "label": ' + b"1" * 5000 + b"}", ["Line 1", "not JSON"]),
        ("a.jsonl.gz", jsonl, b"not compressed", ["a.jsonl.gz", "gzip"]),
        ("a.jsonl.gz", jsonl, gzip.compress(as_jsonl(ROWS), mtime=0)[:-9], ["a.jsonl.gz", "ended"]),
        ("a.parquet", parquet, b"nothing of that kind", ["not a Parquet file"]),
    ],
)
def test_a_broken_file_is_refused_with_the_place(name, module, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as raised:
        module.build(DataConfig(path=str(tmp_path / name)), 0)
    assert all(word in str(raised.value) for word in words)


def test_a_site_may_hold_one_example_and_be_named_like_its_class():
    words = [f"word {number}" for number in range(40)]
    alone = as_dataset(
        {"text": words, "label": [0, 1] * 20, "site": words}, client="site", source="made"
    )
    assert len(alone.client_names) == 40
    by_class = as_dataset({"text": words, "label": [0, 1] * 20}, client="label")
    assert by_class.clients.tolist() == by_class.labels.tolist()


def test_examples_of_many_classes_may_be_evaluated_one_a_class():
    words = [f"word {number}" for number in range(40)]
    assert as_dataset({"text": words, "label": words[::-1]}).num_classes == 40
