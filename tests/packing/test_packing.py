"""Segment trees, packed batches, and how rows are dealt into micro-batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duiqi.packing.batch import Family, pack, share_prompts
from duiqi.packing.budget import deal
from duiqi.packing.runs import Runs
from duiqi.packing.tree import Segment, SegmentTree

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def family(prompt: int, *answers: int) -> Family:
    return Family(tuple(range(100, 100 + prompt)), [tuple(range(200, 200 + n)) for n in answers])


def test_a_tree_says_who_continues_whom() -> None:
    tree = SegmentTree.of([3, 2, 1, 4, 2], [None, 0, 1, 0, None])
    assert tree.segments == (
        Segment(0, 3, 10),
        Segment(3, 5, 6),
        Segment(5, 6, 6),
        Segment(6, 10, 10),
        Segment(10, 12, 12),
    )
    assert tree.levels == ((tree.segments[0],), (tree.segments[1],))
    assert tree.roots == (tree.segments[0], tree.segments[4])
    assert tree.deepest == 7
    assert tree.positions().tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 0, 1]


def test_a_token_sees_what_its_segment_continues_and_itself_and_nothing_else() -> None:
    tree = SegmentTree.of([2, 1, 2], [None, 0, 0])
    seen = tree.visible(tree.roots[0])
    assert [row.nonzero().flatten().tolist() for row in seen] == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4]]


@given(st.lists(st.tuples(st.integers(1, 5), st.lists(st.integers(1, 5), max_size=3)), min_size=1, max_size=4))
def test_every_token_sees_exactly_as_many_tokens_as_come_before_it(shape: list[tuple[int, list[int]]]) -> None:
    lengths: list[int] = []
    parents: list[int | None] = []
    for prompt, answers in shape:
        root = len(lengths)
        lengths += [prompt, *answers]
        parents += [None, *[root] * len(answers)]
    tree = SegmentTree.of(lengths, parents)
    counts = torch.cat([tree.visible(root).sum(1) for root in tree.roots])
    assert torch.equal(counts, tree.positions() + 1)


@given(st.sets(st.integers(0, 11), min_size=1))
def test_a_tree_may_be_cut_anywhere(places: set[int]) -> None:
    tree = SegmentTree.of([3, 2, 1, 4, 2], [None, 0, 1, 0, None])
    cut = tree.cut(sorted(places))
    assert [segment.start for segment in cut.segments] == sorted({0, 3, 5, 6, 10} | places)
    assert torch.equal(cut.positions(), tree.positions())
    assert [(root.start, root.stop) for root in cut.roots] == [(root.start, root.stop) for root in tree.roots]
    for before, after in zip(tree.roots, cut.roots, strict=True):
        assert torch.equal(tree.visible(before), cut.visible(after))


@given(st.lists(st.integers(0, 29), min_size=1), st.integers(1, 9))
def test_runs_number_their_tokens_and_nothing_else(places: list[int], multiple: int) -> None:
    runs, wanted = Runs.of(places), sorted(set(places))
    assert runs.places(torch.device("cpu")).tolist() == wanted
    assert runs.num_tokens == len(wanted)
    assert [runs.number(place) for place in range(31)] == [sum(w < place for w in wanted) for place in range(31)]
    moved = runs.moved(30)
    assert runs.followed_by(moved).places(torch.device("cpu")).tolist() == [*wanted, *(place + 30 for place in wanted)]
    filled = runs.filled(multiple, 30).places(torch.device("cpu")).tolist()
    assert set(filled) >= set(wanted)
    assert len(filled) == min(-(-len(wanted) // multiple) * multiple, 30)
    assert filled == sorted(set(filled))
    assert max(filled) < 30


def test_a_packed_batch_has_every_prompt_once_and_knows_what_predicts_what() -> None:
    batch = pack([Family((1, 2), [(3, 4), (5,)]), Family((), [(6, 7, 8)], [(False, True, True)])])
    assert batch.input_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert batch.positions.tolist() == [0, 1, 2, 3, 2, 0, 1, 2]
    assert batch.targets.tolist() == [3, 4, 5, 7, 8]
    assert batch.before.tolist() == [1, 2, 1, 5, 6], "the prompt's end predicts the first token of both answers"
    assert batch.rows.tolist() == [0, 0, 1, 2, 2]
    assert batch.last.tolist() == [3, 4, 7]
    assert batch.predicting.spans == ((1, 3), (5, 7))
    assert batch.ending.spans == ((3, 5), (7, 8))
    assert batch.counts().tolist() == [2, 1, 2]
    assert batch.sums(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).tolist() == [3.0, 3.0, 9.0]


def test_the_first_token_of_a_sequence_is_never_learned() -> None:
    assert pack([Family((), [(6, 7)])]).targets.tolist() == [7]


def test_padded_rows_hold_the_same_sequences() -> None:
    input_ids, mask = pack([Family((1, 2), [(3, 4), (5,)]), Family((), [(6, 7, 8)])]).padded()
    assert [row[keep].tolist() for row, keep in zip(input_ids, mask, strict=True)] == [
        [1, 2, 3, 4],
        [1, 2, 5],
        [6, 7, 8],
    ]
    assert mask.shape == (3, 4)


def test_only_neighbours_share_a_prompt() -> None:
    families = share_prompts([(1,), (1,), (2,), (1,)], [(3,), (4,), (5,), (6,)])
    assert [(f.prompt, list(f.answers)) for f in families] == [((1,), [(3,), (4,)]), ((2,), [(5,)]), ((1,), [(6,)])]


@given(LENGTHS, st.integers(1, 60), st.booleans())
def test_dealing_loses_no_row_and_respects_the_budget(lengths: list[int], max_tokens: int, packed: bool) -> None:
    families = [family(2, n) for n in lengths]
    bins = deal(families, max_tokens=max_tokens, packed=packed)
    assert sorted(row for rows in bins for row in rows) == list(range(len(families)))

    def cost(rows: list[int]) -> int:
        if packed:
            return sum(families[row].num_tokens for row in rows)
        return len(rows) * max(families[row].longest for row in rows)

    assert all(cost(rows) <= max_tokens or len(rows) == 1 for rows in bins)
    assert cost(bins[0]) == max(map(cost, bins)) or not packed


def test_what_fits_is_computed_at_once() -> None:
    assert len(deal([family(3, 2, 2)] * 4, max_tokens=28)) == 1
    assert len(deal([family(3, 2, 2)] * 4, max_tokens=27)) == 2
    assert len(deal([family(3, 2, 2)] * 4, max_tokens=28, packed=False)) == 2, "padded rows do not share the prompt"


def test_no_rows_make_no_micro_batches() -> None:
    assert deal([], max_tokens=10) == []


def test_a_segment_without_tokens_is_refused() -> None:
    with pytest.raises(AssertionError, match="a segment has tokens"):
        SegmentTree.of([1, 0], [None, 0])


def test_a_batch_behind_another_says_of_its_sequences_what_it_said_alone() -> None:
    first = pack([Family((1, 2, 3), [(4, 5), (6,)]), Family((), [(7, 8, 9)])])
    second = pack([Family((10, 11), [(12, 13), (14, 15)])])
    both = first.followed_by(second)
    assert both.input_ids.tolist() == first.input_ids.tolist() + second.input_ids.tolist()
    assert both.positions.tolist() == first.positions.tolist() + second.positions.tolist()
    assert both.targets.tolist() == [*first.targets.tolist(), *second.targets.tolist()]
    assert both.input_ids[both.before].tolist() == [
        *first.input_ids[first.before].tolist(),
        *second.input_ids[second.before].tolist(),
    ]
    assert both.input_ids[both.last].tolist() == [5, 6, 9, 13, 15]
    assert both.counts().tolist() == [2, 1, 2, 2, 2]
    rows, mask = both.padded()
    found = [row[kept].tolist() for row, kept in zip(rows, mask, strict=True)]
    assert found == [[1, 2, 3, 4, 5], [1, 2, 3, 6], [7, 8, 9], [10, 11, 12, 13], [10, 11, 14, 15]]
