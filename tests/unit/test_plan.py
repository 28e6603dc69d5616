"""Plans: what goes into a key and what does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_builder.features import Feature, KernelConfigs, load_configs, select
from airlock_builder.lookup import shipped
from airlock_builder.plan import Ingredients, Plan, make_plan
from airlock_builder.realise import MODULES
from airlock_builder.recipe import load_recipe
from airlock_builder.step import Step, canonical, digest_of
from airlock_store.errors import ConfigError, Location

INGREDIENTS = Ingredients(
    arch="x86_64",
    host="x86_64",
    features={"sandbox": Feature("all", fragments=("ext4",))},
    configs=KernelConfigs({}, {"ext4": "CONFIG_EXT4_FS=y\n", "tun": "CONFIG_TUN=y\n"}),
    airlockd_digest="a" * 64,
    mmdebstrap_digest="b" * 64,
)
BODY = """
[rootfs]
packages = ["curl", "bash"]
run = ["true"]
files = { "/etc/a" = "a", "/etc/b" = { source = "b", mode = "0600" } }
[vm]
cpus = 1
"""


def plan_of(
    tmp_path: Path,
    body: str = BODY,
    ingredients: Ingredients = INGREDIENTS,
    name: str = "test",
    extends: str = "",
) -> Plan:
    (tmp_path / "b").write_text("b")
    (tmp_path / "test.toml").write_text(f'[recipe]\nname = "{name}"\n{extends}{body}')
    return make_plan(load_recipe("./test.toml", tmp_path), ingredients)


def keys(plan: Plan) -> dict[str, str]:
    return {f"{step.kind} {step.name}": step.key for step in plan.steps}


def test_a_kernel_of_another_architecture_is_read_with_tools_of_the_host(tmp_path: Path) -> None:
    steps = {
        step.kind: step for step in plan_of(tmp_path, ingredients=replace(INGREDIENTS, arch="aarch64")).steps
    }
    assert steps["kernel"].inputs["package"].parameters["arch"] == "aarch64"
    assert steps["kernel"].inputs["toolbox"].parameters["arch"] == "x86_64"
    assert steps["initrd"].inputs["toolbox"].parameters["arch"] == "aarch64"


def test_the_graph(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    names = [(step.kind, step.name) for step in plan.steps]
    assert set(names) == {
        ("fetch", "kernel-package"),
        ("fetch", "toolbox-packages"),
        ("fetch", "packages-trixie"),
        ("toolbox", "toolbox-trixie-x86_64"),
        ("kernel", "kernel-x86_64"),
        ("initrd", "initrd-x86_64"),
        ("rootfs", "rootfs-trixie"),
        ("disk", "disk-trixie"),
        ("image", "test"),
    }
    for number, step in enumerate(plan.steps):
        assert {needed.key for needed in step.inputs.values()} <= {s.key for s in plan.steps[:number]}
        assert step.kind in MODULES
    assert (plan.image_key, plan.image_name) == (plan.steps[-1].key, "test")


# Which steps are built anew for which change. "image" is always among them.
CHANGES = {
    "nothing": (BODY, set()),
    "a comment": ("# hello\n" + BODY, set()),
    "the order of packages": (BODY.replace('"curl", "bash"', '"bash", "curl"'), set()),
    "the machine": (BODY.replace("cpus = 1", "cpus = 2"), {"image"}),
    "the environment": (BODY + '[env]\nA = "1"\n', {"image"}),
    "the summary": ('summary = "new"\n' + BODY, {"image"}),
    "the size": (BODY + '[image]\nsize = "1 GB"\n', {"disk", "image"}),
    "a line": (BODY.replace('["true"]', '["false"]'), {"rootfs", "disk", "image"}),
    "a file": (BODY.replace('"a",', '"A",'), {"rootfs", "disk", "image"}),
    "a mode": (BODY.replace("0600", "0644"), {"rootfs", "disk", "image"}),
    "a package": (BODY.replace('"curl"', '"wget"'), {"fetch", "rootfs", "disk", "image"}),
    "the suite": (
        BODY.replace("[rootfs]", '[rootfs]\nsuite = "bookworm"'),
        {"fetch", "rootfs", "disk", "image"},
    ),
}


def test_the_name_of_a_recipe_is_in_its_image_alone(tmp_path: Path) -> None:
    before, after = keys(plan_of(tmp_path)), keys(plan_of(tmp_path, name="other"))
    assert (after.keys() - before.keys(), before.keys() - after.keys()) == ({"image other"}, {"image test"})
    assert {step: after[step] for step in after if step != "image other"}.items() <= before.items()


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_change_rebuilds(tmp_path: Path, change: str) -> None:
    body, expected = CHANGES[change]
    before, after = plan_of(tmp_path), plan_of(tmp_path, body)
    old = {step.key for step in before.steps}
    assert {step.kind for step in after.steps if step.key not in old} == expected


def test_an_image_has_the_machine_that_the_recipe_describes(tmp_path: Path) -> None:
    body = (
        '[vm]\nmemory = "1 GB"\ncpus = 3\nharden = false\ncommand = ["a", "b"]\nuser = "me"\n[env]\nA = "1"\n'
    )
    image = plan_of(tmp_path, body).image
    assert image.parameters["vm"] == {
        "memory": 1 << 30,
        "cpus": 3,
        "harden": False,
        "command": ["a", "b"],
        "user": "me",
    }
    assert image.parameters["env"] == {"A": "1"}


def test_an_image_that_could_not_be_loaded_is_not_planned(tmp_path: Path) -> None:
    """Its manifest would be too large; each value of it is not."""
    body = "[env]\n" + "".join(f"A{number} = '{'a' * 100_000}'\n" for number in range(7))
    assert plan_of(tmp_path, body)
    (tmp_path / "more.toml").write_text(f"[recipe]\nname = 'more'\n{body.replace('A', 'B')}")
    with pytest.raises(ConfigError, match="of the image's manifest") as caught:
        plan_of(tmp_path, body, extends='extends = "./more.toml"\n')
    assert caught.value.at
    assert caught.value.at.path == tmp_path / "test.toml"


def test_what_a_recipe_spares_of_the_cleanup_is_in_the_key(tmp_path: Path) -> None:
    """Only then: its tree has other bytes than when all was removed."""
    trees = [
        next(step for step in plan_of(tmp_path, body).steps if step.kind == "rootfs")
        for body in (BODY, BODY.replace("/etc/a", "/var/log/a.log"))
    ]
    assert [tree.parameters.get("spared") for tree in trees] == [None, ["var/log/a.log"]]


def test_seconds_may_have_a_fraction(tmp_path: Path) -> None:
    body = '[daemons.one]\ncommand = ["true"]\ntimeout = 0.5\nready_timeout = 2.0\n'
    image = plan_of(tmp_path, body).image
    assert image.parameters["brings"]["daemons"]["one"]["timeout"] == 0.5
    assert image.key != plan_of(tmp_path, body.replace("0.5", "0.25")).image.key


def test_a_source_counts_by_its_bytes(tmp_path: Path) -> None:
    before = plan_of(tmp_path)
    moved = plan_of(tmp_path, BODY.replace('source = "b"', 'source = "./b"'))
    assert keys(moved) == keys(before)
    after = plan_of(
        tmp_path, BODY.replace('{ source = "b", mode = "0600" }', '{ content = "c", mode = "0600" }')
    )
    assert keys(after)["rootfs rootfs-trixie"] != keys(before)["rootfs rootfs-trixie"]


@pytest.mark.parametrize(
    ("ingredients", "expected"),
    [
        (replace(INGREDIENTS, airlockd_digest="c" * 64), {"initrd", "image"}),
        (replace(INGREDIENTS, mmdebstrap_digest=""), {"rootfs", "disk", "image"}),
        (
            replace(INGREDIENTS, features={"sandbox": Feature("", fragments=("ext4", "tun"))}),
            {"kernel", "initrd", "image"},
        ),
        (replace(INGREDIENTS, features={"sandbox": Feature("", ("x",), ("ext4",))}), set()),
        (
            replace(INGREDIENTS, configs=KernelConfigs({}, {"ext4": "# CONFIG_EXT4_FS is not set\n"})),
            {"kernel", "initrd", "image"},
        ),
        (replace(INGREDIENTS, configs=KernelConfigs({}, {"ext4": "CONFIG_EXT4_FS=y\n", "tun": ""})), set()),
        (replace(INGREDIENTS, compiler="gcc 13"), set()),
        (
            replace(INGREDIENTS, arch="aarch64"),
            {"fetch", "toolbox", "kernel", "initrd", "rootfs", "disk", "image"},
        ),
    ],
)
def test_what_another_ingredient_rebuilds(
    tmp_path: Path, ingredients: Ingredients, expected: set[str]
) -> None:
    old = {step.key for step in plan_of(tmp_path).steps}
    after = plan_of(tmp_path, ingredients=ingredients)
    assert {step.kind for step in after.steps if step.key not in old} == expected


def test_images_share_what_is_not_their_own(tmp_path: Path) -> None:
    other = BODY.replace('["true"]', '["false"]')
    one, two = keys(plan_of(tmp_path)), keys(plan_of(tmp_path, other, name="other"))
    shared = set(one.values()) & set(two.values())
    assert {kind for kind, key in one.items() if key in shared} == {
        "fetch kernel-package",
        "fetch toolbox-packages",
        "fetch packages-trixie",
        "toolbox toolbox-trixie-x86_64",
        "kernel kernel-x86_64",
        "initrd initrd-x86_64",
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_canonical_is_json_of_the_same_value(value: Any) -> None:
    assert json.loads(canonical(value)) == value


@given(JSON, JSON)
def test_different_values_have_different_texts(one: Any, two: Any) -> None:
    # By JSON's own rules, where true is not 1.
    same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    assert (canonical(one) == canonical(two)) == same


@given(st.dictionaries(st.text(), JSON, min_size=2))
def test_the_order_of_keys_is_nothing(value: dict[str, Any]) -> None:
    assert canonical(dict(reversed(value.items()))) == canonical(value)


@pytest.mark.parametrize("number", [1, 0, 10**16])
def test_a_float_is_not_the_integer_of_its_value(number: int) -> None:
    assert len({canonical(number), canonical(float(number)), canonical(str(float(number)))}) == 3
    assert json.loads(canonical(float(number))) == number


@pytest.mark.parametrize(
    "value", [{1: 2}, {"a": float("nan")}, [float("-inf")], [b""], {"a": {None: 1}}, {1, 2}, Path("/")]
)
def test_what_has_no_place_in_a_key(value: object) -> None:
    with pytest.raises(TypeError):
        digest_of(value)


def test_every_part_of_a_step_counts_but_the_payload() -> None:
    step = Step("a", "b", 1, {"c": 1})
    assert Step("a", "b", 1, {"c": 1}, {}, {"d": Path("/")}) == step
    others = [
        Step("A", "b", 1, {"c": 1}),
        Step("a", "B", 1, {"c": 1}),
        Step("a", "b", 2, {"c": 1}),
        Step("a", "b", 1, {"c": 2}),
        Step("a", "b", 1, {"c": 1}, {"e": step}),
        Step("a", "b", 1, {"c": 1}, {"f": step}),
    ]
    assert len({other.key for other in [step, *others]}) == 1 + len(others)


HERE = Location(Path("recipe.toml"), 3, 4)


def test_features_come_after_what_they_include() -> None:
    known = load_configs(shipped("kernel-configs")).features
    assert list(select(known, [("docker", HERE)])) == ["minimal", "sandbox", "docker"]
    assert list(select(known, [("docker", HERE), ("sandbox", HERE)])) == ["minimal", "sandbox", "docker"]
    assert list(select({"a": Feature("", ("b",)), "b": Feature("", ("a",))}, [("a", HERE)])) == ["b", "a"]


def test_an_unknown_feature() -> None:
    with pytest.raises(ConfigError) as caught:
        select({"docker": Feature("")}, [("dokcer", HERE)])
    assert (caught.value.at, caught.value.hint) == (HERE, "did you mean 'docker'?")


@pytest.mark.parametrize(("key", "kind"), [("includes", "feature"), ("fragments", "fragment")])
def test_a_feature_of_nothing_known(tmp_path: Path, key: str, kind: str) -> None:
    path = tmp_path / "features.toml"
    path.write_text(f'[features.a]\nsummary = ""\n{key} = ["b"]\n')
    with pytest.raises(ConfigError, match=f"no {kind} is named 'b'") as caught:
        load_configs(tmp_path)
    assert caught.value.at == Location(path, 3, len(key) + 5)


COMPILED = BODY + '[kernel]\nprovider = "compiled"\n'


def test_the_graph_of_a_compiled_kernel(tmp_path: Path) -> None:
    steps = {step.kind: step for step in plan_of(tmp_path, COMPILED).steps}
    assert "kernel" not in steps
    assert {role: step.kind for role, step in steps["compile"].inputs.items()} == {
        "source": "fetch",
        "config": "kernel-config",
    }
    source = steps["compile"].inputs["source"]
    assert (source.parameters["what"], source.parameters["packages"]) == ("package", ["linux-source-6.12"])
    assert steps["kernel-config"].inputs["source"].key == source.key
    assert steps["initrd"].inputs["kernel"] == steps["image"].inputs["kernel"] == steps["compile"]


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ('options = { TUN = "y" }', {"kernel-config", "compile", "initrd", "image"}),
        ('version = "6.12"', set()),
        ('version = "6.13"', {"fetch", "kernel-config", "compile", "initrd", "image"}),
    ],
)
def test_what_rebuilds_a_compiled_kernel(tmp_path: Path, addition: str, expected: set[str]) -> None:
    old = {step.key for step in plan_of(tmp_path, COMPILED).steps}
    after = plan_of(tmp_path, COMPILED + addition)
    assert {step.kind for step in after.steps if step.key not in old} == expected


def test_another_compiler_makes_another_kernel(tmp_path: Path) -> None:
    old = {step.key for step in plan_of(tmp_path, COMPILED).steps}
    after = plan_of(tmp_path, COMPILED, replace(INGREDIENTS, compiler="gcc 13"))
    assert {step.kind for step in after.steps if step.key not in old} == {
        "kernel-config",
        "compile",
        "initrd",
        "image",
    }


def test_the_kernel_of_an_unknown_suite_needs_a_version(tmp_path: Path) -> None:
    body = COMPILED.replace("[rootfs]", '[rootfs]\nsuite = "sid"')
    with pytest.raises(ConfigError, match="which kernel does Debian sid have"):
        plan_of(tmp_path, body)
    steps = plan_of(tmp_path, body + 'version = "6.18"').steps
    assert ["linux-source-6.18"] in [step.parameters.get("packages") for step in steps]
