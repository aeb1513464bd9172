"""All nouns of a caption, as NLTK's tagger sees them, from the raw corpus to the prompts."""

import collections
import itertools
import random
import string
import sys

import nltk
import pytest
import raw_corpora as raw
from ml_collections import ConfigDict
from nltk.tag import perceptron
from nltk.tokenize import NLTKWordTokenizer
from prepared_corpora import GALLERY, examples, prepare

from cocu_jax.errors import UserError
from cocu_jax.input.pipeline import train_batches
from cocu_jax.models.templates import IMAGENET_TEMPLATES
from cocu_jax.models.tokenizer import EOT, SOT, Tokenizer
from data_prep.__main__ import main
from data_prep.gallery.nouns import NounFinder
from data_prep.image_text.images import ImageRecipe
from data_prep.image_text.units import Recipe
from data_prep.image_text.work import Workers

TAGGED = """
a/DT dog/NN runs/VBZ on/IN the/DT green/JJ grass/NN ./.
the/DT dog/NN 's/POS bowl/NN and/CC two/CD cats/NNS ,/, sleeping/VBG quietly/RB
``/`` Rex/NNP ''/'' can/MD not/RB swim/VB in/IN New/NNP York/NNP ?/.
my/PRP$ t-shirt/NN is/VBZ an/DT old-fashioned/JJ one/CD (/( red/JJ )/)
a/DT bowl/NN and/CC two/CD cats/NNS ./.
he/PRP does/VBZ n't/RB see/VB the/DT café/NN near/IN a/DT river/NN
"""
# Each is a list of sentences, so that the oracle needs not look for their ends.
CAPTIONS = [
    ["a dog runs on the green grass"],
    ["a dog runs.", "The dog's bowl is on the grass!", "two cats sleeping?", "my river."],
    ["dog, Dog, the DOG and a dog house"],
    ["my t-shirt on a close-up of an old-fashioned river-boat"],
    ["the girls' bowl and Rex's river, isn't a dog's"],
    ['a "dog" and "Rex" (a river) in New York'],
    ["he doesn't see the café in Zürich near a naïve İstanbul Straße"],
    ["the हिन्दी café, ภาษาไทย and 日本語 on the grass"],
    ["a 4x4 #dog @rex 1960s U.S. river & 100% grass -- 12 $ 5"],
    ["the Donaudampfschifffahrtsgesellschaftskapitän and a dog"],
    ["a cannot gonna 'dog ''tis river/grass... grass,dog"],
    ["the dog 's'"],
    ["runs quietly"],
    [" ".join(["green"] * 73 + ["river", "café-t-shirt", "dog", "bowl"])],
    [" ".join(["the dog number", *map(str, range(1000))])],
    ["the dog " * 30 + "bowl"],
]

HINDI = 7  # ends in a combining mark, which the tokenizer joins with a template's full stop

TOKENIZER = Tokenizer()
RECIPE = Recipe(ImageRecipe(), GALLERY, nouns=True)


@pytest.fixture(scope="module")
def nltk_data(tmp_path_factory):
    """Where NLTK finds a tagger that was trained here, and nothing else."""
    sentences = [
        [tuple(pair.rsplit("/", 1)) for pair in line.split()] for line in TAGGED.split("\n") if line
    ]
    folder = tmp_path_factory.mktemp("nltk_data")
    (folder / "taggers").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "path", [str(folder)])
        nltk.tag._get_tagger.cache_clear()
        random.seed(0)
        tagger = perceptron.PerceptronTagger(load=False)
        tagger.train(sentences * 10, nr_iter=8)
        place = folder / "taggers" / "averaged_perceptron_tagger_eng"
        tagger.save_to_json(lang="eng", loc=str(place))
        yield folder
    nltk.tag._get_tagger.cache_clear()


def nouns_of(sentences: list[str], tokens: list[int]) -> dict[tuple[int, ...], str]:
    """Nouns by their tokens: `nltk.pos_tag`, then a search in the caption's tokens."""
    encode, split = TOKENIZER.encode, NLTKWordTokenizer().tokenize
    places = {}
    for sentence in sentences:
        for word, tag in nltk.pos_tag(split(sentence)):
            word = word.strip(string.punctuation)
            noun = encode(word)
            place = [i for i in range(len(tokens)) if tokens[i : i + len(noun)] == noun]
            if tag[:2] == "NN" and any(map(str.isalpha, word)) and place and len(noun) <= 8:
                places.setdefault(tuple(noun), (place[0], word))
    return {noun: word for noun, (_, word) in sorted(places.items(), key=lambda item: item[1])}


def tokens_of(caption: str) -> list[int]:
    return [SOT, *TOKENIZER.encode(caption)[:75], EOT]


def sliced(tokens, spans) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i, n in zip(spans[::2], spans[1::2], strict=True)]


@pytest.mark.parametrize("sentences", CAPTIONS, ids=lambda s: s[0][:20])
def test_spans_are_the_nouns_that_nltk_finds(nltk_data, sentences):
    caption = " ".join(sentences)
    tokens = tokens_of(caption)
    found = sliced(tokens, NounFinder(TOKENIZER)(caption, tokens))
    assert found == list(nouns_of(sentences, tokens))


