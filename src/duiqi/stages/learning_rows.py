"""What the stages that learn from sequences see: rows that are all known, or rows that are streamed."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from duiqi.data.compact import TOKEN
from duiqi.data.encoded import document_ids, encode_demonstrations, pack_text
from duiqi.data.encoding import EncodedSequence, TrainOn, describe_first
from duiqi.data.loading import LoadedData, Need, load_examples
from duiqi.data.order import BatchPlan
from duiqi.data.registry import parse_dataset_spec
from duiqi.data.streaming import ExampleStream
from duiqi.data.templates import Template
from duiqi.errors import SettingsError
from duiqi.journal.run import Run
from duiqi.packing.batch import Family
from duiqi.settings.stages import PretrainConfig, SFTConfig
from duiqi.stages.materials import files_read, make_budget, plan_steps, record_data, rejected_rows
from duiqi.stages.preparation import Prepared, prepare_demonstrations, prepare_text
from duiqi.training.fit import Order
from duiqi.training.session import Keeps
from duiqi.types import Example

Encode = Callable[[Sequence[Example]], Sequence[EncodedSequence]]
DOCUMENTS_AT_ONCE = 16
"""Documents that are read and tokenised together when a block is not full yet."""


@dataclass(frozen=True)
class LearningRows:
    """What a stage learns from, and how long."""

    order: Order[Family]
    num_rows: int
    """Of an epoch; streamed: of the whole run."""
    total_steps: int
    opening: list[int]
    """The first row."""
    held_out: Sequence[EncodedSequence]
    notes: list[str]
    kept: dict[str, Keeps] = field(default_factory=dict)
    """What a checkpoint must hold to go on from."""

    def held_out_families(self) -> list[Family]:
        """The rows to evaluate on, as packing takes them."""
        return [row.family for row in self.held_out]


def make_demonstrations(
    config: SFTConfig, journal: Run, template: Template, tokenizer: PreTrainedTokenizerBase
) -> LearningRows:
    """The rows of a stage that learns from demonstrations, all known or streamed.

    Raises:
        UserError: A dataset or a setting does not allow it.
    """
    budget = make_budget(config.data, config.prompt, max_answer_tokens=config.answer.max_target_length)
    train_on: TrainOn = "last" if config.history.mask_history else "all"
    if not config.stream.streaming:
        prepared = prepare_demonstrations(
            config.data,
            config.cache,
            journal,
            seed=config.optimizer.seed,
            template=template,
            tokenizer=tokenizer,
            budget=budget,
            train_on=train_on,
        )
        return _known(prepared, config)

    def encode(examples: Sequence[Example]) -> Sequence[EncodedSequence]:
        return encode_demonstrations(template, tokenizer, examples=examples, budget=budget, train_on=train_on).items

    (first,) = encode(open_stream(config, "demonstration").take(1))
    told = f"first row, learned part in ⟦⟧: {describe_first(first, tokenizer)}"

    def order_of(examples: ExampleStream) -> DemonstrationStream:
        return DemonstrationStream(examples, encode, _rows_per_step(config))

    return _streamed(config, journal, "demonstration", encode, order_of, opening=first.input_ids, notes=[told])


def make_blocks(config: PretrainConfig, journal: Run, tokenizer: PreTrainedTokenizerBase) -> LearningRows:
    """The blocks of a stage that learns plain text, all known or streamed.

    Raises:
        UserError: A dataset or a setting does not allow it.
    """
    block_size = config.data.cutoff_len
    if not config.stream.streaming:
        prepared = prepare_text(config.data, config.cache, journal, seed=config.optimizer.seed, tokenizer=tokenizer)
        return _known(prepared, config)

    def encode(examples: Sequence[Example]) -> Sequence[EncodedSequence]:
        return pack_text([example.answers[0] for example in examples], tokenizer, block_size=block_size)

    def order_of(examples: ExampleStream) -> BlockStream:
        return BlockStream(examples, tokenizer, block_size, _rows_per_step(config))

    first = order_of(open_stream(config, "text")).rows(0)[0]
    return _streamed(config, journal, "text", encode, order_of, opening=list(first.answers[0]))


def _known(prepared: Prepared[EncodedSequence], config: SFTConfig | PretrainConfig) -> LearningRows:
    items = prepared.train.items
    plan, total_steps = plan_steps(len(items), config.optimizer, config.batch)
    held_out = prepared.held_out.items if prepared.held_out is not None else ()
    order = KnownOrder(items, plan)
    return LearningRows(order, len(items), total_steps, items[0].input_ids, held_out, prepared.notes)


def _streamed(
    config: SFTConfig | PretrainConfig,
    journal: Run,
    need: Need,
    encode: Encode,
    order_of: Callable[[ExampleStream], DemonstrationStream | BlockStream],
    *,
    opening: list[int],
    notes: Sequence[str] = (),
) -> LearningRows:
    """Rows of a stream, and those of `eval_dataset`, which are read as usual; what is read goes into the journal."""
    held = _load_held_out(config, need)
    reports = [held.report] if held is not None else []
    rejects = rejected_rows(reports)
    examples = open_stream(config, need, lambda rows: journal.write_rejects([*rejects, *rows]))
    record_data(journal, [*map(asdict, examples.files()), *files_read(reports)], rejects)
    order = order_of(examples)
    return LearningRows(
        order,
        num_rows=config.optimizer.max_steps * _rows_per_step(config),
        total_steps=config.optimizer.max_steps,
        opening=opening,
        held_out=encode(held.examples) if held is not None else (),
        notes=[*examples.lines(), *(line for report in reports for line in report.lines()), *notes],
        kept={"stream": order},
    )


def _load_held_out(config: SFTConfig | PretrainConfig, need: Need) -> LoadedData | None:
    data = config.data
    if data.eval_dataset is None:
        return None
    return load_examples(
        parse_dataset_spec(data.eval_dataset),
        dataset_dir=data.dataset_dir,
        need=need,
        seed=config.optimizer.seed,
        max_bad_rows=data.max_bad_rows,
    )


def _rows_per_step(config: SFTConfig | PretrainConfig) -> int:
    return config.batch.per_device_train_batch_size * config.batch.gradient_accumulation_steps


@dataclass(frozen=True)
class KnownOrder:
    """Rows that are all known, as a plan deals them."""

    items: Sequence[EncodedSequence]
    plan: BatchPlan

    def rows(self, step: int) -> list[Family]:
        """The rows of a step."""
        return [self.items[row].family for row in self.plan.rows(step)]


def open_stream(
    config: SFTConfig | PretrainConfig, need: Need, on_reject: Callable[[list[dict[str, Any]]], object] = bool
) -> ExampleStream:
    """The stream of a `dataset` setting.

    Raises:
        SettingsError: Nothing says when the run ends.
        DataError: A dataset cannot be streamed.
    """
    if not config.optimizer.max_steps:
        raise SettingsError(
            "how many rows there are is not known when they are streamed", where="max_steps", remedy="set max_steps"
        )
    return ExampleStream(
        parse_dataset_spec(config.data.dataset),
        dataset_dir=config.data.dataset_dir,
        need=need,
        seed=config.optimizer.seed,
        buffer_size=config.stream.buffer_size,
        max_bad_rows=config.data.max_bad_rows,
        on_reject=on_reject,
    )


@dataclass(frozen=True)
class DemonstrationStream:
    """So many demonstrations for every step."""

    examples: ExampleStream
    encode: Encode
    rows_per_step: int

    def rows(self, step: int) -> list[Family]:
        """The next rows."""
        del step
        return [item.family for item in self.encode(self.examples.take(self.rows_per_step))]

    def state(self) -> dict[str, Any]:
        """Where it stands."""
        return self.examples.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.examples.load_state(state)


class BlockStream:
    """So many blocks of text for every step: documents one after the other, each ended by EOS."""

    def __init__(
        self, examples: ExampleStream, tokenizer: PreTrainedTokenizerBase, block_size: int, rows_per_step: int
    ) -> None:
        self.examples = examples
        self._tokenizer, self._block_size, self._rows_per_step = tokenizer, block_size, rows_per_step
        self._left = array(TOKEN)

    def rows(self, step: int) -> list[Family]:
        """The next blocks."""
        del step
        needed = self._block_size * self._rows_per_step
        while len(self._left) < needed:
            texts = [example.answers[0] for example in self.examples.take(DOCUMENTS_AT_ONCE)]
            for ids in document_ids(texts, self._tokenizer):
                self._left.extend(ids)
        taken, self._left = self._left[:needed].tolist(), self._left[needed:]
        blocks = [taken[start : start + self._block_size] for start in range(0, needed, self._block_size)]
        return [Family((), (block,), ([True] * len(block),)) for block in blocks]

    def state(self) -> dict[str, Any]:
        """Where it stands: the stream, and what is left of the documents that were read."""
        return {"examples": self.examples.state(), "left": self._left.tolist()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.examples.load_state(state["examples"])
        self._left = array(TOKEN, state["left"])
