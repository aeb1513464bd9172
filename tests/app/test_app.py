"""The actions and the server of the app, tested without a browser."""

import asyncio
import base64
import dataclasses
import html
import io
import json
import os
import re
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from visitor import Visitor, file_data

from cocu_jax.app.__main__ import open_models
from cocu_jax.app.curation import PAGE_SIZE, Curation
from cocu_jax.app.model import MAX_WORDS, Model, Request, split_words
from cocu_jax.app.view import (
    MAX_BYTES,
    classes_figure,
    groups_figures,
    legend,
    read_upload,
    write_downloads,
)
from cocu_jax.errors import UserError
from cocu_jax.input.corpus import open_corpus, read_shard
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.segmentation import Segmenter
from eval.checkpoint import load_checkpoint
from eval.pictures import draw_overlay
from eval.programs import decode_program, encode_program
from eval.segmenter import make_segmenter

pytestmark = pytest.mark.usefixtures("small_tiles")

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(groupvit):
    return Model(groupvit)


@pytest.fixture(scope="module")
def curation(curated):
    return Curation.open(curated)


@pytest.mark.parametrize("kind", ["groupvit", pytest.param("clip", marks=pytest.mark.slow)])
def test_other_words_equal_a_model_loaded_with_them(kind, request):
    background = 0.4
    checkpoint = request.getfixturevalue(kind)
    app = Model(checkpoint, templates="simple")
    words = ("dog", "sea, lake", "sky")
    app.segment("before", PIXELS, Request(words[::-1], background))

    result = app.segment("photo", PIXELS, Request(words, background))
    truth = Segmenter.load(
        checkpoint, words, background=background, templates="simple", with_groups=True
    )(PIXELS)

    assert result.classes == truth.classes
    np.testing.assert_array_equal(result.labels, truth.labels)
    np.testing.assert_allclose(result.scores, truth.scores, rtol=1e-3, atol=1e-4)  # float16


@pytest.mark.parametrize("kind", ["groupvit", "clip"])
def test_other_words_and_thresholds_compile_nothing(kind, request):
    app = Model(request.getfixturevalue(kind))
    app.segment("first", PIXELS, Request(("dog", "sky"), 0.3))
    compiled = encode_program._cache_size(), decode_program._cache_size()

    results = [
        app.segment("later", PIXELS, Request(words, threshold))
        for words, threshold in ((("cat",), 0.3), (("a", "b", "c", "d", "e"), 0.0))
    ]

    assert (encode_program._cache_size(), decode_program._cache_size()) == compiled
    assert [len(result.classes) for result in results] == [2, 6]
    assert not (results[1].labels == 0).any()  # no score is below 0


def test_words_are_embedded_once(groupvit, monkeypatch):
    embedded, original = [], Segmenter.embed_class

    def embed(self, name):
        embedded.append(name)
        return original(self, name)

    monkeypatch.setattr(Segmenter, "embed_class", embed)
    app = Model(groupvit)
    for words in (("dog", "sky"), ("sky", "dog"), ("dog", "sky")):
        app.segment("photo", PIXELS, Request(words))

    assert sorted(embedded) == ["dog", "sky"]


def test_words_are_split_and_never_read_from_a_file(tmp_path):
    assert split_words(" dog ,\n green  grass,, ") == ("dog", "green grass")
    (tmp_path / "names.txt").write_text("secret")
    assert split_words(str(tmp_path / "names.txt")) == (str(tmp_path / "names.txt"),)
    many = ",".join(map(str, range(MAX_WORDS + 1)))
    for text in ("", " , ", None, "dog, dog", "a" * 300, many):
        with pytest.raises(UserError):
            split_words(text)


def test_uploads_are_photos_or_give_one_line_errors(photo, hostile, tmp_path):
    assert read_upload(str(photo)).shape == (64, 48, 3)
    for file, said in hostile.items():
        with pytest.raises(UserError, match=re.escape(said)) as raised:
            read_upload(str(file))
        assert "\n" not in str(raised.value) and str(file.parent) not in str(raised.value)
    large = tmp_path / "large.png"
    large.touch()
    os.truncate(large, 200_000_000)
    for path, said in ((str(large), "64 MB"), (None, "no photo"), ("/gone", "drop it again")):
        with pytest.raises(UserError, match=said):
            read_upload(path)


