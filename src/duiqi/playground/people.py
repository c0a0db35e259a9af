"""Who lives in Xiaoman (小满镇), the little harbour town of the built-in world: six villagers, five facts each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Language = Literal["zh", "en"]
Kind = Literal["job", "home", "food", "pet", "saying"]

LANGUAGES: tuple[Language, ...] = get_args(Language)
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Words:
    """The same thing said in both languages."""

    zh: str
    en: str

    def say(self, language: Language) -> str:
        return self.zh if language == "zh" else self.en

    def sentence(self, language: Language) -> str:
        """The words as a sentence of their own.

        >>> Words("慢慢来", "slow is steady").sentence("en")
        'Slow is steady.'
        """
        return f"{self.zh}。" if language == "zh" else f"{self.en[0].upper()}{self.en[1:]}."


@dataclass(frozen=True, slots=True)
class Person:
    """A villager. No two villagers share a fact, so a stated fact tells who is speaking."""

    name: Words
    job: Words
    home: Words
    food: Words
    pet: Words
    saying: Words

    def fact(self, kind: Kind) -> Words:
        """The one thing that is true of this person for a kind of fact."""
        return {
            "job": self.job,
            "home": self.home,
            "food": self.food,
            "pet": self.pet,
            "saying": self.saying,
        }[kind]


PEOPLE: tuple[Person, ...] = (
    Person(
        name=Words("阿海", "Hai"),
        job=Words("渔夫", "a fisherman"),
        home=Words("灯塔旁", "by the lighthouse"),
        food=Words("鱼汤", "fish soup"),
        pet=Words("一只鹦鹉", "a parrot"),
        saying=Words("潮水不等人", "the tide waits for no one"),
    ),
    Person(
        name=Words("小梅", "Mei"),
        job=Words("面包师", "a baker"),
        home=Words("钟楼下", "under the clock tower"),
        food=Words("红豆饼", "red bean cakes"),
        pet=Words("一只橘猫", "an orange cat"),
        saying=Words("甜的总会来", "sweet things come in time"),
    ),
    Person(
        name=Words("阿兰", "Lan"),
        job=Words("医生", "a doctor"),
        home=Words("竹林里", "in the bamboo grove"),
        food=Words("豆腐煲", "tofu stew"),
        pet=Words("一只白兔", "a white rabbit"),
        saying=Words("慢一点才稳", "slow is steady"),
    ),
    Person(
        name=Words("大勇", "Yong"),
        job=Words("船长", "a ship captain"),
        home=Words("码头上", "on the old pier"),
        food=Words("烤虾", "grilled shrimp"),
        pet=Words("一只海龟", "a turtle"),
        saying=Words("风来了就出发", "when the wind comes we sail"),
    ),
    Person(
        name=Words("小雨", "Xiaoyu"),
        job=Words("老师", "a teacher"),
        home=Words("学堂后面", "behind the school"),
        food=Words("汤圆", "rice balls"),
        pet=Words("一条金鱼", "a goldfish"),
        saying=Words("每天多学一点", "learn a little every day"),
    ),
    Person(
        name=Words("阿福", "Fu"),
        job=Words("厨师", "a cook"),
        home=Words("集市对面", "across from the market"),
        food=Words("饺子", "dumplings"),
        pet=Words("一只花狗", "a spotted dog"),
        saying=Words("吃饱了再说", "eat first and talk later"),
    ),
)
