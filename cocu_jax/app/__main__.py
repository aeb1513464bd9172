"""Segments photos into any classes, and shows curations, in a web browser.

    python -m cocu_jax.app --checkpoint openai/clip-vit-base-patch16
    python -m cocu_jax.app --checkpoint runs/cocu openai/clip-vit-base-patch32 \
        --curation runs/curate

The server listens on the loopback address unless --host is given. Uploads and results are stored in
a temporary directory. Files older than an hour are removed, and all files when the app stops.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

from cocu_jax.host_tensorflow import keep_off_accelerators  # isort: split

from etils import epath

from cocu_jax.app.curation import Curation
from cocu_jax.app.model import Model
from cocu_jax.errors import UserError
from cocu_jax.files import expand_path
from cocu_jax.segment import add_model_options
from cocu_jax.segmentation import DEFAULT_CHECKPOINT
from cocu_jax.stopping import StopRequest


def main(arguments: list[str] | None = None) -> int:
    """Runs the command until Ctrl-C or SIGTERM; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m cocu_jax.app",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        default=[],
        help="one or more models to choose from: training run or RUN@STEP, folder or hub id of a "
        f"GroupViT or a CLIP, or an authors' .pth or .pt file; default: {DEFAULT_CHECKPOINT}, "
        "unless --curation is given",
    )
    add_model_options(parser, clip_templates="subset")
    parser.add_argument("--curation", help="work directory of a curation to show")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all networks"
    )
    parser.add_argument(
        "--port", type=int, default=7860, help="port; default: 7860; 0: any free port"
    )
    options = parser.parse_args(arguments)
    keep_off_accelerators()
    try:
        serve(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def serve(options: argparse.Namespace) -> None:
    """Opens the models and the curation, and serves the page until a stop is requested.

    Raises:
        UserError: a model or the curation cannot be opened, or the address is in use.
    """
    curation = Curation.open(expand_path(options.curation)) if options.curation else None
    checkpoints = options.checkpoint or ([] if curation else [DEFAULT_CHECKPOINT])
    models = open_models(checkpoints, options.templates, options.crop, options.short_side)
    with tempfile.TemporaryDirectory(prefix="cocu_app_") as folder, StopRequest() as stop:
        os.environ |= {  # read when Gradio is imported
            "GRADIO_TEMP_DIR": folder,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        page, address = launch(models, curation, pathlib.Path(folder), options.host, options.port)
        print(f"The app is at {address}", flush=True)
        while not stop.requested:
            time.sleep(0.2)
        page.close(verbose=False)


def open_models(
    checkpoints: Sequence[str], templates: str = "", crop: int = 0, short_side: int = 0
) -> dict[str, Model]:
    """Opens the models.

    Args:
        checkpoints: any checkpoints that `Segmenter.load` opens.
        templates: see `Model`.
        crop: see `Model`.
        short_side: see `Model`.

    Returns:
        Models by the name that the page shows: the last part of a local path, or a hub id.

    Raises:
        UserError: a checkpoint does not exist, or a setting is not valid.
    """
    models = {}
    for checkpoint in dict.fromkeys(checkpoints):
        local = epath.Path(checkpoint.partition("@")[0]).exists()
        name = checkpoint.rstrip("/").rpartition("/")[2] if local else checkpoint
        name = name if name not in models else checkpoint
        models[name] = Model(checkpoint, templates=templates, crop=crop, short_side=short_side)
    return models


def launch(
    models: Mapping[str, Model],
    curation: Curation | None,
    folder: pathlib.Path,
    host: str,
    port: int,
) -> tuple:
    """Starts the server in threads of this process.

    Args:
        models: see `make_page`.
        curation: see `make_page`.
        folder: Gradio's temporary folder.
        host: address to listen on.
        port: port; 0: any free port.

    Returns:
        Gradio's page and its address.

    Raises:
        UserError: Gradio is not installed, or the address is in use.
    """
    try:
        from starlette.middleware import Middleware

        from cocu_jax.app.addresses import OwnAddressesOnly
        from cocu_jax.app.page import LOOKS, make_page
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "starlette"):
            raise
        raise UserError("the app needs Gradio; install it: pip install 'cocu-jax[app]'") from None
    from cocu_jax.app.view import MAX_BYTES

    page = make_page(models, curation, folder)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port or None,  # None: any free port
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            max_file_size=MAX_BYTES,
            footer_links=[],
            **LOOKS,
            app_kwargs={"middleware": [Middleware(OwnAddressesOnly)], "docs_url": None},
        )
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{host}:{port}: cannot listen on this address ({reason}); choose another --port"
        ) from None
    return page, address


if __name__ == "__main__":
    sys.exit(main())
