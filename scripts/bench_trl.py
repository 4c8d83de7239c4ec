"""TRL's own loop of turns and tools, given the sessions of `bench_sessions.py`."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from types import MethodType
from typing import Any

from bench_sessions import MAX_LENGTH, NUM_CALLS, NUM_SESSIONS, WORK, Worker, Workshop, work

from ppp.codec import Codec
from ppp.rollout import FINISH, RolloutJob, build_messages
from ppp.tiny_model import tiny_model
from ppp.types import Turn


class TRLSide:
    """A GRPOTrainer that is given the scripted turns as generated; its tool loop is its own.

    Args:
        server: a vLLM server that generates each turn first, which is then thrown away; None generates nothing.
        turn_tokens: limit of such a turn.
    """

    def __init__(
        self, codec: Codec, jobs: Sequence[RolloutJob], server: str | None = None, turn_tokens: int = 64
    ) -> None:
        # Not before our side is measured: memory that TRL has freed would hide what the pool takes.
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        vllm: dict[str, Any] = {}
        if server is not None:
            vllm = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": server}
            vllm["generation_kwargs"] = {"max_tokens": turn_tokens}
        tokenizer: Any = codec.tokenizer
        self.codec, self.policy = codec, Worker(NUM_CALLS, finishes=False)
        self.messages = [build_messages(job.task, Workshop, interaction=False) for job in jobs]
        self.tasks = {
            tuple(codec.prompt_ids(m, (WORK, FINISH))): job.task for m, job in zip(self.messages, jobs, strict=True)
        }
        self.num_prompt_tokens = {len(prompt) for prompt in self.tasks}
        self.turns: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as folder:
            args = GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=NUM_SESSIONS,
                num_generations=4,
                max_completion_length=MAX_LENGTH // 2,
                report_to=[],
                use_cpu=True,
                bf16=False,
                **vllm,
            )
            self.trainer = GRPOTrainer(
                model=tiny_model(tokenizer, 0, MAX_LENGTH),
                reward_funcs=[lambda completions, **columns: [0.0] * len(completions)],
                args=args,
                train_dataset=Dataset.from_dict({"prompt": self.messages}),
                processing_class=tokenizer,
                tools=[work],
            )
        self.trainer.tools = [WORK.as_openai(), FINISH.as_openai()]  # what the prompt shows: the same on both sides
        self.generates = server is not None
        self.trainer._generate_single_turn = MethodType(self.generate, self.trainer)

    def generate(
        self, trainer: Any, prompts: list[list[int]], *unused: object, **options: object
    ) -> tuple[list[list[int]], list[list[float]]]:
        """The next scripted turn of each session, which is known by its prompt."""
        if self.generates:
            type(trainer)._generate_single_turn(trainer, prompts, *unused, **options)
        (length,) = self.num_prompt_tokens
        completions = []
        for ids in prompts:
            task = self.tasks[tuple(ids[:length])]
            turn = Turn([], [], {})
            completions.append(self.codec.render_turn(*self.policy.act(task, [turn] * self.turns[task.task_id])))
            self.turns[task.task_id] += 1
        return completions, [[0.0] * len(ids) for ids in completions]

    def run(self) -> tuple[float, list[tuple[list[int], list[int], list[int]]]]:
        """Seconds, and (prompt, completion, mask) of each session."""
        self.turns.clear()
        self.trainer.model.train()
        self.trainer._sync_tool_dicts = [{} for _ in self.messages]
        self.trainer._async_tool_dicts = [{"work": work} for _ in self.messages]
        started = time.perf_counter()
        prompt_ids, completion_ids, mask, *_ = self.trainer._generate(self.messages)
        return time.perf_counter() - started, list(zip(prompt_ids, completion_ids, mask, strict=True))
