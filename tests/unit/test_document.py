"""Typed TOML: places are exact for any document, errors say where, merging follows its three rules."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_store.document import MAX_BYTES, MAX_DEPTH, Document, Place, merge, parse_toml, read_toml
from airlock_store.errors import ConfigError, Location

HERE = Path("some.toml")


def places(value: object, place: Place = ()) -> list[Place]:
    """Every key and element of a plain value, by an independent walk."""
    children: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    return [each for key, child in children for each in ((*place, key), *places(child, (*place, key)))]


class Writer:
    """Writes TOML piece by piece and remembers where each piece began."""

    def __init__(self) -> None:
        self.text = ""
        self.where: dict[Place, tuple[int, int]] = {}

    def write(self, text: str) -> None:
        self.text += text

    def mark(self, place: Place) -> None:
        line = self.text.count("\n") + 1
        self.where.setdefault(place, (line, len(self.text) - (self.text.rfind("\n") + 1) + 1))


KEYS = st.sampled_from(["a", "b-c", "1", "", "a.b", "é", 'q"q', "\t", "\\", "# no", "[x]", "=", "\U0001f600"])
NUMBERS = ["1", "true", "-0.5e3", "0xff", "inf", "1979-05-27 07:32:00", "07:32:00"]
STRINGS = [
    '""',
    "''",
    '"x"',
    "'it\\'",
    '"]}, # \\" \\\\"',
    '"""\n]"" \\""""""',
    "''' '' \n# '''''",
    '"""é\\\n   x"""',
]
SCALARS = st.sampled_from([*NUMBERS, *STRINGS])
SPACES = st.sampled_from(["", " ", "\t "])
BLANKS = st.sampled_from(["", " ", "\n", " # ]}\n", "\n\n  ", "\r\n"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
TABLES = st.dictionaries(KEYS, VALUES, max_size=3)


@st.composite
def documents(draw: st.DrawFn) -> Writer:
    """A document with top-level pairs, tables, dotted keys and headers, arrays of tables, in no tidy order."""
    out = Writer()

    def key(name: str) -> None:
        if name.isascii() and name.replace("-", "").isalnum() and draw(st.booleans()):
            out.write(name)
        elif not set(name) & set("'\t") and draw(st.booleans()):
            out.write(f"'{name}'")
        else:
            escaped = (
                name.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t").replace("é", "\\u00e9")
            )
            out.write(f'"{escaped}"')

    def dotted(place: Place, names: tuple[str, ...], element: Place = ()) -> None:
        for index, name in enumerate(names):
            out.write(draw(SPACES) + "." * bool(index) + draw(SPACES))
            out.mark((*place, *names[: index + 1]))
            if element[:-1] == names[: index + 1]:
                out.mark(element)
            key(name)
        out.write(draw(SPACES))

    def value(what: Any, place: Place) -> None:
        if isinstance(what, str):
            out.write(what)
        elif isinstance(what, list):
            out.write("[" + draw(BLANKS))
            for index, element in enumerate(what):
                out.mark((*place, index))
                value(element, (*place, index))
                out.write(draw(BLANKS) + "," + draw(BLANKS))
            out.write("]")
        else:
            out.write("{" + draw(SPACES))
            for index, (name, element) in enumerate(what.items()):
                out.write(", " * bool(index))
                dotted(place, (name,))
                out.write("=" + draw(SPACES))
                value(element, (*place, name))
            out.write(draw(SPACES) + "}")

    def pairs(table: dict[str, Any], place: Place) -> None:
        for name, what in table.items():
            inner, nested = (
                next(iter(what.items())) if isinstance(what, dict) and len(what) == 1 else ("", None)
            )
            join = nested is not None and draw(st.booleans())
            out.write(draw(SPACES))
            dotted(place, (name, inner) if join else (name,))
            out.write("=" + draw(SPACES))
            value(nested if join else what, (*place, name, inner) if join else (*place, name))
            out.write(draw(st.sampled_from(["\n", " # '\"[\n", "\r\n", "\n\n"])))

    pairs(draw(TABLES), ())
    # "!" keeps the names of headers apart from those of pairs, so that every document is valid.
    headers = draw(st.lists(st.tuples(st.sampled_from(["t!", "u!"]), KEYS), max_size=4, unique=True))
    for first, second in headers:
        for index in range(draw(st.integers(1, 3)) if first == "u!" else 1):
            out.write("[[" if first == "u!" else "[")
            names = (first, f"{second}!")
            table: Place = (*names, index) if first == "u!" else names
            dotted((), names, table if table != names else ())
            out.write("]]" if first == "u!" else "]")
            out.write(draw(st.sampled_from(["\n", " # x\n"])))
            pairs(draw(TABLES), table)
    return out


@given(documents())
def test_every_key_and_element_has_its_exact_place(written: Writer) -> None:
    document = parse_toml(written.text, HERE)
    assert document.data == tomllib.loads(written.text)
    assert sorted(document.where, key=repr) == sorted(places(document.data), key=repr)
    found = {place: (at.line, at.column) for place, at in document.where.items()}
    assert found == written.where


@given(st.text(alphabet="ab.=[]{}\"'\\\n\r,# 1\t", max_size=40))
def test_any_text_is_a_document_or_one_located_error(text: str) -> None:
    try:
        document = parse_toml(text, HERE)
    except ConfigError as error:
        assert error.at is not None
        assert error.at.path == HERE
        assert 0 <= error.at.line <= text.count("\n") + 1
    else:
        assert sorted(document.where, key=repr) == sorted(places(document.data), key=repr)


def test_arrays_of_tables_are_counted_at_every_level() -> None:
    text = "[[a]]\nx = 1\n[[a.b]]\n[a.b.c]\ny = 2\n[[a]]\n  [[a.b]]\n  [[a.b]]\n  z = 3\n"
    where = parse_toml(text, HERE).where
    assert where[("a", 0, "b", 0, "c", "y")] == Location(HERE, 5, 1)
    assert where[("a", 1)] == Location(HERE, 6, 3)
    assert where[("a", 1, "b", 1, "z")] == Location(HERE, 9, 3)


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("x =", 1, 4),
        ("é = 1\n", 1, 1),
        ("# é\nb = = 2\n", 2, 5),
        ("a = 1\n\na = 2\n", 3, 6),
        ("[t]\nz = 1\nz.y = 2\n", 3, 8),
        ('a = "x', 1, 7),
        ("a = 2020-13-01\n", 1, 9),
        ('a = "\\q"\n', 1, 8),
        ("\ufeffa = 1\n", 1, 1),
        # Python reads a hexadecimal number of any length, and refuses to write it in decimal.
        ("a = 1\n[t]\nb = [1, 0x" + "f" * 5000 + "]\n", 3, 9),
        (f"a = {1 << 63}\n", 1, 1),
    ],
)
def test_a_syntax_error_has_a_line_and_a_column(text: str, line: int, column: int) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_toml(text, HERE)
    assert caught.value.at == Location(HERE, line, column)


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 40 + "]" * 40, ".".join("a" * 40) + " = 1", "a = " + "{a=" * 40]
)
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"nested more than {MAX_DEPTH} deep"):
        parse_toml(text, HERE)


