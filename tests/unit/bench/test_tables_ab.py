"""The page on which people choose: what it holds of each pair, its sides, and that it hides which is whose."""

import base64
import json
import re

import pytest
from concept_sliders.bench._tables_ab import LEFT, PLACE, RIGHT, TEMPLATE, Pair, page, scrambled, unscrambled

PAIRS = [
    Pair(f"task {at}", "the prompt" if at % 2 else "composition", b"before", b"ours", b"theirs") for at in range(40)
]


def shown(text):
    """The pairs that a page holds."""
    (found,) = re.findall(r"^const PAIRS = (.*);$", text, re.MULTILINE)
    return json.loads(found.replace("<\\/", "</"))


def image(address):
    return base64.b64decode(address.removeprefix("data:image/jpeg;base64,"))


def test_every_pair_is_shown_once_and_the_key_says_where_ours_is():
    pairs = shown(page(PAIRS, seed=3))
    assert sorted(pair["task"] for pair in pairs) == sorted(pair.task for pair in PAIRS)
    for pair in pairs:
        key, rival = unscrambled(pair["key"]), PAIRS[int(pair["task"].split()[1])].rival
        other = RIGHT if key["ours"] == LEFT else LEFT
        assert key["rival"] == rival
        assert (image(pair[key["ours"]]), image(pair[other]), image(pair["original"])) == (
            b"ours",
            b"theirs",
            b"before",
        )


def test_sides_and_order_are_random_and_the_same_for_a_seed():
    pairs = shown(page(PAIRS, seed=3))
    sides = [unscrambled(pair["key"])["ours"] for pair in pairs]
    assert 10 <= sides.count(LEFT) <= 30
    assert [pair["task"] for pair in pairs] != [pair.task for pair in PAIRS]
    assert page(PAIRS, seed=3) == page(PAIRS, seed=3) != page(PAIRS, seed=4)


def test_nothing_outside_the_key_tells_the_sides_apart():
    one = Pair("task", "rival", b"before", b"a sheet", b"b sheet")
    swapped = Pair("task", "rival", b"before", b"b sheet", b"a sheet")
    pages = {json.dumps({**shown(page([pair], seed))[0], "key": ""}) for pair in (one, swapped) for seed in range(8)}
    assert len(pages) == 2
    text = page(PAIRS)
    assert "ours" not in text[text.index("const PAIRS") : text.index("const STORE")]
    assert unscrambled(scrambled(LEFT, "the prompt")) == {"ours": LEFT, "rival": "the prompt"}


def test_the_page_stands_alone_and_keeps_what_it_is_given_as_text():
    hostile = Pair('</script><b>"', "<i>rival</i>", b"x", b"y", b"z")
    text = page([hostile], title="<which?>")
    assert "&lt;which?&gt;" in text and "{{title}}" not in text and PLACE not in text
    assert text.count("</script>") == 1 and shown(text)[0]["task"] == hostile.task
    assert not re.search(r"(src|href)=\"?(http|//)", text) and "fetch(" not in text


def test_a_page_takes_a_pair():
    with pytest.raises(ValueError, match="at least one pair"):
        page([])
    assert TEMPLATE.read_text(encoding="utf-8").count(PLACE) == 1
