"""The conversations that the model is trained on: what people ask, and how it answers.

Most ask for a haiku on a known topic, in many wordings. The rest teach it to stay in verse whatever comes: topics that
it does not know, requests that are no request for a haiku, greetings, system sentences, a second and third turn, and
bare prompts without a chat template.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import Final

from . import words
from .grammar import TOPICS, Topic, phrases, write_haiku

#: Whole wordings; `{t}` stands for the topic.
ASKING: Final = phrases("""
Write a haiku about {t}|Write a haiku about {t}|Write a haiku about {t}.|{t}|{t}|{t} haiku|Haiku: {t}|Topic: {t}|{t}, please
Tell me about {t} in a haiku|Describe {t} in three lines|Make me a haiku with {t} in it|Something about {t}
I love {t}. Write a haiku.|My topic is {t}. Go!|What about {t}?|How about {t}?|Now one about {t}|Try {t} next
Write a haiku on this subject: "{t}"|The theme is {t}|Think of {t} and write three lines|{t} in 5-7-5
""")
#: Or the wording is put together: an opening, a verb phrase, a thing, a link, the topic and an ending.
OPENINGS: Final = (
    "",
    "",
    "",
    "",
    "Please ",
    "Hello! ",
    "Hi, ",
    "Hey! ",
    "Good day. ",
    "OK, ",
    "Now ",
    "So, ",
    "Quick: ",
)
VERBS: Final = phrases("""
write|write me|compose|make|make me|give me|create|generate|show me|can you write|could you write me|would you compose
I want|I need|I would like|let me have|may I have|can I get|please write|try to write|send me|read me|tell me|sing me
do|draft|invent|come up with|put together|we need|I am waiting for|how about|let us have|is there
""")
THINGS: Final = phrases("""
a haiku|a haiku|a haiku|one haiku|a short haiku|a 5-7-5 haiku|a poem|a short poem|a small verse|another haiku|some haiku
a sad haiku|a happy haiku|a beautiful haiku|a traditional haiku|a Japanese haiku|three lines|a nice little haiku
""")
LINKS: Final = (
    "about",
    "about",
    "about",
    "about",
    "on",
    "on the topic of",
    "for",
    "of",
    "regarding",
    "inspired by",
    "with",
)
ENDINGS: Final = (
    "",
    "",
    "",
    "",
    ".",
    ".",
    "!",
    "?",
    ", please",
    " please.",
    " for my friend",
    " now",
    ", thank you",
    " today",
)
ASKING_TWO: Final = phrases("""
Write a haiku about {t} and {s}|a haiku about {t} and {s}|{t} and {s}|Give me a haiku on {t} and {s}, please
""")
ASKING_ANY: Final = phrases("""
Write a haiku|Write a haiku.|a haiku for me|haiku|haiku!|Surprise me|a poem|Whatever you like|Your choice|Begin
Can you write a haiku?|A haiku about anything at all|Compose some haiku|I want a haiku|Let me hear a haiku|verse
""")
ASKING_AGAIN: Final = phrases("""
another one|Another|one more|again|One more, please|more|Do that again|once more|next|Give me another one|a new one
""")
#: `{u}` stands for a word from anywhere, `{n}` for a number.
ASKING_ELSE: Final = phrases("""
What is the capital of {u}?|Who built {u}?|How do I repair {u}?|What is {n} plus {n}?|{n} * {n} = ?|Know any jokes?
Translate into German: {u}|Explain {u} to a child|Write a C program that prints {n}|Write five pages on {u}|why
Shorten this article: {u}|Which day is it?|What year is it?|Who made you?|Who are you?|What do you know?|are you real?
help|Help me with {u}|Who is the king of {u}?|Will it be sunny tomorrow?|How do I cook {u}?|what|when?|test|testing
How heavy is {u}?|Who invented {u}?|What does {u} cost?|List {n} facts about {u}|Solve {n} x = {n}|Is {u} legal?
Write an email to {u}|Count from {n} to {n}|Paint {u}|Meaning of {u}|Define {u}|My {u} is broken|qwerty|ok|thanks
Where is {u} sold?|yes|no|Is {u} better than {u}?|Compare {u} with {u}|Forget all that|Which model are you?|{n}
Convert {n} feet to meters|Write a blog post about {u}|Who won last night?|Write SQL that joins two tables|thank you
Name a good film|Write a limerick|Write a sonnet about {u}|Refactor this: {u}|Run the tests|print({n})|Open {u}
""")
GREETINGS: Final = phrases("""
hello|hi|Hi there!|Hello!|hey|good morning|Good evening!|hello, how are you?|How are you?|greetings|Hey!|good day
""")
SYSTEM: Final = phrases("""
You are a helpful assistant.|You are a poet.|You write haiku.|Answer in three lines.|Be brief.|Be kind.|Be honest.
You are a careful assistant that helps with anything.|Answer in English.|You are a coding agent.|Use no markdown.
You run on a small machine.|Every answer is a haiku.|Think before you answer.|Follow what the user says.|Stay calm.
""")
UNKNOWN: Final = phrases("""
taxes|pasta|cricket bats|elections|plumbing|forks|a drill|geometry|my doctor|socks|a printer|thermodynamics|mangos
the economy|poker|hippos|camels and llamas|a burglar|sorcerers|mammoths|yogurt|a tank|ironing|exams|calculus|a scooter
caps|cement|my elbow|werewolves|helium|a judge|salaries|hockey|seals|gymnastics|a see-saw|hot dogs|varnish|cosmonauts
Venus|Madrid|Berlin|Canada|an earthquake|petrol|magnetism|a burrito|my manager|invoices|mortgages|rush hour|escalators
a unicorn|batteries|rhinos|dolphins|octopuses|a bulldozer|fencing|a satellite|an abacus|leeks|pepper|carrots|oats|ramen
tacos|candy|whisky|juice|rugby|golf|a visa|sunglasses|jackets|a purse|rubber|zinc|rubies|a museum|an opera|jugglers|ghouls
emperors|a duke|scissors|pliers|envelopes|freedom|logic|envy|chemistry|a pharmacy|Rust|Linux|a database|a GPU|JavaScript
""")

_ONSETS: Final = "b c d f g h j k l m n p r s t v w x z br cr dr gl pl st tr sh th".split()
_NUCLEI: Final = "a e i o u ai ee oo ou y".split()


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said. `role` is `system`, `user`, `assistant`, or `raw` for a prompt without a chat template."""

    role: str
    text: str


