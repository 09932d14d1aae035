"""TFDS folders: read whole and right without TensorFlow; what is missing or broken is said in our words."""

import sys

import numpy as np
import pytest

from ffalora_jax import registry
from ffalora_jax.config import DataConfig, Experiment
from ffalora_jax.data import _tfds, glue
from ffalora_jax.errors import InputError
from ffalora_jax.images import ImageSettings, load_images
from ffalora_jax.load import load_dataset
from tests import tfds_files
from tests.tfds_files import pixels_of

WORDS = ["fine , really", "ünïcode ☂", "", "two\nlines", 'she said " no "', "a " * 300]


def rows_of(task, count, start=0):
    """Rows of a task whose texts say where they come from."""
    fields, classes = glue.TASKS[task].fields, len(glue.TASKS[task].class_names)
    return [
        (index % classes, *(f"{field} {start + index} {WORDS[index % 6]}" for field in fields))
        for index in range(count)
    ]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for task, about in glue.TASKS.items():
        parts = {"train": rows_of(task, 12), "validation": rows_of(task, 6, 100)}
        if task == "mnli":
            parts["validation_matched"] = parts.pop("validation")
            parts["validation_mismatched"] = rows_of(task, 9, 200)
        if task == "sst2":  # as the official folder has it
            parts["test"] = [(-1, *[f"never {field}" for field in about.fields])] * 3
        tfds_files.glue_folder(folder, task, parts)
    return folder


def read(name, folder, **more):
    return registry.lookup("datasets", name)(DataConfig(name=name, path=str(folder), **more), 0)


def refused(name, folder, **more):
    with pytest.raises(InputError) as raised:
        read(name, folder, **more)
    return str(raised.value)


@pytest.mark.parametrize("task", glue.TASKS)
def test_a_glue_task_comes_back_as_it_was_written(task, data_dir):
    about, dataset = glue.TASKS[task], read(f"glue/{task}", data_dir)
    written = [*rows_of(task, 12), *rows_of(task, 6, 100)]
    columns = ["text", "text_pair"][: len(about.fields)]
    found = zip(dataset.labels.tolist(), *(dataset.inputs[name] for name in columns), strict=True)
    assert list(dataset.inputs) == columns
    assert sorted(found) == sorted(written)
    assert dataset.held_out.tolist() == [False] * 12 + [True] * 6
    assert dataset.class_names == about.class_names
    assert dataset.clients is None


def test_tasks_are_judged_as_glue_judges_them(data_dir):
    judges = {task: read(f"glue/{task}", data_dir).metric for task in glue.TASKS}
    assert {task for task, metric in judges.items() if metric == "f1"} == {"mrpc", "qqp"}
    assert {task for task, metric in judges.items() if metric == "matthews"} == {"cola"}
    assert {judges[task] for task in ("mnli", "qnli", "rte", "sst2")} == {"accuracy"}


def test_the_two_validation_parts_of_mnli_are_never_mixed(data_dir):
    matched, other = read("glue/mnli", data_dir), read("glue/mnli_mismatched", data_dir)
    assert matched.held_out.sum() == 6
    assert other.held_out.sum() == 9
    assert all(" 20" in t for t in np.array(other.inputs["text"])[other.held_out])
    assert not set(other.inputs["text"]) & set(np.array(matched.inputs["text"])[matched.held_out])


def test_rows_without_a_label_are_never_read(data_dir):
    dataset = read("glue/sst2", data_dir)
    assert not any(text.startswith("never") for text in dataset.inputs["text"])


def test_tfds_itself_reads_the_same(data_dir):
    import tensorflow_datasets as tfds

    theirs = tfds.data_source("glue/qnli:2.0.0", split="train", data_dir=str(data_dir))
    ours = read("glue/qnli", data_dir)
    for index, row in enumerate(theirs):
        assert ours.inputs["text"][index] == row["question"].decode()
        assert ours.inputs["text_pair"][index] == row["sentence"].decode()
        assert ours.labels[index] == row["label"]


def test_reading_needs_no_tensorflow(data_dir):
    read("glue/sst2", data_dir)
    assert "tensorflow" not in sys.modules


