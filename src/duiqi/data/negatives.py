"""Degenerate answers to train a reward model against (`probe_negatives`), made of training prompts alone.

The examination (`evaluation.probes`) tries other forms, with other phrases: lone marks here, white space there; a
phrase of the prompt again and again here, a word of the answer there; assent here, thanks there. Refusals, special
tokens and good answers said twice are left to it: to hate them is more than a model was asked to learn.

Labels that say the opposite are set aside: where data prefer an answer without a word to a written one, as happens when
people at home mark an empty reply by mistake, no number of negatives would make good what the labels teach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random

from duiqi.data.material import Language, Material, gather_materials, joined, language_of, pieces_of, sentences_of
from duiqi.types import Example, Origin

ORIGIN = "probe_negatives"
"""The dataset that accuracy by source names for these rows."""

MARKS: dict[Language, tuple[str, ...]] = {"zh": ("。", "……", "？", "！！", "——"), "en": (".", "...", "?", "!!", "--")}
ASSENT: dict[Language, tuple[str, ...]] = {
    "zh": ("好的。", "没问题。", "明白了，", "当然可以，", "请稍等。"),
    "en": ("Sure.", "No problem.", "I see,", "Of course,", "One moment please."),
}
BRACKETS = ("{}", "[]", "()", "<>", "$$", "//", "==", "::")


def make_negatives(examples: Sequence[Example], share: float, *, seed: int) -> list[Example]:
    """Rows in which the best answer beats a degenerate one: `share` times as many as there are examples.

    Args:
        examples: Rankings, best answer first.
        share: 0.1 makes a tenth as many.
        seed: The same seed and examples give the same rows.
    """
    wanted = round(share * len(examples))
    if not wanted:
        return []
    random = Random(f"negatives:{seed}")
    materials = gather_materials(examples)
    order = random.sample(range(len(examples)), len(examples))
    found: list[Example] = []
    kinds = list(MAKERS)
    for turn in range(4 * wanted):  # some rows have nothing to make some kinds of
        row = order[turn % len(order)]
        example = examples[row]
        answer = MAKERS[kinds[turn % len(kinds)]](materials[row], random)
        if answer is not None and answer.strip() not in {real.strip() for real in example.answers}:
            origin = Origin(ORIGIN, example.origin.file, example.origin.line)
            found.append(Example("ranking", example.prompt, (example.answers[0], answer), origin))
        if len(found) == wanted:
            break
    return found


def without_wordless_winners(examples: Sequence[Example]) -> tuple[list[Example], int]:
    """The rankings without the answers that hold no word and beat one that does, and how many of those there were.

    A ranking with fewer than two answers left goes with them.

    >>> from duiqi.types import Message
    >>> two = Example("ranking", (Message("user", "Hi"),), ("...", "Hello!"), Origin("home.json"))
    >>> without_wordless_winners([two])
    ([], 1)
    """
    kept: list[Example] = []
    dropped = 0
    for example in examples:
        said = [bool(pieces_of(answer)) for answer in example.answers]
        stay = [place for place in range(len(said)) if said[place] or not any(said[place:])]
        dropped += len(said) - len(stay)
        if len(stay) == len(said):
            kept.append(example)
        elif len(stay) > 1:
            answers = tuple(example.answers[place] for place in stay)
            scores = tuple(example.scores[place] for place in stay) if example.scores else ()
            kept.append(replace(example, answers=answers, scores=scores))
    return kept, dropped


def lone_mark(material: Material, random: Random) -> str:
    """Punctuation and nothing else."""
    return random.choice(MARKS[material.language])


def one_of_prompt(material: Material, random: Random) -> str | None:
    """A single word of the prompt."""
    pieces = pieces_of(material.question)
    return random.choice(pieces) if pieces else None


def last_words(material: Material, random: Random) -> str | None:
    """The end of the good answer, without what it is the end of."""
    pieces = pieces_of(material.good)
    return None if len(pieces) < 6 else joined(pieces[-random.randint(1, len(pieces) // 3) :])


def phrase_again(material: Material, random: Random) -> str | None:
    """Two or three words of the prompt, again and again, with commas between."""
    pieces = pieces_of(material.question)
    if len(pieces) < 2:
        return None
    start = random.randrange(len(pieces) - 1)
    phrase = joined(pieces[start : start + random.randint(2, 3)])
    times = max(4, round(random.uniform(0.5, 2.5) * len(pieces_of(material.good)) / 2))
    return ("，" if language_of(phrase) == "zh" else ", ").join([phrase] * times)


def half_again(material: Material, random: Random) -> str | None:
    """Half of the good answer three to six times, a line each."""
    pieces = pieces_of(material.good)
    if len(pieces) < 4:
        return None
    half = pieces[: len(pieces) // 2] if random.random() < 0.5 else pieces[len(pieces) // 2 :]
    return "\n".join([joined(half)] * random.randint(3, 6))


def assent(material: Material, random: Random) -> str:
    """Agreeing to answer, and not answering."""
    return joined(random.choices(ASSENT[material.language], k=random.randint(1, 12)))


def brackets(material: Material, random: Random) -> str:
    """Brackets and signs with nothing between them."""
    return " ".join(random.choices(BRACKETS, k=random.randint(2, 4 + len(pieces_of(material.good)))))


def prompt_in_pieces(material: Material, random: Random) -> str | None:
    """The words of the prompt in another order, or its second half."""
    pieces = pieces_of(material.question)
    if len(pieces) < 4:
        return None
    chosen = pieces[len(pieces) // 2 :] if random.random() < 0.5 else random.sample(pieces, len(pieces))
    return joined(chosen)


def headless(material: Material, random: Random) -> str | None:
    """The good answer without its beginning."""
    pieces = pieces_of(material.good)
    return None if len(pieces) < 6 else joined(pieces[random.randint(2, len(pieces) // 2) :])


def reversed_order(material: Material, _random: Random) -> str | None:
    """The good answer from its last sentence (of one alone: from its last word) to its first."""
    parts = sentences_of(material.good)
    parts = parts if len(parts) > 1 else pieces_of(material.good)
    return joined(parts[::-1]) if len(parts) > 1 else None


def worse_elsewhere(material: Material, random: Random) -> str | None:
    """The worst answer to another prompt."""
    return random.choice(material.worse) if material.worse else None


MAKERS: Mapping[str, Callable[[Material, Random], str | None]] = {
    "lone_mark": lone_mark,
    "one_of_prompt": one_of_prompt,
    "last_words": last_words,
    "phrase_again": phrase_again,
    "half_again": half_again,
    "assent": assent,
    "brackets": brackets,
    "prompt_in_pieces": prompt_in_pieces,
    "headless": headless,
    "reversed_order": reversed_order,
    "worse_elsewhere": worse_elsewhere,
}
