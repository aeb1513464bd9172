"""The model of one of our training runs, from any checkpoint of a running or finished run.

    WORKDIR/config.json          the run's config, which describes the model
    WORKDIR/checkpoints/STEP     written by Orbax while the run trains
    WORKDIR/export               a Hugging Face folder, written at the end

Only the arrays of the model are read, to the memory of the host; neither the optimiser's state nor
the devices of the run are needed. Nothing is written, so the run may continue meanwhile.
"""

import dataclasses
import functools
import os
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.models.clip import CLIP, CLIPConfig
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.text import TextConfig
from cocu_jax.models.weights.convert import model_from_tensors
from cocu_jax.models.weights.image_processing import ImageProcessing
from cocu_jax.models.weights.names import SAME, Place
from cocu_jax.models.weights.safetensors_file import StoredTensor
from cocu_jax.models.weights.source import CONFIG, read_json

EXPORT = "export"
_CHECKPOINTS = "checkpoints"
_MODELS = {"groupvit": (GroupViT, GroupViTConfig), "clip": (CLIP, CLIPConfig)}


class RunCheckpoint(NamedTuple):
    """A checkpoint of a run.

    Attributes:
        run: directory of the run.
        step: step of the checkpoint.
    """

    run: epath.Path
    step: int


def find_run_checkpoint(name: str) -> RunCheckpoint | None:
    """The checkpoint called `RUN@STEP`, or the newest of `RUN`; None if there is no such run.

    Raises:
        UserError: the run exists, but not the checkpoint.
    """
    path, at, wanted = name.rpartition("@")
    if (epath.Path(name) / _CHECKPOINTS).is_dir():
        run, wanted = epath.Path(name), None
    elif at and (epath.Path(path) / _CHECKPOINTS).is_dir():
        run = epath.Path(path)
    else:
        return None
    steps = sorted(ocp.utils.checkpoint_steps(run / _CHECKPOINTS))
    if not steps:
        raise UserError(f"{run}: no checkpoint was written yet; wait for the first one")
    if wanted is None:
        return RunCheckpoint(run, steps[-1])
    if not (wanted.isdecimal() and int(wanted) in steps):
        existing = ", ".join(map(str, steps))
        raise UserError(f"{run}: no checkpoint of step {wanted}; there are: {existing}")
    return RunCheckpoint(run, int(wanted))


def load_run(
    checkpoint: RunCheckpoint, dtype: str = "float32"
) -> tuple[CLIP | GroupViT, ImageProcessing]:
    """The model that the run would evaluate at that step, and its image preparation.

    If the run keeps a running average of the weights, the model has the averaged ones.

    Args:
        checkpoint: the checkpoint.
        dtype: type of matrix products, "float32" or "bfloat16"; parameters are float32.

    Raises:
        UserError: the checkpoint cannot be read, or does not belong to the run's config.
    """
    source = f"{checkpoint.run}@{checkpoint.step}"
    file = checkpoint.run / CONFIG
    config = read_json(file)
    try:
        model_class, settings = _model_of(config, dtype)
        processing = _processing_of(config["data"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{file}: not the config of a training run ({reason})") from None
    tensors = {
        name.replace("/", "."): StoredTensor(
            source, value.shape, value.dtype.name, functools.partial(np.asarray, value)
        )
        for name, value in _read_arrays(checkpoint).items()
    }
    model = model_from_tensors(
        lambda rngs: model_class(settings, rngs=rngs),
        lambda path: Place(path, SAME, None),
        tensors,
        {},
        source,
    )
    return model, processing


def _model_of(config: dict[str, Any], dtype: str) -> tuple[type, GroupViTConfig | CLIPConfig]:
    """Class and settings of the model that a train config in JSON describes."""
    model_class, config_class = _MODELS[config["objective"]]
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in config["model"].items()}
    text = TextConfig(**fields.pop("text"))
    settings = config_class(text=text, **fields)
    return model_class, dataclasses.replace(settings, dtype=dtype, remat=False)


def _processing_of(data: dict[str, Any]) -> ImageProcessing:
    return ImageProcessing(data["image_size"], tuple(data["mean"]), tuple(data["std"]))


def _read_arrays(checkpoint: RunCheckpoint) -> dict[str, np.ndarray]:
    """Parameters and statistics by path; those of the running average if there is one."""
    place = checkpoint.run / _CHECKPOINTS / str(checkpoint.step) / "state"
    place = place if "://" in str(place) else epath.Path(os.path.abspath(place))
    reader = ocp.PyTreeCheckpointHandler()
    try:
        stored = reader.metadata(place).tree
        groups = ("average",) if stored.get("average") else ("params", "batch_stats")
        wanted = {group: stored.get(group) or {} for group in groups}
        whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        arguments = ocp.args.PyTreeRestore(item=wanted, restore_args=whole, partial_restore=True)
        arrays = reader.restore(place, args=arguments)
    except Exception as error:  # Orbax and TensorStore raise many types for damaged files
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(
            f"{place}: this checkpoint cannot be read ({reason}); try another step, because a "
            "running job removes old checkpoints"
        ) from None
    finally:
        reader.close()
    return {name: array for group in groups for name, array in arrays[group].items()}
