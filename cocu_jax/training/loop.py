"""The train job: trains a config to its last step, across any number of interruptions.

The order of the file is that of a run: open the work directory, plan, restore or initialise, step,
evaluate, export. All results are functions of (config, step), so a run that was killed and
continued is bit-identical to an uninterrupted one.
"""

import collections
import contextlib
import json
import math
import os
import time

import jax
import ml_collections
from etils import epath
from flax import nnx
from jax.sharding import NamedSharding

from cocu_jax.agreement import Agreement
from cocu_jax.deterministic import check_deterministic
from cocu_jax.errors import UserError
from cocu_jax.files import full_disk, write_file
from cocu_jax.host_memory import keep_freed_memory
from cocu_jax.input.pipeline import count_examples, train_batches
from cocu_jax.models.weights.huggingface import save_clip, save_groupvit
from cocu_jax.models.weights.image_processing import ImageProcessing
from cocu_jax.progress import progress_bar
from cocu_jax.stopping import Stopped
from cocu_jax.training.checkpoints import Checkpoints, Restored
from cocu_jax.training.config import check_config
from cocu_jax.training.evaluation import Evaluation, open_evaluations
from cocu_jax.training.initial import initial_state
from cocu_jax.training.mesh import REPLICATED, put_batch
from cocu_jax.training.metrics import MetricsLog
from cocu_jax.training.plan import Plan, make_plan
from cocu_jax.training.records import data_facts, write_records
from cocu_jax.training.state import TrainState, evaluated_arrays, graph_of, merge_model
from cocu_jax.training.timing import Clock, Profile
from cocu_jax.workdir import open_workdir
from cocu_jax.workdir_lock import WorkdirLock

RESULT_FILE = "metrics.json"
EXPORT_DIRECTORY = "export"

# Fields without influence on the trained model; they may change when a run is continued. Data may
# move to another directory, because it is identified by its fingerprint (`records.data_facts`).
FREE_FIELDS = (
    "accumulate",
    "checkpoint_every",
    "checkpoint_minutes",
    "compile_cache",
    "data.corpora.annotations",
    "data.corpora.directory",
    "data_root",
    "deterministic",
    "eval_every",
    "evaluation",
    "export",
    "keep",
    "log_every",
    "mesh",
    "model.fused_attention",
    "model.remat",
    "nonfinite_limit",
    "profile_at",
    "profile_steps",
    "tuned",
)

# Steps that may be queued on the devices. Queueing hides the time of the host; the limit bounds the
# memory of waiting batches.
_IN_FLIGHT = 2


def train(config: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    """Trains, or continues training; returns at once if `workdir` contains the finished run.

    Args:
        config: `configs/cocu.py` explains every field.
        workdir: local or `gs://` directory for checkpoints, logs, the exported model and
            `metrics.json`.

    Returns:
        The contents of `metrics.json`: the last line of the log and the last evaluation.

    Raises:
        UserError: config or data cannot be used, another run is using `workdir`, the disk is full,
            or training diverged.
        Stopped: a stop was requested; everything has been saved.
    """
    check_config(config)
    try:
        with contextlib.ExitStack() as stack:
            agreement, lock = stack.enter_context(Agreement()), WorkdirLock(workdir)
            agreement.on_first(lambda: stack.enter_context(lock))
            return _train(config, workdir, agreement, lock)
    except Exception as error:
        if full := full_disk(workdir, error):
            raise full from None
        raise


def _train(
    config: ml_collections.ConfigDict, workdir: str, agreement: Agreement, lock: WorkdirLock
) -> dict[str, float]:
    root = open_workdir(workdir, config, FREE_FIELDS, writer=jax.process_index() == 0)
    if (root / RESULT_FILE).exists():
        return json.loads((root / RESULT_FILE).read_text())
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    check_deterministic(config.deterministic)
    use_compile_cache(config.compile_cache)
    evaluations = open_evaluations(config)
    plan = make_plan(config, count_examples(config.data))
    checkpoints = Checkpoints(root / "checkpoints", config.keep, data_facts(config))
    try:
        restored = checkpoints.restore(plan.targets())
        if jax.process_index() == 0:
            write_records(root, plan)
        run = Run(config, root, plan, checkpoints, evaluations, agreement, lock)
        if restored is None:
            state = initial_state(plan, config.init_from, config.init_partial)
            restored = Restored(0, state, evaluated={})
        return run(restored)
    finally:
        checkpoints.close()


def use_compile_cache(directory: str) -> None:
    """Caches compiled programs in `directory`, so that the next run starts faster; "" disables."""
    if directory:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(directory))


