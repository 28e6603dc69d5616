"""The features that ship: what they promise, for every kernel that the templates know."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airlock_builder.features import load_configs, select
from airlock_builder.kernel.modules import parse_table
from airlock_builder.kernel.waivers import parse_waivers
from airlock_builder.kernel.wanted import KernelRequest, Wanted, wanted_options
from airlock_builder.lookup import shipped
from airlock_store.errors import Location

if TYPE_CHECKING:
    from airlock_builder.kernel.versions import Version

CONFIGS = load_configs(shipped("kernel-configs"))
NOWHERE = Location(Path("recipe.toml"))
ARCHITECTURES = ("x86_64", "aarch64")
VERSIONS: tuple[Version, ...] = ((6, 1), (6, 12), (6, 18), (7, 2))

# What FACTS and use say that a guest with Docker needs, by hand and not from the fragments.
DOCKER = """
    NAMESPACES NET_NS PID_NS IPC_NS UTS_NS USER_NS POSIX_MQUEUE SYSVIPC KEYS
    CGROUPS CGROUP_CPUACCT CGROUP_DEVICE CGROUP_FREEZER CGROUP_SCHED CPUSETS MEMCG CGROUP_BPF CGROUP_PIDS BLK_CGROUP
    BLK_DEV_THROTTLING CFS_BANDWIDTH FAIR_GROUP_SCHED CGROUP_HUGETLB CGROUP_PERF BPF_SYSCALL
    VETH BRIDGE BRIDGE_NETFILTER BRIDGE_VLAN_FILTERING VXLAN MACVLAN IPVLAN DUMMY TUN PACKET UNIX INET IPV6
    NETFILTER_ADVANCED NF_CONNTRACK NF_NAT IP_NF_IPTABLES IP_NF_FILTER IP_NF_MANGLE IP_NF_RAW IP_NF_NAT
    IP_NF_TARGET_MASQUERADE IP6_NF_IPTABLES IP6_NF_FILTER IP6_NF_MANGLE IP6_NF_RAW IP6_NF_NAT
    IP6_NF_TARGET_MASQUERADE NETFILTER_XT_NAT NETFILTER_XT_MARK NETFILTER_XT_TARGET_REDIRECT
    NETFILTER_XT_MATCH_ADDRTYPE NETFILTER_XT_MATCH_CONNTRACK NETFILTER_XT_MATCH_COMMENT
    NETFILTER_XT_MATCH_MULTIPORT NETFILTER_XT_MATCH_OWNER NETFILTER_XT_MATCH_IPVS IP_VS IP_VS_NFCT IP_VS_RR
    IP_VS_PROTO_TCP IP_VS_PROTO_UDP NF_TABLES NF_TABLES_INET NF_TABLES_IPV4 NF_TABLES_IPV6 NFT_CT NFT_NAT NFT_MASQ
    NFT_REDIR NFT_REJECT NFT_COMPAT NFT_FIB_INET NFT_FIB_IPV4 NFT_FIB_IPV6
    OVERLAY_FS EXT4_FS EXT4_FS_POSIX_ACL EXT4_FS_SECURITY TMPFS_XATTR TMPFS_POSIX_ACL FILE_LOCKING EROFS_FS SQUASHFS
    FUSE_FS BLK_DEV_LOOP 9P_FS NET_9P_VIRTIO VIRTIO_FS
    SECURITY SECCOMP SECCOMP_FILTER SECURITY_LANDLOCK SECURITY_YAMA STACKPROTECTOR_STRONG
    VIRTIO_MMIO VIRTIO_PCI VIRTIO_BLK VIRTIO_CONSOLE VIRTIO_BALLOON HW_RANDOM_VIRTIO
