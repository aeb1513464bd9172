"""Image embeddings that somebody else has computed, as clip-retrieval and LAION keep them.

    DIRECTORY/img_emb/img_emb_0000.npy     float16, 32 or 64 [rows, d], unit norm
    DIRECTORY/metadata/metadata_0000.parquet     the same rows: the column `key`, or `image_path`

or all of them in one directory, local or in a bucket. Files are memory-mapped, from local copies
where they are in a bucket; what is kept of a row is its key.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable

import numpy as np
import pyarrow.parquet
import tensorflow as tf
from etils import epath
from jaxtyping import Float16

from cocu_jax.curation.embed import EmbeddedShard
from cocu_jax.curation.images import damaged_file
from cocu_jax.curation.ragged import Ragged, starts_of
from cocu_jax.curation.storage.index import usable
from cocu_jax.errors import UserError
from cocu_jax.input.corpus import Corpus, read_shard

_UNIT = 0.02  # by how much a norm may be off 1; float16 rounds by less
_READ = 1024  # examples at a time

Local = Callable[[epath.PathLike], str]  # a file's name, or that of a local copy


@dataclasses.dataclass(frozen=True)
class GivenEmbeddings:
    """Embeddings in some files, found by key.

    Attributes:
        directory: where they were given.
        files: the arrays, in the order of their numbers.
        widths: d of each.
        starts: the first row of each file, plus the total at the end.
        keys: of all rows, sorted.
        rows: the row of each of these keys.
        fingerprint: hash of the files' names, sizes and keys.
        local: what opens a file goes through this.
    """

    directory: str
    files: tuple[str, ...]
    widths: tuple[int, ...]
    starts: np.ndarray
    keys: np.ndarray
    rows: np.ndarray
    fingerprint: str
    local: Local

    def check_width(self, width: int, model: str) -> None:
        """Compares d with that of a model's text embeddings.

        Raises:
            UserError: they differ in some file.
        """
        for file, given in zip(self.files, self.widths, strict=True):
            if given != width:
                raise UserError(
                    f"{file}: embeddings of {given} numbers, but those of {model} have {width}; "
                    "set config.clip to the model that made them"
                )

    def of_shard(self, corpus: Corpus, shard: int) -> EmbeddedShard:
        """A shard's images as if they had been embedded here; those not given are unreadable.

        Raises:
            UserError: none of its keys is there, a norm is not 1, or the corpus's file is damaged.
        """
        keys, concepts = _read(corpus, shard)
        place = np.searchsorted(self.keys, keys)
        place = np.minimum(place, len(self.keys) - 1)
        there = self.keys[place] == keys
        if len(keys) and not there.any():
            raise UserError(
                f"{self.directory}: has none of the keys of {corpus.shard_files[shard]}, such as "
                f"{keys[0].decode(errors='replace')!r} (there: "
                f"{self.keys[0].decode(errors='replace')!r}); give the embeddings of this corpus"
            )
        embeddings = np.zeros((len(keys), self.widths[0]), np.float16)
        embeddings[there] = self._take(self.rows[place[there]])
        readable = there & usable(embeddings)
        return EmbeddedShard(
            embeddings=np.where(readable[:, None], embeddings, np.float16(0)),
            readable=readable,
            keys=Ragged.from_bytes(keys.tolist()),
            concepts=concepts,
        )

    def _take(self, rows: np.ndarray) -> Float16[np.ndarray, "n d"]:
        found = np.zeros((len(rows), self.widths[0]), np.float32)
        file = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(file):
            here = np.flatnonzero(file == number)
            local = rows[here] - self.starts[number]
            order = np.argsort(local)
            part = self._array(number)[local[order]].astype(np.float32)
            norms = np.linalg.norm(part, axis=1)
            comparable = np.isfinite(part).all(1) & (norms != 0)
            wrong = np.flatnonzero((np.abs(norms - 1) > _UNIT) & comparable)
            if len(wrong):
                raise UserError(
                    f"{self.files[number]}: row {local[order[wrong[0]]]} has norm "
                    f"{norms[wrong[0]]:.4g}; embeddings must have norm 1, divide them by theirs"
                )
            found[here[order]] = part
        return found.astype(np.float16)

    def _array(self, number: int) -> np.ndarray:
        return np.load(self.local(self.files[number]), mmap_mode="r")


def open_given(directory: str, local: Local = os.fspath) -> GivenEmbeddings:
    """Opens and checks a directory of embeddings.

    Args:
        directory: local or in a bucket.
        local: makes local copies of a bucket's files.

    Raises:
        UserError: there are none, or files do not belong together.
    """
    root = epath.Path(directory)
    arrays, tables = _numbered(root, "img_emb", "npy"), _numbered(root, "metadata", "parquet")
    if not arrays:
        raise UserError(f"{directory}: no img_emb_*.npy here or in its folder img_emb")
    for number, file in arrays.items():
        if number not in tables:
            raise UserError(f"{file}: there is no metadata_{number}.parquet to tell its keys")
    numbers = sorted(arrays, key=lambda number: (int(number), number))
    keys, shapes = [], []
    for number in numbers:
        keys.append(_keys(tables[number], local))
        shapes.append(_checked_shape(arrays[number], tables[number], len(keys[-1])))
    joined = np.concatenate(keys)
    if not len(joined):
        raise UserError(f"{directory}: its {len(arrays)} arrays of embeddings have no rows")
    order = np.argsort(joined, kind="stable")
    joined = joined[order]
    twice = np.flatnonzero(joined[1:] == joined[:-1])
    if len(twice):
        key = joined[twice[0]].decode(errors="replace")
        raise UserError(f"{directory}: key {key!r} is there twice; keys must be unique")
    files = [arrays[number] for number in numbers]
    digest = hashlib.sha256(joined.tobytes())
    for file in files:
        digest.update(f"{file.name} {file.stat().length} ".encode())
    return GivenEmbeddings(
        directory=directory,
        files=tuple(map(str, files)),
        widths=tuple(width for _, width in shapes),
        starts=starts_of([rows for rows, _ in shapes]),
        keys=joined,
        rows=order,
        fingerprint=digest.hexdigest()[:16],
        local=local,
    )


def _numbered(root: epath.Path, kind: str, ending: str) -> dict[str, epath.Path]:
    """Files of a kind by their number, in the directory or in its folder of the kind's name."""
    folder = root / kind if (root / kind).is_dir() else root
    if not folder.is_dir():
        return {}
    found = {}
    for file in sorted(folder.iterdir()):
        match = re.fullmatch(rf"{kind}_(\d+)\.{ending}", file.name)
        if match:
            found[match.group(1)] = file
    return found