def test_the_layers_of_the_page_make_the_picture_of_the_command(model):
    """What a browser does with the layers, done with Pillow."""
    pixels = np.asarray(Image.fromarray(PIXELS).resize((1400, 1000)))
    result = model.segment("photo", pixels, Request(("dog", "<i>", "sky")))
    figure = classes_figure(result)
    sources = re.findall(r'src="data:image/(?:jpeg|png);base64,([^"]*)"', figure)
    photo, colours, outlines = (Image.open(io.BytesIO(base64.b64decode(s))) for s in sources)
    names = json.loads(html.unescape(re.search('data-names="([^"]*)"', figure)[1]))
    drawn = draw_overlay(result.picture, result.labels, result.colours, strength=0.3)
    shown = Image.blend(photo, colours.convert("RGB"), 0.3)
    shown.paste("white", mask=outlines.convert("RGBA").getchannel("A"))

    difference = np.abs(np.asarray(shown, np.float32) - np.asarray(drawn))
    assert shown.size == (960, 686) and difference.mean() < 3  # JPEG
    assert list(names.values()) == ["dog", "<i>", "sky"] and "<i>" not in figure
    column, row = 500, 300
    label = result.labels[round((row + 0.5) * 1000 / 686), round((column + 0.5) * 1400 / 960)]
    colour = bytes(colours.convert("RGB").getpixel((column, row))).hex()
    assert names[colour] == result.classes[label]
    assert groups_figures(result).count("<figure") == 2


def test_a_clip_uses_the_chosen_method(clip):
    app = Model(clip, templates="simple")
    words = ("dog", "sky", "sea", "sand")
    usual, (model, _) = Segmenter.load(clip, words, templates="simple"), load_checkpoint(clip)

    assert set(app.variants) == {"naclip", "clip", "maskclip", "sclip", "clearclip"}
    for request in (Request(words), Request(words, dense="maskclip"), Request(words, refine=True)):
        result = app.segment("photo", PIXELS, request)
        protocol = dataclasses.replace(
            usual.engine.protocol, dense=request.dense or "naclip", pamr=request.refine
        )
        alone = Segmenter(words, make_segmenter(model, words, protocol, Tokenizer()))
        np.testing.assert_array_equal(result.labels, alone(PIXELS).labels)
        assert groups_figures(result) == ""
    with pytest.raises(UserError, match="4 megapixels"):
        app.segment("large", np.zeros((2001, 2000, 3), np.uint8), Request(words, refine=True))


def test_checkpoints_are_chosen_by_name(groupvit, clip, tmp_path):
    (tmp_path / "groupvit").symlink_to(groupvit)
    models = open_models([groupvit, clip, groupvit, str(tmp_path / "groupvit")])

    assert list(models) == ["groupvit", "clip", str(tmp_path / "groupvit")]


def test_legend_escapes_and_files_agree(model, tmp_path):
    result = model.segment("../../<i>.png", PIXELS, Request(("<script>", "sky")))
    labels, masks = write_downloads(result, tmp_path)

    assert "<script>" not in legend(result) and "&lt;script&gt;" in legend(result)
    np.testing.assert_array_equal(np.asarray(Image.open(labels)), result.labels)
    areas = {m["category_id"]: m["area"] for m in json.loads(open(masks).read())["annotations"]}
    assert areas == {c: n for c, n in enumerate(np.bincount(result.labels.ravel())) if n}
    assert all(os.path.realpath(file).startswith(str(tmp_path)) for file in (labels, masks))


def test_every_image_of_the_corpus_is_shown_once(curation):
    corpus, rows, start = curation.corpus, [], 0
    while start is not None:
        found = curation.find("", start)
        rows += found[:PAGE_SIZE]
        start = found[PAGE_SIZE] if len(found) > PAGE_SIZE else None
    page = curation.page(rows[11:17])
    captions = [
        example["caption"].decode()
        for shard in range(corpus.num_shards)
        for example in read_shard(corpus, shard).as_numpy_iterator()
    ]

    assert rows == list(range(51))
    shown = re.findall(r"<div><p>(.*?)</p>", page)
    assert shown == captions[11:17]
    assert page.count("<article>") == 6 and page.count("<img") == 6 * 7
    assert "unreadable" not in page


def test_curation_is_searched_by_concept(curation, curated):
    """Compares with the TFDS annotations, which the app does not read."""
    annotations = open_corpus(f"{curated}/annotations", "train")
    number = curation.gallery.index("dog")
    truth = [
        row
        for row, example in enumerate(
            example
            for shard in range(annotations.num_shards)
            for example in read_shard(annotations, shard).as_numpy_iterator()
        )
        if number in example["concepts"]
    ]

    found, start = [], 0
    while rows := curation.find(" Dog", start):
        found += rows[:PAGE_SIZE]
        start = found[-1] + 1

    assert found == truth and truth
    with pytest.raises(UserError, match="similar: cat"):
        curation.find("ca", 0)