@pytest.mark.parametrize(
    ("caption", "nouns"),
    [
        ("The dog's bowl, a DOG and two cats.", "dog bowl cats"),
        ('"Rex" (my dog) runs in New York', "rex dog new york"),
        ("a t-shirt near the café", "t-shirt café"),
        ("he can not see", ""),
        ("the " * 74 + "dog t-shirt", "dog"),
        ("the " * 73 + "t-shirt dog", ""),
    ],
)
def test_nouns_of_known_words(nltk_data, caption, nouns):
    tokens = tokens_of(caption)
    expected = [tuple(TOKENIZER.encode(noun)) for noun in nouns.split()]
    assert sliced(tokens, NounFinder(TOKENIZER)(caption, tokens)) == expected


def test_missing_tagger_is_told_before_any_work(tmp_path, monkeypatch, capsys):
    remedy = 'pip install "nltk>=3.9" && python -m nltk.downloader averaged_perceptron_tagger_eng'
    raw.webdataset(tmp_path / "0.tar", [0])
    flags = ["--sources", str(tmp_path / "0.tar"), "--data_dir", str(tmp_path / "tfds"), "--nouns"]
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(SystemExit):
        main(["image_text", "custom", *flags])
    said = f"error: --nouns: the data of NLTK's tagger is not installed; {remedy}\n"
    assert capsys.readouterr().err == said
    assert not list((tmp_path / "tfds").rglob("*unfinished*"))
    monkeypatch.setitem(sys.modules, "nltk.tag.perceptron", None)
    with pytest.raises(UserError, match="^--nouns: NLTK is not installed; pip install [^\n]*$"):
        prepare(tmp_path, tmp_path / "0.tar", recipe=RECIPE)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, nltk_data):
    """Directory of a corpus with the captions above."""
    folder = tmp_path_factory.mktemp("corpus")
    members = []
    for number, sentences in enumerate(CAPTIONS):
        members.append((f"{number:03d}.jpg", raw.picture(number)))
        members.append((f"{number:03d}.txt", " ".join(sentences).encode()))
    raw.write_tar(folder / "0.tar", members)
    return prepare(folder, folder / "0.tar", recipe=RECIPE)


def test_prompts_are_distinct_nouns_of_the_caption_in_a_template(corpus):
    count, length = 3, 40
    data = dict(
        corpora=(ConfigDict(dict(directory=corpus, split="train")),),
        concepts="nouns",
        prompts=count,
        prompt_length=length,
        image_size=16,
        augment="none",
        lanes=2,
        window=4,
    )
    batches = train_batches(ConfigDict(data), 16, seed=0, with_keys=True)
    drawn = collections.defaultdict(set)
    for batch in itertools.islice(batches, 20):
        for key, rows in zip(batch["key"], batch["prompts"], strict=True):
            drawn[int(key)].add(tuple(map(tuple, rows.tolist())))
    assert len(drawn) == len(CAPTIONS)
    del drawn[HINDI]
    for number, samples in drawn.items():
        nouns = nouns_of(CAPTIONS[number], tokens_of(" ".join(CAPTIONS[number]))).values()
        prompts = {
            tuple(TOKENIZER([template.format(noun)], length)[0].tolist()): noun
            for noun in nouns
            for template in IMAGENET_TEMPLATES
        }
        filled = min(count, len(nouns))
        stand_in = (0,) * length  # the caption, whose feature is taken at its full length
        for rows in samples:
            assert len({prompts[row] for row in rows[:filled]}) == filled
            assert rows[filled:] == (stand_in,) * (count - filled)
        assert {prompts[row] for rows in samples for row in rows[:filled]} == set(nouns)


@pytest.mark.slow  # every process imports TensorFlow and Beam
def test_several_processes_find_the_same_nouns(tmp_path, nltk_data, monkeypatch):
    monkeypatch.setenv("NLTK_DATA", str(nltk_data))
    for number in range(2):
        caption = "a dog and {} cats near the river"
        raw.webdataset(tmp_path / f"{number}.tar", [number], caption)
    one = prepare(tmp_path / "1", tmp_path / "*.tar", recipe=RECIPE)
    two = prepare(tmp_path / "2", tmp_path / "*.tar", recipe=RECIPE, workers=Workers(2))
    nouns = [[example["caption_nouns"].tolist() for example in examples(d)] for d in (one, two)]
    assert nouns[0] == nouns[1] == [[2, 1, 5, 1, 8, 1]] * 2


def test_corpus_that_is_there_without_nouns_is_refused(tmp_path, nltk_data):
    raw.webdataset(tmp_path / "0.tar", range(4))
    directory = prepare(tmp_path, tmp_path / "0.tar")
    assert "caption_nouns" not in examples(directory)[0]
    with pytest.raises(UserError, match="prepared with another --nouns; remove it"):
        prepare(tmp_path, tmp_path / "0.tar", recipe=RECIPE)
