"""Step `rootfs`: a root filesystem as a tar file, installed by mmdebstrap from fetched packages, without network.

A tar keeps owners and capabilities for an ordinary user. The same packages, files and lines give the same bytes.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import sys
import tarfile
from collections import deque
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

from airlock_builder import tools
from airlock_builder.plan import DEBIAN_ARCHITECTURES
from airlock_builder.rootfs import ids
from airlock_builder.rootfs.fetch import read_packages
from airlock_builder.rootfs.leftovers import removal
from airlock_builder.rootfs.room import room_for
from airlock_store.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from airlock_builder.recipe import RootfsFile
    from airlock_builder.step import Work

TAR = "rootfs.tar"
EPOCH = "epoch"
"""The file with the date of the newest package: no file of the tree is younger."""

HOST_NAME = "airlock"
NAME_SERVER = "10.0.0.1"
"""airlock's virtual DNS, see docs/architecture.md."""

_OWN_DIRECTORIES = ("airlock", "airlock/disk")
_OWN_FILES = {
    "/etc/hostname": f"{HOST_NAME}\n",
    "/etc/hosts": (
        f"127.0.0.1\tlocalhost\n127.0.1.1\t{HOST_NAME}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    ),
    "/etc/resolv.conf": f"nameserver {NAME_SERVER}\n",
    "/etc/machine-id": "",
}
_FILES = ".airlock-files"
"""The tar with the recipe's files and our own, at the top of the new root until it is unpacked."""
_MARK = "airlock-run: "
_MARKED = re.compile(rf"(.*){_MARK}([0-9]+|failed|done)", re.DOTALL)
_NO_FILE = re.compile("tar: (.+): Cannot (?:open|mkdir|unlink): (.+)")
_SAID_LINES = 40
_STAGE = re.compile(r"I: ((?:downloading|extracting|installing|creating) .*?)\.*")

# What a line may do as root: set up files, users and permissions, which is what Docker allows too but for chroot.
_CAPABILITIES = (
    "chown", "dac_override", "fowner", "fsetid", "kill", "setfcap", "setgid", "setpcap", "setuid",
)  # fmt: skip
# "$1" is the new root, "$2" _CHROOT, "$3" the capabilities, "$4" the name of the host; what the shell there is to do
# is read, because an argument cannot be as long. It is kept in a file without a name: a pipe would need a process
# that writes. Lines get no network, see no process but their own, and share no memory, console or name with the host.
# Their /tmp and /run are fresh, because mmdebstrap keeps in /tmp the file that holds its apt back from the host's; a
# line that cleaned it away would have the host's lists removed. Files are unpacked when what is the host's is out of
# sight, in the new root, which its links do not lead out of.
_ENTER = """\
mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"
mount -t tmpfs -o mode=0755 tmpfs "$1/run"
mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm"
mount -t proc -o ro,nosuid,nodev,noexec proc "$1/proc"
umount -l "$1/sys"
[ ! -e "$1/dev/console" ] || mount --bind /dev/null "$1/dev/console"
perl -e 'require "syscall.ph"; my ($name) = @ARGV; syscall(&SYS_sethostname, $name, length $name) == 0 or die $!' "$4"
cat >"$1/run/lines"
exec <"$1/run/lines"
rm "$1/run/lines"
{ rm "$1/%s"; chroot "$1" tar --extract --numeric-owner --file -; } <"$1/%s"
exec setpriv --inh-caps -all --bounding-set "$3,+sys_chroot" perl -e "$2" -- "$1" /usr/bin/env -i \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
    SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" /bin/sh -us
""".replace("%s", _FILES)
# Enters the new root for good. Whatever runs in there may be the recipe's, so nothing is left to it: the capability to
# leave is given up before, and so is every handle of ours and of mmdebstrap. Some are directories outside, by which to
# leave, and one is a socket by which mmdebstrap reads and writes files of the host. In Perl, as mmdebstrap is, because
# a mapped root may not be able to reach our own Python.
_CHROOT = """\
use POSIX (); require "syscall.ph";
my ($root, @command) = @ARGV;
opendir my $handles, "/proc/self/fd" or die "/proc/self/fd: $!";
my @open = grep { /^[0-9]+$/ && $_ > 2 } readdir $handles;
chroot $root and chdir "/" or die "$root: $!";
my ($PR_CAPBSET_DROP, $CAP_SYS_CHROOT) = (24, 18);
syscall(&SYS_prctl, $PR_CAPBSET_DROP, $CAP_SYS_CHROOT, 0, 0, 0) == 0 or die "prctl: $!";
POSIX::close($_) for @open;
exec @command or die "$command[0]: $!";
"""


def require() -> None:
    """Raise MissingToolError or BuildError for what this host lacks, and mmdebstrap and its hook need."""
    for program in ("mmdebstrap", "mount", "unshare"):
        tools.find_program(program)
    if os.geteuid() != 0:
        ids.require_range()
        ids.require_namespace()


def build(work: Work) -> None:
    """Make the tree. Raises ToolError; for a line of the recipe that failed, placed where it is written."""
    repository = work.inputs["packages"].path
    _, epoch = read_packages(repository)
    mode = "root" if os.geteuid() == 0 else "unshare"
    require()
    overlay = work.scratch / "files.tar"
    _write_files(overlay, _OWN_FILES, work.step.payload["files"], epoch)
    run = work.parameters["run"]
    story = _Story(work, len(run))
    work.progress(None, "installing packages")
    with _Server(repository) as port, room_for(work) as room:
        hook = room / "hook"
        hook.write_text(hook_script(run, work.parameters.get("spared", ())), encoding="utf-8")
        hook.chmod(0o755)
        argv = [
            *(_alone() if mode == "root" else ()),
            tools.find_program("mmdebstrap"),
            *arguments(
                mode=mode,
                suite=work.parameters["suite"],
                arch=DEBIAN_ARCHITECTURES[work.parameters["arch"]],
                packages=work.parameters["packages"],
                files=overlay,
                hook=hook,
                target=work.output / TAR,
                port=port,
            ),
        ]
        try:
            tools.run(
                argv,
                log=story.line,
                env=tools.environment(SOURCE_DATE_EPOCH=str(epoch), TMPDIR=str(room)),
                cwd=work.scratch,
                name="mmdebstrap",
                death=signal.SIGKILL if mode == "root" else signal.SIGTERM,
            )
        except tools.ToolError as error:
            if story.failed is None:
                _check_files(error.tail, work.step.payload["files"])
                raise
            said = "".join(f"\n  {line}" for line in story.said)
            raise BuildError(
                f"this line failed: {run[story.failed]}{said}",
                hint="Lines run in the new root, as root, without network.",
                at=work.step.payload["run_places"][story.failed],
            ) from error
    (work.output / EPOCH).write_text(f"{epoch}\n", encoding="utf-8")


def arguments(
    *,
    mode: str,
    suite: str,
    arch: str,
    packages: Sequence[str],
    files: Path,
    hook: Path,
    target: Path,
    port: int,
) -> list[str | Path]:
    """mmdebstrap's arguments. Pure."""
    source = f"deb [trusted=yes] http://127.0.0.1:{port}/ {suite} main"
    include = [f"--include={','.join(packages)}"] if packages else []
    return [
        f"--mode={mode}",
        "--variant=apt",
        "--format=tar",
        f"--architectures={arch}",
        *include,
        # Done by the hook, within the new root.
        "--skip=cleanup/apt,cleanup/reproducible",
        '--aptopt=Acquire::http::Proxy "DIRECT"',
        '--aptopt=Acquire::Languages "none"',
        # The fetched packages are the choice; the index has no more of them.
        '--aptopt=APT::Install-Recommends "false"',
        # Not "tar-in": that tar runs outside, and links of the new root would lead it into the host.
        f"--customize-hook=upload {shlex.quote(str(files))} /{_FILES}",
        f"--customize-hook={hook}",
        suite,
        target,
        source,
    ]


def _alone() -> list[str | Path]:
    """Namespaces that end with mmdebstrap: as root it would mount the host's /proc, /sys and /dev where all see it.

    A builder that is killed takes this with it, the kernel kills what is inside and undoes the mounts.
    """
    return [tools.find_program("unshare"), "--mount", "--mount-proc", "--pid", "--fork", "--kill-child"]


def hook_script(run: Sequence[str], spared: Sequence[str] = ()) -> str:
    """The program that mmdebstrap runs when all is installed, outside of the new root, which is its "$1". Pure."""
    capabilities = ",".join(["-all", *(f"+{name}" for name in _CAPABILITIES)])
    inner = shlex.join(["sh", "-euc", _ENTER, "sh"])
    outer = "unshare --mount --net --ipc --uts --pid --fork --kill-child"
    arguments = f'"$1" {shlex.quote(_CHROOT)} {capabilities} {HOST_NAME}'
    # The shell's own printf, whose arguments have no limit.
    lines = shlex.quote(script(run, removal(spared)))
    return f"#!/bin/sh\nprintf '%s\\n' {lines} | {outer} {inner} {arguments} 2>&1\n"


def script(run: Sequence[str], cleanup: Sequence[str]) -> str:
    """What the new root's shell does: each line in a shell of its own, between marks, then the cleanup. Pure."""
    lines = ["cd /"]
    for number, line in enumerate(run):
        lines.append(f"echo {_MARK}{number}")
        lines.append(f"/bin/sh -euc {shlex.quote(line)} </dev/null || {{ echo {_MARK}failed; exit 1; }}")
    lines.append(f"echo {_MARK}done")
    # In there, because out here a link that a line has put in the way would lead into the host.
    return "\n".join([*lines, *cleanup])


class _Story:
    """Follows what mmdebstrap writes: which line of the recipe is run, what it says, and whether it failed."""

    def __init__(self, work: Work, count: int) -> None:
        self.failed: int | None = None
        self.said: deque[str] = deque(maxlen=_SAID_LINES)
        self._work = work
        self._count = count
        self._running: int | None = None

    def line(self, line: str) -> None:
        if mark := _MARKED.fullmatch(line):
            # Output that does not end its last line has the mark behind it.
            if mark[1]:
                self.line(mark[1])
            self._mark(mark[2])
        elif self._running is not None:
            self.said.append(line)
        elif stage := _STAGE.fullmatch(line):
            self._work.progress(None, stage[1])
        self._work.log(line)

    def _mark(self, mark: str) -> None:
        # A line can write what looks like a mark; it then spoils its own error message and nothing else.
        if mark == "failed":
            self.failed = self._running
        self._running = int(mark) if mark.isascii() and mark.isdigit() and int(mark) < self._count else None
        if self._running is not None:
            self.said.clear()


def _check_files(tail: Sequence[str], files: Iterable[RootfsFile]) -> None:
    """Raise BuildError, placed, where tar says that one of the files cannot be where the recipe has it."""
    told = {match[1]: match[2] for line in tail if (match := _NO_FILE.fullmatch(line))}
    for file in files:
        if (reason := told.get(file.target[1:])) is not None:
            raise BuildError(f"{file.target!r} cannot be a file in this image: {reason}", at=file.at)


def _write_files(path: Path, own: dict[str, str], files: Iterable[RootfsFile], epoch: int) -> None:
    contents = {target: (content.encode(), 0o644) for target, content in own.items()}
    contents |= {file.target: (file.content, file.mode) for file in files}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for directory in _OWN_DIRECTORIES:
            member = tarfile.TarInfo(directory)
            member.type, member.mode, member.mtime = tarfile.DIRTYPE, 0o755, epoch
            archive.addfile(member)
        for target, (content, mode) in sorted(contents.items()):
            member = tarfile.TarInfo(target.lstrip("/"))
            member.size, member.mode, member.mtime = len(content), mode, epoch
            member.uname = member.gname = "root"
            archive.addfile(member, io.BytesIO(content))


class _Server:
    """Serves a directory on 127.0.0.1 while the block runs: the mapped root of an ordinary user may not read it."""

    def __init__(self, directory: Path) -> None:
        self._server = _HTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(directory)))
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> int:
        self._thread.start()
        return self._server.server_port

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _HTTPServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """An apt that is interrupted leaves without a word."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """apt tells what it could not get."""
