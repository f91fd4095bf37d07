"""Ray's token: made for one user only, used where it is there, never forced on anyone."""

from pathlib import Path

import pytest

from raymtl.auth import MODE, TOKEN, TOKEN_PATH, others_can_read, require_private_token, use_token
from raymtl.errors import InputError


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (MODE, TOKEN):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "ray" / "auth_token"
    monkeypatch.setenv(TOKEN_PATH, str(path))
    return path


def test_a_token_is_made_once_and_only_its_user_reads_it(token: Path) -> None:
    require_private_token()
    made = token.read_text()
    assert len(made) == 64 and not others_can_read(token)
    require_private_token()
    assert token.read_text() == made and [p.name for p in token.parent.iterdir()] == ["auth_token"]


def test_a_token_that_others_can_read_is_closed_to_them(token: Path) -> None:
    token.parent.mkdir()
    token.write_text("ray's own")
    token.chmod(0o644)
    require_private_token()
    assert not others_can_read(token) and token.read_text() == "ray's own"


def test_no_token_is_made_where_ray_is_told_to_ask_for_none(
    token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODE, "disabled")
    require_private_token()
    assert not token.exists()


def test_a_place_that_cannot_hold_a_token_is_named(
    token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_PATH, "/proc/none/auth_token")
    with pytest.raises(InputError, match="cannot be kept private"):
        require_private_token()


def test_ray_shows_the_token_where_there_is_one_and_nothing_else_was_said(
    token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    use_token()
    assert MODE not in os.environ
    monkeypatch.setenv(TOKEN, "secret")
    monkeypatch.setenv(MODE, "disabled")
    use_token()
    assert os.environ[MODE] == "disabled"
    monkeypatch.delenv(MODE)
    use_token()
    assert os.environ[MODE] == "token"
    monkeypatch.delenv(MODE)
