"""The page: its elements, and the actions of its buttons."""

import pathlib
from collections.abc import Callable, Mapping

import gradio as gr

from cocu_jax.app.curation import PAGE_SIZE, Curation
from cocu_jax.app.model import Model, Request, split_words
from cocu_jax.app.view import (
    classes_figure,
    groups_figures,
    legend,
    read_upload,
    write_downloads,
)
from cocu_jax.errors import UserError
from cocu_jax.segmentation import Segmentation

_KEPT_SECONDS = 3600  # age at which uploads and results are removed
_FONTS = ["system-ui", "sans-serif"]  # fonts of the visitor's computer; no font is downloaded
_HERE = pathlib.Path(__file__).parent
LOOKS = {  # arguments of `launch`
    "theme": gr.themes.Default(font=_FONTS, font_mono=["monospace"]),
    "css_paths": _HERE / "page.css",
    "head": f"<script>{(_HERE / 'page.js').read_text()}</script>",
}
_SET_STRENGTH = """(strength) => {
    document.documentElement.style.setProperty("--strength", strength);
    return [];
}"""


def make_page(
    models: Mapping[str, Model], curation: Curation | None, folder: pathlib.Path
) -> gr.Blocks:
    """Builds the page, with a tab for photos if there are models, and a tab for the curation.

    Args:
        models: models by the name that the page shows; the first is the default.
        curation: the curation to show; None: no tab for it.
        folder: directory for files to download: Gradio's temporary folder.
    """
    cleaning = (60, _KEPT_SECONDS)  # period of the clean-up and age of files to remove, in seconds
    with gr.Blocks(
        title="CoCu in JAX", analytics_enabled=False, delete_cache=cleaning, fill_width=True
    ) as page:
        gr.Markdown("# CoCu: segment with words")
        if models:
            with gr.Tab("Segment a photo"):
                _segment_tab(models, folder)
        if curation:
            with gr.Tab("Look through a curation"):
                _curation_tab(curation, page)
    for block in page.blocks.values():  # Gradio would download the contents of addresses
        block.async_move_resource_to_block_cache = _refusing_addresses(
            block.async_move_resource_to_block_cache
        )
    page.preprocess_data = _without_tracebacks(page.preprocess_data)
    return page.queue(max_size=64, default_concurrency_limit=1, api_open=False)


def _segment_tab(models: Mapping[str, Model], folder: pathlib.Path) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            photo = gr.File(label="Photo", elem_id="photo", height=140)
            words = gr.Textbox(
                label="Words", elem_id="words", placeholder="dog, grass, sky", max_lines=4
            )
            button = gr.Button("Segment", variant="primary", elem_id="segment")
            strength = gr.Slider(
                0, 1, 0.55, step=0.05, label="Strength of the colours", elem_id="strength"
            )
            with_background = gr.Checkbox(
                False, label="Background, where nothing fits well", elem_id="background"
            )
            threshold = gr.Slider(
                0, 1, 0.5, step=0.05, label="Background threshold", elem_id="threshold"
            )
            checkpoint, dense, refine = _model_choice(models)
        with gr.Column(scale=2, min_width=400):
            classes = gr.HTML(elem_id="classes")
            shares = gr.HTML(elem_id="shares")
            with gr.Row():
                labels_file = gr.DownloadButton(
                    "Label map (PNG)", interactive=False, elem_id="labels_file"
                )
                masks_file = gr.DownloadButton(
                    "Masks (RLE, JSON)", interactive=False, elem_id="masks_file"
                )
            groups = gr.HTML(elem_id="groups")

    def segment(path, text, has_background, lowest, name, variant, refined):
        request = Request(
            words=split_words(text),
            background=lowest if has_background else None,
            dense=variant or "",
            refine=bool(refined and models[name].variants),
        )
        result = segment_upload(models[name], path, request)
        files = write_downloads(result, folder)
        for file, download in zip(files, (labels_file, masks_file), strict=True):
            download.temp_files.add(file)  # so that Gradio's clean-up removes the file
        downloads = (gr.update(value=file, interactive=True) for file in files)
        return classes_figure(result), legend(result), *downloads, groups_figures(result)

    gr.on(
        [button.click, words.submit],
        _with_message(segment),
        [photo, words, with_background, threshold, checkpoint, dense, refine],
        [classes, shares, labels_file, masks_file, groups],
        api_visibility="private",
    )
    strength.change(None, [strength], None, js=_SET_STRENGTH, api_visibility="private")


