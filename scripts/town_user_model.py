"""Make a tiny language model that plays the town's users, for `user: {kind: llm}` where no weights are at hand.

It learns to say what the scripted user says, in the form in which `ppp/users/llm.py` asks for it: the same messages in,
the same JSON out. It proves that the path holds, from a recipe through a model server to a trained policy. It is no
simulator of people: it reads no other text than the town's, and no other prompts than those that it was made with.
About four minutes of one core; then scripts/town_llm_user.sh serves it and trains with it:

    .venv/bin/python scripts/town_user_model.py runs/town_user_model
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from ppp.baselines.town_phrases import FORMS, IRRELEVANT, SOLUTION, form_for, render_question
from ppp.baselines.town_tokenizer import town_tokenizer, vocabulary
from ppp.chat.gateway import ChatEndpoint, ChatGateway, ChatReply
from ppp.data import expand
from ppp.environments.town import DETAILS, SYMPTOMS, TownEnvironment, render_issue, town_task_rows
from ppp.preferences import PREFERENCES
from ppp.tiny_model import random_qwen3
from ppp.types import Answer, Effort, InfrastructureError, Task, ToolCall, Turn
from ppp.users.llm import LLMUser, answer_schema
from ppp.users.llm_options import LLMUserOptions, LLMUserService
from ppp.users.scripted import ScriptedUser

PAD, UNK, START, END = "<pad>", "<unk>", "<|im_start|>", "<|im_end|>"
# ChatML: `transformers serve` expects it of every Qwen3, and hands out the prompt with the reply where it is not found.
TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
KEY = re.compile(r'[\[{}\],"\s]*"\w+": "?')  # what stands before a value of a JSON object
WORD = re.compile(r" ?\w+| ?[^\w\s]|\s")
MIN_LINE_SHARE = 0.005  # a line that stands in so many instructions is one token
GARBLED_SHARE = 0.2  # questions of a policy that has yet to learn how they are put
TOOL_SHARE = 0.4  # questions that come after a look into a file
IGNORED = -100  # the label of tokens without loss
MAX_LENGTH = 1024
MAX_ANSWER_TOKENS = 64
OPTIONS = {"model": "town", "base_url": "http://127.0.0.1/v1"}  # of an endpoint that is never called

Messages = Sequence[Mapping[str, Any]]
Speak = Callable[[Messages], str]
Pieces = Callable[[str], list[str]]


@dataclass(slots=True)
class Exchange:
    """One question to a user.

    Attributes:
        task: of the session.
        question: what was asked.
        wanted: what the scripted user says.
        spoken: the same in the form in which a model says it.
        asked: the requests to the model behind the user; none where a rule refuses to answer.
        said: its replies.
        given: what the user says in the end; None if no reply could be used.
    """

    task: Task
    question: str
    wanted: Answer
    spoken: str
    asked: list[Messages] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    given: Answer | None = None


class StandIn(ChatGateway):
    """A gateway whose endpoint is a function in this process; without one, requests are written down only."""

    def __init__(self, speak: Speak | None) -> None:
        super().__init__(ChatEndpoint(**OPTIONS))
        self.speak = speak
        self.exchange: Exchange | None = None

    async def chat(self, messages: Messages, **options: Any) -> ChatReply:
        assert self.exchange is not None
        self.exchange.asked.append([dict(message) for message in messages])
        if self.speak is None:
            raise InfrastructureError("nobody speaks here")
        text = self.speak(messages)
        self.exchange.said.append(text)
        return ChatReply(text, 0, 0, cached=False, finish_reason="stop")


class StandInService(LLMUserService):
    """The service of users who all talk to one stand-in."""

    def __init__(self, speak: Speak | None = None) -> None:
        super().__init__(LLMUserOptions.parse(OPTIONS))
        self.stand_in = StandIn(speak)

    def gateway_for(self, seed: int) -> ChatGateway:
        return self.stand_in


def as_seen(task: Task) -> Task:
    """The task as far as a user model knows it: it is told the report, and not how much of it the agent was told."""
    vague = render_issue("", "", "", SYMPTOMS[0], DETAILS)
    return replace(task, prompt=vague, payload={**task.payload, "missing": list(DETAILS)})


def draw_question(preference: str, rng: random.Random, pieces: Pieces) -> str:
    """A question as the town's policies put them, in any form; some garbled, as those of a beginner are."""
    luck = rng.random()
    if luck < 0.72:
        subjects = sorted(rng.sample(DETAILS, rng.choice((1, 1, 1, 2, 2, 3))), key=DETAILS.index)
    else:
        subjects = [rng.choice(IRRELEVANT) if luck < 0.88 else SOLUTION]
    liked = form_for(preference) if rng.random() < 0.3 else None
    question = render_question(liked or rng.choice(list(FORMS)), subjects, rng)
    if rng.random() < GARBLED_SHARE:
        words = pieces(question)
        for _ in range(rng.choice((1, 2))):
            at = rng.randrange(len(words))
            words[at : at + 1] = rng.choice(([], [words[at]] * 2, [rng.choice(words)], words[at:]))
            words = words or ["?"]
        question = "".join(words)
    return question


