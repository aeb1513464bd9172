"""Records of a run that are written once, before the first step."""

import importlib.metadata
import json
import os
import platform
import sys

import jax
import ml_collections
from clu import parameter_overview
from etils import epath

from cocu_jax.files import write_file
from cocu_jax.input.corpus import open_corpus
from cocu_jax.training.plan import Plan

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow", "numpy")


def write_records(root: epath.Path, plan: Plan) -> None:
    """Writes `parameters.txt` (a table) and `environment.json`."""
    table = parameter_overview.get_parameter_overview(plan.shapes.params, include_stats=False)
    write_file(root / "parameters.txt", table + "\n")
    write_file(root / "environment.json", json.dumps(environment(plan), indent=2) + "\n")


def environment(plan: Plan) -> dict:
    """Command, versions and devices of the run."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "flags": os.environ.get("XLA_FLAGS", ""),
        "processes": jax.process_count(),
        "devices": plan.mesh.size,
        "device_kind": plan.mesh.devices.flat[0].device_kind,
        "mesh": dict(plan.mesh.shape),
        "attention": plan.attention,
        "flops_per_step": plan.flops,
    }


def data_facts(config: ml_collections.ConfigDict) -> dict:
    """Facts that must be the same in a checkpoint and in the run that continues from it.

    Together with the step they determine the position in the data.
    """
    corpora = [open_corpus(spec.directory, spec.split).fingerprint for spec in config.data.corpora]
    annotations = [
        open_corpus(spec.annotations, spec.split).fingerprint
        for spec in config.data.corpora
        if spec.get("annotations")
    ]
    return {
        "corpora": corpora,
        "annotations": annotations,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }
