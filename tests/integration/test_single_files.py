"""Single files that are mounted: both ways, whoever replaces them, and nothing of what lies beside them."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sandboxes import Running, running, write_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Airlock

CONFIG = """
harden = false
[mounts.settings]
source = "{shared}/settings"
target = "~/.config/tool/settings"
[mounts.below]
source = "{shared}/below"
target = "/srv/outer/inner/below"
[mounts.outer]
source = "{shared}/outer"
target = "/srv/outer"
[mounts.fixed]
source = "{shared}/fixed"
target = "/etc/fixed"
read_only = true
[mounts.masked]
source = "{shared}/masked"
target = "{project}/hidden/masked"
[mounts.made]
source = "{shared}/new/made"
target = "/srv/made"
missing = "create-file"
file_content = "made\\n"
[mask.secrets]
paths = ["hidden", "other"]
"""
PATIENCE = 120.0


def wait_for(path: Path, text: str) -> None:
    """Until a file of the host has this content: the other side's finished write has come over."""
    deadline = time.monotonic() + PATIENCE
    while path.read_text() != text:
        assert time.monotonic() < deadline, f"{path} is {path.read_text()!r}, not {text!r}"
        time.sleep(0.02)


def wait_in(sandbox: Running, path: str, text: str) -> None:
    """Until a file in the sandbox has it."""
    sandbox.sh(f"until [ \"$(cat {path})\" = '{text}' ]; do sleep 0.1; done")


