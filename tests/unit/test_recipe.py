"""Recipes: what extends what, what wins, and errors that say where."""

from __future__ import annotations

import errno
import os
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_builder.recipe import MAX_SOURCE, RootfsFile, find_recipes, load_recipe
from airlock_store.errors import ConfigError


class Recipes:
    """A directory with recipes; the first table of each is its [recipe] unless given."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, name: str, body: str = "", extends: str = "") -> Path:
        head = f'[recipe]\nname = "{Path(name).name}"\n' + (f"extends = {extends}\n" if extends else "")
        path = self.directory / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + textwrap.dedent(body))
        return path


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipes:
    monkeypatch.setenv("AIRLOCK_RECIPES", f":{tmp_path / 'recipes'}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Recipes(tmp_path / "recipes")


def fails(ref: str, base: Path = Path("/")) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_recipe(ref, base)
    return caught.value


def test_tables_merge_arrays_append_scalars_override(recipes: Recipes) -> None:
    recipes.write(
        "one",
        """
        summary = "one"
        [rootfs]
        packages = ["a1", "b1"]
        run = ["true"]
        [rootfs.files]
        "/etc/one" = "1"
        "/etc/both" = "1"
        [vm]
        memory = "1 GB"
        cpus = 1
        command = ["/bin/one", "-1"]
        user = "agent"
        [env]
        A = "1"
        B = "1"
        """,
    )
    recipes.write(
        "two",
        """
        [rootfs]
        suite = "bookworm"
        packages = ["c1", "a1"]
        run = ["false"]
        files = { "/etc/both" = { content = "2", mode = "0755" } }
        [vm]
        cpus = 2
        command = ["/bin/two"]
        [env]
        B = "2"
        """,
        extends='"one"',
    )
    loaded = load_recipe("two", Path("/"))
    recipe = loaded.recipe
    assert (recipe.recipe.name, recipe.recipe.summary) == ("two", "")
    assert recipe.rootfs.packages == ("a1", "b1", "c1")
    assert recipe.rootfs.run == ("true", "false")
    assert recipe.rootfs.suite == "bookworm"
    assert loaded.files() == (
        RootfsFile("/etc/both", b"2", 0o755),
        RootfsFile("/etc/one", b"1", 0o644),
    )
    assert (recipe.vm.memory, recipe.vm.cpus) == (1 << 30, 2)
    assert recipe.vm.user == "agent"
    assert recipe.vm.command == ("/bin/two",), "a command is one value, not a list to add to"
    assert dict(recipe.env) == {"A": "1", "B": "2"}
    assert [path.stem for path in loaded.sources] == ["one", "two"]
    # Each line is placed where it was written, however far down the list it came.
    assert [(at.path.stem, at.line) for at in loaded.run_places()] == [("one", 7), ("two", 8)]


def test_a_diamond_merges_its_root_once(recipes: Recipes) -> None:
    recipes.write("root", '[rootfs]\nrun = ["root"]\n')
    recipes.write("left", '[rootfs]\nrun = ["left"]\n', '"root"')
    recipes.write("right", '[rootfs]\nrun = ["right"]\n', '["root"]')
    recipes.write("top", '[rootfs]\nrun = ["top"]\n', '["left", "right"]')
    assert load_recipe("top", Path("/")).recipe.rootfs.run == ("root", "left", "right", "top")


def test_a_recipe_takes_back_the_command_of_another(recipes: Recipes) -> None:
    recipes.write("one", "[vm]\ncommand = ['a']\n")
    recipes.write("two", "[vm]\ncommand = []\n", extends='"one"')
    assert load_recipe("two", Path("/")).recipe.vm.command == ()


@pytest.mark.parametrize("version", ["true", "1.0", "2", "'1'"])
def test_a_version_is_an_integer(recipes: Recipes, version: str) -> None:
    path = recipes.write("bad")
    path.write_text(path.read_text() + f"version = {version}\n")
    assert "is not known; this airlock knows version 1" in fails("bad").message


@pytest.mark.parametrize("name", ["a" * 300, "a" * 5000 + ".toml", "a\0b"])
def test_a_name_that_no_file_can_have(recipes: Recipes, name: str) -> None:
    assert "no recipe" in fails(name).message


def test_a_circle_is_shown(recipes: Recipes) -> None:
    recipes.write("one", extends='"two"')
    recipes.write("two", extends='"three"')
    at = recipes.write("three", extends='["two"]')
    error = fails("one")
    assert "two.toml → three.toml → two.toml" in error.message
    assert error.at and (error.at.path, error.at.line, error.at.column) == (at, 3, 12)


def test_a_recipe_that_extends_itself(recipes: Recipes) -> None:
    recipes.write("self", extends='"self"')
    assert "self.toml → self.toml" in fails("self").message


def test_too_many(recipes: Recipes) -> None:
    for number in range(40):
        recipes.write(f"r{number}", extends=f'"r{number + 1}"')
    recipes.write("r40")
    assert "more than 32" in fails("r0").message


def test_paths_start_from_the_recipe_that_has_them(recipes: Recipes) -> None:
    recipes.write("sub/parent", '[rootfs.files]\n"/etc/a" = { source = "a.txt" }\n')
    (recipes.directory / "sub/a.txt").write_text("beside the parent")
    recipes.write("child", extends='"./sub/parent.toml"')
    assert load_recipe("child", Path("/")).files()[0].content == b"beside the parent"
    recipes.write("child", "[rootfs.files]\n'/etc/a' = { mode = '0600' }\n", "'./sub/parent.toml'")
    assert load_recipe("child", Path("/")).files() == (RootfsFile("/etc/a", b"beside the parent", 0o600),)
    assert load_recipe("recipes/child.toml", recipes.directory.parent).name == "child"


@pytest.mark.parametrize(
    ("body", "message", "line", "column"),
    [
        ("[vm]\nmemmory = '1 GB'", "unknown key 'memmory' in [vm]", 4, 1),
        ("[vm]\nmemory = 512", 'with a unit, such as "512 MB"', 4, 1),
        ("[vm]\nmemory = 1", 'with a unit, such as "256 MB"', 4, 1),
        ("[vm]\nmemory = '1 MB'", "at least 256 MB", 4, 1),
        ("[vm]\ncpus = 0", "a VM has 1 to 255 CPUs, found 0", 4, 1),
        ("[vm]\ncpus = true", "expected an integer, found a boolean", 4, 1),
        ("[vm]\nharden = 'no'", "expected a boolean", 4, 1),
        ("[vm]\ncommand = 'sh'", "expected an array", 4, 1),
        ("[image]\nformat = 'xfs'", "expected one of 'ext4'", 4, 1),
        ("[image]\nsize = 'big'", "expected a size", 4, 1),
        ("[rootfs]\nsuite = 'Trixie!'", "not a Debian suite", 4, 1),
        ("[rootfs]\npackages = ['ok', '-oDir=/']", "'-oDir=/' is not the name", 4, 19),
        ("[rootfs]\npackages = ['vim-']", "'vim-' is not the name", 4, 13),
        ("[rootfs]\npackages = ['ok',\n  1]", "1 is not the name", 5, 3),
        ("[rootfs]\npackages = 'ok'", "expected an array", 4, 1),
        ("[rootfs]\nrun = ['true',\n  ' ']", "an empty line to run", 5, 3),
        (f"[rootfs]\nrun = ['{'a' * 131071}',\n  '{'ü' * 65536}']", "a line of more than 131071 bytes", 5, 3),
        ("[rootfs.files]\n'/a' = {}", "either content or source", 4, 1),
        ("[rootfs.files]\n'/a' = {content='', source='b'}", "either content or source", 4, 1),
        ("[rootfs.files]\n'/a' = {content='', mode='rwx'}", "not a mode", 4, 21),
        ("[kernel]\nprovider = 'arch'", "expected one of 'debian'", 4, 1),
        ("[env]\n'A=B' = ''", "'A=B' cannot be the name of an environment variable", 4, 1),
        ("[env]\n'' = ''", "'' cannot be the name of an environment variable", 4, 1),
        ('[env]\nA = "a\\u0000"', "the value of 'A' has a NUL character", 4, 1),
        (f"[env]\nA = '{'a' * (128 << 10)}'", "the value of 'A' is too long", 4, 1),
        ("[vm]\ncommand = ['']", "expected an array with a program", 4, 1),
        ('[vm]\ncommand = ["a", "\\u0000"]', "without NUL characters", 4, 1),
    ],
)
def test_errors_say_where(recipes: Recipes, body: str, message: str, line: int, column: int) -> None:
    path = recipes.write("bad", body)
    error = fails("bad")
    assert message in error.message
    assert error.at and (error.at.path, error.at.line, error.at.column) == (path, line, column)


def test_what_is_wrong_in_a_merged_array_is_placed_where_it_was_written(recipes: Recipes) -> None:
    path = recipes.write("parent", "[rootfs]\npackages = ['ok',\n  'Bad']\n")
    recipes.write("child", "[rootfs]\npackages = ['fine']\n", extends='"parent"')
    error = fails("child")
    assert error.at
    assert (error.at.path, error.at.line, error.at.column) == (path, 5, 3)


def test_what_is_wrong_and_overridden_is_told_once_at_its_place(recipes: Recipes) -> None:
    parent = recipes.write(
        "parent", "[image]\nsize = 7\n[kernel]\nprovider = 'none'\nodd = 1\n[rootfs.files]\n'/a' = 1\n"
    )
    parent.write_text("vm = 3\n" + parent.read_text())
    child = recipes.write(
        "child",
        "[vm]\ncpus = 1\n[image]\nsize = '1 GB'\n[kernel]\nprovider = 'debian'\n[rootfs]\nsuite = 1\n"
        "[rootfs.files]\n'/a' = 'a'\n",
        extends='"parent"',
    )
    places = [problem.at and f"{problem.at}" for problem in fails("child").problems]
    assert places == [f"{parent}:{at}" for at in ("1:1", "5:1", "7:1", "8:1", "10:1")] + [f"{child}:11:1"]


def test_what_another_recipe_completes_is_not_wrong(recipes: Recipes) -> None:
    recipes.write("parent", "[rootfs.files]\n'/a' = { mode = '0600' }\n[daemons.d]\ntimeout = 1\n")
    recipes.write(
        "child",
        "[rootfs.files]\n'/a' = { content = 'a' }\n[daemons.d]\ncommand = ['x']\n",
        extends='"parent"',
    )
    assert load_recipe("child", Path("/")).files()[0].mode == 0o600


def test_packages_are_placed_where_they_are_asked_for_first(recipes: Recipes) -> None:
    recipes.write("parent", "[rootfs]\npackages = ['one', 'two=1']\n")
    recipes.write("child", "[rootfs]\npackages = ['three', 'one']\n", extends='"parent"')
    places = load_recipe("child", Path("/")).package_places()
    assert {name: (at.path.stem, at.line, at.column) for name, at in places.items()} == {
        "one": ("parent", 4, 13),
        "two=1": ("parent", 4, 20),
        "three": ("child", 5, 13),
    }


def test_a_name_is_needed_and_checked(recipes: Recipes) -> None:
    recipes.write("bad").write_text('[recipe]\nname = "Not OK"\nversion = 2\n')
    error = fails("bad")
    assert "'Not OK' is not a name" in str(error)
    assert "recipe version 2 is not known" in str(error)
    recipes.write("good")
    recipes.write("bad").write_text('[recipe]\nextends = "good"\n')
    assert "missing key 'name' in [recipe]" in fails("bad").message


@pytest.mark.parametrize("target", ["etc/a", "/", "/etc/../a", "", "/a/.."])
def test_targets_are_files_in_the_image(recipes: Recipes, target: str) -> None:
    recipes.write("bad", f'[rootfs.files]\n"{target}" = ""\n')
    with pytest.raises(ConfigError, match="not an absolute path"):
        load_recipe("bad", Path("/")).files()


@pytest.mark.parametrize(
    "target", ["/dev/shm/a", "/proc/a", "//sys/a", "/run/./a", "/tmp/a", "/dev", "/var/run/a"]
)
def test_targets_where_every_sandbox_has_something_mounted(recipes: Recipes, target: str) -> None:
    """As root, a build has the host's own there."""
    path = recipes.write("bad", f'[rootfs.files]\n"/var/tmps" = ""\n"{target}" = ""\n')
    with pytest.raises(ConfigError, match="cannot stay in an image") as caught:
        load_recipe("bad", Path("/")).files()
    assert caught.value.at
    assert (caught.value.at.path, caught.value.at.line) == (path, 5)