def draw_work(rng: random.Random) -> Turn:
    """A turn in which the agent looked into a file, with or without success."""
    found = rng.random() < 0.8
    call = ToolCall("open_file", {"path": "cache/loading.py" if found else "cache"})
    observation = "Functions: key f57; header f42" if found else "No such file"
    return Turn([], [], {}, call, observation, is_error=not found)


async def play_session(task: Task, service: StandInService, rng: random.Random, pieces: Pieces) -> list[Exchange]:
    """Put one to four questions to a model user and, for comparison, to the scripted one."""
    teacher, sources = ScriptedUser(as_seen(task)), TownEnvironment.sources(task)
    user = LLMUser(task, OPTIONS, sources=sources, service=service)
    exchanges: list[Exchange] = []
    turns: list[Turn] = []
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        if rng.random() < TOOL_SHARE:
            turns.append(draw_work(rng))
        question = draw_question(task.preference, rng, pieces)
        wanted = await teacher.answer(question, turns)
        if wanted.effort is Effort.HIGH and user.shown:  # only what names a part of the solution is found to be high
            wanted = replace(wanted, text=f"{wanted.text[:-1]}: {user.shown[0].text}.")
        names = answer_schema(user.shown)["properties"]["source"]["enum"]  # the report, the sources, nothing
        source = {Effort.LOW: names[0], Effort.MEDIUM: names[-1], Effort.HIGH: names[-2]}[wanted.effort]
        spoken = {"answer": wanted.text, "source": source, "follows_preference": wanted.follows_preference}
        exchange = Exchange(task, question, wanted, json.dumps(spoken))
        exchanges.append(exchange)
        service.stand_in.exchange = exchange
        with contextlib.suppress(InfrastructureError):  # no reply that could be used
            exchange.given = await user.answer(question, turns)
        # The conversation goes on with what should have been said, so that both users have the same.
        call = ToolCall("ask_user", {"query": question})
        turns.append(Turn([], [], {}, call, wanted.text, question=question, answer=wanted))
    return exchanges


async def play(split: str, num: int, seed: int, speak: Speak | None = None) -> list[Exchange]:
    """At least `num` exchanges on tasks of a split, with users of all preferences."""
    rng = random.Random(f"user-model-{split}-{seed}")
    backend = town_tokenizer().backend_tokenizer
    tasks = [task for row in town_task_rows(split, 1000, seed) for task in expand([row], list(PREFERENCES), seed)]
    service = StandInService(speak)
    exchanges: list[Exchange] = []
    while len(exchanges) < num:
        exchanges += await play_session(
            rng.choice(tasks), service, rng, lambda text: backend.encode(text, add_special_tokens=False).tokens
        )
    return exchanges


def collect_pieces(exchanges: Sequence[Exchange]) -> set[str]:
    """Every piece of text that a token stands for: whole lines of the instructions, keys of JSON, phrases, words."""
    asked = [exchange.asked[0] for exchange in exchanges if exchange.asked]
    lines = Counter(line for messages in asked for line in set(messages[0]["content"].split("\n")))
    pieces = {line for line, number in lines.items() if number >= MIN_LINE_SHARE * len(asked)}
    for piece in vocabulary():  # as it stands in an answer, and in a question within JSON
        pieces |= {piece, json.dumps(piece, ensure_ascii=False)[1:-1]}
    texts = {exchange.spoken for exchange in exchanges} | {messages[1]["content"] for messages in asked}
    for text in texts:
        pieces |= set(KEY.findall(text)) | {word for value in KEY.split(text) for word in WORD.findall(value)}
    return (pieces | {"system", "user", "assistant", "\n"}) - {""}


