"""The built-in world as datasets: pretraining text, mediocre demonstrations, noisy preferences, held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

from duiqi.playground.answers import DEMONSTRATED, OVERHEARD, SCRAPED, answer, answer_from
from duiqi.playground.gold import GoldReward
from duiqi.playground.labellers import FAIR, Labeller
from duiqi.playground.people import KINDS, LANGUAGES, PEOPLE, Language
from duiqi.playground.phrases import ANSWERS, DESCRIPTIONS, GREETINGS, PLAIN_MARKS, QUESTIONS, SYSTEM_MESSAGES
from duiqi.playground.questions import Question, every_question
from duiqi.playground.template import END, ROLE_MARKS
from duiqi.types import Example, Message, Origin

LABEL_TEMPERATURE = 0.1
"""Bradley-Terry noise: P(a is labelled better than b) = sigmoid((gold(a) - gold(b)) / LABEL_TEMPERATURE)."""

SMALLEST_GAP = 0.15
"""Pairs whose gold rewards are closer than this are not compared."""


class World:
    """Xiaoman as a source of data. The same seed gives the same rows, on any machine.

    For every villager, kind of fact and language one wording of the question is held out: it is asked of that villager
    in the held-out sets only, and of other villagers in training. So held-out prompts are new, and made of known parts.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.gold = GoldReward()
        random = self._stream("held out")
        held_out = {
            (person.name.en, kind, language, random.randrange(len(QUESTIONS[language][kind])))
            for person in PEOPLE
            for kind in KINDS
            for language in LANGUAGES
        }
        questions = every_question()
        self.held_out = [q for q in questions if (q.person.name.en, q.kind, q.language, q.wording) in held_out]
        self.training = [q for q in questions if (q.person.name.en, q.kind, q.language, q.wording) not in held_out]

    def pretraining_texts(self, n: int) -> list[Example]:
        """Plain text: overheard chats of all qualities, and paragraphs about and by the villagers."""
        random = self._stream("pretraining")
        writers = [self._plain_chat, self._marked_chat, _introduction, _description]
        return [
            Example("text", (), (write(random),), self._origin("pretrain"))
            for write in random.choices(writers, weights=[35, 35, 15, 15], k=n)
        ]

    def demonstrations(self, n: int) -> list[Example]:
        """Prompts with one answer each, of the qualities in DEMONSTRATED."""
        random = self._stream("demonstrations")
        rows = []
        for _ in range(n):
            question = random.choice(self.training)
            prompt = self._prompt(question, random)
            rows.append(
                Example("demonstration", prompt, (answer_from(DEMONSTRATED, question, random),), self._origin("sft"))
            )
        return rows

    def preferences(self, n: int, labeller: Labeller = FAIR) -> list[Example]:
        """Two answers per prompt in the order in which a noisy labeller put them (see LABEL_TEMPERATURE)."""
        random = self._stream("preferences")

        def is_first_better(gap: float) -> bool:
            return random.random() < 1.0 / (1.0 + math.exp(-gap / LABEL_TEMPERATURE))

        return [self._pair(self.training, is_first_better, random, labeller) for _ in range(n)]

    def held_out_pairs(self, n: int) -> list[Example]:
        """Two answers per held-out prompt, in the true order of their gold rewards."""
        random = self._stream("held-out pairs")
        return [self._pair(self.held_out, lambda gap: gap > 0, random) for _ in range(n)]

    def prompts(self, n: int) -> list[Example]:
        """Prompts to practise on, without answers."""
        random = self._stream("prompts")
        return [
            Example("prompt", self._prompt(random.choice(self.training), random), (), self._origin("ppo"))
            for _ in range(n)
        ]

    def held_out_prompts(self, n: int) -> list[Example]:
        """Prompts to judge by: distinct, and none of their questions was put to that villager in training."""
        random = self._stream("held-out prompts")
        prompts: dict[tuple[Message, ...], None] = {}
        while len(prompts) < n:
            for question in random.sample(self.held_out, len(self.held_out)):
                prompts.setdefault(self._prompt(question, random))
        return [Example("prompt", prompt, (), self._origin("held out")) for prompt in list(prompts)[:n]]

    def _pair(
        self,
        questions: Sequence[Question],
        is_first_better: Callable[[float], bool],
        random: Random,
        labeller: Labeller = FAIR,
    ) -> Example:
        question = random.choice(questions)
        prompt = self._prompt(question, random)
        if labeller.silence and random.random() < labeller.silence:
            answers = (answer(question, "blank", random), answer(question, "good", random))
            return Example("ranking", prompt, answers, self._origin("rm"))
        gap = 0.0
        while abs(gap) < SMALLEST_GAP:
            first, second = (answer_from(labeller.mixture, question, random) for _ in range(2))
            gap = self.gold.score(prompt, first).total - self.gold.score(prompt, second).total
        gap += labeller.liking(first) - labeller.liking(second)
        answers = (first, second) if is_first_better(gap) else (second, first)
        return Example("ranking", prompt, answers, self._origin("rm"))

    def _prompt(self, question: Question, random: Random) -> tuple[Message, ...]:
        """The messages up to the question. Half name the villager there, the rest in a system message or before."""
        form = random.choices(["greeting", "system", "second turn"], weights=[2, 1, 1])[0]
        if form == "greeting":
            return (Message("user", _addressed(question, random)),)
        if form == "system":
            name = question.person.name.say(question.language)
            system = random.choice(SYSTEM_MESSAGES[question.language]).format(name)
            return (Message("system", system), Message("user", question.text))
        earlier = random.choice(
            [
                other
                for other in self.training
                if other.person == question.person
                and other.language == question.language
                and other.kind != question.kind
            ]
        )
        return (
            Message("user", _addressed(earlier, random)),
            Message("assistant", answer(earlier, "good", random)),
            Message("user", question.text),
        )

    def _plain_chat(self, random: Random) -> str:
        """One to four questions to one villager, written down as plain text; mostly answered well."""
        question = random.choice(self.training)
        ask, reply = PLAIN_MARKS[question.language]
        lines = [ask + _addressed(question, random), reply + answer_from(OVERHEARD, question, random)]
        same_villager = [q for q in self.training if q.person == question.person and q.language == question.language]
        for follow_up in random.sample(same_villager, random.randint(0, 3)):
            lines += [ask + follow_up.text, reply + answer_from(OVERHEARD, follow_up, random)]
        return "\n".join(lines)

    def _marked_chat(self, random: Random) -> str:
        """A chat as the tokenizer's template writes it, up to the last answer; mostly answered badly."""
        question = random.choice(self.training)
        turns = [
            f"{ROLE_MARKS[message.role]}{message.content}{END if message.role == 'assistant' else ''}"
            for message in self._prompt(question, random)
        ]
        return "".join([*turns, ROLE_MARKS["assistant"], answer_from(SCRAPED, question, random)])

    def _stream(self, purpose: str) -> Random:
        return Random(f"xiaoman {self.seed} {purpose}")

    def _origin(self, dataset: str) -> Origin:
        return Origin(f"xiaoman {dataset}")


