"""From a recipe to the steps that make its image. Pure: values in, values out; `build` gathers the ingredients.

packages ─► rootfs ─► disk ─┐
toolbox packages ─► toolbox ─┼► image          (the toolbox serves disk, kernel and initrd)
kernel package ─► kernel ─► initrd ─┘          (or: kernel source ─► kernel-config ─► compile ─► initrd)
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from airlock_builder.kernel.dotconfig import canonical
from airlock_builder.kernel.versions import OF_SUITE, format_version
from airlock_builder.kernel.wanted import KernelRequest, Override
from airlock_builder.rootfs.leftovers import spared
from airlock_builder.step import Step
from airlock_store.errors import ConfigError, Location
from airlock_store.image import MAX_MANIFEST
from airlock_store.services import brought

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from airlock_builder.features import Feature, KernelConfigs
    from airlock_builder.kernel.versions import Version
    from airlock_builder.recipe import LoadedRecipe

TOOLBOX_SUITE = "trixie"
"""Tools, initrd and kernel come from here whatever the recipe's suite: all images share them."""
PYTHON = "python3.13"
"""The Python of TOOLBOX_SUITE, which becomes that of the initrd."""
TOOLBOX_PACKAGES = (f"{PYTHON}-minimal", f"lib{PYTHON}-stdlib", "e2fsprogs", "libarchive13t64", "kmod")

DEBIAN_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""Debian's names of the architectures that images can have."""

VERSIONS = {
    "fetch": 1,
    "toolbox": 1,
    "rootfs": 2,
    "disk": 1,
    "kernel": 4,
    "kernel-config": 1,
    "compile": 1,
    "initrd": 3,
    "image": 4,
}
"""The version of each step's code. Raise it when the same inputs come to mean other bytes."""

_MAX_DESCRIBED = (
    MAX_MANIFEST * 3 // 4
)  # the rest is for the kernel's options, of which there are some hundreds


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What besides the recipe decides an image. `arch` is the image's, `host` that of the machine that builds it.

    `compiler` names gcc and ld, for a kernel that is compiled.
    """

    arch: str
    host: str
    features: Mapping[str, Feature]
    configs: KernelConfigs
    airlockd_digest: str
    mmdebstrap_digest: str
    compiler: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The graph of steps that ends in `image`."""

    recipe: LoadedRecipe
    image: Step

    @property
    def image_key(self) -> str:
        """The key of the image in the store."""
        return self.image.key

    @property
    def image_name(self) -> str:
        """The name of the image in the store."""
        return self.image.name

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, inputs before what needs them."""
        return tuple({step.key: step for step in _ordered(self.image)}.values())


def make_plan(loaded: LoadedRecipe, ingredients: Ingredients) -> Plan:
    """The plan for a recipe. Raises ConfigError when a file of it cannot be read, or its image could not be loaded."""
    toolbox = _toolbox(ingredients.arch)
    kernel = kernel_steps(loaded, ingredients)[-1]
    initrd = Step(
        "initrd",
        f"initrd-{ingredients.arch}",
        VERSIONS["initrd"],
        {"airlockd": ingredients.airlockd_digest, "python": PYTHON, "arch": ingredients.arch},
        {"toolbox": toolbox, "kernel": kernel},
    )
    disk = _disk(loaded, ingredients, toolbox)
    recipe = loaded.recipe
    parameters = {
        "name": loaded.name,
        "summary": recipe.recipe.summary,
        "arch": ingredients.arch,
        "features": list(ingredients.features),
        "vm": {
            "memory": recipe.vm.memory,
            "cpus": recipe.vm.cpus,
            "harden": recipe.vm.harden,
            "command": list(recipe.vm.command),
            "user": recipe.vm.user,
        },
        "env": dict(recipe.env),
        "brings": brought(loaded.document),
    }
    size = len(json.dumps(parameters, indent=1, ensure_ascii=False).encode())
    if size > _MAX_DESCRIBED:
        raise ConfigError(
            f"the machine, environment and daemons of this recipe take {size} bytes of the image's manifest, "
            f"which has {_MAX_DESCRIBED} for them",
            hint="Put long texts into files: [rootfs.files].",
            at=Location(loaded.sources[-1]),
        )
    inputs = {"kernel": kernel, "initrd": initrd, "disk": disk}
    return Plan(loaded, Step("image", loaded.name, VERSIONS["image"], parameters, inputs))


def _toolbox(arch: str) -> Step:
    packages = _fetch("toolbox-packages", TOOLBOX_SUITE, arch, "install", TOOLBOX_PACKAGES)
    name = f"toolbox-{TOOLBOX_SUITE}-{arch}"
    return Step("toolbox", name, VERSIONS["toolbox"], {"arch": arch}, {"packages": packages})


def kernel_request(loaded: LoadedRecipe, ingredients: Ingredients) -> KernelRequest:
    """What the recipe asks of its kernel. Raises ConfigError where the version of the kernel is not known."""
    section = loaded.recipe.kernel
    features = ingredients.features
    return KernelRequest(
        provider=section.provider,
        arch=ingredients.arch,
        version=_kernel_version(loaded),
        features={name: feature.fragments for name, feature in features.items()},
        sources=ingredients.configs.sources(features.values()),
        options={
            name: Override(canonical(str(setting)), loaded.document.at(("kernel", "options", name)))
            for name, setting in section.options.items()
        },
        modules=ingredients.configs.modules,
        waivers=ingredients.configs.waivers,
    )


def kernel_steps(loaded: LoadedRecipe, ingredients: Ingredients) -> tuple[Step, ...]:
    """The steps that give the config of the recipe's kernel, and then the kernel itself: one, or two to compile it."""
    arch = ingredients.arch
    request = kernel_request(loaded, ingredients)
    parameters, payload = request.parameters(), {"request": request}
    if request.provider == "debian":
        meta = f"linux-image-{DEBIAN_ARCHITECTURES[arch]}"
        package = _fetch("kernel-package", TOOLBOX_SUITE, arch, "kernel", (meta,))
        # Of the toolbox it takes depmod alone, which reads modules of all architectures.
        inputs = {"package": package, "toolbox": _toolbox(ingredients.host)}
        return (Step("kernel", f"kernel-{arch}", VERSIONS["kernel"], parameters, inputs, payload),)
    package_name = f"linux-source-{format_version(request.version)}"
    # The package is the same for all architectures; this index has it.
    places = {package_name: loaded.document.at(("kernel", "version"))}
    suite = loaded.recipe.rootfs.suite
    source = _fetch("kernel-source", suite, "x86_64", "package", (package_name,), places=places)
    parameters["compiler"] = ingredients.compiler
    config = Step(
        "kernel-config",
        f"kernel-config-{arch}",
        VERSIONS["kernel-config"],
        parameters,
        {"source": source},
        payload,
    )
    building = {"arch": arch, "compiler": ingredients.compiler}
    inputs = {"source": source, "config": config}
    return config, Step("compile", f"kernel-{arch}", VERSIONS["compile"], building, inputs)


