"""The private apt: what is advised where it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airlock_builder import tools
from airlock_builder.rootfs.apt import Apt

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("E: The repository 'http://x trixie InRelease' is not signed.", "Check that the mirror"),
        ("W: GPG error: http://x trixie InRelease: NO_PUBKEY 6ED0E7B82643E131", "'debian-archive-keyring'"),
        ("E: Write error - write (28: No space left on device)", "Make room"),
    ],
)
def test_what_to_do_where_an_index_cannot_be_had(
    said: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: Any) -> None:
        raise tools.ToolError(
            "apt-get failed (exit code 100)", [said, "E: Some index files failed to download."]
        )

    apt = Apt(tmp_path / "apt", [], "amd64")
    monkeypatch.setattr(tools, "run", run)
    with pytest.raises(tools.ToolError) as caught:
        apt.update(lambda _line: None)
    assert caught.value.hint and advice in caught.value.hint
