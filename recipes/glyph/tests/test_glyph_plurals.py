"""Names of more than one thing."""

from __future__ import annotations

import pytest
from recipes.glyph.data.plurals import counted, plural


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("red key", "red keys"),
        ("slice of pizza", "slices of pizza"),
        ("bowl with spoon", "bowls with spoon"),
        ("plate with fork and knife", "plates with fork and knife"),
        ("cup of coffee", "cups of coffee"),
        ("mouse", "mice"),
        ("blue computer mouse", "blue computer mice"),
        ("butterfly", "butterflies"),
        ("monkey", "monkeys"),
        ("key", "keys"),
        ("fox", "foxes"),
        ("church", "churches"),
        ("bus", "buses"),
        ("octopus", "octopuses"),
        ("cactus", "cacti"),
        ("leaf", "leaves"),
        ("four-leaf clover", "four-leaf clovers"),
        ("wolf", "wolves"),
        ("tomato", "tomatoes"),
        ("kangaroo", "kangaroos"),
        ("tropical fish", "tropical fish"),
        ("jellyfish", "jellyfish"),
        ("sheep", "sheep"),
        ("spacecraft", "spacecraft"),
        ("snowman", "snowmen"),
        ("woman", "women"),
        ("human", "humans"),
        ("man running", "men running"),
        ("person wearing turban", "people wearing turban"),
        ("wrapping paper", "wrapping papers"),
        ("wine glass", "wine glasses"),
        ("piece", "pieces"),
        ("bow and arrow", "bows and arrows"),
        ("fork and knife", "forks and knives"),
    ],
)
def test_more_than_one_has_its_plural(one: str, many: str) -> None:
    assert plural(one) == many


def test_a_number_stands_before_one_and_before_many() -> None:
    assert counted(1, "red key") == "one red key"
    assert counted(3, "red key") == "three red keys"
    assert counted(4, "mouse") == "four mice"