def _kernel_version(loaded: LoadedRecipe) -> Version:
    section, suite = loaded.recipe.kernel, loaded.recipe.rootfs.suite
    if section.provider == "debian":
        return OF_SUITE[TOOLBOX_SUITE]
    version = section.version or OF_SUITE.get(suite)
    if version is None:
        raise ConfigError(
            f"which kernel does Debian {suite} have?",
            hint='Say so: [kernel] version, such as "6.12", of a package linux-source in that suite.',
            at=loaded.document.at(("kernel",)),
        )
    return version


def _disk(loaded: LoadedRecipe, ingredients: Ingredients, toolbox: Step) -> Step:
    rootfs = loaded.recipe.rootfs
    suite = rootfs.suite
    files = loaded.files()
    wanted = ("?essential", "apt", *sorted(rootfs.packages))
    places = loaded.package_places()
    packages = _fetch(f"packages-{suite}", suite, ingredients.arch, "install", wanted, places=places)
    kept = spared(file.target for file in files)
    # Names are in keys, and that of a recipe is not in its tree: recipes of the same content share it.
    tree = Step(
        "rootfs",
        f"rootfs-{suite}",
        VERSIONS["rootfs"],
        {
            "backend": rootfs.backend,
            "mmdebstrap": ingredients.mmdebstrap_digest,
            "suite": suite,
            "arch": ingredients.arch,
            "packages": sorted(rootfs.packages),
            "files": {
                file.target: {"sha256": hashlib.sha256(file.content).hexdigest(), "mode": file.mode}
                for file in files
            },
            "run": list(rootfs.run),
            **({"spared": kept} if kept else {}),
        },
        {"packages": packages},
        {"files": files, "run_places": loaded.run_places()},
    )
    image = loaded.recipe.image
    parameters = {"format": image.format, "size": image.size, "arch": ingredients.arch}
    inputs = {"rootfs": tree, "toolbox": toolbox}
    payload = {"size_place": loaded.document.at(("image", "size"))}
    return Step("disk", f"disk-{suite}", VERSIONS["disk"], parameters, inputs, payload)


def _fetch(
    name: str,
    suite: str,
    arch: str,
    what: str,
    packages: tuple[str, ...],
    *,
    places: Mapping[str, Location] = MappingProxyType({}),
) -> Step:
    """A fetch: `what` is "install" for packages and all they need, "package" for them alone, "kernel" for the
    image that a meta package names. `places` is where a package is asked for."""
    parameters: dict[str, Any] = {"suite": suite, "arch": arch, "what": what, "packages": list(packages)}
    return Step("fetch", name, VERSIONS["fetch"], parameters, payload={"places": places})


def _ordered(step: Step) -> Iterator[Step]:
    for needed in step.inputs.values():
        yield from _ordered(needed)
    yield step
