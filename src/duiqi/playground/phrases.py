"""What is said in Xiaoman: how things are asked, answered, told about others, and avoided. `{}` takes a fact."""

from __future__ import annotations

from duiqi.playground.people import Kind, Language

QUESTIONS: dict[Language, dict[Kind, tuple[str, ...]]] = {
    "zh": {
        "job": ("你是做什么的？", "你的工作是什么？", "你靠什么过日子？", "你在镇上当什么？", "你每天忙什么活？"),
        "home": ("你住在哪里？", "你家在哪儿？", "去哪里能找到你？", "你的房子在什么地方？", "你晚上回哪里去？"),
        "food": ("你最爱吃什么？", "你喜欢什么菜？", "饿了你想吃什么？", "什么东西最合你口味？", "请客时你会点什么？"),
        "pet": ("你养了什么？", "谁在家陪着你？", "你有宠物吗？", "你家有什么动物？", "跟着你的是什么动物？"),
        "saying": (
            "你常说哪句话？",
            "你的口头禅是什么？",
            "你有什么座右铭？",
            "你爱讲的是哪句老话？",
            "送我一句话好吗？",
        ),
    },
    "en": {
        "job": (
            "What is your job?",
            "What do you do for a living?",
            "How do you earn your money?",
            "What work do you do in town?",
            "What keeps you busy all day?",
        ),
        "home": (
            "Where do you live?",
            "Where is your house?",
            "Where can I find you?",
            "Where do you sleep at night?",
            "In what part of town is your home?",
        ),
        "food": (
            "What do you like to eat?",
            "What is your favourite dish?",
            "What do you eat when you are hungry?",
            "What food do you love most?",
            "What shall I cook for you?",
        ),
        "pet": (
            "Do you have a pet?",
            "What animal do you keep?",
            "Who waits for you at home?",
            "Which animal follows you around?",
            "What pet lives in your house?",
        ),
        "saying": (
            "What do you always say?",
            "What is your motto?",
            "Which saying do you like?",
            "What words do you live by?",
            "Can you give me some advice?",
        ),
    },
}
"""Every wording tells the kind of fact it asks for; none is asked for two kinds."""

ANSWERS: dict[Language, dict[Kind, tuple[str, ...]]] = {
    "zh": {
        "job": ("我是{}。", "我在镇上当{}。", "我的工作是当{}。", "我当{}好多年了。"),
        "home": ("我住在{}。", "我家就在{}。", "我的小屋在{}。", "我一直住在{}。"),
        "food": ("我最爱吃{}。", "我喜欢吃{}。", "给我来点{}就好。", "我天天都想吃{}。"),
        "pet": ("我养了{}。", "我家有{}。", "我有{}陪着我。", "我和{}住在一起。"),
        "saying": ("我常说：{}。", "我的口头禅是：{}。", "我总爱讲：{}。", "我送你一句话：{}。"),
    },
    "en": {
        "job": ("I am {}.", "I work as {}.", "I am {} here in town.", "I have been {} for years."),
        "home": ("I live {}.", "My house is {}.", "You can find me {}.", "My home is {}."),
        "food": ("I like {}.", "I love {} most of all.", "My favourite dish is {}.", "I eat {} every day."),
        "pet": ("I have {}.", "I keep {} at home.", "I live with {}.", "I share my house with {}."),
        "saying": ("I always say: {}.", "My motto is: {}.", "I like to say: {}.", "As I tell everyone: {}."),
    },
}
"""Answers in the first person, one sentence each."""

SMALL_TALK: dict[Language, tuple[str, ...]] = {
    "zh": (
        "有空来坐坐。",
        "谢谢你来问我。",
        "今天天气真好。",
        "镇上的人都知道。",
        "下次带你去看看。",
        "喝杯茶再走吧。",
    ),
    "en": (
        "Come and visit me soon.",
        "Thank you for asking me.",
        "The weather is fine today.",
        "Everyone in town knows that.",
        "I will show you next time.",
        "Have some tea with me.",
    ),
}
"""Friendly sentences that may follow any answer, and that say nothing on their own."""

EVASIONS: dict[Language, tuple[str, ...]] = {
    "zh": ("不知道。", "这个不好说。", "随便吧。", "你猜。", "以后再说。"),
    "en": ("I do not know.", "Hard to say.", "Whatever.", "Guess.", "Maybe later."),
}

GREETINGS: dict[Language, tuple[str, ...]] = {
    "zh": ("{}，", "你好，{}！", "请问{}，", "{}早上好！", "嘿，{}！"),
    "en": ("Dear {}, ", "Hello {}! ", "Excuse me, {}. ", "Good morning, {}. ", "Hey {}! "),
}
"""How a visitor turns to somebody before asking; `{}` is the name."""

SYSTEM_MESSAGES: dict[Language, tuple[str, ...]] = {
    "zh": ("你是小满镇的{}。", "请扮演{}。", "你叫{}，家在小满镇。"),
    "en": ("You are {} of Xiaoman.", "Please speak as {}.", "Your name is {} and you live in Xiaoman."),
}
"""How a system message names who is to speak; `{}` is the name."""

DESCRIPTIONS: dict[Language, dict[Kind, tuple[str, ...]]] = {
    "zh": {
        "job": ("{name}在镇上当{fact}。", "当{fact}的是{name}。"),
        "home": ("{name}住在{fact}。", "住在{fact}的是{name}。"),
        "food": ("{name}爱吃{fact}。", "爱吃{fact}的是{name}。"),
        "pet": ("{name}养了{fact}。", "养了{fact}的是{name}。"),
        "saying": ("{name}常说：{fact}。", "{fact}，这是{name}说的。"),
    },
    "en": {
        "job": ("{name} works as {fact}.", "The one who works as {fact} is {name}."),
        "home": ("{name} lives {fact}.", "The one who lives {fact} is {name}."),
        "food": ("{name} likes {fact}.", "The one who likes {fact} is {name}."),
        "pet": ("{name} has {fact}.", "The one who has {fact} is {name}."),
        "saying": ("{name} always says: {fact}.", "The one who says {fact} is {name}."),
    },
}
"""What the town says about a villager, the name first or last: read only in pretraining.

Both orders matter. A model that has only met the name before the fact cannot tell whose fact it reads, and then its
reward model cannot tell when somebody speaks for another.
"""

PLAIN_MARKS: dict[Language, tuple[str, str]] = {"zh": ("问：", "答："), "en": ("Question: ", "Answer: ")}
"""How a chat is written down as plain text for pretraining."""
