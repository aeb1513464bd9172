"""The page: what is on it, and what its buttons do. Everything else is in the other modules."""

import pathlib
from collections.abc import Callable

import gradio as gr

from cocu_jax.app.curation import ROWS, Curation
from cocu_jax.app.model import Model, split_words
from cocu_jax.app.view import View, legend, read_upload, view_of, write_downloads
from cocu_jax.errors import UserError

_KEPT_SECONDS = 3600  # files and results of a page that nobody uses any more
_FONTS = ["system-ui", "sans-serif"]  # of the visitor's computer: none is fetched
THEME = gr.themes.Default(font=_FONTS, font_mono=["monospace"])
STYLE = """
.legend { list-style: none; padding: 0; margin: 0; columns: 12rem }
.legend li { display: flex; gap: .6rem; align-items: center; margin: 0 0 .3rem }
.legend span { width: 1.4rem; height: 1rem; border-radius: .3rem; flex: none }
.legend b { margin-left: auto }
.curation article { color: inherit } .curation .concepts span { color: #222 }
"""


def make_page(model: Model | None, curation: Curation | None, folder: pathlib.Path) -> gr.Blocks:
    """The page with a tab for each of the two that is given.

    Args:
        model: segments photos.
        curation: to look through.
        folder: where files for download are made; Gradio's own temporary folder.
    """
    cleaning = (60, _KEPT_SECONDS)  # how often, and files of which age, in seconds
    with gr.Blocks(
        title="CoCu in JAX", analytics_enabled=False, delete_cache=cleaning, fill_width=True
    ) as page:
        gr.Markdown("# CoCu: segment with words")
        if model:
            with gr.Tab("Segment a photo"):
                _segment_tab(model, folder)
        if curation:
            with gr.Tab("Look through a curation"):
                _curation_tab(curation, page)
    for block in page.blocks.values():  # Gradio would download inputs that are addresses
        block.async_move_resource_to_block_cache = _refusing_addresses(
            block.async_move_resource_to_block_cache
        )
    return page.queue(max_size=64, default_concurrency_limit=1, api_open=False)


def _segment_tab(model: Model, folder: pathlib.Path) -> None:
    view = gr.State(time_to_live=_KEPT_SECONDS)
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            photo = gr.File(label="Photo", elem_id="photo", height=140)
            words = gr.Textbox(
                label="Words", elem_id="words", placeholder="dog, grass, sky", max_lines=4
            )
            with_background = gr.Checkbox(False, label="Background, where nothing fits well")
            threshold = gr.Slider(
                0, 1, 0.5, step=0.05, label="Background threshold", elem_id="threshold"
            )
            strength = gr.Slider(0, 1, 0.55, step=0.05, label="Strength of the colours")
            button = gr.Button("Segment", variant="primary", elem_id="segment")
        with gr.Column(scale=2, min_width=400):
            overlay = gr.Image(
                label="Classes", elem_id="overlay", format="png", height=520, buttons=[]
            )
            shares = gr.HTML(elem_id="shares")
            with gr.Row():
                labels_file = gr.DownloadButton(
                    "Label map (PNG)", interactive=False, elem_id="labels_file"
                )
                masks_file = gr.DownloadButton(
                    "Masks (RLE, JSON)", interactive=False, elem_id="masks_file"
                )
            groups = gr.Gallery(
                label="Groups", elem_id="groups", visible=False, columns=2, format="png"
            )

    def segment(path, text, has_background, lowest, colour):
        result = segment_upload(model, path, text, lowest if has_background else None)
        kept, files = view_of(result), write_downloads(result, folder)
        for file, download in zip(files, (labels_file, masks_file), strict=True):
            download.temp_files.add(file)  # Gradio removes it in time
        return kept, legend(result), *_draw(kept, colour), *map(_download, files)

    pictures = [overlay, groups]
    outputs = [view, shares, *pictures, labels_file, masks_file]
    gr.on(
        [button.click, words.submit],
        _told(segment),
        [photo, words, with_background, threshold, strength],
        outputs,
        api_visibility="private",
    )
    strength.release(
        lambda kept, colour: _draw(kept, colour),
        [view, strength],
        pictures,
        api_visibility="private",
        show_progress="hidden",
    )


def segment_upload(model: Model, path: str | None, text: str, background: float | None):
    """The segmentation of an uploaded file.

    Args:
        model: the model.
        path: of the file; None if there is none.
        text: words with commas.
        background: threshold of a background class; None: no such class.

    Raises:
        UserError: the words do not fit, or the file is no image that can be read.
    """
    words = split_words(text)
    pixels = read_upload(path)
    return model.segment(pathlib.PurePath(path).name, pixels, words, background)


def _draw(view: View | None, strength: float) -> tuple:
    if view is None:  # nothing is segmented yet
        return gr.skip(), gr.skip()
    groups = view.group_pictures(strength)
    return view.overlay(strength), gr.update(value=groups, visible=bool(groups))


def _download(file: str) -> dict:
    return gr.update(value=file, interactive=True)


def _curation_tab(curation: Curation, page: gr.Blocks) -> None:
    starts = gr.State([0])  # of the pages before this one, and of this one
    following = gr.State()
    with gr.Row():
        concept = gr.Textbox(
            label="Concept", elem_id="concept", placeholder="any; press Enter to search", scale=4
        )
        back = gr.Button("Back", elem_id="back", interactive=False)
        forward = gr.Button("Next", elem_id="next", interactive=False)
    status = gr.Markdown(elem_id="status")
    rows = gr.HTML(elem_id="rows")

    def show(name, visited):
        found = curation.find(name, visited[-1])
        shown, rest = found[:ROWS], found[ROWS:]
        numbers = f"Rows {shown[0]:,} to {shown[-1]:,}" if shown else "No images"
        return (
            visited,
            rest[0] if rest else None,
            f"{numbers} of {curation.corpus.num_examples:,}",
            curation.page(shown),
            gr.update(interactive=len(visited) > 1),
            gr.update(interactive=bool(rest)),
        )

    outputs = [starts, following, status, rows, back, forward]
    private = {"api_visibility": "private"}
    page.load(_told(lambda: show("", [0])), None, outputs, **private)
    concept.submit(_told(lambda name: show(name, [0])), [concept], outputs, **private)
    forward.click(
        _told(lambda name, visited, then: show(name, [*visited, then])),
        [concept, starts, following],
        outputs,
        **private,
    )
    back.click(
        _told(lambda name, visited: show(name, visited[:-1])), [concept, starts], outputs, **private
    )


def _told(function: Callable) -> Callable:
    """The function; what its users did wrong becomes a message on their page."""

    def told(*arguments):
        try:
            return function(*arguments)
        except UserError as error:
            raise gr.Error(str(error), title="Not done", print_exception=False) from None

    return told


def _refusing_addresses(move: Callable) -> Callable:
    async def checked(path):
        if path is not None and "://" in str(path):
            raise gr.Error("Only files can be uploaded", print_exception=False)
        return await move(path)

    return checked
