"""Captions: words that follow the attributes by degrees, and a vocabulary that holds them all."""

import zlib

import numpy as np
import pytest
from concept_sliders.pocket.world import captions
from concept_sliders.pocket.world.captions import caption, degree, vocabulary, words_of
from concept_sliders.pocket.world.portrait import STYLES, Portrait, portraits

MANY = 400
# Attributes that a clause of their own names: the portrait's field and what each degree may be called.
CLAUSES = {
    "eye_size": tuple((words,) for words in captions.EYES),
    "skin_tone": tuple((words,) for words in captions.SKIN),
    "face_width": tuple((words,) for words in captions.FACE),
    "sky": captions.SKY,
}
FLAGS = {
    "glasses": (captions.WITHOUT_GLASSES, captions.WITH_GLASSES),
    "hat": (captions.WITHOUT_HAT, captions.WITH_HAT),
    "spoiled": (captions.SOUND, captions.SPOILED),
}


def parts_of(text: str) -> tuple[str, list[str]]:
    """(subject, clauses); two of the clauses have a comma of their own."""
    for whole in ("well drawn, clean features", "badly drawn, distorted features"):
        text = text.replace(whole, whole.replace(",", ";"))
    subject, *clauses = text.split(", ")
    return subject, [clause.replace(";", ",") for clause in clauses]


def many_captions(person: Portrait, count: int = MANY) -> list[str]:
    rng = np.random.default_rng(3)
    return [caption(person, rng) for _ in range(count)]


@pytest.mark.parametrize(
    ("value", "word"), [(0.0, "a"), (0.19, "a"), (0.2, "b"), (0.59, "c"), (0.8, "e"), (1.0, "e")]
)
def test_degrees_cut_the_range_evenly(value, word):
    assert degree(value, "abcde") == word


def test_the_same_generator_gives_the_same_caption():
    person = portraits(1, seed=2)[0]
    assert caption(person, np.random.default_rng(1)) == caption(person, np.random.default_rng(1))


def test_what_is_not_to_be_named_is_not():
    person, rng = Portrait(age=0.05, smile=0.95, eye_size=0.95), np.random.default_rng(3)
    named = {"age": "young", "smile": "laughing", "eye_size": "eyes"}
    for unsaid in ((), ("age",), ("age", "smile", "eye_size")):
        said = {word for _ in range(MANY) for word in words_of(caption(person, rng, unsaid))}
        assert {name for name, word in named.items() if word not in said} == set(unsaid)


@pytest.mark.parametrize("value", [0.05, 0.3, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("name", CLAUSES)
def test_a_clause_says_its_degree_and_no_other(name, value):
    every = {words for step in CLAUSES[name] for words in step}
    said = {c for text in many_captions(Portrait(**{name: value})) for c in parts_of(text)[1]} & every
    assert said == set(degree(value, CLAUSES[name]))


@pytest.mark.parametrize("value", [0.05, 0.3, 0.5, 0.7, 0.95])
def test_the_subject_says_smile_and_age(value):
    person = Portrait(age=value, smile=value, woman=False)
    allowed = {
        " ".join(word for word in (smile, age, who) if word)
        for smile in ("", *degree(value, captions.SMILE))
        for age in ("", *degree(value, captions.AGE))
        for who in ("man", "gentleman", "person")
    }
    said = set()
    for text in many_captions(person):
        subject = parts_of(text)[0].removeprefix("portrait of ")
        said.add(subject.removeprefix("an " if subject.startswith("an ") else "a "))
    assert said == allowed


@pytest.mark.parametrize(("length", "shade"), [(0.05, 0.95), (0.5, 0.5), (0.95, 0.05)])
def test_hair_says_length_shade_or_both(length, shade):
    words, color = degree(length, captions.HAIR_LENGTH), degree(shade, captions.HAIR_SHADE)[0]
    person = Portrait(hair_length=length, hair_shade=shade)
    said = {c for text in many_captions(person) for c in parts_of(text)[1] if c.endswith("hair")}
    assert said == {f"{words} hair", f"{color} hair", f"{words} {color} hair"}


@pytest.mark.parametrize("yes", [False, True])
@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_said_truly(name, yes):
    every = {words for side in FLAGS[name] for words in side}
    said = {c for text in many_captions(Portrait(**{name: yes})) for c in parts_of(text)[1]} & every
    assert said == set(FLAGS[name][yes])


@pytest.mark.parametrize("style", STYLES)
def test_the_style_is_said_truly(style):
    said = {c for text in many_captions(Portrait(style=style)) for c in parts_of(text)[1]} & set(STYLES)
    assert said == {style}


def test_spoiled_pictures_nearly_always_say_so():
    said = [c in captions.SPOILED for t in many_captions(Portrait(spoiled=True)) for c in parts_of(t)[1]]
    assert sum(said) / MANY == pytest.approx(captions.SPOILED_MENTION, abs=0.06)


def test_some_captions_leave_almost_everything_unsaid():
    # At most one clause in 0.24 % of them: 4,000 captions hold some
    lengths = [len(parts_of(text)[1]) for text in many_captions(Portrait(), 4000)]
    assert min(lengths) <= 1 and max(lengths) >= 7


def test_articles():
    subjects = [parts_of(t)[0] for p in (Portrait(age=0.95), Portrait(age=0.7)) for t in many_captions(p)]
    assert any("an elderly" in subject for subject in subjects)
    for subject in subjects:
        words = subject.split()
        for article, word in zip(words, words[1:]):
            assert article not in ("a", "an") or (article == "an") == (word[0] in "aeiou")


def test_the_vocabulary_holds_every_word_once():
    known, rng = vocabulary(), np.random.default_rng(0)
    said = {word for person in portraits(1500, seed=4) for word in words_of(caption(person, rng))}
    assert said <= set(known)
    assert len(known) == len(set(known))
    # A word's place is its token: with another order the shipped text encoder must be trained anew.
    assert zlib.crc32(" ".join(known).encode()) == 3568795069


def test_words_are_lower_case_and_free_of_punctuation():
    assert words_of("Portrait of a Middle-Aged woman,  big eyes!") == [
        "portrait",
        "of",
        "a",
        "middle-aged",
        "woman",
        "big",
        "eyes",
    ]
    assert words_of("") == []


def test_captions_of_any_length_are_often_short_and_still_say_what_is_spoiled():
    rng = np.random.default_rng(0)
    people = portraits(MANY, seed=5)
    texts = [captions.caption_of_any_length(p, rng) for p in people]
    clauses = np.array([len(parts_of(text)[1]) for text in texts])
    usual = np.array([len(parts_of(caption(p, rng))[1]) for p in people])
    assert (clauses <= 1).mean() > 3 * (usual <= 1).mean() + 0.05 and clauses.max() >= 6
    spoiled = [text for p, text in zip(people, texts) if p.spoiled]
    said = [any(words in text for words in captions.SPOILED) for text in spoiled]
    assert len(said) > 20 and np.mean(said) > 0.75
