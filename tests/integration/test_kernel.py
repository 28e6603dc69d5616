"""Kernels with the kernel's own Kconfig and compiler: every feature resolved, one kernel compiled and booted.

What is fetched and compiled stays in the shared store.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airlock_builder.build import build, ingredients, plan
from airlock_builder.features import KernelConfigs, load_configs
from airlock_builder.kernel import toolchain
from airlock_builder.kernel.check import check_kernel
from airlock_builder.kernel.dotconfig import parse_config
from airlock_builder.kernel.modules import parse_table
from airlock_builder.kernel.overrides import READ_BY_BUILD, check_against
from airlock_builder.kernel.resolve import resolve
from airlock_builder.kernel.source import unpack, version_of
from airlock_builder.kernel.verify import OptionsLostError, lost
from airlock_builder.kernel.wanted import KernelRequest, Override
from airlock_builder.lookup import shipped
from airlock_builder.pack import cpio
from airlock_builder.pack.cpio import Entry
from airlock_builder.plan import kernel_request
from airlock_builder.realise import Realiser, Silent
from airlock_builder.recipe import load_recipe
from airlock_builder.step import Step, digest_of
from airlock_store.errors import BuildError, ConfigError, Location
from airlock_store.image import MANIFEST, encode_image, encode_promises, load_image
from airlockd import kernelcheck

if TYPE_CHECKING:
    from conftest import Airlock

    from airlock_builder.kernel.verify import Verdict
    from airlock_store.image import Image
    from airlock_store.store import Store

FEATURES = sorted(load_configs(shipped("kernel-configs")).features)
ARCHITECTURES = ("x86_64", "aarch64")

# The required parts of moby's check of a kernel, and those optional ones that Docker is poor without, by hand.
MOBY = {
    "namespaces": "NAMESPACES NET_NS PID_NS IPC_NS UTS_NS USER_NS",
    "control groups": "CGROUPS CGROUP_CPUACCT CGROUP_DEVICE CGROUP_FREEZER CGROUP_SCHED CPUSETS MEMCG CGROUP_BPF"
    " CGROUP_PIDS BLK_CGROUP BLK_DEV_THROTTLING CGROUP_PERF CGROUP_HUGETLB CFS_BANDWIDTH FAIR_GROUP_SCHED",
    "keys and queues": "KEYS POSIX_MQUEUE",
    "bridges": "VETH BRIDGE BRIDGE_NETFILTER BRIDGE_VLAN_FILTERING VXLAN IPVLAN MACVLAN DUMMY",
    "netfilter": "IP_NF_FILTER IP_NF_MANGLE IP_NF_TARGET_MASQUERADE IP_NF_NAT IP_NF_RAW IP6_NF_FILTER IP6_NF_MANGLE"
    " IP6_NF_TARGET_MASQUERADE IP6_NF_NAT IP6_NF_RAW NF_NAT NETFILTER_XT_MATCH_ADDRTYPE"
    " NETFILTER_XT_MATCH_CONNTRACK NETFILTER_XT_MATCH_IPVS NETFILTER_XT_MARK",
    "load balancing": "IP_VS IP_VS_NFCT IP_VS_PROTO_TCP IP_VS_PROTO_UDP IP_VS_RR",
    "nftables": "NF_TABLES NFT_COMPAT NFT_CT NFT_NAT NFT_MASQ NFT_FIB_IPV4 NFT_FIB_IPV6",
    "security": "SECURITY SECCOMP SECCOMP_FILTER",
    "storage": "OVERLAY_FS EXT4_FS EXT4_FS_POSIX_ACL EXT4_FS_SECURITY FILE_LOCKING",
}


def moby_lacks(config: str, values: str = "y") -> dict[str, list[str]]:
    """What moby's check would miss in a config, by group; nothing of airlock's own is used to read it."""
    present = set(re.findall(rf"^CONFIG_(\w+)=[{values}]$", config, re.MULTILINE))
    missing = {
        group: [name for name in names.split() if name not in present] for group, names in MOBY.items()
    }
    return {group: names for group, names in missing.items() if names}


def recipe(directory: Path, kernel: str) -> Path:
    """`base` with another kernel. It has the name, too, so that both share one disk."""
    path = directory / "kernel.toml"
    path.write_text(f'[recipe]\nname = "base"\nextends = "base"\n\n[kernel]\n{kernel}\n')
    return path


def request(
    directory: Path, *features: str, arch: str = "x86_64", options: str = "", without: str = ""
) -> KernelRequest:
    """What a recipe asks of a compiled kernel; `without` is an option whose line is taken out of its fragment."""
    body = f'provider = "compiled"\nfeatures = {list(features)!r}\noptions = {{ {options} }}'
    loaded = load_recipe(str(recipe(directory, body)), directory)
    # Without what is always there: these tests ask for `minimal` alone, too.
    loaded = replace(
        loaded, recipe=replace(loaded.recipe, kernel=replace(loaded.recipe.kernel, features=tuple(features)))
    )
    made = ingredients(loaded, arch)
    line = f"CONFIG_{without}=y\n"
    fragments = {name: text.replace(line, "") for name, text in made.configs.fragments.items()}
    assert not without or fragments != made.configs.fragments
    configs = KernelConfigs(made.configs.features, fragments, made.configs.modules, made.configs.waivers)
    return kernel_request(loaded, replace(made, configs=configs))


def silent(_line: str) -> None:
    pass


@pytest.fixture(scope="module")
def source_step(tmp_path_factory: pytest.TempPathFactory) -> Step:
    """The step that fetches the package with the kernel's source."""
    path = recipe(tmp_path_factory.mktemp("recipe"), 'provider = "compiled"')
    return next(step for step in plan(str(path)).steps if step.name == "kernel-source")


