"""Finds the files of a model: in local folders, in buckets, and on the Hugging Face hub."""

import contextlib
import hashlib
import json
import pathlib
import tempfile
from collections.abc import Iterator

from etils import epath
from huggingface_hub import snapshot_download

from cocu_jax.errors import UserError
from cocu_jax.models.weights.safetensors_file import StoredTensor, open_index, open_safetensors
from cocu_jax.models.weights.torch_file import open_torch, tensors_in

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
WEIGHTS = "model.safetensors"
_SHARDED = "model.safetensors.index.json"
OPENCLIP_CONFIG = "open_clip_config.json"
OPENCLIP_WEIGHTS = "open_clip_model.safetensors"
OPENCLIP_TORCH = "open_clip_pytorch_model.bin"
_TORCH, _TORCH_SHARDED = "pytorch_model.bin", "pytorch_model.bin.index.json"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
)
_JSON_FILES = (CONFIG, PREPROCESSOR, PROCESSOR)
_LARGEST_SETTINGS = 100_000_000  # bytes; a tokenizer of 256,000 tokens takes 34 million
_SAFETENSORS_FILES = (WEIGHTS, _SHARDED, "model-*-of-*.safetensors")
_TORCH_FILES = (_TORCH, _TORCH_SHARDED, "pytorch_model-*-of-*.bin")
_OPENCLIP_FILES = (OPENCLIP_CONFIG, OPENCLIP_WEIGHTS, OPENCLIP_TORCH)


@contextlib.contextmanager
def model_folder(path_or_hub_id: str) -> Iterator[pathlib.Path]:
    """Context manager: a local folder that contains the model's files.

    Args:
        path_or_hub_id: a local folder; a folder in a bucket, such as `gs://bucket/run/export`; or
            a hub id such as `openai/clip-vit-base-patch32`, `@revision` optional.

    Raises:
        UserError: there is no such model, or the hub cannot be reached.
    """
    name = str(path_or_hub_id)
    if pathlib.Path(name).is_dir():
        yield pathlib.Path(name)
    elif "://" in name:
        with tempfile.TemporaryDirectory() as copy:
            _fetch_bucket(epath.Path(name), pathlib.Path(copy))
            yield pathlib.Path(copy)
    elif pathlib.Path(name).exists():
        raise UserError(
            f"{name}: is a file, not a model's folder; give the folder that contains it"
        )
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{name}: no such folder; give a model's folder or a Hugging Face hub id")
    else:
        yield _fetch_hub(name)


@contextlib.contextmanager
def local_copy(name: str) -> Iterator[pathlib.Path]:
    """Context manager: a local copy of a file that may be in a bucket.

    Raises:
        UserError: it cannot be read.
    """
    if "://" not in name:
        yield pathlib.Path(name)
        return
    source = epath.Path(name)
    with tempfile.TemporaryDirectory() as folder:
        try:
            for file in (source, source.parent / OPENCLIP_CONFIG):
                if file == source or file.exists():
                    file.copy(pathlib.Path(folder) / file.name)
        except Exception as error:  # whatever the library of that kind of bucket raises
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{name}: not readable ({reason}); check name and access") from None
        yield pathlib.Path(folder) / source.name


def _fetch_bucket(source: epath.Path, target: pathlib.Path) -> None:
    patterns = _JSON_FILES + _TOKENIZER_FILES + _SAFETENSORS_FILES + _TORCH_FILES + _OPENCLIP_FILES
    try:
        files = [file for pattern in patterns for file in source.glob(pattern)]
        for file in files:
            file.copy(target / file.name)
    except Exception as error:  # whatever the library of that kind of bucket raises
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{source}: not readable ({reason}); check name and access") from None
    if not files:
        raise UserError(f"{source}: no such folder, or no model in it")


def _fetch_hub(name: str) -> pathlib.Path:
    repository, _, revision = name.partition("@")
    try:
        openclip = ((OPENCLIP_CONFIG, file) for file in (OPENCLIP_WEIGHTS, OPENCLIP_TORCH))
        for weights in (_SAFETENSORS_FILES, _TORCH_FILES, *openclip):
            wanted = [*_JSON_FILES, *_TOKENIZER_FILES, *weights]
            folder = pathlib.Path(
                snapshot_download(repository, revision=revision or None, allow_patterns=wanted)
            )
            if _weight_files(folder):
                break
    except Exception as error:  # the hub's and the network's libraries raise many kinds
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{name}: is not a local folder, and cannot be fetched from the hub ({reason}); "
            "check the spelling and the network, or give a local folder"
        ) from None
    return folder