class Run:
    """One attempt at a run: from a state to the last step, or until it is stopped."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        root: epath.Path,
        plan: Plan,
        checkpoints: Checkpoints,
        evaluations: tuple[Evaluation, ...],
        agreement: Agreement,
        lock: WorkdirLock,
    ):
        self.config = config
        self.root = root
        self.plan = plan
        self.checkpoints = checkpoints
        self.evaluations = evaluations
        self.agreement = agreement
        self.lock = lock
        self.clock = Clock()
        self.evaluated: dict[str, float] = {}
        self.in_flight: collections.deque[jax.Array] = collections.deque()  # losses
        self.saved_at = time.monotonic()

    def __call__(self, start: Restored) -> dict[str, float]:
        """Trains to the last step, evaluates and exports; returns the final figures."""
        self.log = MetricsLog(self.root, start.step, jax.process_index() == 0)
        self.evaluated = start.evaluated or {}
        try:
            if self.agreement.stop():
                raise Stopped(
                    f"{self.root}: stopped before a step; run the same command to continue"
                )
            if start.evaluated is None and self._evaluation_due(start.step):
                self._save(start.state, start.step)  # the evaluation of this step was interrupted
            state = self._steps(start.state, start.step)
            result = self.log.latest() | self.evaluated
        finally:
            self.log.close()
        self._export(state)
        self.checkpoints.wait()
        result = {name: v if math.isfinite(v) else None for name, v in result.items()}
        if jax.process_index() == 0:
            write_file(self.root / RESULT_FILE, json.dumps(result, indent=2) + "\n")
        return result

    def _steps(self, state: TrainState, first_step: int) -> TrainState:
        config, total = self.config, self.plan.total_steps
        processes = jax.process_index(), jax.process_count()
        batches = train_batches(config.data, config.batch_size, config.seed, first_step, *processes)
        bar = progress_bar(f"train {self.root.name}", total, "steps", first_step)
        with bar, Profile(self.root, config.profile_at, config.profile_steps) as profile:
            for step in range(first_step + 1, total + 1):
                with self.clock.waiting():
                    batch = put_batch(self.plan.mesh, next(batches))
                profile.before(step)
                state, metrics = self.plan.step(state, batch)
                self.log.add(metrics)
                self.in_flight.append(metrics["loss/total"])
                if len(self.in_flight) > _IN_FLIGHT:
                    self.in_flight.popleft().block_until_ready()
                self.lock.check()
                profile.after(step, metrics)
                self.clock.step()
                bar.update()
                if step % config.log_every == 0 or step == total:
                    bar.set_postfix(self._write_log(step), refresh=False)
                self._save(state, step)
        self._check_finite(self.log.latest())
        return state

    def _write_log(self, step: int) -> dict[str, str]:
        """Logs the interval that ends here; checks the one before and returns it for display."""
        line = self.log.write(step, self.clock.rates(self.config.batch_size, self.plan))
        self._check_finite(line)
        shown = {"loss": line.get("loss/total"), "mIoU": self.evaluated.get("evaluation/miou")}
        return {name: f"{value:.3f}" for name, value in shown.items() if value is not None}

    def _save(self, state: TrainState, step: int) -> None:
        """Evaluates and writes a checkpoint if they are due; stops if that was requested."""
        last = step == self.plan.total_steps
        due = self._evaluation_due(step)
        done = not due or self._evaluate(state, step)
        stop = self.agreement.stop()
        if due or stop or last or self._checkpoint_due(step):
            with self.clock.paused():
                self.checkpoints.save(state, step, self.evaluated if due and done else None)
            self.saved_at = time.monotonic()
        if stop and not (last and done):
            self.checkpoints.wait()
            raise Stopped(
                f"{self.root}: stopped and saved after step {step} of {self.plan.total_steps}; "
                "run the same command to continue"
            )

    def _evaluation_due(self, step: int) -> bool:
        last = step == self.plan.total_steps
        return any(evaluation.due(step, last) for evaluation in self.evaluations)

    def _checkpoint_due(self, step: int) -> bool:
        if _due(step, self.config.checkpoint_every):
            return True
        if not self.config.checkpoint_minutes or step % self.config.log_every:
            return False
        late = time.monotonic() - self.saved_at >= 60 * self.config.checkpoint_minutes
        return self.agreement.of_first(late)

    def _check_finite(self, line: dict[str, float]) -> None:
        bad = int(line.get("skipped_in_row", 0))
        if bad < self.config.nonfinite_limit:
            return
        self.checkpoints.wait()
        saved = self.checkpoints.latest
        kept = f"the newest checkpoint is of step {saved}" if saved else "no checkpoint was due yet"
        raise UserError(
            f"{self.root}: loss or gradient was not finite in the {bad} steps up to "
            f"{line['step']}; {kept}; lower config.learning_rate, or check the data of these steps"
        )

    def _evaluate(self, state: TrainState, step: int) -> bool:
        """Runs the evaluations that are due; returns False if a requested stop interrupted them."""
        with self.clock.paused():
            model, last = self._model(state), step == self.plan.total_steps
            for evaluation in self.evaluations:
                if not evaluation.due(step, last):
                    continue
                try:
                    figures = evaluation(model, self.agreement.stop)
                except Stopped:
                    return False
                self.evaluated = self.evaluated | figures
                pictures = evaluation.draw(model) if jax.process_index() == 0 else {}
                self.log.write_now(step, figures, pictures)
        return True

    def _model(self, state: TrainState) -> nnx.Module:
        """The model that is evaluated and exported, replicated on every device."""
        everywhere = NamedSharding(self.plan.mesh, REPLICATED)
        gathered = jax.jit(evaluated_arrays, out_shardings=everywhere)(state)
        return merge_model(graph_of(self.plan.objective.build), *gathered)

    def _export(self, state: TrainState) -> None:
        if not self.config.export:
            return
        model = self._model(state)
        if jax.process_index() == 0:
            data = self.config.data
            processing = ImageProcessing(data.image_size, tuple(data.mean), tuple(data.std))
            save = {"groupvit": save_groupvit, "clip": save_clip}[self.config.objective]
            save(model, str(self.root / EXPORT_DIRECTORY), processing)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
