"""Image-text corpora as TFDS datasets, from the files people have.

    python -m data_prep image_text cc3m --sources '/data/cc3m/{00000..00331}.tar' --data_dir ~/tfds

Reads WebDataset tars, img2dataset's TFRecords and Parquet files, YFCC100M's zips with its table,
lists of paths and captions (CSV, TSV, JSON lines with named columns), and folders and zips of
images with .txt or .json beside them. One file of the corpus is one unit of work and becomes one
shard; a stopped run goes on where it was.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import logging as stdlib_logging
import os
import shlex

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from cocu_jax.errors import UserError
from cocu_jax.files import remove_temporaries, write_file
from cocu_jax.quiet import quiet_libraries
from data_prep.gallery.gallery import DEFAULT_GALLERY, Gallery
from data_prep.gallery.nouns import load_tagger
from data_prep.image_text.assembly import REPORT_FILE, assemble
from data_prep.image_text.formats import Reading
from data_prep.image_text.images import ImageRecipe
from data_prep.image_text.readers import Unit
from data_prep.image_text.sources import find_units
from data_prep.image_text.units import Recipe, features
from data_prep.place_errors import place_error

_INFO_FILE = "dataset_info.json"
_MOVING_FILE = "moving"
_LAYOUT = 2  # of examples; units of another layout are not gone on with
_CORPORA = {
    "cc3m": "Conceptual Captions (Sharma et al., 2018)",
    "cc12m": "Conceptual 12M (Changpinyo et al., 2021)",
    "yfcc14m": "the English-captioned part of YFCC100M (Thomee et al., 2016; Radford et al., 2021)",
    "redcaps12m": "RedCaps (Desai et al., 2021)",
    "custom": "the user's own pairs of image and caption",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """What a corpus is prepared from, and how.

    Attributes:
        recipe: what is done to every pair.
        sources: files, patterns and folders of the raw corpus.
        yfcc: YFCC100M's table and the optional subset file, for zips.
        split: name of the split.
        workers: processes on this machine.
        beam_options: Beam's own flags.
    """

    recipe: Recipe
    sources: tuple[str, ...]
    yfcc: tuple[str, str] | None = None
    split: str = "train"
    workers: int = 1
    beam_options: tuple[str, ...] = ()


class ImageText(FileReaderBuilder):
    """Pairs of image and caption with the caption's tokens and concepts.

    A builder that is to prepare, not only to read, is made with a `preparation`.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=text) for name, text in _CORPORA.items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The corpus's files: python -m data_prep image_text --help"

    def __init__(self, *, preparation: Preparation | None = None, **options) -> None:
        self._preparation = preparation
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        # Of a dataset that is only read, TFDS takes features and metadata from its files.
        preparation = self._preparation
        recipe = preparation.recipe if preparation else Recipe(ImageRecipe(), Gallery.load())
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.builder_config.description,
            features=features(recipe.nouns),
            metadata=tfds.core.MetadataDict(**recipe.settings),
        )

    def download_and_prepare(self, **_) -> None:
        """Prepares the dataset, unless it is there; a stopped call goes on where it was.

        TFDS would write into a temporary directory that it deletes on any exception and renames at
        the end, which in a bucket copies everything. Here units are prepared beside the dataset and
        moved to their final names, and `dataset_info.json`, without which there is no dataset, is
        written last.
        """
        if not (self.data_path / _INFO_FILE).exists():
            self._download_and_prepare(None, None)

    def _download_and_prepare(self, dl_manager, download_config) -> None:
        # Reading a prepared dataset does not need Beam.
        from data_prep.image_text.beam import prepare_units, unit_target

        if self._preparation is None:
            raise UserError("image_text is prepared by: python -m data_prep image_text --help")
        wanted, scratch = self._preparation, self.scratch
        if wanted.recipe.nouns:
            load_tagger()  # what it lacks is told here, not by some worker
        scratch.mkdir(parents=True, exist_ok=True)
        units = self._units(scratch)
        template = tfds.core.ShardedFileTemplate(
            data_dir=self.data_path,
            dataset_name=self.name,
            split=wanted.split,
            filetype_suffix="tfrecord",
        )
        moving = scratch / _MOVING_FILE
        if not moving.exists():  # otherwise all units are prepared, and some have been moved
            prepare_units(units, wanted.recipe, scratch, wanted.workers, list(wanted.beam_options))
            self.data_path.mkdir(parents=True, exist_ok=True)
            for left in self.data_path.glob(f"{self.name}-*.tfrecord-*"):
                left.unlink()  # of a run whose scratch folder somebody has removed
            write_file(moving, "")
        targets = [unit_target(scratch, number) for number in range(len(units))]
        split = assemble(targets, template, wanted.split)
        self.info.set_splits(tfds.core.splits.SplitDict([split]))
        self._write_info(scratch / "info")

    def _write_info(self, aside: epath.Path) -> None:
        """Writes TFDS's files, each whole, first in a folder aside; `dataset_info.json` last."""
        aside.mkdir(exist_ok=True)
        self.info.write_to_directory(aside)
        remove_temporaries(self.data_path)
        for file in sorted(aside.iterdir(), key=lambda file: file.name == _INFO_FILE):
            write_file(self.data_path / file.name, file.read_bytes())

    @property
    def scratch(self) -> epath.Path:
        """Where the work of an unfinished run is."""
        return self.data_dir_root / self.name / f"{self.builder_config.name}.unfinished"

    def _units(self, scratch: epath.Path) -> tuple[Unit, ...]:
        """The units, found once: a run that goes on does not look through the sources again.

        Refuses to go on with units that were prepared in another way.
        """
        wanted, listing = self._preparation, scratch / "units.json"
        settings = [_LAYOUT, dataclasses.asdict(wanted.recipe), wanted.yfcc, wanted.split]
        settings += map(_absolute, wanted.sources)
        fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        if listing.exists():
            found = json.loads(listing.read_text())
            if found["settings"] == fingerprint:
                return tuple(Unit(**unit) for unit in found["units"])
        if listing.exists() or (scratch / "settings").exists():  # as it was called in layout 1
            raise UserError(
                f"{scratch}: begun with other sources or settings; "
                "use those again to go on, or remove the folder to begin anew"
            )
        units = find_units(wanted.sources, scratch, wanted.yfcc, wanted.recipe.reading)
        content = {"settings": fingerprint, "units": [dataclasses.asdict(unit) for unit in units]}
        write_file(listing, json.dumps(content))
        return units


