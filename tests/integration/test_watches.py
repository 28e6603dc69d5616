"""inotify in what is shared by 9p, where Linux by itself tells of nothing below the share's own directory."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from sandboxes import COMMAND, running, write_config
from test_shares import KINDS
from watcher import WATCH

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Airlock

pytestmark = pytest.mark.usefixtures("base_image")

FUNCTIONS = """
watch() {
    mkfifo /run/lock/$$
    perl "$PROJECT/watch.pl" "$@" >/run/lock/$$ &
    exec 3</run/lock/$$
    read -r line <&3
    test "$line" = watching
}
"""


@pytest.fixture
def watched(project: Path) -> Path:
    (project / "watch.pl").write_text(WATCH)
    (project / "functions").write_text(FUNCTIONS)
    for name in ("deep", "again"):
        (project / "src" / name).mkdir(parents=True)
    (project / "src/file").write_text("one\n")
    for path in (project, *project.glob("**/*")):
        path.chmod(0o777)
    (project / "link").symlink_to("src")
    return project


def told(airlock: Airlock, project: Path, script: str) -> list[str]:
    script = f"export PROJECT=$PWD; . ./functions; {script}"
    done = airlock("-q", "start", "--", "sh", "-ec", script, cwd=project)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


class Watcher:
    """One that hears of attributes, too."""

    def __init__(self, project: Path, *paths: str) -> None:
        argv = [COMMAND, "exec", "-e", "ALSO=4", "perl", "watch.pl", *paths]
        self._process = subprocess.Popen(argv, cwd=project, stdout=subprocess.PIPE, text=True)

    def heard(self, count: int) -> list[str]:
        """The next lines that it prints."""
        assert self._process.stdout is not None
        return [self._process.stdout.readline().strip() for _ in range(count)]

    def rest(self) -> str:
        """What it prints until its end, which is a good one."""
        rest, _ = self._process.communicate(timeout=60)
        assert self._process.returncode == 0
        return rest


@pytest.mark.parametrize("settings", ["", 'user = "games"', "harden = false"])
def test_changes_of_the_sandbox_are_told(airlock: Airlock, watched: Path, settings: str) -> None:
    write_config(watched, settings)
    script = """
        watch . src src/file "$PWD/src/deep" link/again /run/lock
        echo two >>src/file
        echo new >src/new
        mv src/new src/deep/moved
        rm src/deep/moved
        mkdir src/deep/below
        : >src/again/here
        : >end
        cat <&3
    """
    deep = watched / "src/deep"
    assert told(airlock, watched, script) == [
        *("src file 2", "src/file - 2"),
        *("src new 100", "src new 2", "src new 40", f"{deep} moved 80", f"{deep} moved 200"),
        f"{deep} below 40000100",
        "link/again here 100",
    ]


def test_it_is_watched_in_another_namespace_too(airlock: Airlock, watched: Path) -> None:
    """As in a container: at another place, and only a part of it."""
    write_config(watched, "harden = false")
    (watched / "inner").write_text(
        """
        mkdir /mnt/root
        mount --rbind / /mnt/root
        mount --bind src "/mnt/root/mnt"
        exec chroot /mnt/root sh -ec '
            cd /mnt
            . $PROJECT/functions
            watch . file /mnt/again
            echo two >>file
            touch again/here end
            cat <&3
        '
        """
    )
    assert told(airlock, watched, "unshare -m sh -e inner") == [
        *(". file 2", "file - 2", "/mnt/again here 100"),
    ]


def test_what_the_host_removed_can_be_made_again(watched: Path) -> None:
    with running(watched) as sandbox:
        watch = f"export PROJECT={watched}; . ./functions; watch src src/file src/deep"
        (watched / "src/again/inner").mkdir()
        sandbox.sh(f"{watch} src/again/inner")
        shutil.rmtree(watched / "src/deep")
        (watched / "src/file").unlink()
        (watched / "src/again").rename(watched / "moved")
        # What is watched is found for a moment after it is gone: until airlockd hears of it.
        again = "until %s; do sleep 0.1; done"
        again = "; ".join(
            again % each for each in ("mkdir src/deep", "mkdir src/again", "echo new >src/file")
        )
        sandbox.sh(f"timeout 30 sh -c '{again}' 2>/dev/null")
        assert (watched / "src/file").read_text() == "new\n"
        changes = "touch src/deep/here; echo >>src/file; touch src/end; cat <&3"
        assert sandbox.sh(f"{watch}; {changes}").splitlines() == [
            *("src/deep here 100", "src file 2", "src/file - 2"),
        ]


def test_what_the_sandbox_made_anew_is_watched_anew(watched: Path) -> None:
    with running(watched) as sandbox:
        first = Watcher(watched, "src")
        assert first.heard(1) == ["watching"]
        sandbox.sh("rm -r src; mkdir src; mv src moved; mkdir src")
        second = Watcher(watched, ".", "src")
        assert second.heard(1) == ["watching"]
        (watched / "src/new").write_text("of the host\n")
        assert second.heard(1) == ["src new 4"]
        (watched / "end").touch()
        assert second.rest() == ""


def test_who_watches_no_more_leaves_nothing(watched: Path) -> None:
    write_config(watched, "harden = false")
    with running(watched) as sandbox:
        count = "ls /proc/1/fd | wc -l"
        # One stays with airlockd for watches of its own.
        before = int(sandbox.sh(count)) + 1
        watch = f"export PROJECT={watched}; . ./functions; watch src src/file src/deep"
        assert int(sandbox.sh(f"{watch}; {count}")) >= before + 5
        # It hears of their end as soon as it comes to that.
        sandbox.sh(f"pkill perl; timeout 30 sh -c 'until test $({count}) = {before}; do sleep 0.1; done'")


@pytest.mark.parametrize("share", KINDS)
def test_changes_of_the_host_are_told(watched: Path, share: str) -> None:
    """As those of an attribute, since nothing else can be done to a file that changes nothing of it."""
    write_config(watched, f'share = "{share}"')
    with running(watched) as sandbox:
        watcher = Watcher(watched, ".", "src", "src/file", "src/deep")
        heard = watcher.heard
        assert heard(1) == ["watching"]
        (watched / "src/file").write_text("of the host\n")
        assert heard(2) == ["src file 4", "src/file - 4"]
        (watched / "src/new").write_text("of the host\n")
        assert heard(1) == ["src new 4"]
        # As editors save.
        (watched / "src/deep/next").write_text("next\n")
        assert heard(1) == ["src/deep next 4"]
        (watched / "src/new").unlink()
        assert heard(2) == [". src 40000004", "src - 40000004"]
        # The sandbox hears of its own changes once, as what they are.
        sandbox.sh("echo own >>src/deep/next; echo own >src/deep/own")
        assert heard(3) == ["src/deep next 2", "src/deep own 100", "src/deep own 2"]
        (watched / "end").touch()
        assert watcher.rest() == ""
