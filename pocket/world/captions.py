"""Words for a portrait: a caption follows the attributes by degrees.

"a smiling old woman with big eyes, long blond hair, ink sketch, night sky". An attribute may be left
unsaid; what is unsaid follows the world's own distribution, correlations included.
"""

import re
from collections.abc import Collection

import numpy as np

from .portrait import Portrait

# Five steps from one end to the other; the middle step of some attributes is better left unsaid.
AGE = (("very young",), ("young",), ("middle-aged",), ("old",), ("very old", "elderly"))
SMILE = (("frowning", "sad"), ("serious",), ("calm",), ("smiling", "happy"), ("laughing",))
EYES = ("tiny eyes", "small eyes", "average eyes", "big eyes", "huge eyes")
HAIR_LENGTH = ("very short", "short", "medium-length", "long", "very long")
HAIR_SHADE = (("black",), ("dark",), ("brown",), ("blond",), ("white",))
SKIN = ("very dark skin", "dark skin", "tan skin", "fair skin", "pale skin")
FACE = ("very narrow face", "narrow face", "oval face", "wide face", "very wide face")
SKY = (("night sky",), ("dusk sky",), ("dawn sky", "morning sky"), ("day sky",), ("noon sky", "bright sky"))
STYLE = {"flat colour": ("flat colour",), "ink sketch": ("ink sketch",), "pastel": ("pastel",)}
SPOILED = ("badly drawn, distorted features", "distorted features", "badly drawn")
SOUND = ("well drawn", "well drawn, clean features", "clean features")
WITH_GLASSES, WITHOUT_GLASSES = ("with glasses", "wearing glasses"), ("without glasses", "no glasses")
WITH_HAT, WITHOUT_HAT = ("with a hat", "wearing a hat"), ("without a hat", "no hat")

LEFT_UNSAID = ("age", "smile", "eye_size")  # what a caption can be asked not to name
MENTION = 0.65  # the chance that a caption says an attribute
SPOILED_MENTION = 0.85


def degree(value: float, words):
    """The word of the step that a value in [0, 1] falls into."""
    return words[min(int(value * len(words)), len(words) - 1)]


def caption(
    p: Portrait, rng: np.random.Generator, unsaid: Collection[str] = (), complete: bool = False, talk: float = 1.0
) -> str:
    """One of the many captions of a portrait, drawn at random.

    unsaid: of LEFT_UNSAID, those that it is not to name. complete: everything else is named. talk: in [0, 1], how
    much of what it would say it does say; that the drawing is spoiled it says in any case.
    """
    says = lambda chance=MENTION: rng.random() < chance * talk or complete  # noqa: E731
    pick = lambda words: words[rng.integers(len(words))]  # noqa: E731
    lead = []
    if says() and "smile" not in unsaid:
        lead.append(pick(degree(p.smile, SMILE)))
    if says() and "age" not in unsaid:
        lead.append(pick(degree(p.age, AGE)))
    person = pick(("woman", "lady") if p.woman else ("man", "gentleman")) if says(0.6) else "person"
    clauses = []
    if says() and "eye_size" not in unsaid:
        clauses.append(degree(p.eye_size, EYES))
    length, shade = says(), says()
    if length or shade:
        words = [degree(p.hair_length, HAIR_LENGTH)] * length + [pick(degree(p.hair_shade, HAIR_SHADE))] * shade
        clauses.append(" ".join([*words, "hair"]))
    if says():
        clauses.append(degree(p.skin_tone, SKIN))
    if says():
        clauses.append(degree(p.face_width, FACE))
    if says():
        clauses.append(pick(WITH_GLASSES if p.glasses else WITHOUT_GLASSES))
    if says(0.6 if p.hat else 0.3):
        clauses.append(pick(WITH_HAT if p.hat else WITHOUT_HAT))
    if says():
        clauses.append(pick(degree(p.sky, SKY)))
    if says(0.7):
        clauses.append(pick(STYLE[p.style]))
    if rng.random() < (SPOILED_MENTION if p.spoiled else 0.12) or complete:
        clauses.append(pick(SPOILED if p.spoiled else SOUND))
    rng.shuffle(clauses)
    subject = " ".join([*lead, person])
    article = "an" if subject[0] in "aeiou" else "a"
    opening = pick((f"portrait of {article} {subject}", f"{article} {subject}", subject))
    return ", ".join([opening, *clauses])


def caption_of_any_length(p: Portrait, rng: np.random.Generator) -> str:
    """A caption; half of them say less, down to nothing, as people's prompts do."""
    return caption(p, rng, talk=1.0 if rng.random() < 0.5 else rng.random())


def words_of(text: str) -> list[str]:
    """Lower-case words; punctuation is space, a hyphen joins."""
    return re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", text.lower())


def vocabulary() -> list[str]:
    """Every word a caption can hold, in a fixed order."""

    def phrases(value):
        if isinstance(value, str):
            yield value
        else:
            for item in value:
                yield from phrases(item)

    said = (
        AGE,
        SMILE,
        EYES,
        HAIR_LENGTH,
        HAIR_SHADE,
        SKIN,
        FACE,
        SKY,
        tuple(STYLE.values()),
        SPOILED,
        SOUND,
        WITH_GLASSES,
        WITHOUT_GLASSES,
        WITH_HAT,
        WITHOUT_HAT,
        "portrait of a an the and woman lady man gentleman person hair",
    )
    found = dict.fromkeys(w for phrase in phrases(said) for w in words_of(phrase))
    return list(found)