def _model_choice(models: Mapping[str, Model]) -> tuple[gr.Dropdown, gr.Dropdown, gr.Checkbox]:
    """Controls for the checkpoint, and for the method and refinement of a CLIP."""
    names = list(models)
    first = models[names[0]].variants
    checkpoint = gr.Dropdown(
        names, value=names[0], label="Checkpoint", elem_id="checkpoint", visible=len(names) > 1
    )
    dense = gr.Dropdown(
        list(first),
        value=first[0] if first else None,
        label="Method",
        elem_id="method",
        visible=bool(first),
    )
    refine = gr.Checkbox(
        False, label="Follow the photo's edges (slow)", elem_id="refine", visible=bool(first)
    )

    def choices(name):
        variants = models[name].variants
        value = variants[0] if variants else None
        return (
            gr.update(choices=list(variants), value=value, visible=bool(variants)),
            gr.update(visible=bool(variants)),
        )

    checkpoint.change(
        choices, [checkpoint], [dense, refine], api_visibility="private", show_progress="hidden"
    )
    return checkpoint, dense, refine


def segment_upload(model: Model, path: str | None, request: Request) -> Segmentation:
    """Segments an uploaded file.

    Args:
        model: the model.
        path: path of the file; None if nothing was uploaded.
        request: class names and settings.

    Raises:
        UserError: the class names are not valid, or the file is not a readable image.
    """
    pixels = read_upload(path)
    return model.segment(pathlib.PurePath(path).name, pixels, request)


def _curation_tab(curation: Curation, page: gr.Blocks) -> None:
    starts = gr.State([0])  # first positions of the pages up to this one
    following = gr.State()
    with gr.Row():
        concept = gr.Textbox(
            label="Concept", elem_id="concept", placeholder="any; press Enter to search", scale=4
        )
        back = gr.Button("Back", elem_id="back", interactive=False)
        forward = gr.Button("Next", elem_id="next", interactive=False)
    status = gr.Markdown(elem_id="status")
    images = gr.HTML(elem_id="images")

    def show(name, visited):
        found = curation.find(name, visited[-1])
        shown, rest = found[:PAGE_SIZE], found[PAGE_SIZE:]
        numbers = f"Images {shown[0]:,} to {shown[-1]:,}" if shown else "No images"
        return (
            visited,
            rest[0] if rest else None,
            f"{numbers} of {curation.corpus.num_examples:,}",
            curation.page(shown),
            gr.update(interactive=len(visited) > 1),
            gr.update(interactive=bool(rest)),
        )

    outputs = [starts, following, status, images, back, forward]
    private = {"api_visibility": "private"}
    page.load(_with_message(lambda: show("", [0])), None, outputs, **private)
    concept.submit(_with_message(lambda name: show(name, [0])), [concept], outputs, **private)
    forward.click(
        _with_message(lambda name, visited, then: show(name, [*visited, then])),
        [concept, starts, following],
        outputs,
        **private,
    )
    back.click(
        _with_message(lambda name, visited: show(name, visited[:-1])),
        [concept, starts],
        outputs,
        **private,
    )


def _with_message(function: Callable) -> Callable:
    """Wraps a function so that a `UserError` becomes a message on the page."""

    def wrapped(*arguments):
        try:
            return function(*arguments)
        except UserError as error:
            raise gr.Error(str(error), title="Not done", print_exception=False) from None

    return wrapped


def _without_tracebacks(preprocess: Callable) -> Callable:
    """Wraps Gradio's preprocessing so that forged values give a message and no traceback."""

    async def checked(*arguments, **options):
        try:
            return await preprocess(*arguments, **options)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception:  # Gradio's components raise different errors for forged values
            raise gr.Error(
                "A value is not valid on this page; reload the page", print_exception=False
            ) from None

    return checked


def _refusing_addresses(move: Callable) -> Callable:
    """Wraps Gradio's download of inputs so that addresses are refused."""

    async def checked(path):
        if path is not None and "://" in str(path):
            raise gr.Error("Only files can be uploaded", print_exception=False)
        return await move(path)

    return checked