""".split()  # noqa: SIM905
COMPILED = ["DEVTMPFS_MOUNT", "VIRTIO_MMIO_CMDLINE_DEVICES", "IKCONFIG_PROC"]
X86 = ["KVM_GUEST", "PVH"]
LEGACY = ["NETFILTER_XTABLES_LEGACY", "IP_NF_IPTABLES_LEGACY", "IP6_NF_IPTABLES_LEGACY"]
"""Needed on top from 6.17 on, when iptables of the old kind got a switch of its own."""


def options(
    *features: str,
    provider: str = "compiled",
    arch: str = "x86_64",
    version: Version = (6, 12),
    without: str = "",
) -> dict[str, Wanted]:
    """What these features ask for; `without` is an option whose lines are taken out of all fragments."""
    chosen = select(CONFIGS.features, [(name, NOWHERE) for name in features])
    sources = {
        name: "\n".join(line for line in text.split("\n") if not without or f"CONFIG_{without}=" not in line)
        for name, text in CONFIGS.sources(chosen.values()).items()
    }
    fragments = {name: feature.fragments for name, feature in chosen.items()}
    return wanted_options(KernelRequest(provider, arch, version, fragments, sources))


def lacking(wanted: dict[str, Wanted], needed: list[str]) -> list[str]:
    return [name for name in needed if name not in wanted or wanted[name].value != "y"]


@pytest.mark.parametrize("provider", ["debian", "compiled"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("version", VERSIONS)
def test_docker_has_all_that_docker_needs(provider: str, arch: str, version: Version) -> None:
    needed = DOCKER + (COMPILED if provider == "compiled" else []) + (X86 if arch == "x86_64" else [])
    needed += LEGACY if version >= (6, 17) else []
    assert lacking(options("docker", provider=provider, arch=arch, version=version), needed) == []


@pytest.mark.parametrize("option", ["FILE_LOCKING", "NFT_COMPAT", "EXT4_FS_SECURITY"])
def test_taking_an_option_out_of_the_fragments_is_seen(option: str) -> None:
    assert lacking(options("docker", without=option), DOCKER) == [option]


def test_old_iptables_is_asked_for_only_where_there_is_a_switch() -> None:
    assert not set(LEGACY) & set(options("docker", version=(6, 16)))


@pytest.mark.parametrize("name", CONFIGS.features)
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("version", VERSIONS)
def test_no_two_features_disagree(name: str, arch: str, version: Version) -> None:
    alone = options(name, arch=arch, version=version)
    together = options(*CONFIGS.features, arch=arch, version=version)
    # A feature that allows what hardening forbids says so: it decides for all.
    assert {option for option in alone if alone[option].value == "y"} <= set(together)
    assert [option for option in alone if alone[option].value == "y" != together[option].value] == []


def test_programs_for_32_bits_are_refused_unless_asked_for() -> None:
    assert options("sandbox")["IA32_EMULATION"].value == "n"
    assert options("compat-32bit")["IA32_EMULATION"].value == "y"


def test_hardening_is_of_our_own_kernels() -> None:
    compiled, debian = options("sandbox"), options("sandbox", provider="debian")
    assert [compiled[name].value for name in ("MODULES", "KEXEC", "DEVMEM")] == ["n", "n", "n"]
    assert [each.option for each in debian.values() if each.value != "y"] == []


def test_every_fragment_belongs_to_a_feature_and_says_something() -> None:
    used = {name for feature in CONFIGS.features.values() for name in feature.fragments}
    assert used == set(CONFIGS.fragments)
    everything = [
        options(*CONFIGS.features, provider=provider, arch=arch)
        for provider in ("debian", "compiled")
        for arch in ARCHITECTURES
    ]
    places = {asked.place for wanted in everything for each in wanted.values() for asked in each.asked}
    assert {place.partition(".")[0] for place in places} == used


def test_features_have_a_line_for_people() -> None:
    for name, feature in CONFIGS.features.items():
        assert re.fullmatch(r"\S.{10,110}[^.]", feature.summary), name


def test_the_tables_that_ship() -> None:
    parse_waivers(CONFIGS.waivers, Path("waivers.toml"))
    table = parse_table(CONFIGS.modules, Path("modules.toml"))
    asked = {
        option
        for arch in ARCHITECTURES
        for option in options(*CONFIGS.features, provider="debian", arch=arch)
    }
    # What nobody asks for any more, or what the default would find, is clutter that hides mistakes.
    assert set(table) <= asked
    assert [option for option, modules in table.items() if modules == (option.lower(),)] == []


def test_the_table_in_the_manual_is_current() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, root / "scripts/kernel-docs", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
