"""Captions and images from the web are repaired where they can be, and refused where not."""

import io

import numpy as np
import pytest
import raw_corpora as raw
import tensorflow as tf
from PIL import Image

from cocu_jax.input import images
from cocu_jax.input.images import UnreadableImage
from data_prep.image_text.captions import clean_caption, count_words
from data_prep.image_text.images import ImageRecipe, prepare_image


@pytest.mark.parametrize(
    ("raw_text", "cleaned"),
    [
        ("a dog", "a dog"),
        ("  a \t dog\n", "a dog"),
        ("a+boat+at+sea", "a boat at sea"),
        ("a%20boat+at%20sea", "a boat at sea"),
        ("caf%C3%A9 au lait", "café au lait"),
        ("C++ and salt + pepper", "C++ and salt + pepper"),
        ("100%de rabais, 50% off", "100%de rabais, 50% off"),
        ("<b>bold</b> <a href='x'>link</a><br/>end", "bold link end"),
        ("5 < 6 > 4 and <3", "5 < 6 > 4 and <3"),
        ("Tom &amp; Jerry &lt;3", "Tom & Jerry <3"),
        ("<PERSON> on stage with <PERSON>", "person on stage with person"),
        ("schÃ¶n", "schön"),
        ("don’t “quote”", 'don\'t "quote"'),
        ("日本 語", "日本 語"),
        ("a<b and c>d", "a<b and c>d"),
        ("x <y> and <unk> stay", "x <y> and <unk> stay"),
        ("<a href=\"x\" target=_blank>a</a> <!-- no\n--> b <p class='c' />", "a b"),
        ("an <!-- open comment", "an <!-- open comment"),
        ("", ""),
    ],
)
def test_caption_is_cleaned(raw_text, cleaned):
    assert clean_caption(raw_text) == cleaned


@pytest.mark.parametrize(
    "text",
    ["<!--", "<!-- -", "<a ", "<a b=", "<", "+a", "%20", "&lt;", "<a b='", "-->", "<!-->", "<a/"],
)
def test_long_captions_are_cleaned_in_linear_time(text):
    """Where time grew with the square of the length, 256 kB took minutes."""
    clean_caption("é" + text * ((1 << 18) // len(text)))


@pytest.mark.parametrize(
    ("caption", "words"),
    [("", 0), ("dog", 1), ("dog -", 1), ("a dog", 2), ("- . !", 0), ("3 d", 2)]
    + [
        ("犬", 1),
        ("小狗", 1),
        ("两只狗", 2),
        ("一只黑狗在草地上奔跑", 5),
        ("いぬ", 1),
        ("!、。", 0),
    ]
    + [("犬がソファで寝ている", 4), ("สุนัข", 1), ("สุนัขวิ่งบนชายหาด", 3), ("Tシャツ", 2), ("été", 1)],
)
def test_words_have_a_letter_or_a_digit_or_are_counted_by_letters(caption, words):
    assert count_words(caption) == words


def pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(int)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_sound_jpeg_keeps_its_bytes(mode):
    encoded = raw.picture(0, mode=mode)
    assert prepare_image(encoded, ImageRecipe()) == encoded


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("PNG", "RGB"),
        ("PNG", "L"),
        ("PNG", "P"),
        ("WEBP", "RGB"),
        ("GIF", "P"),
        ("BMP", "RGB"),
        ("JPEG", "CMYK"),
    ],
)
def test_other_images_become_rgb_jpegs_of_the_same_picture(kind, mode):
    encoded = raw.picture(1, kind=kind, mode=mode)
    jpeg = prepare_image(encoded, ImageRecipe())
    assert Image.open(io.BytesIO(jpeg)).format == "JPEG"
    assert tf.io.decode_image(jpeg, channels=3).shape == (32, 48, 3)
    assert np.abs(pixels(jpeg) - pixels(encoded)).mean() < 6  # chroma is stored at half size


def test_16_bit_grey_keeps_its_brightness():
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(file, "PNG")
    assert np.abs(pixels(prepare_image(file.getvalue(), ImageRecipe())) - 0x80).max() <= 1


def test_transparent_pixels_become_white():
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(file, "PNG")
    assert pixels(prepare_image(file.getvalue(), ImageRecipe())).min() == 255


def test_image_lying_on_its_side_is_set_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    upright = prepare_image(raw.picture(2, exif=exif), ImageRecipe())
    turned = np.rot90(pixels(raw.picture(2)), -1)
    assert pixels(upright).shape == (48, 32, 3)
    assert np.abs(pixels(upright) - turned).mean() < 6


@pytest.mark.parametrize("size", [(400, 100), (100, 400), (1000, 700), (7, 5), (600, 1)])
def test_squares_equal_a_plain_resize(size):
    encoded = raw.picture(3, size)
    whole = Image.open(io.BytesIO(encoded)).convert("RGB")
    squashed = np.asarray(whole.resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(pixels(prepare_image(encoded, ImageRecipe("resize", 64))) - squashed).mean() < 3

    padded = pixels(prepare_image(encoded, ImageRecipe("pad", 64)))
    width, height = (max(1, round(length * 64 / max(size))) for length in size)
    left, top = (64 - width) // 2, (64 - height) // 2
    expected = np.full((64, 64, 3), 255)
    expected[top : top + height, left : left + width] = np.asarray(
        whole.resize((width, height), Image.Resampling.BICUBIC)
    )
    assert np.abs(padded - expected).mean() < 3


@pytest.mark.parametrize("resize", ["none", "pad", "resize"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_cut_off_image_is_refused(kind, resize):
    encoded = raw.picture(4, (300, 200), kind)
    for length in (0, 3, 40, len(encoded) // 2, len(encoded) * 9 // 10):
        with pytest.raises(UnreadableImage):
            prepare_image(encoded[:length], ImageRecipe(resize, 32))


def test_noise_never_raises_anything_else():
    rng = np.random.default_rng(0)
    encoded = np.frombuffer(raw.picture(5), np.uint8)
    for _ in range(300):
        damaged = encoded.copy()
        damaged[rng.integers(0, len(damaged), 8)] = rng.integers(0, 256, 8)
        try:
            prepare_image(damaged.tobytes(), ImageRecipe("pad", 32))
        except UnreadableImage:
            pass


def test_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 500)
    with pytest.raises(UnreadableImage, match="is more than 500 pixels"):
        prepare_image(raw.picture(6), ImageRecipe())