def replace(path: Path, text: str) -> None:
    """As editors do: a new file takes the place of the old."""
    new = path.with_name("editor's")
    new.write_text(text)
    new.replace(path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shared, with 'commas'")
    (directory / "outer" / "inner").mkdir(parents=True)
    for name in ("settings", "below", "fixed", "masked", "beside"):
        (directory / name).write_text(f"{name}\n")
    (directory / "settings").chmod(0o640)
    return directory


@pytest.fixture(scope="module")
def sandbox(base_image: object, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One without hardening: what holds here holds against root."""
    project = tmp_path_factory.mktemp("project")
    (project / "hidden").mkdir()
    (project / "hidden" / "key").write_text("key\n")
    write_config(project, CONFIG.format(shared=shared, project=project))
    with running(project) as sandbox:
        yield sandbox


def test_each_file_is_at_its_place_and_nothing_else(sandbox: Running, shared: Path) -> None:
    paths = "~/.config/tool/settings /srv/outer/inner/below /etc/fixed hidden/masked /srv/made"
    assert sandbox.sh(f"cat {paths}").split() == ["settings", "below", "fixed", "masked", "made"]
    assert sandbox.sh("ls -A ~/.config/tool /srv/outer/inner; stat -c %a ~/.config/tool/settings").split() == [
        "/root/.config/tool:", "settings", "/srv/outer/inner:", "below", "640",
    ]  # fmt: skip
    assert (shared / "new" / "made").read_text() == "made\n"
    # It is mounted there, and its content is not in the other directory.
    assert (shared / "outer" / "inner" / "below").read_text() == ""


def test_the_hosts_writes_come_over(sandbox: Running, shared: Path) -> None:
    for name, path in (("settings", "~/.config/tool/settings"), ("below", "/srv/outer/inner/below"),
                       ("fixed", "/etc/fixed")):  # fmt: skip
        (shared / name).write_text(f"{name} in place, and longer\n")
        wait_in(sandbox, path, f"{name} in place, and longer")
        replace(shared / name, "new\n")
        wait_in(sandbox, path, "new")
    # From another filesystem mv makes a new file, too, but not at once.
    elsewhere = Path("/dev/shm") / f"airlock-test-{os.getpid()}"
    elsewhere.write_text("from elsewhere\n")
    assert elsewhere.stat().st_dev != shared.stat().st_dev
    subprocess.run(["mv", elsewhere, shared / "settings"], check=True)
    wait_in(sandbox, "~/.config/tool/settings", "from elsewhere")


def test_the_sandboxes_writes_come_over(sandbox: Running, shared: Path) -> None:
    sandbox.sh("echo in place > ~/.config/tool/settings; echo in place > /srv/outer/inner/below")
    wait_for(shared / "settings", "in place\n")
    wait_for(shared / "below", "in place\n")
    sandbox.sh("cd ~/.config/tool; sed -i s/in.place/replaced/ settings")
    wait_for(shared / "settings", "replaced\n")
    sandbox.sh("echo from another filesystem >/run/x; mv /run/x ~/.config/tool/settings")
    wait_for(shared / "settings", "from another filesystem\n")
    sandbox.sh("cd ~/.config/tool; mv settings settings~; echo after a backup >settings")
    wait_for(shared / "settings", "after a backup\n")
    # Its mode on the host is the host's affair.
    (shared / "settings").chmod(0o640)
    sandbox.sh("chmod 4777 ~/.config/tool/settings; echo more >> ~/.config/tool/settings")
    wait_for(shared / "settings", "after a backup\nmore\n")
    assert (shared / "settings").stat().st_mode & 0o7777 == 0o640
    # Nothing of this was a conflict.
    assert not list((sandbox.project / ".airlock" / "sandbox").glob("*.kept-*"))


def test_a_file_below_a_mask_is_replaced_too(sandbox: Running, shared: Path) -> None:
    sandbox.sh("cd hidden; echo in place >masked; ls -A; stat -fc %T .")
    wait_for(shared / "masked", "in place\n")
    sandbox.sh("cd hidden; sed -i s/in.place/replaced/ masked")
    wait_for(shared / "masked", "replaced\n")
    sandbox.sh("echo from another filesystem >/tmp/x; mv /tmp/x hidden/masked")
    wait_for(shared / "masked", "from another filesystem\n")
    replace(shared / "masked", "of the host\n")
    wait_in(sandbox, "hidden/masked", "of the host")
    assert sandbox.sh("ls -A hidden; rm -f hidden/*") == "masked\n"
    # What a mask hides is not there, also where it can be written to, and what is written there is not the host's.
    assert (sandbox.project / "hidden" / "key").read_text() == "key\n"
    assert [path.name for path in (sandbox.project / "hidden").iterdir()] == ["key"]
    # Another mask stays as empty as it is.
    assert b"Read-only file system" in sandbox.exec("touch", "other/x").stderr


RENAMES = r"""
use Errno;
use POSIX ();
chdir "/srv/outer/inner" or die;
sub put { open(my $file, ">", $_[0]) or die; print $file $_[1]; close $file }
sub told {
    my ($name, $done) = @_;
    my ($error) = grep { exists $!{$_} and $!{$_} } keys %!;
    print "$name ", $done ? "done" : $error, " ", -e "new" ? "there" : "gone", "\n";
    put("new", "more");
}
my $renameat2 = (POSIX::uname())[4] eq "aarch64" ? 276 : 316;
sub at { my @arguments = @_; syscall($renameat2, @arguments) == 0 }
my $here = -100;
put("new", "relative\n");
told("relative", rename "new", "below");
told("absolute", rename "/srv/outer/inner/new", "/srv/outer/inner/below");
open(my $above, "<", "..") or die;
told("by-descriptors", at($here, "new", fileno($above), "inner/below", 0));
told("with-a-flag", at($here, "new", $here, "below", 1));
told("exchanged", at($here, "new", $here, "below", 2));
told("long-way", rename "./" x 2000 . "new", "below");
told("too-long-a-way", rename "./" x 2100 . "new", "below");
told("by-a-wrong-descriptor", at($here, "new", 999, "below", 0));
told("by-a-wrong-pointer", at($here, "new", $here, 1, 0));
told("not-there", rename "nothing", "below");
told("itself", rename "below", "below");
told("away", rename "below", "elsewhere");
mkdir "directory";
told("a-directory", rename "directory", "below");
symlink "/etc/passwd", "link";
told("a-symlink", rename "link", "below");
system "mkfifo", "/tmp/pipe";
told("a-pipe", rename "/tmp/pipe", "below");
open(my $large, ">", "large") or die;
truncate $large, (16 << 20) + 1;
told("too-large", rename "large", "below");
told("another-file", rename "new", "unconcerned");
put("new", "last\n");
told("last", rename "new", "below");
unlink "new", "link", "large", "unconcerned";
rmdir "directory";
"""
RENAMED = """
relative done gone
absolute done gone
by-descriptors done gone
with-a-flag EEXIST there
exchanged EBUSY there
long-way done gone
too-long-a-way ENAMETOOLONG there
by-a-wrong-descriptor EBADF there
by-a-wrong-pointer EFAULT there
not-there ENOENT there
itself done there
away EBUSY there
a-directory ENOTDIR there
a-symlink EBUSY there
a-pipe EXDEV there
too-large EFBIG there
another-file done gone
last done gone
"""


def test_a_file_in_a_share_is_replaced_too(sandbox: Running, shared: Path) -> None:
    inner = shared / "outer" / "inner"
    sandbox.sh("cd /srv/outer/inner; echo in place >below; sed -i s/in.place/replaced/ below")
    wait_for(shared / "below", "replaced\n")
    sandbox.sh("echo from another filesystem >/tmp/x; mv /tmp/x /srv/outer/inner/below; test ! -e /tmp/x")
    wait_for(shared / "below", "from another filesystem\n")
    # Both sides go on seeing each other's.
    replace(shared / "below", "of the host\n")
    wait_in(sandbox, "/srv/outer/inner/below", "of the host")
    done = sandbox.exec("perl", "-e", RENAMES)
    assert done.stdout.decode() == RENAMED.lstrip(), done.stderr
    wait_for(shared / "below", "last\n")
    # Of all that, nothing is left in the other directory of the host, and nothing of the file was ever there.
    assert [(path.name, path.read_text()) for path in inner.iterdir()] == [("below", "")]


def test_a_root_without_capabilities_has_no_more_rights_for_a_rename(sandbox: Running, shared: Path) -> None:
    before = (shared / "below").read_text()
    inner = shared / "outer" / "inner"
    # What belongs to an ordinary user of the host is another user's in the sandbox anyway.
    owner = 12345 if os.geteuid() == 0 else os.geteuid()
    try:
        os.chown(inner, owner, -1)
        assert sandbox.sh("echo x >/tmp/new; stat -c %u /srv/outer/inner") == f"{owner}\n"
        lose = (
            "setpriv --bounding-set=-dac_override,-dac_read_search --inh-caps=-dac_override,-dac_read_search"
        )
        done = sandbox.exec(*lose.split(), "mv", "-f", "/tmp/new", "/srv/outer/inner/below")
        assert done.returncode == 1, done.stderr
        assert sandbox.sh("cat /tmp/new") == "x\n"
    finally:
        os.chown(inner, os.geteuid(), -1)
    assert (shared / "below").read_text() == before


def test_a_container_has_files_of_its_own_by_that_name(sandbox: Running, shared: Path) -> None:
    before = (shared / "below").read_text()
    script = "cd /tmp; mkdir -p root/srv/outer/inner; cd root/srv/outer/inner; echo x >new; mv new below; cat below"
    assert sandbox.sh(f"unshare -m sh -c '{script}; umount -l /srv/outer; mkdir -p /srv/outer/inner;"
                      "cd /srv/outer/inner; echo y >new; mv new below; cat below'") == "x\ny\n"  # fmt: skip
    assert (shared / "below").read_text() == before


def test_a_container_with_the_same_directory_replaces_it_too(sandbox: Running, shared: Path) -> None:
    """Another mount namespace, with another root."""
    script = "cd /mnt; echo of a container >/etc/new; mv /etc/new below; cat below; echo /srv >name; mv name /mnt/below"
    new_root = (
        "mkdir -p /tmp/r; mount --rbind / /tmp/r; mount --rbind /srv/outer/inner /tmp/r/mnt; umount -l /srv/outer;"
        f"exec chroot /tmp/r sh -c '{script}'"
    )
    assert sandbox.exec("unshare", "-m", "sh", "-c", new_root).stdout == b"of a container\n"
    wait_for(shared / "below", "/srv\n")
    assert sandbox.sh("ls -A /srv/outer/inner") == "below\n"


def test_who_renamed_and_is_gone_leaves_nothing(sandbox: Running) -> None:
    rename, count = "cd /srv/outer/inner; echo x >new; mv new below", "ls /proc/1/fd | wc -l"
    before = sandbox.sh(f"{rename}; {count}").strip()
    for _ in range(5):
        sandbox.sh(
            "echo x >/tmp/x; (mv /tmp/x /srv/outer/inner/below & mv /tmp/nothing /tmp/else & wait) 2>/dev/null"
        )
    # Killed while it asks, too.
    sandbox.sh("for i in $(seq 10); do timeout -s KILL 0.0$i mv /etc/nothing below; done; true")
    # airlockd hears of the end of who was killed as soon as it comes to that.
    sandbox.sh(f"{rename}; timeout 30 sh -c 'until test $({count}) = {before}; do sleep 0.1; done'")


def test_root_of_a_user_namespace_has_no_rights_over_others_files(sandbox: Running, shared: Path) -> None:
    before = (shared / "below").read_text()
    sandbox.sh("echo x >/tmp/theirs; chown games /tmp/theirs; chmod 600 /tmp/theirs")
    done = sandbox.exec("unshare", "-U", "-r", "mv", "-f", "/tmp/theirs", "/srv/outer/inner/below")
    assert done.returncode == 1, done.stderr
    assert sandbox.sh("cat /tmp/theirs") == "x\n"
    assert (shared / "below").read_text() == before


def test_many_at_once_lose_nothing(sandbox: Running, shared: Path) -> None:
    script = "for i in 1 2 3 4 5; do echo $0-$i >new-$0; mv new-$0 below || exit 1; done"
    jobs = f"cd /srv/outer/inner; for j in a b c d; do sh -c '{script}' $j & done; wait; cat below; ls -A"
    last, *names = sandbox.sh(jobs).split()
    assert last.endswith("-5")
    assert names == ["below"]
    wait_for(shared / "below", f"{last}\n")


def test_read_only_holds_against_root_in_the_guest(sandbox: Running, shared: Path) -> None:
    before = (shared / "fixed").read_text()
    done = sandbox.exec("sh", "-c", "echo x >/etc/fixed; rm -f /etc/fixed; mount -o remount,rw,bind /etc/fixed;"
                        "echo y >/etc/fixed; umount /etc/fixed; echo z >/etc/fixed")  # fmt: skip
    assert b"Read-only file system" in done.stderr
    # What comes after it has come over: so has this, if ever.
    sandbox.sh("echo sign > ~/.config/tool/settings")
    wait_for(shared / "settings", "sign\n")
    assert (shared / "fixed").read_text() == before


def test_no_symlink_leads_the_host_anywhere(sandbox: Running, shared: Path) -> None:
    (shared / "settings").write_text("safe\n")
    wait_in(sandbox, "~/.config/tool/settings", "safe")
    # The host has what the sandbox has, and neither reads nor writes through it.
    sandbox.sh("cd ~/.config/tool; rm settings; ln -s /etc/shadow settings; ln -sfn /etc /srv/etc")
    (shared / "secret").write_text("secret\n")
    sandbox.sh(
        "cd ~/.config/tool; rm settings; ln -s '" + str(shared / "secret") + "' settings; echo mine >made-up"
    )
    sandbox.sh("cd ~/.config/tool; mv made-up settings")
    wait_for(shared / "settings", "mine\n")
    assert (shared / "secret").read_text() == "secret\n"
    assert not (shared / "settings").is_symlink()


def test_what_is_written_last_is_there_after_the_end(airlock: Airlock, project: Path, tmp_path: Path) -> None:
    project.chmod(0o755)
    source = tmp_path / "of a user" / "token"
    source.parent.mkdir()
    source.write_text("first\n")
    write_config(
        project, f'user = "games"\n[mounts.token]\nsource = "{source}"\ntarget = "/var/lib/it/token"\n'
    )
    script = "cat /var/lib/it/token; stat -c %U /var/lib/it/token; echo last >/var/lib/it/token"
    done = airlock("start", "--", "sh", "-c", script, cwd=project)
    assert done.stdout == b"first\ngames\n", done.stderr
    assert source.read_text() == "last\n"
    # Also by a process that is told to end.
    # It waits without a fork, around which dash loses signals.
    last = "trap 'echo at the end >/var/lib/it/token; exit' TERM; echo up >/tmp/up; read x <>/tmp/never"
    script = f'mkfifo /tmp/up /tmp/never; sh -c "{last}" & read x </tmp/up'
    done = airlock("start", "--", "sh", "-c", script, cwd=project)
    assert done.returncode == 0, done.stderr
    assert source.read_text() == "at the end\n"


def test_rights_are_those_of_whoever_renames(airlock: Airlock, project: Path, tmp_path: Path) -> None:
    """Hardened and not root; also by a daemon, which is."""
    source, other = tmp_path / "settings", tmp_path / "other"
    source.write_text("first\n")
    other.write_text("other\n")
    for name, mode in (("own", 0o777), ("closed", 0o755)):
        (project / name).mkdir()
        (project / name).chmod(mode)
    project.chmod(0o755)
    write_config(
        project,
        'user = "games"\n'
        f'[mounts.a]\nsource = "{source}"\ntarget = "{project}/own/settings"\n'
        f'[mounts.b]\nsource = "{other}"\ntarget = "{project}/closed/settings"\n'
        '[daemons.editor]\nready = { log = "done" }\nrestart = "on-failure"\n'
        'command = ["sh", "-c", "echo of a daemon >/tmp/x; mv /tmp/x \''
        + f"{project}/own/settings'; echo done; exec sleep infinity\"]\n",
    )
    script = (
        "cat own/settings; id -un; echo mine >own/new; cp own/new /tmp/new; mv own/new own/settings; cat own/settings;"
        "mv -f /tmp/new closed/settings || echo refused; cat closed/settings;"
        "ls own closed; grep Seccomp: /proc/self/status"
    )
    done = airlock("start", "--", "sh", "-c", script, cwd=project)
    assert done.stdout.decode().split("\n") == [
        "of a daemon", "games", "mine", "refused", "other", "closed:", "settings", "", "own:", "settings",
        "Seccomp:\t2", "",
    ], done.stderr  # fmt: skip
    assert source.read_text() == "mine\n"


TRACE = r"""
use POSIX ();
my ($ptrace, $attach) = ((POSIX::uname())[4] eq "aarch64" ? 117 : 101, 16);
sub children { open(my $file, "<", "/proc/1/task/1/children") or die; split " ", <$file> }
open(my $file, ">", "new") or die;
print $file "x" x (15 << 20);
close $file;
my ($tries, %old) = (0, map { $_ => 1 } children());
for (1 .. 4) {
    my $child = fork;
    if (!$child) {
        select undef, undef, undef, 0.2;
        system "cp", "new", "new2";
        rename "new2", "below" or die;
        POSIX::_exit(0);
    }
    until (waitpid $child, POSIX::WNOHANG) {
        for my $helper (grep { !$old{$_} } children()) {
            while (-d "/proc/$helper") {
                $tries++;
                print("attached\n"), exit if syscall($ptrace, $attach, $helper + 0, 0, 0) == 0;
            }
        }
    }
}
print $tries > 10 ? "refused\n" : "only $tries tries\n";
"""


def test_who_carries_out_a_rename_cannot_be_traced(
    airlock: Airlock, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It was airlockd, with all that airlockd may do, and has the capabilities of whoever asked."""
    source = tmp_path_factory.mktemp("source") / "below"
    source.write_text("first\n")
    write_config(project, f'[mounts.a]\nsource = "{source}"\ntarget = "{project}/below"\n')
    done = airlock("start", "--", "perl", "-e", TRACE, cwd=project)
    assert done.stdout == b"refused\n", done.stderr


def test_a_file_that_cannot_be_mounted_stops_the_start(airlock: Airlock, project: Path) -> None:
    (project / "file").touch()
    write_config(project, '[mounts.v]\nsource = "file"\ntarget = "/usr/lib"\n')
    done = airlock("start", "--", "true", cwd=project)
    assert done.returncode == 1
    assert b"mount v: it cannot be put at /usr/lib: Is a directory" in done.stderr
    os.truncate(project / "file", (16 << 20) + 1)
    done = airlock("start", "--", "true", cwd=project)
    assert done.returncode == 2
    assert f"{project}/airlock.toml:6:1: mount v: {project}/file is larger than 16 MB".encode() in done.stderr
