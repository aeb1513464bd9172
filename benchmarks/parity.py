"""How closely our models agree with `transformers` on torch, in float32, with random weights.

    python -m benchmarks.parity            everything (about ten minutes on two cores, 12 GB)
    python -m benchmarks.parity groupvit   one part: groupvit, gradients, clip or bfloat16

Prints JSON lines. An error is the Euclidean norm of the difference over the norm of the reference,
which for gradients torch computes in float64.
"""

import argparse
import copy
import dataclasses
import gc

import jax
import numpy as np
import torch
from flax import nnx

from benchmarks import transformers_oracle as oracle
from benchmarks.figures import print_figure
from cocu_jax.models import losses
from cocu_jax.models.groupvit import GroupViT
from cocu_jax.models.keys import Keys
from cocu_jax.models.weights.names import HUGGINGFACE_GROUPVIT, find

FORWARD_GOAL = 1e-5
GRADIENT_GOAL = 1e-4
COSINE_GOAL = 0.999

# Biases whose gradient is zero but for rounding, as what they add is taken off again: by a softmax
# (the same for all its inputs), a layer norm (the same for all channels) or batch normalisation
# (the same for all rows). Their error is relative to the gradient of their layer's kernel or scale.
IDLE_BIASES = (
    "attention.key.bias",
    "assign.query.bias",
    "mlp_tokens.fc2.bias",
    "projector_mlp.fc2.bias",
    "final_norm.bias",
    "projector.dense1.bias",
)

CLIPS = {
    "ViT-B/32": ({}, {}, {}),
    "ViT-B/16": ({"patch_size": 16}, {}, {}),
    "ViT-L/14": (
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
        },
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        {"projection_dim": 768},
    ),
}

Errors = dict[str, float]