def _absolute(source: str) -> str:
    """The same source from wherever the command is given."""
    return source if "://" in source else os.path.abspath(os.path.expanduser(source))


def prepare_image_text(name: str, preparation: Preparation, data_dir: str) -> str:
    """Prepares a corpus, unless it is there already.

    Args:
        name: of the corpus, one of `ImageText.BUILDER_CONFIGS` or any other.
        preparation: from what, and how.
        data_dir: where TFDS datasets are kept.

    Returns:
        The dataset's versioned directory.

    Raises:
        UserError: a source, a setting or the place is at fault.
        Stopped: an interrupt was requested; finished units are kept for the next run.
    """
    data_dir = os.path.expanduser(data_dir)
    try:
        epath.Path(data_dir).mkdir(parents=True, exist_ok=True)
        config = name if name in _CORPORA else tfds.core.BuilderConfig(name=name)
        builder = ImageText(config=config, data_dir=data_dir, preparation=preparation)
        builder.download_and_prepare()
        stored = tfds.builder_from_directory(builder.data_path).info.metadata
        settings = preparation.recipe.settings
        if differing := [name for name, value in settings.items() if stored.get(name) != value]:
            raise UserError(
                f"{builder.data_path}: is there already, prepared with another --{differing[0]}; "
                "remove it, or give another --name or --data_dir"
            )
        if builder.scratch.exists():  # the dataset is complete
            builder.scratch.rmtree()
    except OSError as error:
        raise place_error(error, data_dir) from None
    return str(builder.data_path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `python -m data_prep image_text`."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("corpus", choices=_CORPORA, help="which corpus it is")
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
        "--beam", default="", help='Beam\'s own flags, e.g. "--runner=DataflowRunner --project=…"'
    )


def run(arguments: argparse.Namespace) -> None:
    """Prepares what the flags name and prints where it is and what was dropped."""
    if arguments.workers < 1 or arguments.size < 1:
        raise UserError("--workers and --size: give 1 at least")
    image = ImageRecipe(arguments.resize, arguments.size)
    gallery = Gallery.load(arguments.gallery)
    reading = Reading(
        image_column=tuple(arguments.image_column),
        caption_column=tuple(arguments.caption_column),
        key_column=arguments.key_column,
        images=_absolute(arguments.images) if arguments.images else "",
        dotted_keys=arguments.dotted_keys,
    )
    recipe = Recipe(image, gallery, arguments.qualify_keys, arguments.nouns, reading)
    preparation = Preparation(
        recipe=recipe,
        sources=tuple(arguments.sources),
        yfcc=(arguments.yfcc, arguments.yfcc_subset) if arguments.yfcc else None,
        split=arguments.split,
        workers=arguments.workers,
        beam_options=tuple(shlex.split(arguments.beam)),
    )
    name = arguments.name or arguments.corpus
    stdlib_logging.getLogger().setLevel(stdlib_logging.ERROR)  # of Beam and its workers
    tfds.disable_progress_bar()
    # Other runners than Beam's own tell things here that matter.
    with contextlib.nullcontext() if arguments.beam else quiet_libraries():
        directory = epath.Path(prepare_image_text(name, preparation, arguments.data_dir))
    print(f"{directory}\n{(directory / REPORT_FILE).read_text()}")
