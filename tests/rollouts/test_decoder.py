"""The decoder against one plain forward pass, against transformers' generate, and against itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from decodable_models import ARCHITECTURES, PAD, STOP, VOCAB, TinyModel, make_decoder

from duiqi.errors import DataError
from duiqi.rollouts import batch
from duiqi.rollouts.engine import NonFiniteLogits
from duiqi.rollouts.sampling import adjust_logits
from duiqi.types import Rollout, Sampling

Prompts = list[list[int]]


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Ten prompts of 1 to 9 tokens, in no order of length."""
    generator = torch.Generator().manual_seed(7)
    lengths = [4, 9, 1, 7, 4, 2, 8, 4, 6, 3]
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def hf_greedy(model: TinyModel, prompts: Prompts, max_new_tokens: int, **options: object) -> list[list[int]]:
    """Answers of transformers' generate for the left-padded prompts, up to and including the stop token."""
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    answers = model.network.generate(
        ids, attention_mask=(ids != PAD).long(), do_sample=False, max_new_tokens=max_new_tokens, **options
    )[:, width:].tolist()
    return [answer[: answer.index(STOP) + 1] if STOP in answer else answer for answer in answers]


def assert_same(ours: list[Rollout], others: list[Rollout]) -> None:
    """The same answers, and the same numbers up to rounding."""
    assert [r.answer_ids for r in ours] == [r.answer_ids for r in others]
    for one, other in zip(ours, others, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
        assert one.values == pytest.approx(other.values, abs=1e-5)


@pytest.mark.parametrize(
    "sampling", [Sampling(12), Sampling(12, min_new_tokens=4, temperature=0.7), Sampling(12, temperature=0)]
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probs_and_values_are_those_of_a_plain_forward_pass(
    architecture: str, sampling: Sampling, prompts: Prompts
) -> None:
    model = TinyModel(architecture, stop_bias=3.0)
    for rollout in make_decoder(model).generate(prompts, sampling):
        logits, hidden = model.teacher_forced(rollout.prompt_ids, rollout.answer_ids)
        logits = adjust_logits(
            logits,
            temperature=sampling.temperature,
            suppressed=torch.arange(len(logits)) < sampling.min_new_tokens,
            stop_token_ids=[STOP],
        )
        answer = torch.tensor(rollout.answer_ids).unsqueeze(-1)
        expected = logits.log_softmax(-1).gather(-1, answer).squeeze(-1).tolist()
        assert rollout.log_probs == pytest.approx(expected, abs=1e-5)
        assert rollout.values == pytest.approx(model.values(hidden).tolist(), abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_answers_are_those_of_transformers(architecture: str, prompts: Prompts) -> None:
    model = TinyModel(architecture)
    rollouts = make_decoder(model).generate(prompts, Sampling(20, min_new_tokens=0, temperature=0))
    assert [list(r.answer_ids) for r in rollouts] == hf_greedy(model, prompts, 20)


def test_greedy_answers_with_a_repetition_penalty_and_a_minimum_length_are_those_of_transformers(
    prompts: Prompts,
) -> None:
    model = TinyModel()
    sampling = Sampling(20, min_new_tokens=5, temperature=0, repetition_penalty=1.7)
    rollouts = make_decoder(model).generate(prompts, sampling)
    # Alone: transformers counts the padding as history.
    alone = [hf_greedy(model, [p], 20, min_new_tokens=5, repetition_penalty=1.7)[0] for p in prompts]
    assert [list(r.answer_ids) for r in rollouts] == alone


@pytest.mark.parametrize("max_batch_rows", [1, 3, 64])
@pytest.mark.parametrize("repetition_penalty", [1.0, 1.3])
def test_the_size_of_batches_changes_nothing(max_batch_rows: int, repetition_penalty: float, prompts: Prompts) -> None:
    model = TinyModel(stop_bias=3.0)
    sampling = Sampling(16, repetition_penalty=repetition_penalty)
    others = make_decoder(model, max_batch_rows=max_batch_rows).generate(prompts, sampling)
    assert_same(make_decoder(model).generate(prompts, sampling), others)


def test_an_answer_depends_on_its_prompt_and_index_alone(prompts: Prompts) -> None:
    decoder = make_decoder(TinyModel(stop_bias=3.0))
    among_others = [prompt if index in (0, 6) else [9, *prompt[::-1]] for index, prompt in enumerate(prompts)]
    ours, theirs = decoder.generate(prompts, Sampling(16)), decoder.generate(among_others, Sampling(16))
    assert_same([ours[0], ours[6]], [theirs[0], theirs[6]])
    assert ours[1].answer_ids != theirs[1].answer_ids


@pytest.mark.parametrize("share", [0.0, 0.5, 2.0])
def test_when_finished_rows_leave_changes_nothing(
    share: float, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TinyModel(stop_bias=4.0)
    ours = make_decoder(model).generate(prompts, Sampling(24, repetition_penalty=1.1))
    assert len({len(r.answer_ids) for r in ours}) > 3, "answers of many lengths"
    monkeypatch.setattr(batch, "COMPACTION_SHARE", share)
    assert_same(ours, make_decoder(model).generate(prompts, Sampling(24, repetition_penalty=1.1)))


def test_finished_rows_are_no_longer_run(prompts: Prompts) -> None:
    model = TinyModel(stop_bias=4.0)
    rollouts = make_decoder(model, max_batch_rows=1).generate(prompts, Sampling(24))
    # The last token of an answer is drawn but never fed.
    assert model.row_tokens_run == sum(len(r.prompt_ids) + len(r.answer_ids) - 1 for r in rollouts)


def test_a_repeated_prompt_is_read_once_and_answered_independently(prompts: Prompts) -> None:
    model = TinyModel()
    repeated = [prompts[1]] * 5 + [prompts[2]] * 3
    rollouts = make_decoder(model).generate(repeated, Sampling(1))
    assert model.row_tokens_run == 2 * len(prompts[1]), "two rows, the shorter prompt padded"
    rollouts = make_decoder(model).generate(repeated, Sampling(16))
    assert len({r.answer_ids for r in rollouts}) == 8
    assert_same(rollouts, make_decoder(model, max_batch_rows=1).generate(repeated, Sampling(16)))


def test_results_are_in_the_order_of_the_prompts(prompts: Prompts) -> None:
    rollouts = make_decoder(TinyModel()).generate(prompts, Sampling(4))
    assert [r.index for r in rollouts] == list(range(10))
    assert [list(r.prompt_ids) for r in rollouts] == prompts


def test_no_prompts_give_no_rollouts() -> None:
    assert make_decoder(TinyModel()).generate([], Sampling()) == []


def test_the_answer_never_stops_before_min_new_tokens() -> None:
    model = TinyModel(stop_bias=50.0)
    prompts = [[3 + i % 90, 5] for i in range(200)]
    rollouts = make_decoder(model, max_batch_rows=64).generate(prompts, Sampling(8))
    assert {len(r.answer_ids) for r in rollouts} == {2}, "one token and the stop token"
    longer = make_decoder(model, max_batch_rows=64).generate(prompts, Sampling(8, min_new_tokens=3))
    assert {len(r.answer_ids) for r in longer} == {4}
    assert all(r.answer_ids[:-1].count(STOP) == 0 and r.finished for r in rollouts + longer)


def test_finished_means_that_a_stop_token_ended_the_answer(prompts: Prompts) -> None:
    rollouts = make_decoder(TinyModel(stop_bias=4.0)).generate(prompts, Sampling(5))
    assert {r.finished for r in rollouts} == {True, False}
    for rollout in rollouts:
        assert rollout.finished == (rollout.answer_ids[-1] == STOP)
        assert STOP not in rollout.answer_ids[:-1]
        assert rollout.finished or len(rollout.answer_ids) == 5
        text = rollout.answer_ids[:-1] if rollout.finished else rollout.answer_ids
        assert rollout.answer == " ".join(map(str, text))
        assert len(rollout.log_probs) == len(rollout.values) == len(rollout.answer_ids)


def test_without_stop_tokens_every_answer_has_full_length(prompts: Prompts) -> None:
    rollouts = make_decoder(TinyModel(stop_bias=4.0), stop_token_ids=[]).generate(prompts, Sampling(6))
    assert {(len(r.answer_ids), r.finished) for r in rollouts} == {(6, False)}


def test_without_a_value_head_there_are_no_values(prompts: Prompts) -> None:
    rollouts = make_decoder(TinyModel(has_value_head=False)).generate(prompts, Sampling(4))
    assert {r.values for r in rollouts} == {()}


def test_tokens_are_drawn_as_often_as_the_model_says() -> None:
    model = TinyModel()
    num_samples, prompt = 20_000, [5, 6, 7]
    rollouts = make_decoder(model, max_batch_rows=num_samples).generate([prompt] * num_samples, Sampling(2))
    counts = torch.bincount(torch.tensor([r.answer_ids[0] for r in rollouts]), minlength=VOCAB).double()
    logits, _ = model.teacher_forced(prompt, [0])
    logits[:, STOP] = -torch.inf
    expected = num_samples * logits[0].double().softmax(-1)
    is_common = expected > 5
    chi_square = ((counts - expected) ** 2 / expected)[is_common].sum().item()
    degrees = int(is_common.sum())
    assert degrees > 30
    assert counts[STOP] == 0
    assert abs(chi_square - degrees) < 5 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("change", [{"step": 1}, {"seed": 1}])
def test_another_step_or_seed_gives_other_answers(change: dict[str, int], prompts: Prompts) -> None:
    decoder = make_decoder(TinyModel())
    ours = decoder.generate(prompts, Sampling(12))
    others = decoder.generate(prompts, Sampling(12, seed=change.get("seed", 0)), step=change.get("step", 0))
    assert ours == decoder.generate(prompts, Sampling(12))
    assert not {r.answer_ids for r in ours} & {r.answer_ids for r in others}


def test_truncated_sampling_records_the_untruncated_log_probs(prompts: Prompts) -> None:
    model = TinyModel()
    only_likely = Sampling(12, top_k=1, min_new_tokens=0)
    rollouts = make_decoder(model).generate(prompts, only_likely)
    assert [list(r.answer_ids) for r in rollouts] == hf_greedy(model, prompts, 12)
    for rollout in rollouts:
        logits, _ = model.teacher_forced(rollout.prompt_ids, rollout.answer_ids)
        assert rollout.log_probs == pytest.approx(logits.log_softmax(-1).amax(-1).tolist(), abs=1e-5)


def test_top_p_draws_from_the_nucleus_alone() -> None:
    model = TinyModel()
    rollouts = make_decoder(model, max_batch_rows=500).generate([[5, 6, 7]] * 500, Sampling(1, top_p=0.5))
    likely_first = model.teacher_forced([5, 6, 7], [0])[0][0].softmax(-1).sort(descending=True)
    nucleus = likely_first.indices[: int((likely_first.values.cumsum(-1) < 0.5).sum()) + 1].tolist()
    assert {r.answer_ids[0] for r in rollouts} == set(nucleus) - {STOP}


def test_non_finite_logits_stop_generation_and_are_named(prompts: Prompts) -> None:
    model = TinyModel()
    answer_7 = make_decoder(model).generate(prompts, Sampling(8, temperature=0))[7].answer_ids
    with torch.no_grad():
        model.network.get_input_embeddings().weight[answer_7[2]] = torch.nan
    with pytest.raises(
        NonFiniteLogits, match="step 12, prompt 0: the logits of answer token 3 are not finite"
    ) as error:
        make_decoder(model).generate([prompts[7]], Sampling(8, temperature=0), step=12)
    assert (error.value.prompt_index, error.value.token_index) == (0, 3)


def test_an_empty_prompt_is_refused_by_its_index(prompts: Prompts) -> None:
    with pytest.raises(DataError, match=r"prompt 1: there is no token to answer to\n  -> give it some text"):
        make_decoder(TinyModel()).generate([prompts[0], []], Sampling(4))


@pytest.mark.parametrize("stop_bias", [0.0, 6.0])
def test_streaming_gives_the_tokens_of_generate_without_the_stop_token(stop_bias: float, prompts: Prompts) -> None:
    decoder = make_decoder(TinyModel(stop_bias=stop_bias))
    for step, prompt in enumerate(prompts):
        (rollout,) = decoder.generate([prompt], Sampling(9, seed=3), step=step)
        streamed = list(decoder.stream(prompt, Sampling(9, seed=3), step=step))
        assert streamed == list(rollout.answer_ids[:-1] if rollout.finished else rollout.answer_ids)


def test_the_model_is_active_while_it_computes_and_never_while_the_caller_looks(prompts: Prompts) -> None:
    entered = []

    @contextmanager
    def active() -> Iterator[None]:
        entered.append(True)
        with torch.no_grad():
            yield
        entered.pop()

    class Watched(TinyModel):
        def trunk(self, *arguments: object, **options: object) -> object:
            assert entered
            return super().trunk(*arguments, **options)

    decoder = make_decoder(Watched(), active=active)
    for _ in decoder.stream(prompts[0], Sampling(5)):
        assert not entered
        assert torch.is_grad_enabled()
    decoder.generate(prompts, Sampling(5))
    assert not entered