def relative_error(ours: jax.Array, theirs: np.ndarray, yardstick=None) -> float:
    """|ours - theirs| / |yardstick|, by default |theirs|; Euclidean, in float64."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    size = np.linalg.norm(theirs if yardstick is None else np.asarray(yardstick, np.float64))
    return float(np.linalg.norm(ours.ravel() - theirs.ravel()) / size)


def image_errors(ours: GroupViT, theirs: torch.nn.Module, images: np.ndarray) -> Errors:
    """Errors of everything `encode_image` returns.

    Raises:
        ValueError: a token is so near a tie between two segments that rounding decides where it
            goes. Argmax has no last digit there; take another seed.
    """
    expected = oracle.groupvit_image(theirs, images)
    if expected.pop("margin") < 1e-5:
        raise ValueError("a token is assigned by rounding; use another seed")
    encoding = nnx.jit(GroupViT.encode_image)(ours, images)
    actual = (encoding.feature, encoding.segments, *encoding.assignments)
    return {
        name: relative_error(value, reference)
        for value, (name, reference) in zip(actual, expected.items(), strict=True)
    }


def text_errors(ours: GroupViT, theirs: torch.nn.Module, tokens: np.ndarray) -> Errors:
    """Error of the projected text features."""
    features = nnx.jit(GroupViT.encode_text)(ours, tokens)
    return {"text feature": relative_error(features, oracle.groupvit_text(theirs, tokens))}


def logit_errors(ours: GroupViT, theirs: torch.nn.Module, images, tokens) -> Errors:
    """Error of the image-text logits, cosine times temperature."""
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.from_numpy(tokens).long(),
            pixel_values=torch.from_numpy(images).permute(0, 3, 1, 2),
        ).logits_per_image

    @nnx.jit
    def logits(model: GroupViT):
        image = losses.normalize(model.encode_image(images).feature)
        text = losses.normalize(model.encode_text(tokens))
        return losses.temperature_scale(model.log_scale[...]) * image @ text.T

    return {"logits": relative_error(logits(ours), expected.numpy())}


def training_loss(model: GroupViT, images, captions, prompts, **randomness) -> jax.Array:
    """Both losses of one training step on a batch; `randomness` goes to `encode_image`."""
    feature = model.encode_image(images, train=True, **randomness).feature
    caption, prompt = model.encode_texts((captions, prompts), train=True)
    feature, caption, prompt = map(losses.normalize, (feature, caption, prompt))
    return losses.multi_label_loss(
        feature, caption[:, None], model.log_scale[...]
    ) + losses.multi_label_loss(feature, prompt, model.multi_label_log_scale[...])


def gradient_errors(ours: GroupViT, theirs: torch.nn.Module, batch: tuple) -> Errors:
    """Errors of the loss and of its gradient by every parameter, with the same Gumbel noise.

    Torch computes in float64 here: batch normalisation over a few rows loses so many digits on the
    way back that torch's own float32 is an order of magnitude further from it than ours.
    """
    theirs = copy.deepcopy(theirs).double().train()
    shapes = jax.eval_shape(lambda m, x: m.encode_image(x).assignments, ours, batch[0])
    rng = np.random.default_rng(0)
    gumbel = [rng.gumbel(size=shape.shape).astype(np.float32) for shape in shapes]
    scale = torch.tensor(ours.multi_label_log_scale[...].item()).double().requires_grad_()
    images, noise = batch[0].astype(np.float64), [g.astype(np.float64) for g in gumbel]
    expected_loss = oracle.training_loss(theirs, scale, images, *batch[1:], noise)
    expected_loss.backward()

    def loss(model: GroupViT):
        return training_loss(model, *batch, gumbel=tuple(gumbel))

    value, gradients = nnx.jit(nnx.value_and_grad(loss))(ours)
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    actual = {".".join(map(str, path)): g[...] for path, g in nnx.to_flat_state(gradients)}
    errors = {"loss": relative_error(value, expected_loss.detach().numpy())}
    for path, gradient in actual.items():
        if path == "multi_label_log_scale":
            errors[path] = relative_error(gradient, scale.grad.numpy())
            continue
        place = find(HUGGINGFACE_GROUPVIT, path)
        reference = place.layout.to_ours(expected[place.name], gradient.shape)
        yardstick = reference
        if path.endswith(IDLE_BIASES):
            layer = path.removesuffix("bias")
            yardstick = actual.get(layer + "kernel", actual.get(layer + "scale"))
        errors[path] = relative_error(gradient, reference, yardstick)
    return errors


def clip_errors(theirs: torch.nn.Module, images: np.ndarray, tokens: np.ndarray) -> Errors:
    """Errors of image and text features of a CLIP."""
    ours = oracle.converted(theirs)
    expected = oracle.clip_features(theirs, images, tokens)
    actual = nnx.jit(lambda m: (m.encode_image(images), m.encode_text(tokens)))(ours)
    return {
        name: relative_error(value, reference)
        for value, (name, reference) in zip(actual, expected.items(), strict=True)
    }


def bfloat16_cosines(model: GroupViT, images: np.ndarray, tokens: np.ndarray) -> Errors:
    """Smallest cosine of a bfloat16 feature to the float32 one of the same parameters."""
    config = dataclasses.replace(model.config, dtype="bfloat16")
    half = nnx.merge(
        nnx.graphdef(nnx.eval_shape(lambda: GroupViT(config, rngs=Keys(0)))), nnx.state(model)
    )

    @nnx.jit
    def features(model: GroupViT):
        encoded = model.encode_image(images).feature, model.encode_text(tokens)
        return tuple(map(losses.normalize, encoded))

    cosines = [(a * b).sum(-1).min() for a, b in zip(features(half), features(model), strict=True)]
    return {"image feature": float(cosines[0]), "text feature": float(cosines[1])}


def report(subject: str, errors: Errors, goal: float) -> None:
    """One JSON line per figure."""
    for name, value in errors.items():
        print_figure(f"{subject}: {name}", value, "relative error", goal, "lower")


def report_groupvit() -> None:
    """Published GroupViT: features, assignments and logits at three resolutions."""
    theirs = oracle.random_groupvit()
    ours = oracle.converted(theirs)
    tokens = oracle.random_tokens((8, 77), (3, 77))
    for height, width in ((224, 224), (448, 448), (224, 336)):
        images = oracle.random_images((2, height, width), seed=1)
        subject = f"GroupViT {height} x {width}"
        report(subject, image_errors(ours, theirs, images), FORWARD_GOAL)
    report("GroupViT", text_errors(ours, theirs, tokens), FORWARD_GOAL)
    images = oracle.random_images((2, 224, 224), seed=1)
    report("GroupViT", logit_errors(ours, theirs, images, tokens), FORWARD_GOAL)


def report_gradients() -> None:
    """Published GroupViT: the loss, and the parameter whose gradient is furthest off."""
    theirs = oracle.random_groupvit()
    batch = (
        oracle.random_images((8, 224, 224)),
        oracle.random_tokens((8, 77), (8, 77)),
        oracle.random_tokens((8, 3, 77), (5, 16), seed=1),
    )
    errors = gradient_errors(oracle.converted(theirs), theirs, batch)
    report("GroupViT training step", {"loss": errors.pop("loss")}, FORWARD_GOAL)
    worst = max(errors, key=errors.get)
    worst = {f"worst gradient of {len(errors)} ({worst})": errors[worst]}
    report("GroupViT training step", worst, GRADIENT_GOAL)


def report_clip() -> None:
    """CLIP's vision transformers at their own and at a non-square resolution."""
    tokens = oracle.random_tokens((8, 77), (3, 77))
    for name, (vision, text, other) in CLIPS.items():
        theirs = oracle.random_clip(vision=vision, text=text, **other)
        for height, width in ((224, 224), (224, 448)):
            images = oracle.random_images((2, height, width))
            subject = f"CLIP {name} {height} x {width}"
            report(subject, clip_errors(theirs, images, tokens), FORWARD_GOAL)
        del theirs
        gc.collect()


def report_bfloat16() -> None:
    """Published GroupViT: bfloat16 products against float32."""
    model = oracle.converted(oracle.random_groupvit())
    images = oracle.random_images((4, 224, 224), seed=1)
    tokens = oracle.random_tokens((8, 77), (3, 77))
    for name, value in bfloat16_cosines(model, images, tokens).items():
        print_figure(f"GroupViT bfloat16: {name}", value, "cosine", COSINE_GOAL)


def main() -> None:
    """Prints the figures of one part or of all."""
    parts = {
        "groupvit": report_groupvit,
        "gradients": report_gradients,
        "clip": report_clip,
        "bfloat16": report_bfloat16,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *parts], default=[], metavar="part")
    for part in parser.parse_args().parts or parts:
        parts[part]()


if __name__ == "__main__":
    main()