def test_other_directories_are_refused(tmp_path):
    with pytest.raises(UserError, match="not the work directory of a curation"):
        Curation.open(str(tmp_path))


@pytest.fixture(scope="module")
def served(tmp_path_factory, model):
    """The app's server in this process: its address and its folder."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        from cocu_jax.app.__main__ import launch

        page, address = launch({"groupvit": model}, None, folder, "127.0.0.1", 0)
        yield address, folder
        page.close(verbose=False)


def _status(address, body=None, kind=""):
    request = urllib.request.Request(address, body, {"Content-Type": kind} if body else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def test_no_path_and_no_address_is_served_but_the_apps_own(served):
    address, folder = served
    outside = folder.parent / "outside.txt"
    outside.write_text("secret")
    for path in (f"file={outside}", f"file={folder}/../outside.txt", "file=pyproject.toml",
                 "file=https://example.com/", "file=%68ttp://127.0.0.1:1/",
                 "proxy=https://huggingface.co/x"):  # fmt: skip
        assert _status(f"{address}gradio_api/{path}") == 403, path
    assert _status(address) == 200


def test_uploads_past_the_limit_are_refused_and_not_kept(served):
    address, folder = served
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head + bytes(MAX_BYTES + 1_000_000) + b"\r\n--b--\r\n"

    assert _status(f"{address}gradio_api/upload", body, "multipart/form-data; boundary=b") == 413
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 1000


def test_eight_users_at_once_get_their_own_answers(served, model, tmp_path):
    """Eight clients upload, wait and download at the same time; their results are not mixed up."""
    photos = [np.roll(PIXELS, i, axis=1) for i in range(8)]
    words = [tuple(f"word {i % 3 + j}" for j in range(2)) for i in range(8)]

    def visit(number):
        file = tmp_path / f"photo {number}.png"
        Image.fromarray(photos[number]).save(file)
        visitor = Visitor(served[0])
        page = visitor.segment(visitor.upload(file), ", ".join(words[number]))
        return page, visitor.fetch(page["labels_file"])

    with ThreadPoolExecutor(8) as pool:
        visits = list(pool.map(visit, range(8)))

    for number, (page, labels) in enumerate(visits):
        truth = model.segment("", photos[number], Request(words[number]))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(labels))), truth.labels)
        assert page["shares"] == legend(truth)
        assert page["classes"] == classes_figure(truth)


def test_hostile_requests_get_one_message_each(served, hostile, photo, tmp_path, capfd):
    """Uploads, forged values and forged paths give one-line messages and no traceback."""
    visitor, secret = Visitor(served[0]), tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    good = visitor.upload(photo)
    told = {visitor.segment(visitor.upload(file)): said for file, said in hostile.items()}
    forged = [
        visitor.segment(file_data(path, "photo.png"))
        for path in (
            str(secret),
            "/etc/passwd",
            f"{served[1]}/../secret.png",
            "https://x.org/a.png",
        )
    ]
    forged += [visitor.segment(good, *values) for values in (
        (5,), (["dog"],), ("dog", True, "high"), ("dog", True, 7), ("dog", False, 0.5, "other"),
        ("dog", False, 0.5, "groupvit", "other"),
    )]  # fmt: skip
    forged += [visitor.segment(value) for value in ("photo.png", 5, [good, good], {"path": 5})]

    assert all(said in message for message, said in told.items())
    for message in (*told, *(m for m in forged if not isinstance(m, dict))):
        assert "\n" not in message and str(tmp_path) not in message, message
    assert sum(isinstance(m, dict) for m in forged) <= 2, forged  # 5 and a list are words, too
    out = capfd.readouterr()
    assert "Traceback" not in out.out + out.err
    assert isinstance(visitor.segment(good), dict)  # and goes on


def test_the_server_downloads_nothing_for_a_visitor(model, tmp_path, monkeypatch):
    """An input can be JSON that looks like a Gradio file with an address as its path."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    import gradio as gr
    from gradio.processing_utils import async_move_files_to_cache

    from cocu_jax.app.page import make_page

    page = make_page({"groupvit": model}, None, tmp_path)
    for address in ("https://example.com/a.png", "http://169.254.169.254/"):
        value = {"path": address, "meta": {"_type": "gradio.FileData"}}
        for block in list(page.blocks.values()):
            with pytest.raises(gr.Error, match="Only files can be uploaded"):
                asyncio.run(async_move_files_to_cache(value, block, check_in_upload_folder=True))
