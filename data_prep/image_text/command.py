"""Image-text corpora as TFDS datasets, from the files people have.

    python -m data_prep image_text cc3m --sources '/data/cc3m/{00000..00331}.tar' --data_dir ~/tfds

Reads WebDataset tars, img2dataset's TFRecords and Parquet files, YFCC100M's zips with its table,
lists of paths and captions (CSV, TSV, JSON lines with named columns), and folders and zips of
images with .txt or .json beside them. One file of the corpus is one unit of work; a stopped run
goes on where it was.
"""

import argparse
import contextlib
import logging as stdlib_logging
import os
import shlex

import tensorflow_datasets as tfds
from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.quiet import quiet_libraries
from data_prep.dataset_names import check_name
from data_prep.gallery.gallery import DEFAULT_GALLERY, Gallery
from data_prep.image_text.assembly import REPORT_FILE
from data_prep.image_text.formats import Reading
from data_prep.image_text.images import ImageRecipe
from data_prep.image_text.prepare import CORPORA, Preparation, absolute, prepare_image_text
from data_prep.image_text.units import Recipe
from data_prep.image_text.work import Workers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `python -m data_prep image_text`."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("corpus", choices=CORPORA, help="which corpus it is")
    parser.add_argument("--sources", nargs="+", required=True, help="files, patterns, folders")
    parser.add_argument("--data_dir", required=True, help="where TFDS datasets are kept")
    parser.add_argument("--images", default="", help="for lists: folder where their paths start")
    parser.add_argument(
        "--image_column",
        nargs="+",
        default=[],
        help="column of tables and lists, or ending in tars, that holds the image",
    )
    parser.add_argument(
        "--caption_column",
        nargs="+",
        default=[],
        help="the same for captions, also a field of .json; of several, all are taken",
    )
    parser.add_argument("--key_column", default="", help="column of tables and lists with keys")
    parser.add_argument(
        "--only_splits",
        nargs="+",
        default=[],
        help="of Karpathy's files and lists with a column `split`: which, e.g. train restval",
    )
    parser.add_argument(
        "--dotted_keys",
        action="store_true",
        help="keys in tars end at the last dot of a name instead of the first",
    )
    parser.add_argument("--name", help="another name for the corpus, e.g. of your own one")
    parser.add_argument("--split", default="train", help="name of the split (default: train)")
    parser.add_argument(
        "--resize",
        choices=("none", "pad", "resize"),
        default="none",
        help="make images square: with white borders, or whatever the aspect (default: none)",
    )
    parser.add_argument("--size", type=int, default=256, help="side of the square (default: 256)")
    parser.add_argument("--gallery", default=str(DEFAULT_GALLERY), help="JSON file of concepts")
    parser.add_argument(
        "--qualify_keys",
        action="store_true",
        help="put the file's name before each key: for corpora whose keys start anew in every file",
    )
    parser.add_argument(
        "--nouns",
        action="store_true",
        help="store the nouns of captions, too, for data.concepts=nouns: needs NLTK and its tagger",
    )
    parser.add_argument("--yfcc", default="", help="YFCC100M's table, also as .bz2")
    parser.add_argument("--yfcc_subset", default="", help="yfcc100m_subset_data.tsv")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)"
    )
    parser.add_argument(
        "--order",
        choices=("shuffled", "source"),
        default="shuffled",
        help="of the examples: all of them shuffled, or as in the sources (default: shuffled)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle (default: 0)")
    parser.add_argument(
        "--cluster", default="", help="address of a Dask scheduler, e.g. tcp://10.0.0.2:8786"
    )
    parser.add_argument(
        "--beam", default="", help='Beam\'s own flags, e.g. "--runner=DataflowRunner --project=…"'
    )


def run(arguments: argparse.Namespace) -> None:
    """Prepares what the flags name and prints where it is and what was dropped."""
    if arguments.workers < 1 or arguments.size < 1:
        raise UserError("--workers and --size: give 1 at least")
    check_name(arguments.split, "--split")
    if not 0 <= arguments.seed < 1 << 64:
        raise UserError(f"--seed {arguments.seed}: give a whole number from 0 on, below 2^64")
    if arguments.beam and arguments.cluster:
        raise UserError("--beam and --cluster: give one of them")
    image = ImageRecipe(arguments.resize, arguments.size)
    gallery = Gallery.load(arguments.gallery)
    reading = Reading(
        image_column=tuple(arguments.image_column),
        caption_column=tuple(arguments.caption_column),
        key_column=arguments.key_column,
        images=absolute(arguments.images) if arguments.images else "",
        only_splits=tuple(arguments.only_splits),
        dotted_keys=arguments.dotted_keys,
    )
    seed = arguments.seed if arguments.order == "shuffled" else None
    recipe = Recipe(image, gallery, arguments.qualify_keys, arguments.nouns, reading, seed)
    try:
        beam = tuple(shlex.split(arguments.beam))
    except ValueError as error:
        raise UserError(f"--beam {arguments.beam}: {error}; close what was opened") from None
    workers = Workers(arguments.workers, beam, arguments.cluster)
    preparation = Preparation(
        recipe=recipe,
        sources=tuple(arguments.sources),
        yfcc=(arguments.yfcc, arguments.yfcc_subset) if arguments.yfcc else None,
        split=arguments.split,
        workers=workers,
    )
    name = arguments.corpus if arguments.name is None else check_name(arguments.name)
    stdlib_logging.getLogger().setLevel(stdlib_logging.ERROR)  # of Beam and its workers
    tfds.disable_progress_bar()
    # Clusters, and other runners than Beam's own, tell things here that matter.
    with contextlib.nullcontext() if workers.are_elsewhere else quiet_libraries():
        directory = epath.Path(prepare_image_text(name, preparation, arguments.data_dir))
    print(f"{directory}\n{(directory / REPORT_FILE).read_text()}")
