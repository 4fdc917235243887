"""Phrases of recorded answers of image-text models."""

import pytest

from coreset.engine.models.answers import Answer, parse_answer


@pytest.mark.parametrize(
    ("answer", "phrases"),
    [
        (
            "Sharp teeth, striped body, and a pointed snout.",
            ["Sharp teeth", "striped body", "a pointed snout."],
        ),
        (
            "Sure! Here are some attributes:\n\n1. Olive-green skin\n2. **Small scales**\n\nEnjoy!",
            ["Olive-green skin", "Small scales", "Enjoy!"],
        ),
        (
            "- long floppy ears\n- brown and white coat\n",
            ["long floppy ears", "brown and white coat"],
        ),
        ("* **Shape:** round\n* **Colour:** red", ["Shape: round", "Colour: red"]),
        ("\u2022 four wheels\n\u2022 a loading hopper", ["four wheels", "a loading hopper"]),
        ("1) a bell 2) brass keys 3) a flared end", ["a bell", "brass keys", "a flared end"]),
        ("1. red, 2. round, 3. shiny", ["red", "round", "shiny"]),
        ("tall steeple; stained glass; And a cross", ["tall steeple", "stained glass", "a cross"]),
        ("up to 1,000 pounds, 2.5 m long", ["up to 1,000 pounds", "2.5 m long"]),
        ("a sandy brown coat", ["a sandy brown coat"]),
        (", ,\n - \n", []),
        ("", []),
    ],
)
def test_phrases_of_answers_of_many_forms(answer, phrases):
    assert parse_answer(answer) == phrases


def test_the_last_phrase_of_an_answer_that_was_cut_is_left_out():
    cut = Answer(name="zebra", prompt="", answer="stripes, a short ma", ended=False)
    assert cut.phrases() == ["stripes"]
    alone = Answer(name="zebra", prompt="", answer="stripes", ended=False)
    assert alone.phrases() == ["stripes"], "a class is not left empty by it"
    assert Answer(name="zebra", prompt="", answer="a, b", ended=True).phrases() == ["a", "b"]