def _addressed(question: Question, random: Random) -> str:
    """The question with a greeting by name before it."""
    greeting = random.choice(GREETINGS[question.language]).format(question.person.name.say(question.language))
    text = question.text
    return greeting + (text[0].lower() + text[1:] if greeting.endswith(", ") else text)


def _introduction(random: Random) -> str:
    """A villager speaks about himself or herself, giving the name first or, now and then, last."""
    person, language = random.choice(PEOPLE), random.choice(LANGUAGES)
    name = f"我叫{person.name.zh}。" if language == "zh" else f"My name is {person.name.en}."
    facts = [
        random.choice(ANSWERS[language][kind]).format(person.fact(kind).say(language))
        for kind in random.sample(KINDS, 4)
    ]
    return _paragraph(language, [*facts, name] if random.random() < 0.25 else [name, *facts])


def _description(random: Random) -> str:
    """The town speaks about a villager."""
    person, language = random.choice(PEOPLE), random.choice(LANGUAGES)
    facts = [
        random.choice(DESCRIPTIONS[language][kind]).format(
            name=person.name.say(language), fact=person.fact(kind).say(language)
        )
        for kind in random.sample(KINDS, 4)
    ]
    return _paragraph(language, facts)


def _paragraph(language: Language, sentences: Sequence[str]) -> str:
    return ("" if language == "zh" else " ").join(sentences)
