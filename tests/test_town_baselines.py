"""What is promised about the agents of the town made of rules, their phrases, their tokenizer and the exercises."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from ppp.baselines.town import AlwaysAsk, Demonstrator, NeverAsk, PlausibleName, TownAgent, ask_call
from ppp.baselines.town_phrases import (
    CARELESS,
    FORMS,
    HEED,
    IGNORE,
    IRRELEVANT,
    SOLUTION,
    SUBJECTS,
    WISHES,
    render_plan,
    render_question,
)
from ppp.baselines.town_practice import EXERCISES, Segment, play_sessions
from ppp.baselines.town_tokenizer import CALLS, ROLES, town_tokenizer
from ppp.codec import Codec
from ppp.data import expand
from ppp.engines.scripted import Policy, ScriptedEngine
from ppp.environments.town import (
    DETAILS,
    MODULES,
    NUM_FUNCTION_NAMES,
    OBJECTS,
    OPERATIONS,
    TownEnvironment,
    draw_functions,
    file_path,
    is_held_out,
    render_listing,
    town_task_rows,
)
from ppp.preferences import PREFERENCES
from ppp.rewards import RewardSettings, score_trajectory, summarize
from ppp.rollout import Limits, RolloutJob, RolloutPool
from ppp.session import Toolbox, build_messages
from ppp.types import StopReason, Task, ToolCall, Trajectory, Turn
from ppp.users.scripted import ALREADY_SAID, DONT_KNOW, ScriptedUser

ROWS = list(town_task_rows("train", 400))
TOOLS = Toolbox.of(TownEnvironment, True)
# As in the town's recipe: what an agent writes and reads must fit.
LIMITS = Limits(max_turns=10, max_tokens_per_turn=48, max_observation_tokens=48, max_prompt_tokens=128)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return town_tokenizer()


@pytest.fixture(scope="module")
def codec(tokenizer: PreTrainedTokenizerFast) -> Codec:
    return Codec.from_tokenizer(tokenizer)


def play(codec: Codec, policy: Policy, tasks: Sequence[Task]) -> list[Trajectory]:
    pool = RolloutPool(ScriptedEngine(codec, policy), codec, LIMITS)
    try:
        return pool.run([RolloutJob(task, number, 0) for number, task in enumerate(tasks)], step=0)
    finally:
        pool.close()


def sessions(num: int, precise: bool, preferences: Sequence[str] = tuple(PREFERENCES)) -> list[Task]:
    """One session for each of `num` tasks, going round the preferences."""
    tasks = []
    for number, row in enumerate(ROWS[:num]):
        task = expand([row], [preferences[number % len(preferences)]], seed=0, num_precise=0)[0]
        tasks.append(replace(task, prompt=task.precise_prompt) if precise else task)
    return tasks


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def assert_exact(codec: Codec, ids: Sequence[int], text: str) -> None:
    assert codec.tokenizer.unk_token_id not in ids, text
    assert text in codec.decode(ids)


@pytest.mark.parametrize("preference", PREFERENCES)
def test_prompts_are_exact(codec: Codec, preference: str) -> None:
    for row in ROWS:
        for task in expand([row], [preference], seed=0, num_precise=0):
            for prompt in (task.prompt, task.precise_prompt):
                messages = build_messages(replace(task, prompt=prompt), TownEnvironment)
                assert [message["role"] for message in messages] == ["system", "user"]
                ids = codec.prompt_ids(messages, TOOLS.specs)
                assert_exact(codec, ids, "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in messages))
                assert len(ids) <= LIMITS.max_prompt_tokens


@pytest.mark.parametrize("form", FORMS)
def test_questions_of_every_form_are_exact_and_fit_into_a_turn(codec: Codec, form: str) -> None:
    for number in (1, 2, 3):
        for subjects in itertools.permutations(SUBJECTS, number):
            for text in ("", IGNORE, render_plan("json", True, DETAILS)):
                call = ask_call(render_question(form, subjects, random.Random(0)))
                ids = codec.render_turn(text, call)
                assert_exact(codec, ids, str(call.arguments["query"]))
                turn = codec.parse(ids, TOOLS.specs)
                assert (turn.call, turn.message["content"]) == (call, text)
                assert len(ids) <= LIMITS.max_tokens_per_turn


def test_options_of_every_subject_are_exact(codec: Codec) -> None:
    for subject, seed in itertools.product(SUBJECTS, range(30)):
        question = render_question("choice", [subject], random.Random(seed))
        assert_exact(codec, codec.render_turn("", ask_call(question)), question)


def test_plans_calls_and_answers_are_exact(codec: Codec) -> None:
    gaps = [gap for number in range(4) for gap in itertools.combinations(DETAILS, number)]
    plans = [render_plan(name, heed, gap) for name in WISHES for heed in (True, False) for gap in gaps]
    turns = [(plan, ToolCall("list_files", {"module": "cache"})) for plan in plans]
    turns += [("", ToolCall("list_files", {"module": module})) for module in MODULES]
    turns += [("", ToolCall("open_file", {"path": file_path(m, o)})) for m in MODULES for o in OPERATIONS]
    turns += [
        (f"The {obj}", ToolCall("finish", {"answer": f"f{number}"}))
        for obj in OBJECTS
        for number in range(NUM_FUNCTION_NAMES)
    ]
    for text, call in turns:
        ids = codec.render_turn(text, call)
        turn = codec.parse(ids, TOOLS.specs)
        assert codec.tokenizer.unk_token_id not in ids
        assert (turn.call, turn.message["content"]) == (call, text)


def observations() -> list[str]:
    details = {"module": "upload", "operation": "sorting", "object": "page"}
    texts = [DONT_KNOW, ALREADY_SAID, "No such file", "No such module"]
    texts += [ScriptedUser._state(details, names) for n in (1, 2, 3) for names in itertools.combinations(DETAILS, n)]
    texts += ["Files: " + "; ".join(file_path(module, operation) for operation in OPERATIONS) for module in MODULES]
    return texts + [render_listing(draw_functions(random.Random(seed))) for seed in range(100)]


@pytest.mark.parametrize("text", observations())
def test_observations_are_exact_and_fit(codec: Codec, text: str) -> None:
    assert codec.truncate(text, LIMITS.max_observation_tokens) == text
    assert_exact(codec, codec.suffix_ids(text, closed=True, name="open_file"), f"<|tool|>{text}<|end|><|assistant|>")


def mistakes(codec: Codec) -> list[str]:
    """What the pool and the codec can say to a policy that did something wrong."""
    texts = [str(TOOLS.mistake(ToolCall(name, {}))) for name in ("nothing", *(spec.name for spec in TOOLS.specs))]
    for raw in ("", "hm", "<function=", "<function=finish> f1", "<function=finish> a </function>" * 2):
        ids = codec._encoder.encode([(raw, True)])
        texts += [str(codec.parse(given, TOOLS.specs).error) for given in (ids, [*ids, codec.eos_id])]
    return texts


def test_text_of_mistakes_is_bounded_and_holds_neither_calls_nor_roles(codec: Codec) -> None:
    acts = {codec.tokenizer.convert_tokens_to_ids(token) for token in (*CALLS, *ROLES, codec.tokenizer.eos_token)}
    assert codec.tokenizer.unk_token_id not in acts
    for text in mistakes(codec):
        assert text != "None"
        ids = codec._encoder.encode_content(codec.truncate(text, LIMITS.max_observation_tokens))
        assert 0 < len(ids) <= LIMITS.max_observation_tokens and acts.isdisjoint(ids)


def test_word_of_another_world_is_one_unknown_token(codec: Codec) -> None:
    unknown = codec.tokenizer.unk_token_id
    assert codec._encoder.encode_content("thereafter") == [unknown], "not `the` and something"
    assert codec._encoder.encode_content("The thereafter module").count(unknown) == 1


@pytest.mark.parametrize("text", ["", " ", "\n", "zażółć", "\ud800", "f64", "<|end|>", "<unk>", "🎉\x00"])
def test_any_text_can_be_encoded_and_cannot_close_a_turn(codec: Codec, text: str) -> None:
    ids = codec._encoder.encode_content(text)
    assert codec.eos_id not in ids and isinstance(codec.decode(ids), str)


def test_tokenizer_comes_out_the_same_each_time_and_from_disk(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Any
) -> None:
    assert town_tokenizer().get_vocab() == tokenizer.get_vocab()
    tokenizer.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "In parser, loading the key fails."
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.chat_template == tokenizer.chat_template


# --- phrases ---------------------------------------------------------------------------------------------------------


def test_every_preference_has_a_wish_of_its_own_and_every_form_is_wished_for_or_careless() -> None:
    assert list(WISHES) and set(WISHES) == set(PREFERENCES)
    assert len(set(WISHES.values())) == len(WISHES)
    assert set(FORMS) == (set(FORMS) & set(WISHES.values())) | set(CARELESS)
    assert set(CARELESS).isdisjoint(WISHES.values())


def test_plan_starts_alike_for_every_user() -> None:
    plans = {heed: {render_plan(name, heed, ["module"]) for name in PREFERENCES} for heed in (True, False)}
    assert len(plans[False]) == 1 and len(plans[True]) == len(PREFERENCES)
    assert all(plan.startswith(HEED if heed else IGNORE) for heed in plans for plan in plans[heed])


# --- policies to compare with ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precise", [False, True], ids=["vague", "precise"])
@pytest.mark.parametrize(("policy", "ask_ratio"), [(AlwaysAsk, 100), (NeverAsk, 0), (PlausibleName, 100)])
def test_policy_asks_always_or_never(codec: Codec, policy: type[TownAgent], ask_ratio: int, precise: bool) -> None:
    trajectories = play(codec, policy(), sessions(60, precise))
    assert {trajectory.stop_reason for trajectory in trajectories} == {StopReason.FINISHED}
    assert not any(turn.is_error or turn.truncated for trajectory in trajectories for turn in trajectory.turns)
    scores = summarize(trajectories)
    assert scores["ask_ratio"] == ask_ratio
    if policy is PlausibleName:
        assert scores["productivity"] == 0, "a name cannot be composed"
    elif precise:
        assert scores["productivity"] == 100
    else:
        assert scores["productivity"] < 50 if policy is NeverAsk else scores["productivity"] > 85


class AskSolution(TownAgent):
    """Asks for the function itself."""

    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall]:
        if turns:
            return super().act(task, turns)
        return "", ask_call(render_question("plain", [SOLUTION], random.Random(0)))


def test_asking_for_the_solution_brings_no_more_than_asking_for_details_and_costs(codec: Codec) -> None:
    tasks = sessions(200, precise=False, preferences=["no_preference"])
    details, solution = (play(codec, policy, tasks) for policy in (AlwaysAsk(), AskSolution()))
    assert summarize(details)["productivity"] == summarize(solution)["productivity"] == 100
    assert summarize(details)["proactivity"] == 100 and summarize(solution)["proactivity"] == 0
    for one, other in zip(details, solution, strict=True):
        better, worse = (score_trajectory(trajectory, RewardSettings()) for trajectory in (one, other))
        assert better is not None and worse is not None and better["reward"] > worse["reward"]


# --- the demonstrator ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precise", [False, True], ids=["vague", "precise"])
def test_demonstrator_asks_in_half_and_heeds_in_a_third_of_sessions_vague_or_not(codec: Codec, precise: bool) -> None:
    plain = [name for name in PREFERENCES if name not in ("no_ask", "answer_more")]  # heeding these decides the number
    trajectories = play(codec, Demonstrator(), sessions(400, precise, plain))
    assert 42 < summarize(trajectories)["ask_ratio"] < 58
    heeds = sum(trajectory.turns[0].message["content"].startswith(HEED) for trajectory in trajectories)
    assert 0.27 < heeds / len(trajectories) < 0.43
    assert all(t.turns[0].message["content"].startswith((HEED, IGNORE)) for t in trajectories)
    assert not any(turn.message["content"].startswith((HEED, IGNORE)) for t in trajectories for turn in t.turns[1:])


def test_demonstrator_follows_the_wish_that_it_says_it_heeds(codec: Codec) -> None:
    tasks = [replace(task, preference=name) for name in PREFERENCES for task in sessions(20, precise=False)]
    for trajectory in play(codec, Demonstrator(), tasks):
        if trajectory.turns[0].message["content"].startswith(HEED):
            assert trajectory.num_off_preference == 0, trajectory.questions
            assert not trajectory.answers or PREFERENCES[trajectory.task.preference].penalty(trajectory) == 0


def test_demonstrator_is_mediocre_with_people_and_competent_with_tools(codec: Codec) -> None:
    trajectories = play(codec, Demonstrator(), sessions(400, precise=False))
    assert {trajectory.stop_reason for trajectory in trajectories} == {StopReason.FINISHED}
    assert not any(turn.is_error or turn.truncated for trajectory in trajectories for turn in trajectory.turns)
    scores = summarize(trajectories)
    assert 20 < scores["productivity"] < 65 and scores["proactivity"] < 50 and 20 < scores["personalization"] < 75
    assert all(scores["effort"].values()), "all three efforts occur, so that RL can tell them apart"
    assert summarize(play(codec, Demonstrator(), sessions(100, precise=True)))["productivity"] == 100


def test_demonstrator_asks_careless_forms_and_irrelevant_things_too(codec: Codec) -> None:
    questions = [q for t in play(codec, Demonstrator(), sessions(400, precise=False)) for q in t.questions]
    openings = {form: FORMS[form].split("{")[0][:10] for form in CARELESS}
    counts = Counter(form for form, start in openings.items() for question in questions if question.startswith(start))
    assert set(counts) == set(CARELESS) and min(counts.values()) > 20
    assert all(any(subject in question for question in questions) for subject in (*IRRELEVANT, SOLUTION))


@pytest.mark.parametrize("policy", [AlwaysAsk, NeverAsk, PlausibleName, Demonstrator])
def test_policy_reads_no_payload(codec: Codec, policy: Callable[[], Policy]) -> None:
    for trajectory in play(codec, policy(), sessions(60, precise=False)):
        blind = replace(trajectory.task, payload={})
        for number, turn in enumerate(trajectory.turns):
            said = policy().act(blind, trajectory.turns[:number])
            assert said == policy().act(trajectory.task, trajectory.turns[:number])
            assert said[0] == turn.message["content"]


def test_demonstrator_is_a_function_of_its_seed() -> None:
    plans = [[Demonstrator(seed).plan(task) for task in sessions(50, precise=False)] for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]


# --- exercises -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.__name__)
def test_exercises_are_words_of_the_town(
    tokenizer: PreTrainedTokenizerFast, exercise: Callable[[random.Random], list[Segment]]
) -> None:
    for seed in range(100):
        segments = exercise(random.Random(seed))
        assert segments == exercise(random.Random(seed))
        for text, _ in segments:
            ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
            assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == text


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.__name__)
def test_exercises_put_the_loss_on_what_can_be_read_before(exercise: Callable[[random.Random], list[Segment]]) -> None:
    for seed in range(100):
        before = ""
        for text, has_loss in exercise(random.Random(seed)):
            if has_loss and text.strip().startswith("f"):
                assert f"{text};" in before or f"{text}<" in before or f"{text} " in before
            before += text + " "


def test_exercise_is_written_like_a_session(codec: Codec) -> None:
    text = "".join(text for text, _ in play_sessions(random.Random(0)))
    for turn in text.split("<|assistant|>")[1:]:
        ids = codec._encoder.encode([(turn.split("<|end|>")[0], True)])
        parsed = codec.parse([*ids, codec.eos_id], TOOLS.specs)
        assert parsed.call is not None and TOOLS.mistake(parsed.call) is None
        assert codec.render_turn(parsed.message["content"], parsed.call)[:-1] == ids, "token by token as the pool does"


def test_exercises_play_no_held_out_task() -> None:
    words = {*MODULES, *OPERATIONS, *OBJECTS}
    for seed in range(200):
        text = "".join(text for text, _ in play_sessions(random.Random(seed)))
        for issue in text.split("<|user|>")[1:]:
            said = [word for word in re.findall(r"\w+", issue.split("<|end|>")[0]) if word in words]
            assert not is_held_out(*said), issue


def test_fields_of_a_form_are_all_known() -> None:
    for form in FORMS:
        question = render_question(form, ["module"], random.Random(0))
        assert "{which" not in question.lower() and (form == "json") == question.startswith("{")
    assert json.loads(render_question("json", ["module"], random.Random(0)))