def test_a_source_that_is_too_large(recipes: Recipes) -> None:
    recipe = recipes.write("one", "[rootfs.files]\n'/a' = {source='large'}\n")
    with recipe.with_name("large").open("wb") as file:
        file.truncate(MAX_SOURCE + 1)
    with pytest.raises(ConfigError, match="is larger than 64 MB"):
        load_recipe("one", Path("/")).files()


def test_sources_stay_beside_the_recipe(recipes: Recipes) -> None:
    recipes.write("bad", "[rootfs.files]\n" + "".join(
        f"'/{n}' = {{source='{source}'}}\n"
        for n, source in enumerate(["../secret", "/etc/passwd", "link", "missing", "directory", "loop", "fine"])
    ))  # fmt: skip
    (recipes.directory.parent / "secret").write_text("secret")
    (recipes.directory / "link").symlink_to("../secret")
    (recipes.directory / "loop").symlink_to("loop")
    (recipes.directory / "directory").mkdir()
    (recipes.directory / "fine").write_text("fine")
    with pytest.raises(ConfigError) as caught:
        load_recipe("bad", Path("/")).files()
    lines = caught.value.message.splitlines()
    assert len(lines) == 6
    assert [line.partition("bad.toml:")[2][0] for line in lines] == ["4", "5", "6", "7", "8", "9"]
    assert sum("lies outside" in line for line in lines) == 3