def tokenizer_files(folder: pathlib.Path) -> dict[str, bytes]:
    """Contents of the tokenizer files in a model's folder, by file name."""
    files = [file for name in _TOKENIZER_FILES if (file := folder / name).exists()]
    for file in files:
        _check_length(file)
    return {file.name: file.read_bytes() for file in files}


def open_weights(folder: pathlib.Path) -> dict[str, StoredTensor]:
    """The tensors in a model's folder; prefers safetensors to `.bin`, and one file to shards.

    Raises:
        UserError: there are none, or a file is damaged.
    """
    if (folder / WEIGHTS).exists():
        return open_safetensors(folder / WEIGHTS)
    if (folder / _SHARDED).exists():
        return open_index(folder / _SHARDED)
    if (folder / _TORCH).exists():
        return _open_bin(folder / _TORCH)
    if (folder / _TORCH_SHARDED).exists():
        return open_index(folder / _TORCH_SHARDED, _open_bin)
    raise UserError(f"{folder}: no {WEIGHTS} and no {_TORCH} there; is it a model's folder?")


def is_openclip(folder: pathlib.Path) -> bool:
    """Whether a folder contains a model in open_clip's layout and none in Hugging Face's."""
    theirs = (WEIGHTS, _SHARDED, _TORCH, _TORCH_SHARDED)
    return (folder / OPENCLIP_CONFIG).exists() and not any((folder / f).exists() for f in theirs)


def open_openclip_weights(folder: pathlib.Path) -> dict[str, StoredTensor]:
    """The tensors in a folder in open_clip's layout; prefers safetensors to `.bin`.

    Raises:
        UserError: there are none, or a file is damaged.
    """
    if (folder / OPENCLIP_WEIGHTS).exists():
        return open_safetensors(folder / OPENCLIP_WEIGHTS)
    file = folder / OPENCLIP_TORCH
    if file.exists():
        content = open_torch(file)
        nested = isinstance(content, dict) and "state_dict" in content
        return tensors_in(content, file, "state_dict" if nested else None)
    raise UserError(f"{folder}: contains no {OPENCLIP_WEIGHTS} and no {OPENCLIP_TORCH}")


def _open_bin(file: pathlib.Path) -> dict[str, StoredTensor]:
    return tensors_in(open_torch(file), file)


def read_json(file: pathlib.Path) -> dict:
    """The object in a JSON file.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        _check_length(file)
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{file}: is missing; a model's folder contains one") from None
    except ValueError as error:
        raise UserError(f"{file}: not readable as JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: contains no JSON object; fetch it again")
    return content


def _check_length(file: epath.PathLike) -> None:
    """Raises a UserError for a settings file of implausible length, before it is read."""
    if (size := epath.Path(file).stat().length) > _LARGEST_SETTINGS:
        raise UserError(f"{file}: has {size:,} bytes; no such file is longer than 100 MB")


def fingerprint(path_or_hub_id: str) -> str:
    """SHA-256, in hex, of all files that determine a model's results.

    These are the weight files, `config.json` and the image processor's config, if there is one.
    Copies of a folder have equal fingerprints; the same weights in different shards do not.

    Raises:
        UserError: as `model_folder`.
    """
    digest = hashlib.sha256()
    with model_folder(path_or_hub_id) as folder:
        names = (OPENCLIP_CONFIG,) if is_openclip(folder) else _JSON_FILES
        settings = [folder / name for name in names if (folder / name).exists()]
        for file in (*settings, *_weight_files(folder)):
            with open(file, "rb") as content:
                inner = hashlib.file_digest(content, "sha256")
            digest.update(f"{file.name} {inner.hexdigest()}\n".encode())
    return digest.hexdigest()


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files `open_weights` reads."""
    for single, index in ((WEIGHTS, _SHARDED), (_TORCH, _TORCH_SHARDED)):
        if (folder / single).exists():
            return [folder / single]
        if (folder / index).exists():
            shards = set(read_json(folder / index).get("weight_map", {}).values())
            return [folder / index, *(folder / shard for shard in sorted(shards))]
    for single in (OPENCLIP_WEIGHTS, OPENCLIP_TORCH):
        if (folder / single).exists():
            return [folder / single]
    return []