def test_nesting_beyond_the_interpreters_stack_is_an_error_like_any_other() -> None:
    with pytest.raises(ConfigError):
        parse_toml("= =\na = " + "[" * 100_000, HERE)


def test_reading_is_bounded_and_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    with pytest.raises(ConfigError, match="No such file"):
        read_toml(path)
    with pytest.raises(ConfigError, match="not a regular file"):
        read_toml(tmp_path)
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than"):
        read_toml(path)
    path.write_bytes("# é\né = ".encode() + b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8") as caught:
        read_toml(path)
    assert caught.value.at == Location(path, 2, 5)


def test_merging_joins_tables_appends_arrays_and_overrides_the_rest() -> None:
    base = parse_toml("[a]\nx = 1\ny = [1, 2]\nz = {k = 1}\n[[t]]\nn = 1\n", Path("base.toml"))
    over = parse_toml("[a]\nx = 2\ny = [3]\nz = 4\nw = 5\n[[t]]\nn = 2\n", Path("over.toml"))
    merged = merge(base, over)
    assert merged.data == {"a": {"x": 2, "y": [1, 2, 3], "z": 4, "w": 5}, "t": [{"n": 1}, {"n": 2}]}
    assert merged.where[("a", "y", 1)] == Location(Path("base.toml"), 3, 9)
    assert merged.where[("a", "y", 2)] == Location(Path("over.toml"), 3, 6)
    assert merged.where[("t", 1, "n")] == Location(Path("over.toml"), 7, 1)
    assert ("a", "z", "k") not in merged.where
    assert base.data["a"] == {"x": 1, "y": [1, 2], "z": {"k": 1}}


@given(documents(), documents())
def test_merged_documents_know_all_their_places(first: Writer, second: Writer) -> None:
    merged = merge(parse_toml(first.text, Path("1")), parse_toml(second.text, Path("2")))
    assert sorted(merged.where, key=repr) == sorted(places(merged.data), key=repr)


def test_an_unknown_place_is_answered_with_the_nearest_one() -> None:
    document = parse_toml("[a]\nx = 1\n", HERE)
    assert document.at(("a", "y", "z")) == Location(HERE, 1, 2)
    assert Document({}, HERE).at(("a",)) == Location(HERE)


def test_a_byte_order_mark_at_the_start_is_no_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xef\xbb\xbfa = 1\nb = 2\n")
    document = read_toml(path)
    assert document.data == {"a": 1, "b": 2}
    assert [str(document.at((key,))) for key in "ab"] == [f"{path}:1:1", f"{path}:2:1"]
    for content, place in ((b"a = ?\n", "1:5"), (b"a = '\xff'", "1:6")):
        path.write_bytes(b"\xef\xbb\xbf" + content)
        with pytest.raises(ConfigError) as caught:
            read_toml(path)
        assert str(caught.value).startswith(f"{path}:{place}: ")
        assert caught.value.hint is None


@pytest.mark.parametrize(
    ("content", "place"), [("\ufeff\ufeffa = 1", "1:1"), ("a = 1\n\ufeffb = 2\n", "2:1")]
)
def test_a_byte_order_mark_elsewhere_is_named(tmp_path: Path, content: str, place: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_toml(path)
    assert str(caught.value).startswith(f"{path}:{place}: not valid TOML: ")
    assert "byte order mark" in (caught.value.hint or "")
