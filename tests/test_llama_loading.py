"""LLaMA's checkpoints: old files, what is missing, what is refused, from text to text."""

import jax.numpy as jnp
import numpy as np
import pytest

from ffalora_jax.codec import encode_prompts
from ffalora_jax.errors import InputError
from ffalora_jax.generate import greedy
from ffalora_jax.pretrained import load, load_pretrained
from tests.llama_files import KINDS, LLAMA3, llama_tensors, write_llama
from tests.test_codec import write_tokenizer
from tests.test_llama import IDS, MASK, run


def test_old_files_and_tied_heads_that_were_saved_are_no_error(tmp_path):
    tensors = llama_tensors(**KINDS["tied"])
    expected = run(load_pretrained(write_llama(tmp_path / "new", tensors, "tied")), IDS, MASK)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    tensors["lm_head.weight"] = np.zeros((50, 32), np.float32)
    model = load_pretrained(write_llama(tmp_path / "old", tensors, kind="tied"), num_classes=7)
    np.testing.assert_array_equal(run(model, IDS, MASK), expected)
    assert not hasattr(model, "head")


def test_missing_heads_and_unexpected_biases_are_named(tmp_path):
    tensors = llama_tensors(attention_bias=True)
    del tensors["lm_head.weight"]
    with pytest.raises(InputError, match=r"o_proj\.bias has no place.*head\.kernel is missing"):
        load_pretrained(write_llama(tmp_path, tensors))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'silu'.*'gelu'"),
        ({"rope_interleaved": True}, "rope_interleaved False.*True"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "linear, llama3.*'dynamic'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "linear, llama3.*'yarn'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 1.*0.5"),
        ({"rope_parameters": {"rope_type": "linear"}}, r"No 'factor' in .*config\.json"),
        ({"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor > low"),
        ({"rope_theta": -1.0}, "rope_theta > 0"),
        ({"num_key_value_heads": 3}, "multiple of num_key_value_heads.*4 and 3"),
        ({"head_dim": 7}, "even head_dim.*7"),
    ],
)
def test_a_llama_of_another_kind_is_refused_not_read_wrongly(config, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_pretrained(write_llama(tmp_path, llama_tensors(), **config))


def test_more_tokens_than_positions_are_refused(tmp_path):
    model = load_pretrained(write_llama(tmp_path))
    with pytest.raises(InputError, match=r"at most 128 tokens.*got 129.*--model\.max-tokens"):
        model(jnp.ones((2, 129), int), jnp.ones((2, 129), bool))
    assert load_pretrained(write_llama(tmp_path, kind="linear")).max_positions == 384


def test_a_directory_is_loaded_with_its_codec_and_goes_from_text_to_text(tmp_path):
    loaded = load(str(write_tokenizer(write_llama(tmp_path))), num_classes=2, seed=0)
    codec, model = loaded.tokenizer, loaded.model
    assert loaded.family.placements["qv"] == "q_proj,v_proj"
    tokens = encode_prompts(codec, ["what is one", "two"], 8)
    inputs = (tokens.inputs["input_ids"], tokens.inputs["attention_mask"])
    ids, lengths = greedy(model, (), *inputs, 3, (codec.end_id,))
    texts = [codec.decode(row[:length]) for row, length in zip(ids, lengths, strict=True)]
    assert all(isinstance(text, str) for text in texts)
