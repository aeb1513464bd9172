"""What a curation run works on: checked inputs, this process's share, and where files go."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping

import jax
import ml_collections
import numpy as np
from etils import epath

from cocu_jax.curation.config import check_config
from cocu_jax.curation.embed import parameters_hash
from cocu_jax.curation.images import check_processing
from cocu_jax.curation.storage import shard_files
from cocu_jax.curation.storage.given import GivenEmbeddings, open_given
from cocu_jax.curation.storage.staging import Staging
from cocu_jax.errors import UserError
from cocu_jax.input.corpus import Corpus, open_corpus
from cocu_jax.input.corpus_part import part_of, split_and_part
from cocu_jax.models.clip import CLIP
from cocu_jax.models.groupvit import GroupViT
from cocu_jax.models.siglip import Siglip
from cocu_jax.models.weights.checkpoint import Checkpoint, open_checkpoint
from cocu_jax.models.weights.image_processing import ImageProcessing
from cocu_jax.models.weights.text_tokens import Tokenize
from cocu_jax.workdir import open_workdir

VERSION = 2  # of the annotations' meaning; raise it when the same inputs give other annotations

# Fields that do not change the result, and so may differ between runs of one work directory.
_FREE_FIELDS = ("share", "page_images", "search_rows", "embeddings", "staging", "staging_gb")


@dataclasses.dataclass(frozen=True)
class Share:
    """The shards of one of `count` processes: those with number % count == index."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Reads "1/4"; empty: this process as JAX numbers it."""
        if not text:
            return cls(jax.process_index(), jax.process_count())
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise UserError(f'config.share={text!r} is not like "0/4", the first of four processes')
        return cls(int(index), int(count))

    @property
    def first(self) -> bool:
        """Whether this process does what is done once."""
        return self.index == 0

    def owns(self, shard: int) -> bool:
        """Whether the shard is this process's."""
        return shard % self.count == self.index


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked run.

    Attributes:
        config: see `configs/curate.py`.
        workdir: of this run.
        corpus: what is annotated.
        index: where neighbours are looked for.
        gallery: all concepts, by id.
        clip: the model.
        processing: how it wants its images.
        tokenize: maps texts to token ids.
        embeddings: directory of all that depends on the model, the gallery and its prompt.
        provenance: what the annotations belong to; saved with them.
        share: of this process.
        given: image embeddings that are read instead of computed.
        staging: local copies of a bucket's files.
    """

    config: ml_collections.ConfigDict
    workdir: epath.Path
    corpus: Corpus
    index: tuple[Corpus, ...]
    gallery: tuple[str, ...]
    clip: CLIP | Siglip
    processing: ImageProcessing
    tokenize: Tokenize
    embeddings: epath.Path
    provenance: dict
    share: Share
    given: GivenEmbeddings | None
    staging: Staging

    @property
    def identity(self) -> str:
        """Hash of all that the annotations depend on."""
        return _hash(self.provenance)

    @property
    def concepts_file(self) -> epath.Path:
        """Text embeddings of the gallery."""
        return self.embeddings / "concepts.safetensors"

    @property
    def concepts_identity(self) -> dict[str, str]:
        """What the text embeddings were computed from."""
        return {"made_from": self.embeddings.name}

    def corpora(self) -> list[Corpus]:
        """All corpora, each once."""
        return list({corpus.fingerprint: corpus for corpus in (*self.index, self.corpus)}.values())

    def embedding_file(self, corpus: Corpus, shard: int) -> epath.Path:
        """Embeddings of a shard; the same file whichever part of a corpus has the shard."""
        fingerprint, number = corpus.in_whole(shard)
        return self.embeddings / fingerprint / f"{number:05d}.safetensors"

    def open_arrays(self, path: epath.Path) -> dict[str, np.ndarray]:
        """A file's arrays, memory-mapped, from a copy on disk where the file is in a bucket."""
        return shard_files.open_arrays(self.staging.local(path))

    def embedding_identity(self, corpus: Corpus, shard: int) -> dict[str, str]:
        """What a shard's embeddings were computed from."""
        fingerprint, number = corpus.in_whole(shard)
        return {**self.concepts_identity, "corpus": fingerprint, "shard": str(number)}

    def embedding_shards(self, own: bool) -> Iterator[tuple[Corpus, int]]:
        """Shards of all corpora that this process embeds, or those of the other processes."""
        met = set()
        for corpus in self.corpora():
            for shard in range(corpus.num_shards):
                whole = corpus.in_whole(shard)
                if whole not in met and self.share.owns(whole[1]) == own:
                    yield corpus, shard
                met.add(whole)


