"""Tokenises texts for the text tower of a model.

CLIP's vocabulary is part of this package. A model with another vocabulary needs the tokenizer that
it was trained with, from the `tokenizer.json` or, for SigLIP, the `spiece.model` with its weights;
token ids of a different vocabulary would give wrong features without any error.
"""

import json
import string
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import sentencepiece
import tokenizers
from jaxtyping import Int

from cocu_jax.errors import UserError
from cocu_jax.models.text import TextConfig
from cocu_jax.models.tokenizer import Tokenizer, vocabulary

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_SENTENCEPIECE = "spiece.model"
_VOCABULARY = "vocab.json"
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

Tokenize = Callable[[Sequence[str]], Int[np.ndarray, "n t"]]


def clip_tokens(text: TextConfig, files: Mapping[str, bytes], source: str) -> Tokenize:
    """The tokenizer for CLIP and GroupViT, whose feature is that of the end token, the largest id.

    Token ids are trimmed to the longest text, because positions after the end token have no effect.

    Args:
        text: settings of the tower.
        files: the model's tokenizer files.
        source: the model's name, for messages.

    Raises:
        UserError: the vocabulary is not CLIP's, and the model has no usable tokenizer.
    """
    if has_clip_vocabulary(text, files, source):
        tokenizer = Tokenizer()
        return lambda texts: _trimmed(tokenizer(texts, text.context_length))
    own = _open(files, text, source)
    end = text.vocab_size - 1
    ids = own.encode("a").ids
    if max(ids) != end or ids[-1] != end:
        raise UserError(
            f"{source}: its {TOKENIZER} does not end a text with token {end}, the model's end "
            "token; this is the tokenizer of another model"
        )
    own.enable_truncation(text.context_length)
    own.enable_padding(pad_id=0)
    return lambda texts: _trimmed(_rows(own, texts))


def siglip_tokens(text: TextConfig, files: Mapping[str, bytes], source: str) -> Tokenize:
    """The tokenizer for SigLIP, whose feature is that of the last position of the padded context.

    Texts are lower-cased, as in SigLIP's training; its first generation also removes punctuation.
    Arguments and errors as `clip_tokens`.
    """
    settings = _json(files, TOKENIZER_CONFIG, source)
    if TOKENIZER not in files and _SENTENCEPIECE in files:
        return _sentencepiece_rows(text, files[_SENTENCEPIECE], source)
    own = _open(files, text, source)
    own.enable_truncation(text.context_length)
    own.enable_padding(
        direction=settings.get("padding_side", "right"),
        pad_id=_padding_id(own, settings, source),
        length=text.context_length,
    )
    gemma = {"Gemma", "Siglip2"} & {settings.get("tokenizer_class", "").partition("Tok")[0]}
    prepare = str.lower if gemma else _canonical
    return lambda texts: _rows(own, [prepare(text) for text in texts])


def _sentencepiece_rows(text: TextConfig, content: bytes, source: str) -> Tokenize:
    """For SigLIP's own vocabulary, whose end token is also the padding."""
    try:
        own = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise UserError(f"{source}: its {_SENTENCEPIECE} is not readable ({error})") from None
    _check_largest(own.get_piece_size() - 1, text, _SENTENCEPIECE, source)
    end, length = own.eos_id(), text.context_length

    def rows(texts: Sequence[str]) -> Int[np.ndarray, "n t"]:
        found = np.full((len(texts), length), end, np.int32)
        for row, ids in zip(found, own.encode(list(map(_canonical, texts))), strict=True):
            row[: min(len(ids), length - 1)] = ids[: length - 1]
        return found

    return rows


def _canonical(text: str) -> str:
    """Lower case, no ASCII punctuation, single spaces (big_vision's `canonicalize_text`)."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def _padding_id(own: tokenizers.Tokenizer, settings: Mapping, source: str) -> int:
    token = settings.get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    number = own.token_to_id(token) if isinstance(token, str) else None
    if number is None:
        raise UserError(
            f"{source}: its {TOKENIZER_CONFIG} names no pad_token of its {TOKENIZER}; "
            "put the tokenizer's files of the model there"
        )
    return number


def _json(files: Mapping[str, bytes], name: str, source: str) -> dict:
    try:
        content = json.loads(files.get(name, b"{}"))
    except ValueError:
        raise UserError(f"{source}: its {name} is not readable; fetch it again") from None
    return content if isinstance(content, dict) else {}


def _rows(own: tokenizers.Tokenizer, texts: Sequence[str]) -> Int[np.ndarray, "n t"]:
    return np.array([encoding.ids for encoding in own.encode_batch(list(texts))], np.int32)


def _trimmed(rows: Int[np.ndarray, "n t"]) -> Int[np.ndarray, "n u"]:
    """Removes the positions after the last end token of the batch."""
    return rows[:, : int(rows.argmax(axis=1).max(initial=0)) + 1]


def _open(files: Mapping[str, bytes], text: TextConfig, source: str) -> tokenizers.Tokenizer:
    """The tokenizer in `tokenizer.json`, without padding or truncation."""
    if TOKENIZER not in files:
        raise UserError(
            f"{source}: its vocabulary of {text.vocab_size:,} tokens is not CLIP's, and it has no "
            f"{TOKENIZER}; put the one that it was trained with in the folder of its weights"
        )
    try:
        own = tokenizers.Tokenizer.from_str(files[TOKENIZER].decode())
    except Exception as error:  # the library raises a plain Exception
        raise UserError(f"{source}: its {TOKENIZER} is not readable ({error})") from None
    _check_largest(
        max(own.get_vocab(with_added_tokens=True).values(), default=0), text, TOKENIZER, source
    )
    own.no_padding()
    own.no_truncation()
    return own


def _check_largest(token: int, text: TextConfig, name: str, source: str) -> None:
    if token >= text.vocab_size:
        raise UserError(
            f"{source}: its {name} has token {token}, the model has {text.vocab_size:,} tokens; "
            "this is the tokenizer of another model"
        )


def has_clip_vocabulary(text: TextConfig, files: Mapping[str, bytes], source: str) -> bool:
    """Whether the vocabulary is CLIP's: of the same size, and no token has another id."""
    ours, theirs = vocabulary(), _vocabulary_of(files, source)
    agree = all(ours.get(token, number) == number for token, number in theirs.items())
    return text.vocab_size == len(ours) and agree


def _vocabulary_of(files: Mapping[str, bytes], source: str) -> dict[str, int]:
    """Token ids by token; empty if no file lists them."""
    for name, found in ((TOKENIZER, lambda x: x["model"]["vocab"]), (_VOCABULARY, lambda x: x)):
        if name in files:
            try:
                return dict(found(json.loads(files[name])))
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{source}: its {name} is not readable; fetch it again") from None
    return {}