def test_reading_in_small_pieces_gives_the_same(data_dir, monkeypatch):
    whole = read("glue/sst2", data_dir)
    monkeypatch.setattr(_tfds, "AT_ONCE", 5)
    assert read("glue/sst2", data_dir).inputs == whole.inputs


def test_the_data_dir_comes_from_the_environment_or_is_that_of_tfds(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    dataset = load_dataset(Experiment(data=DataConfig(name="glue/rte", max_examples=5)))
    assert len(dataset) == 5
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(_tfds.data_dir(None)) == "/home/somebody/tensorflow_datasets"
    assert str(_tfds.data_dir("~/here")) == "/home/somebody/here"


def test_glue_stsb_is_refused_with_the_reason(data_dir):
    with pytest.raises(InputError, match=r"regression task.*glue/sst2"):
        registry.lookup("datasets", "glue/stsb")


def test_a_data_set_that_is_not_prepared_gets_the_ways_to_it(tmp_path):
    said = refused("glue/sst2", tmp_path)
    place = tmp_path / "glue" / "sst2" / "2.0.0"
    assert "not prepared" in said
    assert str(place) in said
    assert f"ffalora prepare glue/sst2 --from DIR --to {tmp_path}" in said
    assert "tfds.builder('glue/sst2'" in said
    assert "--data.name images" in refused("cifar10", tmp_path)
    assert "csv" in refused("imdb_reviews", tmp_path)


def test_another_version_is_named_beside_the_expected_one(tmp_path):
    for version in ("1.0.0", "1.0.1"):
        (tmp_path / "glue" / "cola" / version).mkdir(parents=True)
    said = refused("glue/cola", tmp_path)
    assert "only version 1.0.0, 1.0.1" in said
    assert "glue/cola 2.0.0" in said


@pytest.fixture
def own(tmp_path):
    """A folder of a test's own, to be broken."""
    parts = {"train": rows_of("sst2", 12), "validation": rows_of("sst2", 6)}
    tfds_files.glue_folder(tmp_path, "sst2", parts)
    return tmp_path / "glue" / "sst2" / "2.0.0"


def test_a_part_that_is_not_there_is_named(tmp_path):
    tfds_files.glue_folder(tmp_path, "sst2", {"train": rows_of("sst2", 12)})
    assert "No part 'validation'" in refused("glue/sst2", tmp_path)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_a_folder_without_its_description_is_not_whole(name, own, tmp_path):
    (own / name).unlink()
    said = refused("glue/sst2", tmp_path)
    assert name in said
    assert "not whole" in said


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_a_damaged_description_is_said(name, own, tmp_path):
    (own / name).write_text('{"splits": [')
    assert "Cannot read" in refused("glue/sst2", tmp_path)


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "overwritten"])
def test_a_damaged_record_file_is_said_and_never_read_in_part(damage, own, tmp_path):
    (file,) = own.glob("*train.array_record*")
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "overwritten":
        file.write_bytes(content[:900] + b"\0" * 9 + content[909:])
    else:
        file.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    said = refused("glue/sst2", tmp_path)
    assert str(own) in said
    assert f"rm -r {own}" in said


def test_a_folder_that_only_tensorflow_reads_says_how_to_turn_it(own, tmp_path):
    about = own / "dataset_info.json"
    about.write_text(about.read_text().replace("array_record", "tfrecord"))
    said = refused("glue/sst2", tmp_path)
    assert "tfrecord" in said
    assert "convert_format" in said


def test_a_field_that_is_not_there_is_named(tmp_path):
    parts = {"train": [(0, "a"), (1, "b")], "validation": [(0, "c")]}
    tfds_files.text_folder(
        tmp_path, "glue/sst2", "2.0.0", ["words"], ["negative", "positive"], parts
    )
    said = refused("glue/sst2", tmp_path)
    assert "No field 'sentence'" in said
    assert "'words'" in said


def test_an_owner_that_is_not_there_is_named(data_dir):
    assert "No field 'site'" in refused("glue/sst2", data_dir, client="site")


def test_a_field_may_say_whose_an_example_is(data_dir):
    dataset = read("glue/sst2", data_dir, client="label")
    assert dataset.client_names == ("negative", "positive")
    assert dataset.clients.tolist() == dataset.labels.tolist()


