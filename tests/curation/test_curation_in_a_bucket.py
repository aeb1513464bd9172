"""The whole job with its work directory, or its embeddings, in a bucket."""

import contextlib
import os
import pathlib
import signal

import pytest
from curation_corpus import curate, example, write_clip, write_corpus
from etils import epath

from cocu_jax import files
from cocu_jax.curation import job
from cocu_jax.curation.storage.staging import Staging
from cocu_jax.errors import UserError
from cocu_jax.input.corpus import open_corpus
from cocu_jax.stopping import Stopped

SHARDS = 5


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    examples = [example(i, b"" if i == 7 else None) for i in range(36)]
    return {
        "corpus.directory": write_corpus(tmp_path_factory.mktemp("data"), examples, SHARDS),
        "clip": write_clip(tmp_path_factory.mktemp("clip") / "tiny"),
        "neighbours": 5,
        "batch_size": 2,
        "page_images": 3,
        "search_rows": 20,
    }


@pytest.fixture(scope="module")
def local(fields, tmp_path_factory):
    """What a run on a local disk hands over."""
    workdir = tmp_path_factory.mktemp("local")
    curate(fields, workdir)
    return everything(workdir)


def everything(workdir):
    """Bytes of all files of a run by name, but for its config, which names the embeddings."""
    paths = [path for path in pathlib.Path(workdir).rglob("*") if path.is_file()]
    found = {str(path.relative_to(workdir)): path.read_bytes() for path in paths}
    del found["config.json"]
    return found


def test_run_in_a_bucket_leaves_the_bytes_of_a_local_one(fields, local, bucket, tmp_path):
    staging = tmp_path / "staging"
    summary = curate(fields, "gs://bucket/run", staging=str(staging), staging_gb=1e-5)
    assert everything(bucket.folder / "run") == local
    assert summary["images"] == 36
    assert open_corpus("gs://bucket/run/annotations", "train").num_examples == 36
    assert not [name for name in bucket.written if ".tmp" in name]  # whole objects need no aside
    written = len(bucket.written)
    curate(fields, "gs://bucket/run", staging=str(staging))
    again = {pathlib.Path(name).parent.name for name in bucket.written[written:]}
    assert again <= {"run", "annotations"}  # the summary and the dataset's metadata
    assert everything(bucket.folder / "run") == local


@pytest.mark.slow
def test_embeddings_in_a_bucket_serve_a_local_run(fields, local, bucket, tmp_path):
    for name in ("first", "second"):
        curate(fields, tmp_path / name, embeddings="gs://bucket/shared")
        found = everything(tmp_path / name)
        assert found == {k: v for k, v in local.items() if not k.startswith("embeddings/")}
    assert everything_below(bucket.folder / "shared") == {
        name.removeprefix("embeddings/"): content
        for name, content in local.items()
        if name.startswith("embeddings/")
    }
    assert len(bucket.written) == len(set(bucket.written))  # the second run wrote nothing there


def everything_below(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.slow
def test_owners_read_their_files_and_others_their_sizes(fields, local, bucket):
    curate(fields, "gs://bucket/run")
    for index in (1, 0):
        bucket.opened.clear()
        curate(fields, "gs://bucket/run", share=f"{index}/2")
        opened = [pathlib.Path(name) for name in bucket.opened]
        read = {int(path.name.split("-")[-3]) for path in opened if path.parent.name == "parquet"}
        assert read == set(range(index, SHARDS, 2))
        reports = [path.stem for path in opened if path.parent.name == "reports"]
        expected = [f"{shard:05d}" for shard in range(index, SHARDS, 2)]
        assert sorted({r for r in reports if not r.startswith("tally")}) == expected
    damaged = next((bucket.folder / "run" / "embeddings").glob("*/*/00002.safetensors"))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    curate(fields, "gs://bucket/run", share="1/2")
    assert damaged.read_bytes() != whole  # not its own
    curate(fields, "gs://bucket/run", share="0/2")
    assert damaged.read_bytes() == whole
    assert everything(bucket.folder / "run") == local


@pytest.mark.slow
def test_stopped_and_killed_runs_in_a_bucket_go_on(fields, local, bucket, monkeypatch):
    """Dies in the middle of the n-th upload, then stops on request at another."""

    class Killed(BaseException):
        pass

    write = files.write_file

    def dying(path, content):
        nonlocal left
        left -= 1
        if left < 0:
            with epath.Path(path).open("wb") as upload:
                upload.write(b"half of it")
                raise Killed
        write(path, content)

    left = 0
    modules = (
        "storage.shard_files",
        "storage.shard_output",
        "storage.tally",
        "report.finish",
        "report.examples_page",
    )
    with monkeypatch.context() as patch:
        for module in modules:
            patch.setattr(f"cocu_jax.curation.{module}.write_file", dying)
        for survived in (0, 4, 3, 8, 2):
            left = survived
            with contextlib.suppress(Killed):
                curate(fields, "gs://bucket/run")
                break
    with monkeypatch.context() as patch:
        wait = job.wait_for

        def interrupted(*args):
            os.kill(os.getpid(), signal.SIGTERM)
            wait(*args)

        patch.setattr(job, "wait_for", interrupted)
        with pytest.raises(Stopped, match="run the same command"):
            curate(fields, "gs://bucket/run")
    curate(fields, "gs://bucket/run")
    assert everything(bucket.folder / "run") == local


def test_a_bucket_that_cannot_be_written_is_one_line(fields, bucket, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "403 forbidden")

    monkeypatch.setattr(type(bucket), "open", refuse)
    with pytest.raises(UserError, match="gs://bucket/run.*403 forbidden"):
        curate(fields, "gs://bucket/run")


def test_staging_keeps_the_files_used_last_within_its_bound(bucket, tmp_path):
    for number in range(6):
        epath.Path(f"gs://bucket/{number}").write_bytes(bytes([number]) * 100)
    staging = Staging(str(tmp_path / "staging"), limit=350)

    def held():
        return sorted(
            path.read_bytes()[0] for path in (tmp_path / "staging").rglob("*") if path.is_file()
        )

    for number in (0, 1, 2, 0, 3):
        assert pathlib.Path(staging.local(f"gs://bucket/{number}")).read_bytes()[0] == number
    assert held() == [0, 2, 3]
    assert bucket.opened == ["0", "1", "2", "3"]
    epath.Path("gs://bucket/large").write_bytes(b"\7" * 400)
    assert len(pathlib.Path(staging.local("gs://bucket/large")).read_bytes()) == 400
    assert held() == [7]
    assert staging.local(tmp_path / "here") == str(tmp_path / "here")
    with pytest.raises(FileNotFoundError):
        staging.local("gs://bucket/missing")


def test_a_full_staging_disk_is_one_line(bucket, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    epath.Path("gs://bucket/file").write_bytes(b"content")
    staging = Staging(str(tmp_path), limit=10)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="copy of gs://bucket/file.*No space left"):
        staging.local("gs://bucket/file")
