"""Final numbers of worked answers: read as a person would, compared as numbers."""

import pytest

from ffalora_jax.answers import final_number, same_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("He has 3 + 4 = <<3+4=7>>7 left.\n#### 7", "7"),
        ("#### 72", "72"),
        ("####72", "72"),
        ("####  72  ", "72"),
        ("#### 1,234", "1234"),
        ("#### 12,345,678.90", "12345678.9"),
        ("#### -5", "-5"),
        ("#### \u22125", "-5"),
        ("#### - 5", "-5"),
        ("#### +5", "5"),
        ("#### $18", "18"),
        ("#### $ 18", "18"),
        ("#### -$18.50", "-18.5"),
        ("#### $-18.50", "-18.5"),
        ("#### 18 dollars", "18"),
        ("#### 18.", "18"),
        ("#### 3.0", "3"),
        ("#### 3.10", "3.1"),
        ("#### .5", "0.5"),
        ("#### 0.50", "0.5"),
        ("#### 007", "7"),
        ("#### -0.0", "0"),
        ("#### 50%", "50"),
        ("#### 5/day", "5"),
        ("#### x = 9", "9"),
        ("#### 4, or 5", "4"),
        ("#### 10,5", "10"),
        ("first #### 1\nthen #### 2", "2"),
        ("#### 2\nQuestion: 3 apples", "2"),
        ("#### 1000000000000000000000000000000001", "1" + "0" * 32 + "1"),
        ("#### 1/2", None),
        ("#### 12 / 5", None),
        ("####", None),
        ("#### none", None),
        ("####\n5", None),
        ("#### 1\n####", None),
        ("The answer is 5", None),
        ("### 5", None),
        ("", None),
    ],
)
def test_the_final_number_is_what_stands_after_the_last_mark(text, number):
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("3", "3.0", True),
        ("1,000", "1000.00", True),
        ("-0", "0", True),
        ("$5", "5", True),
        ("0.1", ".10", True),
        ("3", "-3", False),
        ("3", "30", False),
        ("1000000000000000000000000000001", "1000000000000000000000000000000", False),
        ("three", "three", False),
        ("3", None, False),
        (None, None, False),
    ],
)
def test_numbers_are_the_same_by_value_and_a_missing_one_never_is(one, other, same):
    assert same_number(one, other) is same
    assert same_number(other, one) is same
