"""Text in and out for language models: ids, text again, chat templates, prompts with their responses.

Comes after ``text``. What an encoder's tokenizer leaves out is here: the way back from ids to text, the
tokens that begin and end a text, and which tokens of an example are to be learnt.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ffalora_jax.cache import from_json
from ffalora_jax.errors import InputError
from ffalora_jax.text import Encoded, padded, read_tokenizer

Message = dict[str, str]
"""One turn of a conversation: ``role`` (system, user, assistant) and ``content``."""
Prompt = str | Sequence[Message]

TEMPLATE_DATE = "26 Jul 2024"
"""Some chat templates write today's date into the prompt; then ids would change from day to day."""


class TextCodec(NamedTuple):
    """A language model's tokenizer. It is a ``text.Tokenizer`` as well: call it with texts."""

    encode: Callable[[Sequence[str]], list[list[int]]]
    """Texts -> ids, without the tokens that begin or end a text."""
    decode: Callable[[Iterable[Any]], str]
    """Ids (a list or an array) -> text; special tokens are left out."""
    start_ids: tuple[int, ...]
    """What a text begins with; often one token, sometimes none."""
    end_id: int
    """The token that ends a response, and so a generation."""
    pad_id: int
    chat: Callable[[Sequence[Message]], str] | None = None
    """Messages -> prompt text by the model's template; None: it has none."""

    def __call__(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_tokens: int
    ) -> Encoded:
        """Returns the ids of whole texts, cut at their right; a pair is joined by a line break."""
        if pairs is not None:
            texts = [f"{one}\n{other}" for one, other in zip(texts, pairs, strict=True)]
        rows = [[*self.start_ids, *ids][:max_tokens] for ids in self.encode(texts)]
        return padded(rows, None, max_tokens)


