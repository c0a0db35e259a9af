"""The one batch that every stage computes: sequences packed into a row, prompts shared, nothing padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from duiqi.packing.runs import Runs
from duiqi.packing.tree import SegmentTree


@dataclass(frozen=True, slots=True)
class Family:
    """Sequences with a common beginning: a prompt, perhaps empty, and the answers that continue it."""

    prompt: Sequence[int]
    answers: Sequence[Sequence[int]]
    learned: Sequence[Sequence[bool]] | None = None
    """Which tokens of each answer are learned or scored; None: all of them."""

    @property
    def num_tokens(self) -> int:
        """Tokens to compute when the prompt is computed once."""
        return len(self.prompt) + sum(map(len, self.answers))

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, prompt included."""
        return len(self.prompt) + max(map(len, self.answers))


@dataclass(frozen=True)
class PackedBatch:
    """B sequences in one row of T tokens, of which N are learned or scored.

    Sequences and learned tokens are numbered in the order in which they were given.
    """

    input_ids: Int[Tensor, " T"]
    positions: Int[Tensor, " T"]
    tree: SegmentTree
    targets: Int[Tensor, " N"]
    """The learned tokens themselves."""
    before: Int[Tensor, " N"]
    """Where in the row the token stands that predicts each of them."""
    rows: Int[Tensor, " N"]
    """Which sequence each of them belongs to."""
    last: Int[Tensor, " B"]
    """Where each sequence ends."""
    predicting: Runs
    """The tokens of `before`."""
    ending: Runs
    """The tokens of `last`."""
    prompts: Int[Tensor, "B 2"]
    """First and past-the-end place of each sequence's prompt in the row."""
    answers: Int[Tensor, "B 2"]
    """The same of its answer."""

    def __len__(self) -> int:
        return len(self.last)

    @property
    def num_tokens(self) -> int:
        """Tokens computed."""
        return len(self.input_ids)

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on a device."""
        if self.input_ids.device == device:
            return self
        names = ("input_ids", "positions", "targets", "before", "rows", "last")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})

    @property
    def is_even(self) -> bool:
        """Whether all sequences are of one length."""
        spans = zip(self.prompts.tolist(), self.answers.tolist(), strict=True)
        return len({stop - start + end - begin for (start, stop), (begin, end) in spans}) == 1

    def sums(self, values: Float[Tensor, " N"]) -> Float[Tensor, " B"]:
        """The sum of a per-token quantity over the learned tokens of each sequence."""
        return values.new_zeros(len(self)).index_add(0, self.rows, values)

    def counts(self) -> Int[Tensor, " B"]:
        """Learned tokens of each sequence."""
        return self.rows.new_zeros(len(self)).index_add(0, self.rows, torch.ones_like(self.rows))

    def filled(self, multiple: int) -> PackedBatch:
        """The same batch with a sequence of filling behind it, so that its tokens are a multiple of a number."""
        missing = -self.num_tokens % multiple
        if not missing:
            return self
        filling = torch.arange(missing, device=self.positions.device)
        return replace(
            self,
            input_ids=torch.cat([self.input_ids, self.input_ids[:1].expand(missing)]),
            positions=torch.cat([self.positions, filling]),
            tree=self.tree.followed_by(SegmentTree.of([missing], [None])),
        )

    def followed_by(self, other: PackedBatch) -> PackedBatch:
        """Both in one row, the other behind this one; its sequences are numbered on."""
        tokens, sequences = self.num_tokens, len(self)
        return PackedBatch(
            input_ids=torch.cat([self.input_ids, other.input_ids]),
            positions=torch.cat([self.positions, other.positions]),
            tree=self.tree.followed_by(other.tree),
            targets=torch.cat([self.targets, other.targets]),
            before=torch.cat([self.before, other.before + tokens]),
            rows=torch.cat([self.rows, other.rows + sequences]),
            last=torch.cat([self.last, other.last + tokens]),
            predicting=self.predicting.followed_by(other.predicting.moved(tokens)),
            ending=self.ending.followed_by(other.ending.moved(tokens)),
            prompts=torch.cat([self.prompts, other.prompts + tokens]),
            answers=torch.cat([self.answers, other.answers + tokens]),
        )

    def padded(self) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """The same sequences, each in a row of its own, padded on the right with copies of their first token."""
        spans = [
            torch.cat([torch.arange(*prompt), torch.arange(*answer)])
            for prompt, answer in zip(self.prompts.tolist(), self.answers.tolist(), strict=True)
        ]
        width = max(map(len, spans))
        places = torch.stack([torch.cat([span, span[:1].expand(width - len(span))]) for span in spans])
        mask = torch.arange(width) < torch.tensor([[len(span)] for span in spans])
        device = self.input_ids.device
        return self.input_ids[places.to(device)], mask.to(device)


def share_prompts(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[Family]:
    """Prompts and their answers as families: neighbours with the same prompt share it."""
    together: list[tuple[Sequence[int], list[Sequence[int]]]] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        if together and together[-1][0] == prompt:
            together[-1][1].append(answer)
        else:
            together.append((prompt, [answer]))
    return [Family(prompt, own) for prompt, own in together]


def pack(families: Sequence[Family]) -> PackedBatch:
    """The families in one row: each prompt once, then its answers. An only answer and its prompt are one segment.

    A learned token at the very beginning of a sequence is left out: nothing predicts it.
    """
    ids: list[int] = []
    lengths: list[int] = []
    parents: list[int | None] = []
    learned: list[int] = []
    before: list[int] = []
    rows: list[int] = []
    prompts: list[tuple[int, int]] = []
    answers: list[tuple[int, int]] = []
    for family in families:
        prompt = (len(ids), len(ids) + len(family.prompt))
        ids += family.prompt
        parent = None
        if family.prompt and len(family.answers) > 1:
            parent = len(lengths)
            lengths.append(len(family.prompt))
            parents.append(None)
        for number, answer in enumerate(family.answers):
            start = len(ids)
            ids += answer
            lengths.append(len(answer) if parent is not None else len(family.prompt) + len(answer))
            parents.append(parent)
            places: Sequence[int] = range(start, len(ids))
            if family.learned is not None:
                marks = zip(places, family.learned[number], strict=True)
                places = [place for place, is_learned in marks if is_learned]
            if not family.prompt:
                places = [place for place in places if place > start]
            learned += places
            # Behind another answer, what predicts the first token is the end of the prompt.
            before += [prompt[1] - 1 if place == start else place - 1 for place in places]
            rows += [len(prompts)] * len(places)
            prompts.append(prompt)
            answers.append((start, len(ids)))
    tree = SegmentTree.of(lengths, parents)
    input_ids = torch.tensor(ids)
    return PackedBatch(
        input_ids=input_ids,
        positions=tree.positions(),
        tree=tree,
        targets=input_ids[torch.tensor(learned, dtype=torch.long)],
        before=torch.tensor(before, dtype=torch.long),
        rows=torch.tensor(rows, dtype=torch.long),
        last=torch.tensor(answers)[:, 1] - 1,
        predicting=Runs.of(before),
        ending=Runs.of(end - 1 for _, end in answers),
        prompts=torch.tensor(prompts),
        answers=torch.tensor(answers),
    )