def make_plan(config: ml_collections.ConfigDict, workdir: str) -> Plan:
    """Opens and checks everything that a run needs.

    Raises:
        UserError: a field makes no sense, or an input is missing or does not fit the others.
    """
    check_config(config)
    share = Share.parse(config.share)
    directory = open_workdir(workdir, config, _FREE_FIELDS, writer=share.first)
    corpus = _open(config.corpus.directory, config.corpus.split)
    index = tuple(_open_part(entry) for entry in config.index) or (corpus,)
    gallery = tuple(corpus.metadata["gallery"])
    for other in index:
        if tuple(other.metadata["gallery"]) != gallery:
            raise UserError(
                f"{other.directory}: has another concept gallery than {corpus.directory}; "
                "prepare both with the same gallery"
            )
    shards = [other.in_whole(shard) for other in index for shard in range(other.num_shards)]
    if len(set(shards)) < len(shards):
        raise UserError("config.index: two entries share shards; an image may be there only once")
    dtype = config.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    opened = open_checkpoint(config.clip, dtype)
    if isinstance(opened.model, GroupViT):
        raise UserError(f"config.clip={config.clip}: is a GroupViT; give a CLIP, e.g. OpenAI's")
    clip, processing = opened.model, opened.processing
    check_processing(processing, config.clip)
    checkpoint = parameters_hash(clip)
    made_from = {
        "clip": checkpoint,
        "activation": [clip.config.activation, clip.config.text.activation],
        "dtype": dtype,
        "images": dataclasses.asdict(processing),
        "gallery": gallery,
        "prompt": config.prompt,
        "match": config.match,
        "version": VERSION,
        **_tokenizer(opened),
    }
    staging = Staging(config.staging, int(config.staging_gb * 1e9))
    given = None
    if config.image_embeddings:
        given = open_given(config.image_embeddings, staging.local)
        made_from["image_embeddings"] = given.fingerprint
    fields = ("prompt", "neighbours", "match", "capacity", "clusters", "recall", "seed")
    if config.search == "clustered":
        fields += ("search", "cells", "cell_recall")
    root = config.embeddings or directory / "embeddings"
    return Plan(
        config=config,
        workdir=directory,
        corpus=corpus,
        index=index,
        gallery=gallery,
        clip=clip,
        processing=processing,
        tokenize=opened.text_tokenizer(),
        embeddings=epath.Path(root) / _hash(made_from),
        provenance={
            "gallery": list(gallery),
            "corpus": corpus.fingerprint,
            "index": [other.fingerprint for other in index],
            "clip": checkpoint,
            **_tokenizer(opened),
            "config": {**{field: config[field] for field in fields}, "dtype": dtype},
            "version": VERSION,
            **({"image_embeddings": given.fingerprint} if given else {}),
        },
        share=share,
        given=given,
        staging=staging,
    )


def _tokenizer(checkpoint: Checkpoint) -> dict[str, str]:
    """What tells a tokenizer that came with the model from another; CLIP's needs no telling."""
    if checkpoint.has_clip_vocabulary():
        return {}
    files = sorted(checkpoint.tokenizer_files.items())
    return {"tokenizer": _hash({name: content.hex() for name, content in files})}


def _open_part(entry: Mapping[str, str]) -> Corpus:
    split, part = split_and_part(entry["split"])
    corpus = _open(entry["directory"], split)
    if part:
        corpus = part_of(corpus, part)
        _check_not_empty(corpus, split + part)
    return corpus


def _open(directory: str, split: str) -> Corpus:
    corpus = open_corpus(directory, split)
    missing = {"key", "image", "caption", "caption_concepts"} - set(corpus.features)
    if missing or "gallery" not in corpus.metadata:
        what = ", ".join(sorted(missing)) or "a gallery in its metadata"
        raise UserError(
            f"{corpus.directory}: not an image-text dataset, it lacks {what}; "
            "prepare it with: python -m data_prep image_text --help"
        )
    if not len(corpus.metadata["gallery"]):
        raise UserError(f"{corpus.directory}: its gallery has no concepts; prepare it with another")
    _check_not_empty(corpus, split)
    return corpus


def _check_not_empty(corpus: Corpus, split: str) -> None:
    if not corpus.num_examples:
        raise UserError(f"{corpus.directory}: there are no images in {split}")


def _hash(fields: dict) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
