"""PPPTrainer: GRPO whose rollouts are sessions with a user.

TRL keeps what it does well: the sampler of copies, advantages, loss, checkpoints. Rollouts come from the pool,
rewards from `rewards.py`, evaluation goes through the pool; the step itself is in `training_step.py`. No other file
touches TRL's internals, and everything private that these two lean on is pinned by `tests/test_trl_contract.py`.
`train.py` builds one from a recipe; `callbacks.py` shows it, `learning_signal.py` guards it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl.models.utils import unwrap_model_for_generation

from ppp.alignment import Alignment
from ppp.batch import RolloutSettings, TooManyFailuresError, check_failures, term_reward, token_batch, total_reward
from ppp.bookkeeping import Bookkeeper
from ppp.checkpoints import STATE_FILE, Checkpoints, is_complete, sync_files
from ppp.config import PPPConfig
from ppp.interruption import Interruption
from ppp.phase import Played, RolloutPhase
from ppp.resampling import DynamicSampling
from ppp.rewards import TERMS
from ppp.rollout import RolloutJob, RolloutPool
from ppp.run_log import RunLog
from ppp.step_metrics import REWARD, batch_metrics, evaluation_metrics
from ppp.training_step import TrainingStep
from ppp.types import DiskError, RunStoppedError, Task
from ppp.users.crowd import Crowds

logger = logging.getLogger(__name__)

EVAL_ROWS = (
    1 << 40
)  # evaluation sessions are numbered from here, so that their noise is never that of a training session


def _is_no_dump(record: logging.LogRecord) -> bool:
    """Whether a message is not TRL's print-out of a row without reward: the pool has told of it, and why."""
    return not str(record.msg).startswith("All reward functions returned None")


