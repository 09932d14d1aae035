"""Instructions and GSM8K: what the model is given and what it is to say; chats stay structured."""

import gzip
import json

import numpy as np
import pytest

from ffalora_jax import cache
from ffalora_jax.answers import final_number
from ffalora_jax.config import DataConfig, Experiment
from ffalora_jax.data import as_dataset, gsm8k, instructions
from ffalora_jax.errors import InputError
from ffalora_jax.load import load_dataset

PAIRS = [
    {"prompt": "Say hello.", "response": "Hello.", "site": "north"},
    {"prompt": "", "response": "Anything, ünïcode ☂.", "site": "south"},
    {"prompt": "Two\nlines?", "response": " Yes,\ntwo.", "site": "north"},
]


def chat(*turns):
    return [{"role": role, "content": content} for role, content in turns]


CHATS = [
    {"messages": chat(("user", "Hi"), ("assistant", "Hello."))},
    {"messages": chat(("system", "Be brief."), ("user", "2 + 2?"), ("assistant", "4"))},
    {"messages": chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))},
]


def write(path, rows):
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path, **settings):
    return instructions.build(DataConfig(name="instructions", path=str(path), **settings), 0)


def refused(path, **settings):
    with pytest.raises(InputError) as raised:
        read(path, **settings)
    return str(raised.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_prompts_and_responses_come_back_from_every_kind_of_file(name, tmp_path):
    dataset = read(write(tmp_path / name, PAIRS), client="site")
    assert dataset.kind == "instructions"
    assert dataset.inputs["prompt"] == [row["prompt"] for row in PAIRS]
    assert dataset.inputs["response"] == [row["response"] for row in PAIRS]
    assert dataset.labels.tolist() == [0, 0, 0]
    assert dataset.class_names == ("response",)
    assert dataset.client_names == ("north", "south")
    assert dataset.clients.tolist() == [0, 1, 0]
    assert dataset.held_out is None


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_chat_is_all_its_messages_but_the_last_and_then_the_last(name, tmp_path):
    dataset = read(write(tmp_path / name, CHATS))
    assert dataset.inputs["prompt"] == [row["messages"][:-1] for row in CHATS]
    assert dataset.inputs["response"] == ["Hello.", "4", "d"]
    assert dataset.clients is None


def test_columns_may_have_other_names_and_others_may_stand_beside_them(tmp_path):
    rows = [{"question": r["prompt"], "says": r["response"], "id": 1} for r in PAIRS]
    dataset = read(write(tmp_path / "a.jsonl", rows), prompt="question", response="says")
    assert dataset.inputs["prompt"] == [row["prompt"] for row in PAIRS]
    rows = [{"chat": row["messages"], "score": None} for row in CHATS]
    dataset = read(write(tmp_path / "b.jsonl", rows), messages="chat")
    assert dataset.inputs["response"] == ["Hello.", "4", "d"]


def test_a_folder_is_one_client_a_file_unless_a_column_says_whose(tmp_path):
    write(tmp_path / "b_site.jsonl.gz", PAIRS[:1])
    write(tmp_path / "a_site.jsonl", PAIRS[1:])
    dataset = read(tmp_path)
    assert dataset.client_names == ("a_site", "b_site")
    assert dataset.clients.tolist() == [0, 0, 1]
    assert read(tmp_path, client="site").client_names == ("north", "south")


def test_a_files_name_is_a_client_with_its_dots(tmp_path):
    for name in ("st.mary.jsonl", "st.john.jsonl", "ward.jsonl.gz"):
        write(tmp_path / name, PAIRS[:1])
    assert read(tmp_path).client_names == ("st.john", "st.mary", "ward")
    write(tmp_path / "ward.jsonl", PAIRS[1:])
    with pytest.raises(InputError, match="Two files of the name 'ward'"):
        read(tmp_path)
    assert read(tmp_path, client="site").client_names == ("north", "south")


BAD_CHATS = [
    ("hello", ["'messages'", "'hello'", "list of at least two"]),
    (chat(("user", "Hi")), ["at least two"]),
    (chat(("user", "Hi"), ("user", "Hi?")), ["ends with a message of 'user'", "'assistant'"]),
    (chat(("user", "Hi"), ("assistant", " ")), ["empty message"]),
    (chat(("user", "Hi"), ("robot", "Ho")), ["message 2", "'robot'", "assistant"]),
    ([{"role": "user"}, {"role": "assistant", "content": "a"}], ["message 1", "role and content"]),
    ([{"role": "user", "content": ["a"]}, *chat(("assistant", "a"))], ["message 1", "content"]),
    (["Hi", "Ho"], ["message 1", "'Hi'"]),
]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a"}, ["no 'response'", "'prompt'", "--data.response"]),
        ({"text": "a"}, ["no 'prompt'", "'text'", "--data.messages"]),
        ({"prompt": 3, "response": "a"}, ["'prompt'", "3", "expected text"]),
        ({"prompt": "a", "response": None}, ["'response'", "None", "expected text"]),
        ({"prompt": "a", "response": " \n"}, ["'response'", "empty"]),
        *[({"messages": messages}, words) for messages, words in BAD_CHATS],
    ],
)
def test_a_line_that_cannot_be_used_is_refused_with_its_place(row, words, tmp_path):
    good = CHATS[0] if "messages" in row else PAIRS[0]
    said = refused(write(tmp_path / "a.jsonl", [good, row]))
    assert f"Line 2 of {tmp_path / 'a.jsonl'}" in said
    assert all(word in said for word in words), said


