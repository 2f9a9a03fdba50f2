"""The grammar of the synthetic corpus: spoken commands of 3-7 words.

Its 79 words hold sounds that are easily confused: light/right/night, bed/red/shed, hall/tall/wall/ball,
thirteen/thirty, ben/ken/jen/ten, clock/lock, door/drawer.
"""

import random
from collections.abc import Collection

SLOTS: dict[str, tuple[str, ...]] = {
    "<room>": ("kitchen", "bedroom", "hall", "shed", "garden", "attic", "office", "garage"),
    "<device>": ("light", "heater", "fan", "radio", "lamp", "clock", "bell"),
    "<thing>": ("door", "drawer", "gate", "window", "lock", "box"),
    "<object>": ("ball", "bag", "bed", "box", "lamp", "clock"),
    "<quality>": ("red", "green", "tall", "small", "white", "left", "right"),
    "<place>": ("wall", "bed", "door", "shed"),
    "<song>": ("song", "story", "news"),
    "<which>": ("next", "last", "first", "night"),
    "<name>": ("ben", "ken", "jen", "dan", "anne"),
    "<hour>": ("five", "nine", "ten", "eleven", "twelve"),
    "<unit>": ("one", "two", "three", "five", "nine"),
    "<teen>": ("thirteen", "fourteen", "fifteen", "sixteen"),
    "<tens>": ("thirty", "forty", "fifty", "sixty", "twenty"),
    "<switch>": ("on", "off"),
    "<move>": ("open", "close", "lock"),
    "<put>": ("put", "take", "bring"),
}

TEMPLATES: tuple[str, ...] = (
    "turn <switch> the <room> <device>",
    "turn the <room> <device> <switch>",
    "turn <switch> the <quality> <device>",
    "set the <room> <device> to <teen>",
    "set the <room> <device> to <tens>",
    "set the <device> to <tens> <unit>",
    "set the <room> <device> to <tens> <unit>",
    "play the <which> <song>",
    "play the <which> <song> in the <room>",
    "<move> the <room> <thing>",
    "<move> the <quality> <thing>",
    "<move> the <quality> <room> <thing>",
    "call <name> at <hour> <tens>",
    "call <name> at <hour> <teen>",
    "call <name> in the <room>",
    "wake <name> at <hour> <tens>",
    "<put> the <quality> <object> to <name>",
    "<put> the <object> to the <room>",
    "<put> the <object> to the <quality> <place>",
    "<put> the <quality> <object> to the <place>",
    "is the <object> by the <place>",
    "is the <room> <device> <switch>",
    "is <name> in the <room>",
)

MOST_DRAWS = 2000  # draws for one new sentence, before a repeated one is accepted


def random_sentence(generator: random.Random) -> str:
    """Draw one sentence of the grammar."""
    words = generator.choice(TEMPLATES).split()
    return " ".join(generator.choice(SLOTS[word]) if word in SLOTS else word for word in words)


def all_words() -> set[str]:
    """Return every word that a sentence can hold."""
    fixed = {word for template in TEMPLATES for word in template.split() if word not in SLOTS}
    return fixed.union(*SLOTS.values())


def training_sentences(count: int, generator: random.Random) -> list[str]:
    """Draw `count` sentences; each of the first ones contains a new word, until every word occurs."""
    missing, sentences = all_words(), []
    while len(sentences) < count:
        sentence = random_sentence(generator)
        if not missing or missing.intersection(sentence.split()):
            sentences.append(sentence)
            missing.difference_update(sentence.split())
    generator.shuffle(sentences)
    return sentences


def unseen_sentences(count: int, training: Collection[str], generator: random.Random) -> list[str]:
    """Draw `count` sentences of words that occur in `training`, as far as possible new ones and none twice."""
    known = {word for sentence in training for word in sentence.split()}
    taken, sentences = set(training), []
    while len(sentences) < count:
        sentence = _draw(known, taken, generator) or generator.choice(sorted(set(training)))
        taken.add(sentence)
        sentences.append(sentence)
    return sentences


def _draw(known: set[str], taken: set[str], generator: random.Random) -> str | None:
    for _ in range(MOST_DRAWS):
        sentence = random_sentence(generator)
        if sentence not in taken and known.issuperset(sentence.split()):
            return sentence
    return None
