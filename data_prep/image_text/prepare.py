"""Image-text corpora as TFDS datasets: from raw files to the dataset's directory."""

import dataclasses
import functools
import hashlib
import json
import os

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from cocu_jax.errors import UserError
from cocu_jax.files import remove_temporaries, write_file
from data_prep.gallery.gallery import Gallery
from data_prep.gallery.nouns import load_tagger
from data_prep.image_text.assembly import assemble
from data_prep.image_text.finished_units import FinishedUnits
from data_prep.image_text.images import ImageRecipe
from data_prep.image_text.readers import Unit
from data_prep.image_text.records import unit_files, unit_target
from data_prep.image_text.sources import find_units
from data_prep.image_text.units import Recipe, features, unit_preparer
from data_prep.image_text.work import STOP_FILE, Work, Workers, do_work
from data_prep.place_errors import place_error

_INFO_FILE = "dataset_info.json"
_MOVING_FILE = "moving"
_LAYOUT = 3  # of examples; units of another layout are not gone on with
CORPORA = {
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
        workers: who prepares it.
    """

    recipe: Recipe
    sources: tuple[str, ...]
    yfcc: tuple[str, str] | None = None
    split: str = "train"
    workers: Workers = Workers()


class ImageText(FileReaderBuilder, skip_registration=True):
    """Pairs of image and caption with the caption's tokens and concepts.

    Not registered: `tfds.load("image_text")` reads what is on the disk, with or without this class.

    A builder that is to prepare, not only to read, is made with a `preparation`.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=text) for name, text in CORPORA.items()
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
        targets = [unit_target(scratch, number) for number in range(len(units))]
        moving = scratch / _MOVING_FILE
        if not moving.exists():  # otherwise all units are prepared, and some have been moved
            self._prepare_units(units, targets)
            self.data_path.mkdir(parents=True, exist_ok=True)
            for left in self.data_path.glob(f"{self.name}-*.tfrecord-*"):
                left.unlink()  # of a run whose scratch folder somebody has removed
            write_file(moving, FinishedUnits.load(targets).first_repeated_key())
        finished, shuffled = FinishedUnits.load(targets), wanted.recipe.shuffle_seed is not None
        split = assemble(finished, template, moving.read_text(), shuffled, wanted.workers)
        self.info.set_splits(tfds.core.splits.SplitDict([split]))
        self._write_info(scratch / "info")

    def _prepare_units(self, units: tuple[Unit, ...], targets: list[epath.Path]) -> None:
        """Prepares all units that are not prepared yet."""
        recipe, scratch = self._preparation.recipe, self.scratch
        remove_temporaries(scratch)
        work = Work(
            title="Preparing",
            noun="files",
            make=functools.partial(unit_preparer, recipe),
            tasks=[(unit, str(target)) for unit, target in zip(units, targets, strict=True)],
            folder=scratch,
            files=[tuple(file.name for file in unit_files(target)) for target in targets],
        )
        do_work(work, self._preparation.workers, scratch / STOP_FILE)

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
        settings += map(absolute, wanted.sources)
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


def absolute(source: str) -> str:
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
    data_dir = absolute(data_dir)  # workers may run in another folder
    try:
        epath.Path(data_dir).mkdir(parents=True, exist_ok=True)
        config = name if name in CORPORA else tfds.core.BuilderConfig(name=name)
        builder = ImageText(config=config, data_dir=data_dir, preparation=preparation)
        builder.download_and_prepare()
        info = tfds.builder_from_directory(builder.data_path).info
        stored = {"order": "source"} | dict(info.metadata)  # datasets had no other order once
        settings = preparation.recipe.settings
        if differing := [name for name, value in settings.items() if stored.get(name) != value]:
            raise UserError(
                f"{builder.data_path}: is there already, prepared with another --{differing[0]}; "
                "remove it, or give another --name or --data_dir"
            )
        default = builder.data_path.parent.parent / ".config" / "metadata.json"
        if not default.exists():  # `tfds.load("image_text")` takes the corpus that is named there
            write_file(default, json.dumps({"default_config_name": builder.builder_config.name}))
        if builder.scratch.exists():  # the dataset is complete
            builder.scratch.rmtree()
    except OSError as error:
        raise place_error(error, data_dir) from None
    return str(builder.data_path)