def test_names_are_looked_up_in_order(recipes: Recipes, tmp_path: Path) -> None:
    own = Recipes(tmp_path / "config" / "airlock" / "recipes")
    own.write("mine", 'summary = "from the config"\n')
    own.write("base", 'summary = "hides the one that ships"\n')
    recipes.write("mine", 'summary = "from the variable"\n')
    found = {recipe.name: recipe.summary for recipe in find_recipes()}
    assert found["mine"] == "from the variable"
    assert found["base"] == "hides the one that ships"
    assert load_recipe("mine", Path("/")).recipe.recipe.summary == "from the variable"


def test_the_recipes_that_ship_load(recipes: Recipes) -> None:
    assert "base" in {recipe.name for recipe in find_recipes()}
    for recipe in find_recipes():
        assert load_recipe(recipe.name, Path("/")).name == recipe.name
        assert recipe.summary


def test_unknown_names_get_the_nearest(recipes: Recipes) -> None:
    error = fails("bsae")
    assert "no recipe is named 'bsae'" in error.message
    assert error.hint and "base" in error.hint
    at = recipes.write("bad", extends='[\n  "nothing-like-it",\n]')
    error = fails("bad")
    assert error.at and (error.at.path, error.at.line) == (at, 4)
    assert error.hint and "base" in error.hint


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    assert "there is no recipe" in fails("./nothing.toml", tmp_path).message