def user_tokenizer(pieces: set[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of these pieces, the longest first; an unknown word is one `<unk>`."""
    special = [PAD, UNK, START, END]
    ordered = sorted(pieces - set(special), key=lambda piece: (-len(piece), piece))
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate([*special, *ordered])}, unk_token=UNK))
    bounded = [
        (r"(?<!\w)" if piece[0].isalnum() else "") + re.escape(piece) + (r"(?!\w)" if piece[-1].isalnum() else "")
        for piece in ordered
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(bounded) + r"|\w+|[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        eos_token=END,
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE,
    )
    return wrapped


def encode(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """The request as a model server renders it."""
    text = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def to_row(tokenizer: PreTrainedTokenizerBase, exchange: Exchange) -> dict[str, list[int]]:
    """A request and its answer, with the loss on the answer."""
    prompt = encode(tokenizer, exchange.asked[0])
    answer = tokenizer.backend_tokenizer.encode(exchange.spoken + END, add_special_tokens=False).ids
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


def train(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Any], args: argparse.Namespace
) -> None:
    config = SFTConfig(
        output_dir=str(args.output_dir),
        max_steps=args.num_steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        adam_beta2=0.98,
        weight_decay=0.01,
        lr_scheduler_type="cosine",
        warmup_steps=30,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=100,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        seed=args.seed,
    )
    SFTTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train()


def speaker(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Speak:
    """The model as a function from a request to its most likely reply."""
    model.eval()

    def speak(messages: Messages) -> str:
        prompt = encode(tokenizer, messages)
        with torch.no_grad():
            ids = model.generate(torch.tensor([prompt]), max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False)[0]
        text: str = tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
        return text

    return speak


def measure(exchanges: Sequence[Exchange]) -> dict[str, Any]:
    """How often the user does what the scripted one does, in percent, over exchanges in which the model was asked."""
    asked = [exchange for exchange in exchanges if exchange.asked]
    about_solution = [exchange for exchange in asked if exchange.wanted.effort is Effort.HIGH]
    others = [exchange for exchange in asked if exchange.wanted.effort is not Effort.HIGH]
    wanted = {id(exchange): json.loads(exchange.spoken) for exchange in asked}

    def share(hits: int, of: Sequence[Exchange]) -> float:
        return round(100 * hits / max(1, len(of)), 1)

    def equal_effort(of: Sequence[Exchange]) -> float:
        return share(sum(e.given is not None and e.given.effort is e.wanted.effort for e in of), of)

    return {
        "num_questions": len(exchanges),
        "num_asked": len(asked),
        "usable_json": share(sum(len(e.asked) == 1 and e.given is not None for e in asked), asked),
        "exact_answer": share(sum(_field(e.said[0], "answer") == wanted[id(e)]["answer"] for e in asked), asked),
        "equal_verdict": share(
            sum(e.given is not None and e.given.follows_preference is e.wanted.follows_preference for e in asked), asked
        ),
        "equal_effort": equal_effort(others),
        "equal_effort_about_solution": equal_effort(about_solution),
    }


def _field(text: str, name: str) -> Any:
    try:
        return json.loads(text).get(name)
    except ValueError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("output_dir", type=Path, help="new folder for the model")
    parser.add_argument("--num-questions", type=int, default=10_000, help="to learn from (default %(default)s)")
    parser.add_argument("--num-steps", type=int, default=1500, help="of training (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="questions a step (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="at its peak (default %(default)s)")
    parser.add_argument("--num-test-questions", type=int, default=400, help="on held-out tasks (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.output_dir.exists() and (not args.output_dir.is_dir() or any(args.output_dir.iterdir())):
        parser.error(f"argument output_dir: {str(args.output_dir)!r} is not empty; name a new folder")
    torch.set_num_threads(1)  # matrices this small lose more to a second thread than they gain
    started = time.perf_counter()
    exchanges = asyncio.run(play("train", args.num_questions, args.seed))
    tokenizer = user_tokenizer(collect_pieces(exchanges))
    rows = [to_row(tokenizer, exchange) for exchange in exchanges if exchange.asked]
    model = random_qwen3(
        tokenizer, args.seed, max_length=MAX_LENGTH, hidden_size=64, num_layers=2, num_heads=2, num_key_value_heads=2,
        initializer_range=0.05,
    )  # fmt: skip
    train(model, tokenizer, rows, args)
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    test = asyncio.run(play("test", args.num_test_questions, args.seed, speaker(model, tokenizer)))
    summary = {
        **measure(test),
        "num_parameters": sum(weight.numel() for weight in model.parameters()),
        "num_tokens_known": len(tokenizer),
        "wall_s": round(time.perf_counter() - started, 1),
    }
    sys.stdout.write(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
