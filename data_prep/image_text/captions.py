"""Captions from the web, as plain text."""

import html
import re
import urllib.parse

import ftfy
import regex

# CC12M replaced names of people by this; it must not vanish as an HTML tag.
_PERSON = re.compile(r"<person>", re.IGNORECASE)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_ELEMENTS = (
    "a abbr address article aside audio b big blockquote body br button caption center cite code "
    "div dd del dl dt em embed fieldset figcaption figure font footer form h1 h2 h3 h4 h5 h6 head "
    "header hr html i iframe img input ins label legend li link mark meta nav object ol optgroup "
    "option p param picture pre q s script section select small source span strike strong style "
    "sub sup svg table tbody td textarea tfoot th thead time title tr tt u ul var video wbr"
)
# Only whole tags of HTML: "a<b and c>d" is text.
_TAG = re.compile(
    rf"</?(?:{'|'.join(_ELEMENTS.split())})"
    r"""(?:\s+[\w:-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>]+))*\s*/?>""",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"(?:%[0-9a-f]{2})+", re.IGNORECASE)
_QUOTED_SPACE = re.compile(r"%20|\S\+\S+\+\S", re.IGNORECASE)
# Scripts that put no spaces between words, and letters of a word.
_SPACELESS = (
    (regex.compile(r"[\p{Han}々]"), 2),
    (regex.compile(r"[\p{Hiragana}\p{Katakana}ー]"), 3),
    (regex.compile(r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"), 5),
)
_PLAIN = re.compile(r"[^%<&+\x00-\x1f\x7f-\U0010ffff]*")


def clean_caption(text: str) -> str:
    """Undoes URL quoting and HTML, repairs mojibake, makes whitespace single."""
    if not _PLAIN.fullmatch(text):
        # "a+boat+at+sea" and "a+boat%20" are quoted; "C++" and "salt + pepper" are not.
        if " " not in text.strip() and _QUOTED_SPACE.search(text):
            text = text.replace("+", " ")
        text = _QUOTED.sub(_unquoted, text)
        text = _PERSON.sub(" person ", html.unescape(text))
        text = ftfy.fix_text(_TAG.sub(" ", _without_comments(text)))
    return " ".join(text.split())


def _without_comments(text: str) -> str:
    """Looks no further than the last end of a comment: each `<!--` before it finds its own."""
    end = text.rfind("-->") + 3
    return _COMMENT.sub(" ", text[:end]) + text[end:] if end > 2 else text


def count_words(caption: str) -> int:
    """Number of pieces between spaces that have a letter or digit.

    Scripts without spaces between words count by their letters: Chinese two a word, Japanese kana
    three, Thai, Lao, Khmer and Burmese five, about what words have there on average.
    """
    if caption.isascii():
        return sum(any(map(str.isalnum, piece)) for piece in caption.split())
    return sum(map(_words_of_piece, caption.split()))


def _words_of_piece(piece: str) -> int:
    rest, words = piece, 0.0
    for script, letters in _SPACELESS:
        rest, found = script.subn("", rest)
        words += found / letters
    spaced = any(map(str.isalnum, rest))
    return spaced + (max(1, int(words + 0.5)) if words else 0)


def _unquoted(match: re.Match) -> str:
    """The quoted characters; "100%de" is no UTF-8 and stays."""
    try:
        return urllib.parse.unquote(match[0], errors="strict")
    except UnicodeDecodeError:
        return match[0]