def test_a_directory_is_no_recipe(tmp_path: Path) -> None:
    error = fails(f"{tmp_path}/", tmp_path)
    assert "neither an image, which has a file manifest.json, nor a recipe" in error.message


def test_the_home_of_nobody(recipes: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "'~nosuchuser/a.toml': there is no such user" in fails("~nosuchuser/a.toml").message
    at = recipes.write("bad", extends='["~nosuchuser/"]')
    error = fails("bad")
    assert error.at
    assert (error.at.path, error.at.line) == (at, 3)
    monkeypatch.setenv("AIRLOCK_RECIPES", f"~nosuchuser/a:{recipes.directory}")
    assert {"bad", "base"} <= {recipe.name for recipe in find_recipes()}


def test_what_is_no_recipe_in_their_directory_is_in_nobodys_way(recipes: Recipes) -> None:
    recipes.write("deep").write_text(f"[recipe]\nsummary = {'[' * 5000}")
    os.mkfifo(recipes.directory / "pipe.toml")
    (recipes.directory / "base.toml").mkdir()
    (recipes.directory / "loop.toml").symlink_to("loop.toml")
    found = {recipe.name: recipe for recipe in find_recipes()}
    assert found["deep"].summary == ""
    assert found["base"].path.is_file()
    assert not {"pipe", "loop"} & set(found)


def test_a_directory_of_recipes_that_may_not_be_searched(
    recipes: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where root runs this."""
    real = os.stat

    def stat(path: Any, *rest: Any, **more: Any) -> os.stat_result:
        if os.fspath(path).startswith(os.fspath(recipes.directory)):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, *rest, **more)

    recipes.write("mine")

    def listdir(path: Any) -> list[str]:
        os.stat(path)
        return listed(path)

    listed = os.listdir
    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "listdir", listdir)
    assert load_recipe("base", Path("/")).name == "base"
    assert "mine" not in {recipe.name for recipe in find_recipes()}


WORDS = st.lists(st.from_regex(r"[a-z0-9]{2,8}", fullmatch=True), max_size=6)


@given(st.lists(WORDS, min_size=1, max_size=5))
def test_a_line_of_recipes_appends_all(
    tmp_path_factory: pytest.TempPathFactory, layers: list[list[str]]
) -> None:
    directory = tmp_path_factory.mktemp("recipes")
    for number, words in enumerate(layers):
        extends = f'"./r{number - 1}.toml"' if number else ""
        listed = ", ".join(f'"{word}"' for word in words)
        Recipes(directory).write(
            f"r{number}", f"[rootfs]\npackages = [{listed}]\nrun = [{listed}]\n", extends
        )
    recipe = load_recipe(f"./r{len(layers) - 1}.toml", directory).recipe
    flat = [word for words in layers for word in words]
    assert recipe.rootfs.run == tuple(flat)
    assert recipe.rootfs.packages == tuple(dict.fromkeys(flat))