def test_files_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"--data\.path"):
        instructions.build(DataConfig(name="instructions"), 0)
    assert "No file or folder" in refused(tmp_path / "a.jsonl")
    assert ".parquet file in folder" in refused(tmp_path)
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n")
    assert "no examples" in refused(path)
    path.write_text('{"prompt": \n')
    assert "Line 1" in refused(path)
    path.write_bytes(b'{"prompt": "\xff"}')
    assert "UTF-8" in refused(path)
    write(path, [{**PAIRS[0], "site": " "}])
    assert "'site', is empty" in refused(path, client="site")
    write(tmp_path / "b.parquet", PAIRS).write_bytes(b"PAR1 nothing")
    assert "not a Parquet file" in refused(tmp_path / "b.parquet")


def test_instructions_given_in_python_are_the_same(tmp_path):
    import datasets
    import pandas

    expected = read(write(tmp_path / "a.jsonl", PAIRS), client="site")
    columns = {name: [row[name] for row in PAIRS] for name in PAIRS[0]}
    for given in (columns, pandas.DataFrame(columns), datasets.Dataset.from_dict(columns)):
        dataset = as_dataset(given, client="site")
        assert dataset.inputs == expected.inputs
        assert dataset.class_names == expected.class_names
        np.testing.assert_array_equal(dataset.labels, expected.labels)
        np.testing.assert_array_equal(dataset.clients, expected.clients)
    chats = {"messages": [row["messages"] for row in CHATS]}
    for given in (chats, datasets.Dataset.from_dict(chats)):
        assert as_dataset(given).inputs["response"] == ["Hello.", "4", "d"]
    with pytest.raises(InputError, match=r"Row 1.*'robot'"):
        as_dataset({"messages": [chat(("robot", "a"), ("assistant", "b"))]})


def test_an_experiment_names_the_columns_of_what_is_given_in_python():
    config = DataConfig(name="instructions", prompt="q", response="a", max_examples=1)
    data = {"q": ["1", "2"], "a": ["one", "two"]}
    assert len(load_dataset(Experiment(data=config), data)) == 1


def test_texts_with_labels_stay_texts_whatever_stands_beside_them():
    columns = {"text": ["a", "b"], "label": [0, 1], "prompt": ["", ""], "response": ["x", "y"]}
    assert as_dataset(columns).kind == "text"
    del columns["label"]
    assert as_dataset(columns).kind == "instructions"


PROBLEMS = [
    {"question": "1 + 1?", "answer": "It is <<1+1=2>>2.\n#### 2"},
    {"question": "A thousand and one?", "answer": "#### 1,001"},
]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_gsm8k_is_question_and_worked_answer_with_its_test_part_held_out(suffix, tmp_path):
    write(tmp_path / f"train{suffix}", PROBLEMS)
    write(tmp_path / f"test{suffix}", PROBLEMS[:1])
    dataset = gsm8k.build(DataConfig(name="gsm8k", path=str(tmp_path)), 0)
    assert dataset.inputs["prompt"][0] == "Question: 1 + 1?\nAnswer:"
    assert dataset.inputs["response"][0] == " It is <<1+1=2>>2.\n#### 2"
    assert dataset.held_out.tolist() == [False, False, True]
    assert dataset.metric == "exact_match"
    assert [final_number(said) for said in dataset.inputs["response"]] == ["2", "1001", "2"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "a"}, ["Line 2", "answer None"]),
        ({"question": " ", "answer": "#### 2"}, ["Line 2", "question"]),
        ({"question": "a", "answer": "It is 2."}, ["Line 2", "'#### number'"]),
    ],
)
def test_a_problem_that_is_not_of_the_form_is_refused_with_its_line(row, words, tmp_path):
    write(tmp_path / "train.jsonl", [PROBLEMS[0], row])
    write(tmp_path / "test.jsonl", PROBLEMS)
    with pytest.raises(InputError) as raised:
        gsm8k.build(DataConfig(name="gsm8k", path=str(tmp_path)), 0)
    assert all(word in str(raised.value) for word in words)


def test_gsm8k_that_is_not_there_names_the_ways(tmp_path, monkeypatch):
    write(tmp_path / "train.jsonl", PROBLEMS)
    with pytest.raises(InputError, match=r"No test\.jsonl"):
        gsm8k.build(DataConfig(name="gsm8k", path=str(tmp_path)), 0)
    monkeypatch.setenv("FFALORA_SHARED", str(tmp_path))
    with pytest.raises(InputError, match=r"--data\.path.*FFALORA_SHARED"):
        gsm8k.build(DataConfig(name="gsm8k"), 0)


def test_shared_folders_are_found_where_the_environment_says_or_beside(tmp_path, monkeypatch):
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.delenv("FFALORA_SHARED", raising=False)
    monkeypatch.chdir(tmp_path / "work")
    assert cache.shared_folder("data").resolve() == tmp_path / "shared" / "data"
    monkeypatch.setenv("FFALORA_SHARED", str(tmp_path))
    assert cache.shared_folder("data") is None
    assert cache.shared_folder("shared", "data") == tmp_path / "shared" / "data"


@pytest.mark.skipif(
    cache.shared_folder("data", "gsm8k") is None, reason="no GSM8K in ../shared or FFALORA_SHARED"
)
def test_the_published_gsm8k_is_whole():
    dataset = gsm8k.build(DataConfig(name="gsm8k"), 0)
    assert (len(dataset), dataset.held_out.sum()) == (7473 + 1319, 1319)
    assert all(final_number(said) is not None for said in dataset.inputs["response"])