def _keys(table: epath.Path, local: Local) -> np.ndarray:
    """Keys of a metadata file as byte strings of one width."""
    try:
        file = local(table)
        names = pyarrow.parquet.read_schema(file).names
        name = next((name for name in ("key", "image_path") if name in names), None)
        if name is None:
            raise UserError(f"{table}: no column key or image_path among {', '.join(names)}")
        column = pyarrow.parquet.read_table(file, columns=[name])[name]
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{table}: not a Parquet file ({str(error).splitlines()[0]})") from None
    if column.null_count:
        raise UserError(f"{table}: {column.null_count} rows have no {name}")
    try:
        keys = np.array(column.cast("string").cast("binary").to_pylist(), dtype=bytes)
    except pyarrow.ArrowException:
        raise UserError(f"{table}: column {name} is {column.type}, not text") from None
    if name == "image_path":  # the key, or a file called after it
        keys = np.array([os.path.splitext(os.path.basename(key))[0] for key in keys.tolist()])
    return keys if keys.size else np.zeros(0, "S1")


def _checked_shape(array: epath.Path, table: epath.Path, keys: int) -> tuple[int, int]:
    """Shape of an array of embeddings that belongs to a table of keys; reads its header only."""
    try:
        with array.open("rb") as file:
            version = np.lib.format.read_magic(file)
            headers = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
            shape, columns_first, dtype = headers[version[0] - 1](file)
            start = file.tell()
    except (OSError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{array}: not an array of numbers ({reason})") from None
    if len(shape) != 2 or columns_first or dtype not in (np.float16, np.float32, np.float64):
        stored = f"{dtype} {list(shape)}{' by columns' if columns_first else ''}"
        raise UserError(
            f"{array}: {stored}, not rows of float16, float32 or float64; "
            "save them again with np.save(path, np.ascontiguousarray(rows, np.float16))"
        )
    if array.stat().length < start + dtype.itemsize * shape[0] * shape[1]:
        raise UserError(f"{array}: not an array of numbers (cut short); copy it again")
    if shape[0] != keys:
        raise UserError(f"{array}: {shape[0]} rows, but {table.name} has {keys}")
    return shape


def _read(corpus: Corpus, shard: int) -> tuple[np.ndarray, Ragged]:
    """Keys and caption concepts of a shard."""
    examples = read_shard(corpus, shard).map(lambda e: (e["key"], e["caption_concepts"]))
    padding = (b"", np.int32(-1))
    batches = examples.padded_batch(_READ, padding_values=padding).as_numpy_iterator()
    keys, concepts = [], []
    try:
        for batch_keys, batch_concepts in batches:
            keys.extend(batch_keys.tolist())
            used = batch_concepts >= 0
            concepts.append(Ragged(batch_concepts[used], starts_of(used.sum(1))))
    except tf.errors.OpError as error:
        raise damaged_file(corpus, shard, error) from None
    if not keys:
        return np.zeros(0, "S1"), Ragged(np.zeros(0, np.int32), np.zeros(1, np.int64))
    return np.array(keys, dtype=bytes), Ragged.join(concepts)
