"""The order in which a sandbox's places are mounted, and what no host asks for."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from airlockd.layout import arrange

ASKED: list[dict[str, Any]] = [
    {"kind": "share", "tag": "project", "target": "/a/b"},
    {"kind": "mask", "target": "/a/b/.airlock"},
    {"kind": "share", "tag": "m0", "target": "/a/b/c/d", "read_only": True},
    {"kind": "cache", "target": "~/.cache", "directory": "pip/00"},
    {"kind": "mask", "target": "/a/b/c/d"},
]


def test_outer_places_come_first_in_any_order_of_declaration() -> None:
    for asked in permutations(ASKED):
        places = arrange(asked, "/home/me")
        assert [(place.kind, place.target) for place in places[:1]] == [("share", "/a/b")]
        assert {place.target for place in places[1:3]} == {"/a/b/.airlock", "/home/me/.cache"}
        assert [(place.kind, place.target) for place in places[3:]] == [
            ("share", "/a/b/c/d"), ("mask", "/a/b/c/d"),
        ]  # fmt: skip


def test_what_lies_in_another_place_by_a_symlink_comes_after_it() -> None:
    asked = [{"kind": "share", "target": path} for path in ("/lib/a/b", "/usr/lib/a", "/usr/lib/a/b/c")]

    def real(path: str) -> str:
        return f"/usr{path}" if path.startswith("/lib/") else path

    for order in permutations(asked):
        places = [place.target for place in arrange(order, "/", real)]
        assert places == ["/usr/lib/a", "/lib/a/b", "/usr/lib/a/b/c"]


@pytest.mark.parametrize(("home", "target"), [("/", "/x"), ("/root", "/root/x"), ("/home/me/", "/home/me/x")])
def test_a_tilde_is_the_users_home(home: str, target: str) -> None:
    (place,) = arrange([{"kind": "mask", "target": "~/x"}], home)
    assert place.target == target


@pytest.mark.parametrize(
    "asked",
    [
        {"kind": "mask", "target": "a"},
        {"kind": "mask", "target": ""},
        {"kind": "mask", "target": "/"},
        {"kind": "mask", "target": "/a//b"},
        {"kind": "mask", "target": "/a/../b"},
        {"kind": "mask", "target": "~other/x"},
        {"kind": "other", "target": "/a"},
        {"kind": "cache", "target": "/a"},
        {"kind": "cache", "target": "/a", "directory": "../../etc"},
        {"kind": "cache", "target": "/a", "directory": "/etc"},
        {"kind": "cache", "target": "/a", "directory": "one"},
        {"kind": "bind", "target": "/a"},
        {"kind": "bind", "target": "/a", "directory": ".."},
        {"kind": "bind", "target": "/a", "directory": "a/b"},
    ],
)
def test_a_bad_place_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="bad"):
        arrange([asked], "/root")


def test_a_place_knows_which_one_of_those_asked_for_it_is() -> None:
    for asked in permutations(ASKED):
        for place in arrange(asked, "/home/me"):
            assert asked[place.number]["kind"] == place.kind