def test_labels_below_the_classes_are_refused(tmp_path):
    parts = {"train": [(0, "a"), (-1, "b")], "validation": [(1, "c")]}
    tfds_files.glue_folder(tmp_path, "sst2", parts)
    assert "outside its 2 classes" in refused("glue/sst2", tmp_path)


def test_ag_news_is_title_and_description_and_imdb_leaves_the_unlabelled_out(tmp_path):
    parts = {"train": [(0, "Title", "Words."), (3, "B", "b")], "test": [(1, "C", "c")]}
    fields, names = ["title", "description"], ["World", "Sports", "Business", "Sci/Tech"]
    tfds_files.text_folder(tmp_path, "ag_news_subset", "1.0.0", fields, names, parts)
    news = read("ag_news_subset", tmp_path)
    assert "Title Words." in news.inputs["text"]
    assert news.class_names == tuple(names)
    parts = {"train": [(0, "dull"), (1, "fine")], "test": [(1, "good")]}
    parts["unsupervised"] = [(-1, "unknown")]
    name = "imdb_reviews/plain_text"
    tfds_files.text_folder(tmp_path, name, "1.0.0", ["text"], ["neg", "pos"], parts)
    films = read("imdb_reviews", tmp_path)
    assert sorted(films.inputs["text"]) == ["dull", "fine", "good"]
    assert films.held_out.tolist() == [False, False, True]


def test_images_stay_encoded_until_asked_for_and_belong_to_their_labels(tmp_path):
    pictures = {label: pixels_of(label) for label in range(10)}
    parts = {"train": list(pictures.items()), "test": [(3, pictures[3])]}
    names = [f"class {label}" for label in pictures]
    tfds_files.image_folder(tmp_path, "cifar10", "3.0.2", names, parts)
    dataset = read("cifar10", tmp_path)
    assert dataset.kind == "images"
    assert dataset.inputs["image"][0].load()[:4] == b"\x89PNG"
    settings = ImageSettings(size=(32, 32), do_resize=False)
    backwards = dataset.take(np.arange(len(dataset))[::-1])
    pixels = load_images(backwards.inputs["image"], settings)
    for label, picture in zip(backwards.labels, pixels, strict=True):
        np.testing.assert_array_equal(picture, pictures[int(label)])
    assert backwards.held_out.tolist() == [True] + [False] * 10


def test_images_are_the_same_in_whatever_order_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(_tfds, "IMAGES_AT_ONCE", 3)
    parts = {"train": [(n % 10, pixels_of(n)) for n in range(20)], "test": [(9, pixels_of(20))]}
    names = [f"class {label}" for label in range(10)]
    tfds_files.image_folder(tmp_path, "cifar10", "3.0.2", names, parts)
    sources = read("cifar10", tmp_path).inputs["image"]
    order = np.random.default_rng(0).permutation(21)
    shuffled = {row: sources[row].load() for row in order}
    assert [shuffled[row] for row in range(21)] == [source.load() for source in sources]
    assert len(set(shuffled.values())) == 21


def test_cifar100_may_belong_to_its_coarse_classes_and_food101_has_sizes_of_its_own(tmp_path):
    names, coarse = [f"fine {label}" for label in range(100)], ["animals", "things"]
    parts = {"train": [(n, pixels_of(n)) for n in (0, 1, 99)], "test": [(2, pixels_of(2))]}
    tfds_files.image_folder(tmp_path, "cifar100", "3.0.2", names, parts, coarse=coarse)
    dataset = read("cifar100", tmp_path, client="coarse_label")
    assert dataset.client_names == ("animals", "things")
    assert dataset.clients.tolist() == (dataset.labels % 2).tolist()
    names = [f"dish {label}" for label in range(101)]
    parts = {"train": [(0, pixels_of(0, 20, 30)), (100, pixels_of(1, 40, 10))]}
    parts["validation"] = [(5, pixels_of(2, 10, 10))]
    shape = (None, None, 3)
    tfds_files.image_folder(tmp_path, "food101", "2.0.0", names, parts, shape=shape)
    dataset = read("food101", tmp_path)
    assert load_images(dataset.inputs["image"], ImageSettings(size=(8, 8))).shape == (3, 8, 8, 3)
    assert dataset.held_out.sum() == 1
