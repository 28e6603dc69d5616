"""Our cheap `dataclass` against the standard library's: whatever can be seen of the two is the same."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from dataclasses import KW_ONLY, FrozenInstanceError, asdict, field, fields, is_dataclass, replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_store import values

KINDS = {"frozen": {"frozen": True, "slots": True}, "changeable": {"slots": True}}


def define(decorator: Any, **options: bool) -> tuple[type, type]:
    """The same two classes by either decorator; the second is derived from the first."""

    @decorator(**options)
    class Base:
        """Doc."""

        first: int
        second: str = "two"
        third: dict[str, int] = field(default_factory=dict, metadata={"doc": "third"})

        @property
        def twice(self) -> int:
            return 2 * self.first

    @decorator(**options)
    class Derived(Base):
        second: str = "other"
        _: KW_ONLY
        fourth: int = 4

        def __post_init__(self) -> None:
            if self.first < 0:
                raise ValueError("negative")

    return Base, Derived


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> Any:
    """Base and derived class, ours and the standard library's."""
    options = KINDS[request.param]
    return define(values.dataclass, **options), define(dataclasses.dataclass, **options)


def outcome(action: Any) -> Any:
    """What an action gives, or the kind of error that it ends in."""
    try:
        return action()
    except (TypeError, ValueError, AttributeError) as error:
        return type(error)


ARGUMENTS = (
    st.lists(st.integers(-1, 3), max_size=5),
    st.dictionaries(st.sampled_from(["first", "second", "third", "fourth", "fifth"]), st.integers(-1, 3)),
)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("number", [0, 1], ids=["base", "derived"])
def test_values_are_made_alike(options: dict[str, bool], number: int) -> None:
    ours, theirs = (
        define(values.dataclass, **options)[number],
        define(dataclasses.dataclass, **options)[number],
    )

    @given(*ARGUMENTS)
    def check(positional: list[int], named: dict[str, int]) -> None:
        made, expected = (outcome(lambda cls=cls: cls(*positional, **named)) for cls in (ours, theirs))
        if isinstance(expected, type):
            assert made is expected
            return
        assert asdict(made) == asdict(expected)
        # A class within a function has a long name.
        assert repr(made).partition("(")[2] == repr(expected).partition("(")[2]
        assert made == ours(**{each.name: getattr(made, each.name) for each in fields(made)})
        assert made != expected
        assert outcome(lambda: hash(made)) == outcome(lambda: hash(expected))
        for change in ({"first": 2}, {"first": -1}, {"none": 1}):
            changed, other = (outcome(partial(replace, value, **change)) for value in (made, expected))
            assert changed is other if isinstance(other, type) else asdict(changed) == asdict(other)

    check()


def test_classes_look_alike(pair: Any) -> None:
    for ours, theirs in zip(*pair, strict=True):
        assert ours is not theirs
        assert is_dataclass(ours)
        for name in ("__slots__", "__match_args__", "__doc__", "__module__", "__qualname__"):
            if not (name == "__doc__" and theirs.__doc__.startswith("Derived(")):
                assert getattr(ours, name) == getattr(theirs, name), name
        seen = [
            [(each.name, each.type, each.kw_only, each.metadata) for each in fields(cls)]
            for cls in (ours, theirs)
        ]
        assert seen[0] == seen[1]
        assert not hasattr(ours(1), "__dict__")
        assert ours(1).twice == 2


def test_a_frozen_value_stays_as_it_is() -> None:
    value = define(values.dataclass, frozen=True, slots=True)[0](1)
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'first'"):
        value.first = 2  # type: ignore[attr-defined]
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'first'"):
        del value.first  # type: ignore[attr-defined]
    for same in (copy.copy(value), copy.deepcopy(value)):
        assert same == value


@values.dataclass(frozen=True, slots=True)
class Kept:
    """One that pickle can find."""

    number: int
    name: str = ""


def test_a_value_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(Kept(1, "one"))) == Kept(1, "one")
    match Kept(1, "one"):
        case Kept(number, name):
            assert (number, name) == (1, "one")


def test_a_default_that_can_change_is_refused() -> None:
    with pytest.raises(ValueError, match="default that can change"):

        @values.dataclass(frozen=True, slots=True)
        class Wrong:
            many: list[int] = []


def test_what_is_out_of_the_ordinary_is_the_standard_librarys() -> None:
    @values.dataclass(frozen=True, slots=True)
    class Odd:
        hidden: int = field(default=1, repr=False)
        made: int = field(init=False, default=3)

    assert repr(Odd()).endswith("Odd(made=3)")
    with pytest.raises(TypeError):
        Odd(made=1)  # type: ignore[call-arg]

    @values.dataclass(frozen=True, slots=True)
    class Own:
        number: int

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 7

    assert Own(1) == Own(2)
    assert hash(Own(1)) == 7


def test_a_python_without_what_it_builds_on_is_served_by_the_standard_library() -> None:
    script = (
        "from __future__ import annotations\n"
        "import dataclasses; del dataclasses._FIELD; dataclasses.dataclass = lambda **_: (lambda cls: 'standard');"
        "from airlock_store.values import dataclass\n"
        "@dataclass(frozen=True, slots=True)\n"
        "class Value: number: int\n"
        "print(Value)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "standard\n"
