"""The whole method on a corpus that needs no download: from pictures and captions to a report.

Stages, in order: draw the scenes, train a small CLIP, curate concepts with it, pre-train three
GroupViTs that differ only in their supervision, write the report. Every stage but the first and the
last is repeated for each seed. A finished stage is skipped, an interrupted one continues.
"""

import ml_collections

from cocu_jax.curation.job import curate
from cocu_jax.demo.curation_quality import measure_curation
from cocu_jax.demo.ledger import Ledger
from cocu_jax.demo.measure import (
    gather_results,
    measure_dense_clip,
    measure_run,
    reported_benchmark,
)
from cocu_jax.demo.report import write_report
from cocu_jax.errors import UserError
from cocu_jax.training.loop import train
from cocu_jax.workdir import open_workdir
from data_prep.scenes.prepare import ScenesConfig, prepare_scenes

# Supervision of the three runs: (split that is read, where the prompts' concepts come from).
RUNS = {
    "caption": ("pretrain", "caption"),
    "cocu": ("pretrain", "cluster"),
    "complete": ("complete", "caption"),
}
STAGES = ("scenes", "clip", "curate", *RUNS, "report")


def run_demo(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Runs the stages that `config.stages` names (a comma list, or `"all"`).

    Args:
        config: see `configs/demo.py`.
        workdir: everything is written below it; the result is `report.html`.

    Raises:
        UserError: an unknown stage, a stage whose input no earlier stage has made, or a work
            directory of another config.
    """
    stages = _parse_stages(config.stages)
    root = open_workdir(workdir, config, free_fields=("stages", "seeds"))
    demo = Demo(config, root)
    if "scenes" in stages:
        demo.scenes()
    for seed in range(config.seeds):
        for stage in stages:
            if stage in ("clip", "curate"):
                getattr(demo, stage)(seed)
            elif stage in RUNS:
                demo.pretrain(stage, seed)
    if "report" in stages:
        demo.report()


def _parse_stages(text: str) -> list[str]:
    names = STAGES if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in STAGES:
            raise UserError(
                f"config.stages: no stage {name!r}; choose from {', '.join(STAGES)}, or all"
            )
    return [name for name in STAGES if name in names]


class Demo:
    """The stages, each a method that fills in a config and calls the job that does the work."""

    def __init__(self, config: ml_collections.ConfigDict, root):
        self._config = config
        self._root = root
        self._ledger = Ledger(root / "ledger.json")

    def scenes(self) -> None:
        """Draws the corpus."""
        settings = ScenesConfig(**self._config.scenes)
        with self._ledger.stage("scenes") as entry:
            entry["dataset"] = str(prepare_scenes(settings, str(self._root / "data")))

    def clip(self, seed: int) -> None:
        """Trains the small CLIP that replaces a web-scale one, and evaluates it densely."""
        config = self._train_config(self._config.clip, seed, "clip")
        pretrain = self._train_config(self._config.pretrain, seed, "pretrain")
        directory = self._directory(seed, "clip")
        with self._ledger.stage(f"seed{seed}/clip") as entry:
            train(config, str(directory))
            if "quality" not in entry:
                benchmark = reported_benchmark(pretrain)
                entry["quality"] = measure_dense_clip(directory / "export", benchmark)

    def curate(self, seed: int) -> None:
        """Curates concepts for the pre-training split and measures them against the true ones."""
        config = ml_collections.ConfigDict(self._config.curate)
        config.corpus = ml_collections.ConfigDict(dict(directory=self._dataset(), split="pretrain"))
        config.clip = self._require(f"seed{seed}/clip", self._directory(seed, "clip") / "export")
        config.seed = seed
        with self._ledger.stage(f"seed{seed}/curate") as entry:
            directory = self._directory(seed, "curate")
            curate(config, str(directory))
            if "quality" not in entry:
                annotations = str(directory / "annotations")
                entry["quality"] = measure_curation(self._dataset(), annotations)

    def pretrain(self, run: str, seed: int) -> None:
        """Trains one GroupViT and evaluates it on the validation split."""
        split, concepts = RUNS[run]
        config = self._train_config(self._config.pretrain, seed, split)
        config.data.concepts = concepts
        if run == "cocu":
            annotations = self._directory(seed, "curate") / "annotations"
            config.data.corpora[0].annotations = self._require(f"seed{seed}/curate", annotations)
        directory = self._directory(seed, run)
        with self._ledger.stage(f"seed{seed}/{run}") as entry:
            train(config, str(directory))
            if "quality" not in entry:
                entry["quality"] = measure_run(directory / "export", reported_benchmark(config))

    def report(self) -> None:
        """Writes `report.html` and `report.json` and prints the table."""
        seeds = range(self._config.seeds)
        for seed in seeds:
            for stage in ("clip", "curate", *RUNS):
                self._require(f"seed{seed}/{stage}")
        directories = {
            stage: [self._directory(seed, stage) for seed in seeds]
            for stage in ("clip", "curate", *RUNS)
        }
        benchmark = reported_benchmark(self._train_config(self._config.pretrain, 0, "pretrain"))
        results = gather_results(
            self._config, self._dataset(), benchmark, self._ledger.entries, directories
        )
        print(write_report(self._root, results))
        print(f"\n{self._root / 'report.html'}")

    def _train_config(self, base, seed: int, split: str) -> ml_collections.ConfigDict:
        config = base.copy_and_resolve_references()
        config.seed = seed
        corpus = dict(directory=self._dataset(), split=split, annotations="")
        config.data.corpora = [ml_collections.ConfigDict(corpus)]
        if config.evaluation:
            config.evaluation.directory = self._dataset()
        return config

    def _directory(self, seed: int, stage: str):
        return self._root / f"seed{seed}" / stage

    def _dataset(self) -> str:
        self._require("scenes")
        return self._ledger.entries["scenes"]["dataset"]

    def _require(self, stage: str, path="") -> str:
        if not self._ledger.finished(stage):
            name = stage.split("/")[-1]
            raise UserError(
                f"{self._root}: stage {stage} has not finished; run it with --config.stages={name}"
            )
        return str(path)
