import pytest
from miniature_corpus import LENGTHS, write_annotations, write_corpus
from ml_collections import ConfigDict


@pytest.fixture(scope="session")
def corpus_directory(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), LENGTHS)


@pytest.fixture(scope="session")
def annotations_directory(tmp_path_factory, corpus_directory):
    return write_annotations(tmp_path_factory.mktemp("annotations"), corpus_directory)


@pytest.fixture(scope="session")
def data_fields():
    """Everything of `config.data` but the corpora."""
    return dict(
        concepts="cluster",
        prompts=3,
        prompt_length=24,
        caption_length=16,
        image_size=16,
        augment="crop",
        lanes=8,
        window=4,
    )


@pytest.fixture
def data(data_fields, corpus_directory, annotations_directory):
    """`config.data` for the miniature corpus of 51 examples."""
    corpus = dict(directory=corpus_directory, split="train", annotations=annotations_directory)
    return ConfigDict(data_fields | dict(corpora=(ConfigDict(corpus),)))