@pytest.fixture(scope="module")
def tree(source_step: Step, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As much of the source as Kconfig needs, to resolve configs in, one after the other."""
    package = Realiser(store, Silent()).realise(source_step)
    return unpack(package.path, tmp_path_factory.mktemp("config"), silent, whole=False)[0]


# Kconfig


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_is_kept_by_kconfig(tree: Path, tmp_path: Path, feature: str, arch: str) -> None:
    config, verdicts = resolve(tree, request(tmp_path, feature, arch=arch), silent)
    assert lost(verdicts) == []
    # Not by airlock's own reading of the file: each line is there as it was asked for.
    lines = set(config.splitlines())
    for verdict in verdicts:
        if verdict.state == "ok" and verdict.wanted.value != "n":
            assert f"CONFIG_{verdict.wanted.option}={verdict.wanted.value}" in lines


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_all_features_together_and_mobys_check(tree: Path, tmp_path: Path, arch: str) -> None:
    config, verdicts = resolve(tree, request(tmp_path, *FEATURES, arch=arch), silent)
    assert lost(verdicts) == []
    assert moby_lacks(config) == {}
    assert "=m\n" not in config


@pytest.mark.parametrize(
    ("option", "group"),
    [("FILE_LOCKING", "storage"), ("NFT_COMPAT", "nftables"), ("EXT4_FS_SECURITY", "storage")],
)
def test_taking_an_option_out_of_the_fragments_fails_mobys_check(
    tree: Path, tmp_path: Path, option: str, group: str
) -> None:
    config, _ = resolve(tree, request(tmp_path, "docker", without=option), silent)
    assert moby_lacks(config) == {group: [option]}


def test_what_is_lost_is_told_with_its_reason(tree: Path, tmp_path: Path) -> None:
    reasons = {
        "NO_SUCH_THING": "no option of this kernel has this name",
        # What is to be off must exist, too: a misspelt line of hardening would do nothing.
        "MODULS": "no option of this kernel has this name; the nearest is MODULES",
        "EROFS_FS": "it depends on MISC_FILESYSTEMS (=n)",
        "NR_CPUS": "allowed is 2 to 512",
        "HZ_100": "of one choice, HZ_1000 is taken",
        "CRYPTO_LIB_SHA256": "it is selected by ",
        "ARM64_SVE": "this architecture has no such option",
    }
    options = (
        'NO_SUCH_THING = "y", MODULS = "n", EROFS_FS = "y", NR_CPUS = 100000, HZ_1000 = "y", HZ_250 = "n",'
        ' HZ_100 = "y", CRYPTO_LIB_SHA256 = "n", ARM64_SVE = "y"'
    )
    with pytest.raises(OptionsLostError) as caught:
        resolve(tree, request(tmp_path, "sandbox", options=options), silent)
    verdicts = {each.wanted.option: each for each in lost(caught.value.verdicts)}
    assert verdicts.keys() == reasons.keys()
    for option, verdict in verdicts.items():
        assert verdict.reason.startswith(reasons[option])
        told = f"CONFIG_{option} should be {verdict.wanted.value} and is {verdict.found}, for the recipe"
        assert told in caught.value.message


def test_every_string_that_this_kernels_build_uses_is_refused(tree: Path) -> None:
    """Not by airlock's own reading of it: all options of type string, all words of Makefiles and scripts."""
    strings: set[str] = set()
    here: set[str] = set()
    for path in tree.rglob("Kconfig*"):
        name = ""
        parts = path.relative_to(tree).parts
        for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
            if match := re.fullmatch(r"\s*(?:menu)?config (\w+)\s*", line):
                name = match[1]
            elif re.match(r'\s+string(\s+"|$)', line):
                strings.add(name)
                # Without a prompt nobody can set it.
                if '"' in line and (parts[0] != "arch" or parts[1] == "x86"):
                    here.add(name)
    made = [*tree.rglob("Makefile*"), *tree.rglob("Kbuild*"), *(tree / "scripts").rglob("*")]
    words = {
        word
        for path in made
        if path.is_file() and path.relative_to(tree).parts[:2] != ("tools", "testing")
        for word in re.findall(r"CONFIG_(\w+)", path.read_text(errors="replace"))
    }
    used = strings & words - {"LOCALVERSION"}
    assert used >= {"INITRAMFS_SOURCE", "SYSTEM_TRUSTED_KEYS", "MODULE_SIG_KEY", "EXTRA_FIRMWARE_DIR"}
    at = Location(Path("mine.toml"), 5, 1)
    with pytest.raises(ConfigError) as caught:
        check_against({name: Override('"/etc/passwd"', at) for name in used}, tree)
    told = [line.partition(" tells")[0] for line in caught.value.message.splitlines()]
    assert told == [f"{at}: CONFIG_{name}" for name in sorted(used)]
    # Those of this architecture are known before there is a source.
    assert used & here - READ_BY_BUILD == set()
    check_against({name: Override('"text"', at) for name in ("CMDLINE", "LSM", "DEFAULT_HOSTNAME")}, tree)


def test_a_menu_that_is_off_takes_features_with_it(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionsLostError) as caught:
        resolve(tree, request(tmp_path, "docker", options='MISC_FILESYSTEMS = "n"'), silent)
    assert {each.wanted.option for each in lost(caught.value.verdicts)} >= {"EROFS_FS", "SQUASHFS"}
    number = (
        (shipped("kernel-configs") / "filesystems.config.j2")
        .read_text()
        .split("\n")
        .index("CONFIG_EROFS_FS=y")
    )
    assert (
        f"CONFIG_EROFS_FS should be y and is n, for docker (filesystems.config.j2:{number + 1}): "
        "it depends on MISC_FILESYSTEMS (=n)"
    ) in caught.value.message


def test_a_source_of_another_version(tree: Path, tmp_path: Path) -> None:
    asked = replace(request(tmp_path, "minimal"), version=(6, 99))
    with pytest.raises(BuildError, match=r"that of Linux 6\.12, not 6\.99"):
        resolve(tree, asked, silent)
    assert version_of(tree) == (6, 12)


def test_the_table_of_modules_is_that_of_the_makefiles(tree: Path) -> None:
    made: dict[str, set[str]] = {}
    for directory in ("block", "crypto", "drivers", "fs", "kernel", "lib", "net", "virt", "arch/x86"):
        for makefile in [*(tree / directory).rglob("Makefile")]:
            text = makefile.read_text(errors="replace").replace("\\\n", " ")
            for option, words in re.findall(r"^obj-\$\(CONFIG_(\w+)\)\s*[+:]?=([^#\n]*)", text, re.MULTILINE):
                made.setdefault(option, set()).update(re.findall(r"(\S+)\.o\b", words))
    table = parse_table(load_configs(shipped("kernel-configs")).modules, Path("modules.toml"))
    wrong = {
        option: (modules, names)
        for option, modules in table.items()
        if set(modules) != (names := {name.replace("-", "_") for name in made.get(option, ())})
    }
    assert wrong == {}


# Debian's kernel


def checked(store: Store, directory: Path, kernel: str, arch: str | None = None) -> tuple[Verdict, ...]:
    loaded = load_recipe(str(recipe(directory, kernel)), directory)
    return check_kernel(loaded, ingredients(loaded, arch), store, Silent()).verdicts


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_debians_kernel_has_every_feature(store: Store, tmp_path: Path, arch: str) -> None:
    # Of another architecture, too: its config, and its modules, which take none of its programs to read.
    verdicts = checked(store, tmp_path, f"features = {FEATURES!r}", arch)
    assert lost(verdicts) == []
    assert {verdict.found for verdict in verdicts} >= {"y", "m"}


def test_what_debians_kernel_lacks(store: Store, tmp_path: Path) -> None:
    assert [
        each.wanted.option for each in lost(checked(store, tmp_path, 'options = { IKCONFIG = "y" }'))
    ] == ["IKCONFIG"]
    with pytest.raises(
        BuildError, match="lacks an option:\n  CONFIG_IKCONFIG should be y and is n"
    ) as caught:
        build(plan(str(recipe(tmp_path, 'options = { IKCONFIG = "y" }'))), store)
    assert caught.value.hint is not None
    assert 'provider = "compiled"' in caught.value.hint


def test_debians_modules_follow_from_the_options(store: Store, tmp_path: Path) -> None:
    steps = plan(str(recipe(tmp_path, 'features = ["docker"]'))).steps
    kernel = Realiser(store, Silent()).realise(next(step for step in steps if step.kind == "kernel"))
    order = (kernel / "modules/order").read_text().split()
    assert {"ext4", "overlay", "9pnet_virtio", "br_netfilter", "nft_chain_nat", "xt_MASQUERADE"} <= set(order)
    assert order.index("jbd2") < order.index("ext4")
    assert order.index("nf_conntrack") < order.index("xt_conntrack")
    assert sorted(path.stem for path in (kernel / "modules").glob("*.ko")) == sorted(order)
    config = (kernel / "config").read_text()
    assert moby_lacks(config, "ym") == {}


def test_a_module_whose_hardware_is_missing_stops_nothing(
    store: Store, tmp_path: Path, airlock: Airlock
) -> None:
    # No processor has what both of KVM's modules of x86 want. On arm64 KVM is built in.
    path = recipe(tmp_path, 'features = ["nested-kvm"]')
    (tmp_path / "airlock.toml").write_text(f'[vm]\nimage = "{path}"\nmemory = "512 MB"\ncpus = 1\n')
    options = load_image(build(plan(str(path)), store).image.path).kernel_options
    found = {name: options[name] for name in ("KVM", "KVM_INTEL", "KVM_AMD") if name in options}
    assert found == (dict.fromkeys(found, "m") if os.uname().machine == "x86_64" else {"KVM": "y"})
    done = airlock("start", "-q", "--", "cut", "-d ", "-f1", "/proc/modules", cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    loaded = done.stdout.decode().split()
    assert ("kvm" in loaded) == (options["KVM"] == "m")
    assert not {"kvm_intel", "kvm_amd"} <= set(loaded)


# In the guest


def promising(image: Image, directory: Path, **options: str) -> Path:
    """A copy of an image that promises more than it did, in its manifest and to its airlockd alike."""
    directory.mkdir()
    copy = replace(image, path=directory, kernel_options={**image.kernel_options, **options})
    (directory / MANIFEST).write_bytes(encode_image(copy))
    for file in (image.kernel, image.rootfs):
        shutil.copy(file, directory)
    with (directory / image.initrd.name).open("wb") as initrd:
        initrd.write(image.initrd.read_bytes())
        # A second archive: the kernel unpacks it over the first.
        cpio.write([Entry.file("lib/modules/promises", encode_promises(copy.kernel_options))], initrd)
    return directory


def test_a_kernel_that_does_not_keep_its_promises_is_refused(
    base_image: Image, airlock: Airlock, tmp_path: Path
) -> None:
    path = promising(base_image, tmp_path / "image", IKCONFIG_PROC="y", VIRTIO_BLK="n")
    config = f'[vm]\nimage = "{path}"\nmemory = "512 MB"\ncpus = 1\n'
    (tmp_path / "airlock.toml").write_text(config)
    done = airlock("start", "--", "echo", "ran", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    said = done.stderr.decode()
    assert "the kernel of image base is not as promised: it lacks options that its image promises:" in said
    assert "CONFIG_IKCONFIG_PROC should be y and is n" in said
    assert "CONFIG_VIRTIO_BLK should be n and is m" in said
    assert "[vm] verify_kernel = false" in said
    (tmp_path / "airlock.toml").write_text(f"{config}verify_kernel = false\n")
    done = airlock("start", "--", "echo", "ran", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"ran\n")
    assert "CONFIG_IKCONFIG_PROC should be y and is n" in done.stderr.decode()


# Compiled


HAS_A_PART = ("compile", "resolve", "source", "toolchain")
"""The modules of airlock_builder.kernel that decide the bytes of a kernel of a given config."""


class Progress(Silent):
    """What steps of the kind `compile` tell of their progress, from 0 to 1."""

    def __init__(self) -> None:
        self.told: dict[str, list[float]] = {}

    def step_progress(self, step: Step, fraction: float | None, text: str) -> None:
        if step.kind == "compile":
            self.told.setdefault(step.name, []).append(fraction or 0.0)


def test_compiling_twice_gives_the_same_bytes(store: Store, source_step: Step) -> None:
    """The smallest kernel that has what could differ: dates, names, a config inside, symbols, a vDSO.

    Both compilations stay in the store, for as long as nothing changes that has a part in the bytes.
    """
    options = (
        "EXPERT",
        "PRINTK",
        "BUG",
        "KALLSYMS",
        "PROC_FS",
        "IKCONFIG",
        "IKCONFIG_PROC",
        "BLK_DEV_INITRD",
    )
    fragment = "".join(f"CONFIG_{name}=y\n" for name in options)
    arch = os.uname().machine
    request = KernelRequest("compiled", arch, (6, 12), {"tiny": ("tiny",)}, {"tiny": fragment})
    code = "".join(Path(toolchain.__file__).with_name(f"{name}.py").read_text() for name in HAS_A_PART)
    ours = {"compiler": toolchain.compiler_of(arch), "code": digest_of(code)}
    config = Step(
        "kernel-config", "tiny", 1, request.parameters() | ours, {"source": source_step}, {"request": request}
    )
    progress = Progress()
    kept: list[dict[str, bytes]] = []
    # A step's name is a part of the directory that it works in.
    for name in ("one", "another-one-with-a-longer-path"):
        step = Step("compile", name, 1, {"arch": arch} | ours, {"source": source_step, "config": config})
        path = Realiser(store, progress).realise(step)
        files = ("kernel", Path(toolchain.TARGETS[arch].image).name, "System.map", "config")
        kept.append({file: (path / file).read_bytes() for file in files})
        assert not any(os.fsencode(store.root) in content for content in kept[-1].values())
    assert kept[0] == kept[1]
    # Files done of total, and the total was right.
    for steps in progress.told.values():
        assert steps == sorted(steps)
        assert 0.9 < steps[-1] <= 1.0


@pytest.fixture(scope="module")
def compiled(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Image, Path]:
    """An image with a kernel that was compiled with Docker's features, and its recipe."""
    path = recipe(tmp_path_factory.mktemp("compiled"), 'provider = "compiled"\nfeatures = ["docker"]')
    return load_image(build(plan(str(path)), store).image.path), path


def test_the_compiled_kernel_is_what_was_proven(compiled: tuple[Image, Path], store: Store) -> None:
    image, path = compiled
    kernel = next(step for step in plan(str(path)).steps if step.kind == "compile")
    found = store.find(kernel.key, kernel.name)
    assert found is not None
    config = (found / "config").read_text()
    assert moby_lacks(config) == {}
    options = parse_config(config, Path("config"))
    assert image.kernel_options["FILE_LOCKING"] == "y"
    assert {name: options.get(name, "n") for name in image.kernel_options} == dict(image.kernel_options)
    assert image.kernel_release.endswith("-airlock")
    if image.arch == "x86_64":
        assert image.kernel.read_bytes()[:4] == b"\x7fELF"
        assert (found / "bzImage").stat().st_size < 8 << 20
    assert "T startup_64" in (found / "System.map").read_text() or image.arch != "x86_64"


def test_check_prints_the_verdict_on_every_option(compiled: tuple[Image, Path], airlock: Airlock) -> None:
    image, path = compiled
    done = airlock("kernel", "check", str(path))
    assert done.returncode == 0, done.stderr.decode()
    verdicts = dict(
        re.findall(r"^CONFIG_(\w+) .* (\w+) +\S.* \(\S+:\d+\)$", done.stdout.decode(), re.MULTILINE)
    )
    assert {option for option, verdict in verdicts.items() if verdict == "ok"} == set(image.kernel_options)


def test_the_compiled_kernel_runs_a_sandbox_and_keeps_its_promises(
    compiled: tuple[Image, Path], airlock: Airlock, tmp_path: Path
) -> None:
    image, path = compiled
    (tmp_path / "airlock.toml").write_text(f'[vm]\nimage = "{path}"\nmemory = "512 MB"\ncpus = 2\n')
    (tmp_path / "note").write_text("of the project\n")
    script = "uname -r; nproc; cat note; touch /written /airlock/disk/a; ! test -e /proc/modules; zcat /proc/config.gz"
    done = airlock("start", "-q", "--", "sh", "-euc", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    release, processors, note, rest = done.stdout.decode().split("\n", 3)
    assert (release, processors) == (image.kernel_release, "2")
    assert note == "of the project"
    assert kernelcheck.lost(image.kernel_options, rest) == []
    assert moby_lacks(rest) == {}
