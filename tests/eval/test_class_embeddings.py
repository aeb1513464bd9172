"""Class embeddings: prompt features are averaged after the projector, before normalisation."""

import numpy as np
import pytest
import torch
from miniature import make_model
from transformers import GroupViTModel

from cocu_jax.errors import UserError
from cocu_jax.models.templates import IMAGENET_TEMPLATES, SUBSET_TEMPLATES
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.models.weights.huggingface import save_groupvit
from eval.class_embeddings import embed_classes
from eval.class_names import read_class_names

NAMES = ("dog", "traffic light", "Yellow Lady's Slipper", "sky", "a")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    model = make_model()
    folder = str(tmp_path_factory.mktemp("checkpoint") / "groupvit")
    save_groupvit(model, folder)
    return model, GroupViTModel.from_pretrained(folder).eval()


@pytest.mark.parametrize(
    "template_set,templates",
    [
        ("simple", ("a photo of a {}.",)),
        ("subset", SUBSET_TEMPLATES),
        ("full", IMAGENET_TEMPLATES),
    ],
)
def test_embeddings_equal_transformers_averaged_by_hand(models, template_set, templates):
    model, theirs = models
    found = embed_classes(model, NAMES, template_set, Tokenizer())
    for name, embedding in zip(NAMES, found, strict=True):
        tokens = Tokenizer()([template.replace("{}", name) for template in templates])
        with torch.no_grad():
            pooled = theirs.text_model(input_ids=torch.from_numpy(tokens).long()).pooler_output
            mean = theirs.text_projection(pooled).mean(0)
        np.testing.assert_allclose(embedding, (mean / mean.norm()).numpy(), atol=1e-5)
    assert len(templates) == {"simple": 1, "subset": 7, "full": 80}[template_set]


def test_class_names_are_read_one_per_line(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("background\n\n# animals\ndog   # and wolves\ntraffic light\n")
    assert read_class_names(str(file)) == ("background", "dog", "traffic light")


@pytest.mark.parametrize("content,words", [("# none\n", "no class names"), ("dog\ndog\n", "'dog'")])
def test_files_without_valid_class_names_are_refused(content, words, tmp_path):
    file = tmp_path / "names.txt"
    file.write_text(content)
    with pytest.raises(UserError, match=words):
        read_class_names(str(file))
    with pytest.raises(UserError, match="cannot read class names"):
        read_class_names(str(tmp_path / "missing.txt"))
