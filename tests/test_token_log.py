"""The token view's data: texts of tokens that join to what was decoded, and a sample that depends on nothing but the
plan."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ppp.baselines.town_tokenizer import town_tokenizer
from ppp.codec import Codec
from ppp.rollout import RolloutJob
from ppp.run_log import read_jsonl
from ppp.token_log import MAX_SESSIONS, MAX_TOKENS, TokenLog, TrainingTokens, num_sampled, token_pieces, token_record
from ppp.types import StopReason, Task, Trajectory, Turn

TEXT = "Grüße aus 東京 👩\u200d💻: naïve?\n"


def sentencepiece() -> Tokenizer:
    """As Llama 2 has it: spaces as letters, bytes where there is no letter."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "b", "c", "é"]
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


def wordpiece() -> Tokenizer:
    """As BERT has it: what is written for a token depends on its neighbours."""
    words = ["[UNK]", "a", "##b", ".", "do", "n't", "'", "s"]
    backend = Tokenizer(models.WordPiece(vocab={word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return backend


DECODERS: dict[str, Callable[[PreTrainedTokenizerBase], Tokenizer]] = {
    "bytes": lambda tokenizer: tokenizer.backend_tokenizer,
    "town": lambda _: town_tokenizer().backend_tokenizer,
    "sentencepiece": lambda _: sentencepiece(),
    "wordpiece": lambda _: wordpiece(),
}


@pytest.mark.parametrize("name", DECODERS)
def test_pieces_join_to_the_decoded_text_whatever_the_tokens_are(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    backend = DECODERS[name](tokenizer)
    draw = random.Random(0)
    num_tokens = backend.get_vocab_size()

    def decode(ids: Sequence[int]) -> str:
        return backend.decode(list(ids), skip_special_tokens=False)

    for length in (0, 1, 2, 3, 30, 300):
        for _ in range(10):
            ids = draw.choices(range(num_tokens), k=length)
            pieces = token_pieces(decode, ids)
            assert len(pieces) == length
            assert "".join(pieces) == decode(ids)


@pytest.mark.parametrize(
    "broken", [b"\x82", b"\xe2", b"\xe2\x82", b"\xf0\x9f\x91", b"\xf0\x9f\x91\x82\x82", b"\xff\xe2"]
)
def test_pieces_of_bytes_that_are_no_text_join_and_take_no_time_that_grows(
    broken: bytes, tokenizer: PreTrainedTokenizerBase, codec: Codec
) -> None:
    ids = byte_ids(tokenizer, b"ab" + broken * 200 + "é".encode())
    longest = 0

    def decode(part: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(part) if len(part) < len(ids) else 0)
        return codec.decode(part)

    pieces = token_pieces(decode, ids)
    assert "".join(pieces) == codec.decode(ids)
    assert pieces[-1].endswith("é") and longest < 50


def byte_ids(tokenizer: PreTrainedTokenizerBase, data: bytes) -> list[int]:
    """The tokens of bytes that need not be text."""
    letters = bytes_to_unicode()
    return [tokenizer.convert_tokens_to_ids(letters[byte]) for byte in data]


def test_a_character_of_several_tokens_belongs_to_the_last_of_them(
    tokenizer: PreTrainedTokenizerBase, codec: Codec
) -> None:
    ids = [*tokenizer.encode("aé👋"), codec.eos_id]
    assert token_pieces(codec.decode, ids) == ["a", "", "é", "", "", "", "👋", "<|im_end|>"]


# --- which sessions ---------------------------------------------------------------------------------------------------


def trajectory(codec: Codec, text: str, *, num_tokens: int | None = None) -> Trajectory:
    own = codec.render_turn(text, None)
    turn = Turn(own, [-0.123456] * len(own), {"role": "assistant", "content": text}, num_tokens=num_tokens)
    turn.observation, turn.observation_ids = "ok", codec.suffix_ids("ok", closed=True, name="look")
    task = Task("t", "town", "vague", "precise", "no_preference", {})
    return Trajectory(task, [1, 2], [turn], StopReason.MAX_TURNS, 0.5)


def jobs(numbers: Sequence[int]) -> list[RolloutJob]:
    task = Task("t", "town", "vague", "precise", "no_preference", {})
    return [RolloutJob(task, row=number, copy=0) for number in numbers]


def test_a_record_tells_own_tokens_from_others(codec: Codec) -> None:
    played = trajectory(codec, TEXT)
    record = token_record(played, codec, step=3, mode="train", row=1, copy=2)
    assert record is not None
    assert list(record)[:4] == ["step", "mode", "row", "copy"], "drop_lines_after reads the beginning of a line"
    own = "".join(piece for piece, is_own in zip(record["pieces"], record["own"], strict=True) if is_own)
    assert own == TEXT + "<|im_end|>"
    assert "".join(record["pieces"]) == codec.decode(played.completion_ids)
    assert [value is None for value in record["logprobs"]] == [not is_own for is_own in record["own"]]
    assert record["logprobs"][0] == -0.1235


def test_tokens_that_only_stand_for_an_agents_words_are_not_logged(codec: Codec) -> None:
    assert token_record(trajectory(codec, "a", num_tokens=7), codec, step=0, mode="eval", row=0, copy=0) is None


def test_sessions_that_failed_are_not_logged(codec: Codec) -> None:
    failed = trajectory(codec, "a")
    failed.stop_reason = StopReason.ERROR
    assert token_record(failed, codec, step=0, mode="eval", row=0, copy=0) is None


def test_files_stay_small_where_sessions_are_long() -> None:
    assert num_sampled(320) == MAX_SESSIONS
    assert num_sampled(40_000) == MAX_TOKENS // 40_000 == 50
    assert num_sampled(10**9) == 1


def test_the_sample_of_an_evaluation_does_not_depend_on_the_order_of_arrival(codec: Codec, tmp_path: Path) -> None:
    rows = [*range(500), *range(1_000_000, 1_000_500)]
    written = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        log = TokenLog(tmp_path / name, codec, order, 400)
        for row in order:
            log.offer(trajectory(codec, "a"), row=row, copy=0)
        written.append({line["row"] for line in read_jsonl(tmp_path / name)})
    assert written[0] == written[1] and len(written[0]) == MAX_SESSIONS
    assert 60 < sum(row >= 1_000_000 for row in written[0]) < 140, "all kinds of sessions are in it"


def test_an_evaluation_that_goes_on_writes_no_session_twice_and_drops_half_a_line(codec: Codec, tmp_path: Path) -> None:
    path = tmp_path / "tokens.jsonl"
    log = TokenLog(path, codec, range(9), 400)
    for row in (3, 1):
        log.offer(trajectory(codec, "a"), row=row, copy=0)
    with path.open("a") as file:
        file.write('{"step": 0, "mode": "ev')
    again = TokenLog(path, codec, range(9), 400)
    for row in range(9):
        again.offer(trajectory(codec, "a"), row=row, copy=0)
    assert [line["row"] for line in read_jsonl(path)] == [3, 1, 0, 2, 4, 5, 6, 7, 8]


def play(log: TrainingTokens, codec: Codec, steps: Sequence[int], num_steps: int) -> None:
    log.num_steps = num_steps
    batch = jobs(range(16))
    for step in steps:
        if step:
            log.offer(batch, [trajectory(codec, "a")] * 16, step, "train")
        if step % 10 == 0:
            log.offer(batch, [trajectory(codec, "b")] * 16, step, "eval")


@pytest.mark.parametrize("num_steps", [3, 40, 1000])
def test_the_sample_of_a_training_is_spread_over_the_run(codec: Codec, tmp_path: Path, num_steps: int) -> None:
    path = tmp_path / "tokens.jsonl"
    play(TrainingTokens(path, codec, 400, -1), codec, range(num_steps + 1), num_steps)
    lines = read_jsonl(path)
    trained = [line for line in lines if line["mode"] == "train"]
    assert len(trained) == min(150, 16 * num_steps) and len(lines) <= MAX_SESSIONS
    halves = [sum(line["step"] <= num_steps / 2 for line in trained), len(trained)]
    assert abs(2 * halves[0] - halves[1]) <= max(2, 2 * len(trained) / num_steps)
    assert len({line["row"] for line in trained}) > 8, "not the same place of the batch each time"
    assert any(line["mode"] == "eval" and line["step"] == 0 for line in lines)
    assert len({(line["step"], line["mode"], line["row"], line["copy"]) for line in lines}) == len(lines)


def test_a_training_that_was_killed_and_goes_on_leaves_the_same_file(codec: Codec, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    play(TrainingTokens(whole, codec, 400, -1), codec, range(61), 60)
    play(TrainingTokens(killed, codec, 400, -1), codec, range(35), 60)
    with killed.open("a") as file:
        file.write('{"step": 35, "mo')
    play(TrainingTokens(killed, codec, 400, 30), codec, range(31, 61), 60)
    assert killed.read_bytes() == whole.read_bytes()
    TrainingTokens(killed, codec, 400, -1)
    assert killed.read_bytes() == b"", "a run from the beginning keeps nothing"