class PPPTrainer(TrainingStep):
    """Trains a policy in sessions with simulated users.

    Args:
        model: loaded; with `args.beta > 0` from a folder or the Hub, because TRL loads the reference by its name.
        args: GRPO's arguments.
        train_dataset, eval_dataset: rows `{"prompt": messages, "task": JSON}`, see `data.py`.
        processing_class: the tokenizer.
        make_pool: gets a function that returns the policy, unwrapped; called once, when the policy is ready.
        settings: see `RolloutSettings`.
        books: who plays the users in training and in evaluation, and what they take; None stands for the pool's users.
        run_log: where metrics and trajectories go; None keeps them from disk.
        checkpoints: who writes them and removes old ones.
        peft_config: LoRA adapters to be trained instead of the weights.
        callbacks: see `callbacks.py`; the default progress bars of transformers are taken out.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: PPPConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None,
        processing_class: PreTrainedTokenizerBase,
        *,
        make_pool: Callable[[Callable[[], PreTrainedModel]], RolloutPool],
        settings: RolloutSettings,
        books: Bookkeeper | None = None,
        run_log: RunLog | None = None,
        checkpoints: Checkpoints | None = None,
        peft_config: Any = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        reward_funcs: list[Callable[..., list[float | None]]] = [total_reward]
        self.signals: Sequence[str] = REWARD
        if args.multi_objective_aggregation == "normalize_then_sum":
            reward_funcs = [term_reward(name) for name in TERMS]
            args.reward_weights = [float(settings.rewards.weights.get(name, 1.0)) for name in TERMS]
            self.signals = [name for name, weight in zip(TERMS, args.reward_weights, strict=True) if weight]
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            callbacks=[*callbacks, _StopAtStepEnd(self)],
        )
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        logging.getLogger("trl.trainer.grpo_trainer").addFilter(_is_no_dump)
        self.checkpoints = checkpoints or Checkpoints(Path(str(args.output_dir)), args.save_total_limit)
        args.save_total_limit = None  # transformers would remove by date, and at the end perhaps the newest
        self.settings = settings
        self.pool = make_pool(lambda: self.accelerator.unwrap_model(self.model))
        self.interruption = Interruption()
        books = books or Bookkeeper(Crowds(self.pool.crowd, self.pool.crowd))
        lend = self._whole_policy if self.pool.engine.uses_policy else nullcontext
        self.phase = RolloutPhase(self.pool, settings, self.accelerator, self.interruption, books, run_log, lend)
        # TRL tells truncation by the last token, which for us may be an observation's; ours goes by the stop reason.
        self.mask_truncated_completions = False
        self.vllm_importance_sampling_correction = True  # effective only where `use_vllm` is, which we switch
        self.use_vllm = bool(settings.correction)
        self.alignment = Alignment(
            self.accelerator, settings.correction, settings.check_logprobs_every, settings.max_logprob_difference
        )
        self.sampling = DynamicSampling(
            self.phase, train_dataset, self.num_generations, settings, args.seed, self.signals
        )
        self._tasks: list[Task] = []
        self._last_step, self._round = -1, 0

    # --- rollouts ----------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Keep the tasks, of which `_generate` is told the prompts only, and let TRL do the rest."""
        self._tasks = [Task.from_json(row["task"]) for row in inputs]
        return super()._generate_and_score_completions([{"prompt": row["prompt"]} for row in inputs])

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        """Play the batch's sessions and hand them to TRL as if its own rollout function had."""
        played, metrics = self._play(prompts)
        variant = self.settings.rewards.personalization
        metrics |= batch_metrics(played.everyone, played.all_scores, self.num_generations, variant, self.signals)
        for name, value in {**metrics, **played.user_metrics}.items():
            self._log_metric(name, value)
        check_failures(played.everyone, self.settings.max_failure_rate)
        batch = token_batch(
            played.trajectories,
            played.scores,
            self._tokenizer.pad_token_id,
            mask_truncated=self.args.mask_truncated_completions,
        )
        found = self.alignment.check(batch, self.state, self._round, self._logprobs, self.model)
        for name, value in found.items():
            self._log_metric(name, value)
        self.use_vllm = self.alignment.corrects
        # Strings instead of messages: TRL would otherwise copy them and parse the completions, which the codec has
        # done.
        texts = [""] * len(prompts)
        correction, self.use_vllm = self.use_vllm, False  # there is no vLLM whose weights TRL would have to sync
        self.rollout_func: Callable[..., dict[str, list[Any]]] | None = lambda prompts, trainer: batch
        try:
            result = list(super()._generate(texts))
        finally:
            self.rollout_func, self.use_vllm = None, correction
        result[3] = [[{"role": "assistant", "content": text}] for text in result[3]]
        return tuple(result)

    @contextmanager
    def _whole_policy(self) -> Iterator[None]:
        """Bring the weights together that ZeRO-3 has spread over the processes, for an engine that generates with them.

        Its hooks, which would fetch and spread them again around every layer, are taken off meanwhile.
        """
        if not is_deepspeed_zero3_enabled():
            yield
            return
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator):
            # TRL leaves one on: in the first passes it talks to the other processes, which may have nothing to play.
            handle = self.model_wrapped.optimizer.parameter_offload.fwd_pre_hook
            hooks = handle.hooks_dict_ref()
            hook = hooks.pop(handle.id)
            try:
                yield
            finally:
                hooks[handle.id] = hook

    def _play(self, prompts: list[Any]) -> tuple[Played, dict[str, float]]:
        """Play the batch, flat groups replaced if the recipe wants it; `prompts` then get those that were put in."""
        step, jobs = self.state.global_step, self._jobs()
        if not self.settings.max_resamples:
            return self.phase.play(jobs, step, "train"), {}
        found = self.sampling.play(jobs, step, self._round)
        for position, row in found.sources.items():
            prompts[position] = self.train_dataset[row]["prompt"]
            self._tasks[position] = Task.from_json(self.train_dataset[row]["task"])
        return found.played, found.metrics

    def _jobs(self) -> list[RolloutJob]:
        """This process's slice of the batch, numbered over all processes."""
        if self.state.global_step != self._last_step:
            self._last_step, self._round = self.state.global_step, 0
        else:
            self._round += 1  # several generation batches in one step: their noise must differ
        size = len(self._tasks)
        first = size * (self._round * self.accelerator.num_processes + self.accelerator.process_index)
        jobs = []
        for position, task in enumerate(self._tasks, start=first):
            row, copy = divmod(position, self.num_generations)
            jobs.append(RolloutJob(task, row=row, copy=copy))
        return jobs

    # --- evaluation --------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Play every session of the evaluation set through the pool; scores by kind of session and by preference."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        jobs = [
            RolloutJob(Task.from_json(text), row=EVAL_ROWS + row, copy=copy)
            for row, text in enumerate(dataset["task"])
            for copy in range(self.num_generations_eval)
        ][self.accelerator.process_index :: self.accelerator.num_processes]
        was_training = self.model.training
        self.model.eval()
        try:
            played = self.phase.play(jobs, self.state.global_step, "eval")
            check_failures(played.everyone, self.settings.max_failure_rate)
            variant = self.settings.rewards.personalization
            found = evaluation_metrics(played.everyone, played.all_scores, variant)
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in (found | played.user_metrics).items()}
            self.log(metrics)
        finally:
            self.model.train(was_training)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # --- starting, stopping, going on --------------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train. Ctrl-C, SIGTERM, too many failures and the end of a run leave a checkpoint of the last finished step.

        Raises:
            KeyboardInterrupt: on SIGINT and SIGTERM.
            TooManyFailuresError: see `max_failure_rate`.
            RunStoppedError: a budget is used up, an endpoint stays away, or a log or checkpoint cannot be written.
        """
        try:
            with self.interruption.handled():
                output = super().train(*args, **kwargs)
        except DiskError:
            raise
        except (KeyboardInterrupt, TooManyFailuresError, RunStoppedError):
            self.save_stopped()
            raise
        if self.interruption.told_by:
            raise KeyboardInterrupt
        return output

    def save_stopped(self) -> Path | None:
        """Write a checkpoint of the last finished step, unless there is one or no step was finished."""
        step = self.state.global_step
        folder = self.checkpoints.path(step)
        if step == 0:
            return None
        if not is_complete(folder):
            self._save_checkpoint(self.model, None)
        return folder

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoints.run_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint that is there as a whole or not at all, and only then remove old ones.

        Raises:
            DiskError: it could not be written.
        """
        state = self.state
        with self.checkpoints.writing(state.global_step) as folder:
            super()._save_checkpoint(model, trial)
            if state.best_global_step:  # transformers looked for it, and names it, where this one is being written
                state.best_model_checkpoint = str(self.checkpoints.path(state.best_global_step))
                if self.args.should_save:
                    state.save_to_json(str(folder / STATE_FILE))
            sync_files(self.phase.files())  # a checkpoint must not outlive the logs of its steps
        if self.args.should_save:
            self.checkpoints.rotate(state.best_model_checkpoint)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL's would be written at every save; ours stands with the finished model, see `model_card.py`."""

    def should_stop(self) -> bool:
        """Whether any process was told to stop; all of them must ask at the same time."""
        if self.accelerator.num_processes == 1:
            return self.interruption.told_by is not None
        told = torch.tensor([self.interruption.told_by is not None], device=self.accelerator.device)
        if self.accelerator.gather(told).any() and self.interruption.told_by is None:
            self.interruption.told_by = "another process"
        return self.interruption.told_by is not None

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Any:
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train no further than told: a run that was killed behind its last step only has its model to write."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Bring a resumed sampler to the epoch it had reached: it draws each epoch's order from one generator."""
        epochs_trained, steps_trained = super()._init_training_state(*args, **kwargs)
        if self._train_sampler.shuffle:
            for _ in range(epochs_trained):
                torch.randperm(self._train_sampler.num_samples, generator=self._train_sampler.generator)
        return epochs_trained, steps_trained


class _StopAtStepEnd(TrainerCallback):
    """Ends an interrupted run behind a finished step, with a checkpoint, and has steps logged that are saved."""

    def __init__(self, trainer: PPPTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: PPPConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer.should_stop():
            control.should_save = control.should_training_stop = True
        self._log_what_is_saved(control)

    def on_epoch_end(self, args: PPPConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._log_what_is_saved(control)

    @staticmethod
    def _log_what_is_saved(control: TrainerControl) -> None:
        """Metrics of steps since the last log are in no checkpoint: a resumed run would not know of them."""
        control.should_log = control.should_log or control.should_save
