"""Imports point one way: no circle among modules, no upward import between rooms, and a true
picture."""

from __future__ import annotations

import pytest

from tests import rooms

pytestmark = pytest.mark.skipif(
    not (rooms.ROOT / "setup.py").is_file(), reason="these tests run in the source tree"
)


def test_no_modules_import_each_other_in_a_circle():
    assert rooms.circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]
    assert rooms.circles(rooms.graph()) == []


def test_rooms_import_lower_rooms_alone():
    order = list(rooms.ROOMS)
    upwards = [
        f"{name} imports {other}"
        for name, others in rooms.graph().items()
        for other in others
        if order.index(rooms.room_of(other)) > order.index(rooms.room_of(name))
    ]
    assert upwards == []


def test_the_picture_in_the_design_is_that_of_the_sources():
    assert rooms.drawn() == rooms.picture(), "draw it again: python -m tests.rooms"
