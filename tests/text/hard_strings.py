"""Strings that tell tokenizers apart, many of them, the same ones every time."""

import json
import pathlib
import random

GALLERY = pathlib.Path(__file__).parents[2] / "data_prep" / "gallery" / "default_gallery.json"

CHOSEN = [
    "",
    " ",
    "\t\n",
    "a photo of a dog.",
    "Hello, World!",
    "it's I'M we'RE you'll they'd isn't I've 'tis rock'n'roll '' 's",
    "1234567890 3.14 1,000 ½ ² ٣ Ⅳ 一二三",
    "<|startoftext|> a <|endoftext|> <|EndOfText|> <start_of_text> <|endoftext|",
    "<|\u017ftartoftext|> he'\u017f \u212aelvin \u0130stanbul \u1e9e \ufb01ne \ufb05art",
    "&lt;b&gt;bold&lt;/b&gt; &amp;amp; &amp;eacute; &#x27;s &#39;s &nbsp; &copy &bogus;",
    "caf\u00c3\u00a9 schÃ¶n â€œquotedâ€\u009d donâ€™t ðŸ˜€ Ã",
    "\u2018curly\u2019 \u201cquotes\u201d \u2014 dash \u2026 dots",
    "naïve e\u0301 \u00e9 ΟΔΥΣΣΕΥΣ Σ ΣΑΣ",
    "日本語のテキスト 中文 한국어 العربية עברית हिन्दी ไทย Ελληνικά Русский",
    "😀 😃👍🏽👨‍👩‍👧‍👦🇺🇳❤️ 🤷‍♀️",
    "tab\tnewline\nreturn\r\nvertical\vfeed\fnbsp\u00a0thin\u2009ideo\u3000zwsp\u200bbom\ufeff",
    "control\x00\x01\x1b[31mred\x1b[0m\x7f\x85",
    "\ud800 lone surrogate \udfff",
    "ｆｕｌｌｗｉｄｔｈ　ＴＥＸＴ！",
    "http://example.com/a?b=c&d=e#f user@example.com #hash_tag @name $5.00 50% a_b",
    "... !!! ?! --- *** (((((())))) [x] {y} ~~ ^^ || \\\\ //",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
]


def hard_strings(count: int, seed: int = 0) -> list[str]:
    """At least `count` strings: chosen ones, long ones, captions, damaged captions, Unicode."""
    draw = random.Random(seed)
    words = [word for part in json.loads(GALLERY.read_text()).values() for word in part]
    words += (
        "a the of in on with and two red Big old NEW York's don't 3 10th it's & - , . !".split()
    )
    kinds = (_caption, _caption, _damaged, _marked_up, _letters, _ranges, _joined)
    strings = list(CHOSEN)
    strings += [
        "x" * 10_000,
        "dog " * 2_500,
        "é" * 10_000,
        "😀" * 2_500,
        "!" * 10_000,
        "日本" * 5_000,
    ]
    while len(strings) < count:
        strings.append(draw.choice(kinds)(draw, words))
    return strings


def _caption(draw: random.Random, words: list[str]) -> str:
    text = " ".join(draw.choices(words, k=draw.randint(1, 20)))
    return draw.choice(
        (text, text.title(), text.upper(), f"{text}.", f'"{text}"', text.capitalize())
    )


def _damaged(draw: random.Random, words: list[str]) -> str:
    text = _caption(draw, words) + draw.choice(
        ("é", " “quoted”", " naïve café", "’s", " – 5 €", "ß")
    )
    try:
        return text.encode().decode(draw.choice(("latin-1", "cp1252", "cp1251", "macroman")))
    except UnicodeDecodeError:
        return text


def _marked_up(draw: random.Random, words: list[str]) -> str:
    marks = (
        "&amp;",
        "&quot;",
        "&#39;",
        "&amp;lt;",
        "&eacute",
        "&#x1F600;",
        "<br>",
        "<i>",
        "&",
        "'s",
    )
    pieces = [draw.choice((*marks, *draw.choices(words, k=12))) for _ in range(draw.randint(1, 15))]
    return draw.choice(("", " ")).join(pieces)


def _letters(draw: random.Random, words: list[str]) -> str:
    return "".join(chr(draw.randrange(32, 127)) for _ in range(draw.randint(1, 60)))


def _ranges(draw: random.Random, words: list[str]) -> str:
    start = draw.choice(
        (0, 0x80, 0x250, 0x370, 0x600, 0x900, 0x1E00, 0x2000, 0x3000, 0xAC00, 0xFF00)
    )
    start = draw.choice((start, draw.randrange(0, 0x32000), 0x1F300))
    text = "".join(chr(start + draw.randrange(0x100)) for _ in range(draw.randint(1, 40)))
    return f"{draw.choice(words)} {text}" if draw.random() < 0.3 else text


def _joined(draw: random.Random, words: list[str]) -> str:
    seams = ("-", "_", "'", "/", "1", "ſ", "\u0301", "\u200d", "\u00ad", "’", "9th", "é", "İ", "K")
    return "".join(
        draw.choice((*seams, *draw.choices(words, k=6))) for _ in range(draw.randint(1, 12))
    )