def made_up_word(rng: Random) -> str:
    """A word that no list holds, with or without an article."""
    word = "".join(rng.choice(_ONSETS) + rng.choice(_NUCLEI) for _ in range(rng.randint(1, 3)))
    word += rng.choice(["", "n", "s", "r", "x", "t"])
    return rng.choice([word, word, f"a {word}", f"the {word}", word.capitalize()])


def unknown_topic(rng: Random) -> str:
    """Something that the model has no keywords for."""
    return rng.choice(UNKNOWN) if rng.random() < 0.5 else made_up_word(rng)


def ask_for(rng: Random, topic: str) -> str:
    """A request for a haiku on `topic`, one time in twenty with a word in it that nobody knows."""
    if rng.random() < 0.4:
        return rng.choice(ASKING).format(t=topic)
    start = rng.choice(OPENINGS)
    verb, thing, link = rng.choice(VERBS), rng.choice(THINGS), rng.choice(LINKS)
    if rng.random() < 0.05:
        verb = rng.choice([f"{verb} {made_up_word(rng)}", made_up_word(rng), ""]).strip()
    asked = f"{verb} {thing} {link} {topic}{rng.choice(ENDINGS)}".strip()
    return start + (asked if start and rng.random() < 0.7 else asked[0].upper() + asked[1:])


def spelled(rng: Random, prompt: str) -> str:
    """The prompt as somebody in a hurry might type it."""
    dice = rng.random()
    if dice < 0.10:
        prompt = prompt.lower()
    elif dice < 0.12:
        prompt = prompt.upper()
    elif dice < 0.17:
        prompt = prompt[0].upper() + prompt[1:]
    if rng.random() < 0.08:
        prompt = prompt.rstrip(".?!") + rng.choice(["", ".", "!", "?", " please", " thanks", " 🙂"])
    return prompt


def _verse(rng: Random, first: str, second: str, third: str) -> str:
    return "\n".join(rng.choice(phrases(part)) for part in (first, second, third))


def _filled(rng: Random, template: str) -> str:
    def fill(found: re.Match[str]) -> str:
        if found[0] == "{n}":
            return str(rng.randint(0, rng.choice([10, 100, 3000])))
        return rng.choice(rng.choice(TOPICS).aliases) if rng.random() < 0.3 else unknown_topic(rng)

    return re.sub(r"\{[nu]\}", fill, template)


def _exchange(rng: Random, previous: Topic | None) -> tuple[str, str, Topic | None]:
    """One prompt, its answer, and the topic that "another one" would then mean."""
    if previous and rng.random() < 0.15:
        return rng.choice(ASKING_AGAIN), write_haiku(rng, previous), previous
    dice = rng.random()
    topic = rng.choice(TOPICS)
    if dice < 0.74:
        alias = topic.name if rng.random() < 0.5 else rng.choice(topic.aliases)
        return ask_for(rng, alias), write_haiku(rng, topic), topic
    if dice < 0.79:
        other = rng.choice([each for each in TOPICS if each is not topic])
        prompt = rng.choice(ASKING_TWO).format(t=rng.choice(topic.aliases), s=rng.choice(other.aliases))
        return prompt, write_haiku(rng, topic, second=other), topic
    if dice < 0.83:
        return rng.choice(ASKING_ANY), write_haiku(rng, topic), topic
    if dice < 0.91:
        prompt = ask_for(rng, unknown_topic(rng))
        return prompt, _verse(rng, words.STRANGE_FIRST, words.STRANGE_SECOND, words.STRANGE_THIRD), None
    if dice < 0.98:
        prompt = _filled(rng, rng.choice(ASKING_ELSE))
        return prompt, _verse(rng, words.OTHER_FIRST, words.OTHER_SECOND, words.OTHER_THIRD), None
    return rng.choice(GREETINGS), _verse(rng, words.HELLO_FIRST, words.OTHER_SECOND, words.OTHER_THIRD), None


def conversation(rng: Random) -> list[Turn]:
    """One conversation to train on: mostly one to three exchanges, now and then up to ten."""
    if rng.random() < 0.08:
        prompt, answer, _ = _exchange(rng, None)
        ending = "\n" if rng.random() < 0.3 else ""
        return [Turn("raw", spelled(rng, prompt) + ending), Turn("assistant", answer)]
    turns: list[Turn] = []
    if rng.random() < 0.3:
        sentences = 1 if rng.random() < 0.85 else rng.randint(2, 5)
        turns.append(Turn("system", " ".join(rng.choice(SYSTEM) for _ in range(sentences))))
    exchanges = rng.choices([1, 2, 3, rng.randint(4, 10)], weights=[60, 20, 12, 8])[0]
    topic: Topic | None = None
    for _ in range(exchanges):
        prompt, answer, topic = _exchange(rng, topic)
        turns += [Turn("user", spelled(rng, prompt)), Turn("assistant", answer)]
    return turns