def load_codec(directory: str | Path) -> TextCodec:
    """Returns the codec of a Hugging Face directory.

    ``tokenizer.json`` says how text is cut; ``tokenizer_config.json`` (or ``special_tokens_map.json``,
    ``generation_config.json``, ``config.json``) which token ends it; the chat template is rendered by
    transformers, in its sandbox.

    Raises:
        InputError: no tokenizer, no end token, files that cannot be read.
    """
    directory = Path(directory)
    tokenizer = read_tokenizer(directory)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    end = _special_id(directory, tokenizer, "eos")
    if end is None:
        raise InputError(
            f"No end token in {directory}: expected eos_token in tokenizer_config.json or eos_token_id in "
            "config.json, since a language model must know where a response ends."
        )
    pad = _special_id(directory, tokenizer, "pad")
    start = tokenizer.encode("").ids

    def encode(texts):
        return [one.ids for one in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(ids):
        return tokenizer.decode([int(index) for index in ids], skip_special_tokens=True)

    starts = start[:-1] if len(start) > 1 and start[-1] == end else start
    return TextCodec(
        encode, decode, tuple(starts), end, end if pad is None else pad, _chat(directory)
    )


def encode_prompts(codec: TextCodec, prompts: Sequence[Prompt], max_tokens: int) -> Encoded:
    """Returns prompts to be continued: ``input_ids`` and ``attention_mask``, padded at the right.

    The ids are those that ``encode_instructions`` puts before a response; a prompt that is too long loses
    its left, but not its start token.

    Raises:
        InputError: messages for a model without a chat template.
    """
    rows = [_cut_left(ids, codec.start_ids, max_tokens) for ids in _prompt_ids(codec, prompts)]
    return padded(rows, None, max_tokens)


def encode_instructions(
    codec: TextCodec, prompts: Sequence[Prompt], responses: Sequence[str], max_tokens: int
) -> Encoded:
    """Returns prompts with their responses, for training: ids = prompt, response, end token.

    Besides ``input_ids`` and ``attention_mask`` the inputs have ``response_mask``: True on the response and
    its end token, which alone are to be learnt. If a row is too long its prompt is cut from the left (all
    but the start token and the last one), then the response from the right, with its end token: where a
    text was cut is no place to end.

    Args:
        codec: the model's.
        prompts: texts, or lists of messages for the chat template.
        responses: one for each prompt.
        max_tokens: width of the arrays; at least 2, so that there is a token to learn and one before it.

    Raises:
        InputError: as many responses as prompts are expected; messages without a chat template.
    """
    if len(prompts) != len(responses):
        raise InputError(
            f"Expected a response for each of {len(prompts)} prompts, got {len(responses)}."
        )
    if max_tokens < 2:
        raise InputError(f"Expected max_tokens >= 2, got {max_tokens}: raise --model.max-tokens.")
    rows, starts = [], []
    for prompt, response in zip(_prompt_ids(codec, prompts), codec.encode(responses), strict=True):
        answer = [*response, codec.end_id]
        room = max(max_tokens - len(answer), 1)
        prompt = _cut_left(prompt, codec.start_ids, room)
        rows.append((prompt + answer)[:max_tokens])
        starts.append(len(prompt))
    tokens = padded(rows, None, max_tokens)
    after = np.arange(max_tokens) >= np.array(starts, np.int32).reshape(-1, 1)
    mask = tokens.inputs["attention_mask"] & after
    return tokens._replace(inputs={**tokens.inputs, "response_mask": mask})


def _prompt_ids(codec: TextCodec, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Returns ids with the tokens that begin a text; a chat template writes those itself."""
    texts = [prompt if isinstance(prompt, str) else _rendered(codec, prompt) for prompt in prompts]
    return [
        [*codec.start_ids, *ids] if isinstance(prompt, str) else ids
        for prompt, ids in zip(prompts, codec.encode(texts), strict=True)
    ]


def _rendered(codec: TextCodec, messages: Sequence[Message]) -> str:
    if codec.chat is None:
        raise InputError(
            "Got a list of messages, but the model has no chat template (chat_template in its "
            "tokenizer_config.json, or chat_template.jinja): give prompts as texts, or take the model's "
            "instruction-tuned variant."
        )
    return codec.chat(messages)


def _cut_left(ids: list[int], start_ids: tuple[int, ...], room: int) -> list[int]:
    if len(ids) <= room:
        return ids
    count = len(start_ids)
    start = ids[:count] if tuple(ids[:count]) == start_ids and count < room else []
    return [*start, *ids[len(ids) - room + len(start) :]]


def _special_id(directory: Path, tokenizer: Any, kind: str) -> int | None:
    """Returns the id of the ``eos`` or ``pad`` token: by its text, else by its number."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = _settings(directory / name).get(f"{kind}_token")
        text = token.get("content") if isinstance(token, dict) else token
        found = tokenizer.token_to_id(text) if isinstance(text, str) else None
        if found is not None:
            return found
    for name in ("generation_config.json", "config.json"):
        number = _settings(directory / name).get(f"{kind}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int):
            return number
    return None


def _settings(file: Path) -> dict[str, Any]:
    try:
        settings = from_json(file.read_bytes())
    except OSError:
        return {}
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}).") from None
    return settings if isinstance(settings, dict) else {}


def _chat(directory: Path) -> Callable[[Sequence[Message]], str] | None:
    """Returns the template as a function; transformers is imported when it is first used."""
    settings = _settings(directory / "tokenizer_config.json")
    if "chat_template" not in settings and not (directory / "chat_template.jinja").is_file():
        return None

    @functools.cache
    def tokenizer() -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(directory))

    def chat(messages: Sequence[Message]) -> str:
        try:
            return tokenizer().apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=True,
                date_string=TEMPLATE_DATE,
            )
        except Exception as error:  # a template is a program of its author: anything may come
            raise InputError(
                f"The chat template of {directory} refuses {list(messages)!r} ({error})."
            ) from None

    return chat
