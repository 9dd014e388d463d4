"""Mistakes with ``mor``: each is answered with what was got, what is wanted and what to do, without a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from mor_client.cli import app
from mor_client.exit_codes import ExitCode
from mor_core.errors import Invalid
from mor_core.issued_tokens import issue
from mor_core.visibility import Scope
from typer.testing import CliRunner

WITHOUT_SERVICES = {"MOR_CONFIG": None, "MOR_CONTROL_URL": "http://127.0.0.1:9", "MOR_ROUTER_URL": "http://127.0.0.1:9"}


def answer(folder: Path, *arguments: str, status: int = ExitCode.usage, **environment: str) -> str:
    """Run a command in a folder without services; return its message."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(
            app, arguments, env={**WITHOUT_SERVICES, "MOR_ATTEMPTS": "1", "COLUMNS": "400", **environment}
        )
    assert done.exit_code == status, (done.output, done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("deep.json", b"[" * 100_000, "nested too deeply; write the fields of a run as a JSON object"),
        ("twice.toml", b"a = 1\na = 2\n", "Cannot overwrite a value (at line 2, column 6); correct it"),
        ("latin.json", b'{"name": "caf\xe9"}', "not UTF-8; save it as UTF-8, as by: iconv -f LATIN1"),
    ],
)
def test_a_file_that_is_no_specification_is_named_with_the_cure(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"{name}: " in (shown := answer(tmp_path, "run", "create", name))
    assert message in shown


def test_configuration_and_machine_files_of_another_encoding_are_named_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'token_file = "caf\xe9"\n')
    (tmp_path / "broken.toml").write_text("model = \n")
    configured = answer(tmp_path, "run", "list", MOR_CONFIG=str(tmp_path / "latin.toml"))
    assert "latin.toml: not UTF-8; save it as UTF-8, as by: iconv" in configured
    assert "latin.toml: not UTF-8; save it as UTF-8, as by: iconv" in answer(tmp_path, "up", "latin.toml")
    assert "broken.toml: TOMLDecodeError: Invalid value (at line 1" in answer(tmp_path, "up", "broken.toml")


@pytest.mark.parametrize(
    "address", ["http://", "http://[::1", "http://127.0.0.1:99999", "http://ex ample", "//x", "control", "ftp://x"]
)
def test_what_is_no_address_is_answered_with_the_form_of_one(tmp_path: Path, address: str) -> None:
    shown = answer(tmp_path, "run", "list", status=ExitCode.no_answer, MOR_CONTROL_URL=address)
    assert f"{address!r} is not a valid address; write it as http://host:port or https://host" in shown


@pytest.mark.parametrize(
    "arguments",
    [("run", "show", ""), ("run", "show", "a/../b?x=1"), ("run", "delete", "a", "b#c"), ("client", "show", "a b"),
     ("objective", "show", "%2e"), ("label", "next", "a\nb")],
)  # fmt: skip
def test_what_cannot_be_a_name_is_refused_before_a_request(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert "cannot be a name; 'list' shows the names that there are" in answer(tmp_path, *arguments)


def test_a_secret_is_one_token_that_a_header_can_hold(tmp_path: Path) -> None:
    for content in ("tök", "two words"):
        (tmp_path / "secret").write_text(content)
        enrol = ("client", "enrol", "clinic", "--url", "http://127.0.0.1:9", "--secret-file", "secret")
        assert "secret does not hold one token" in answer(tmp_path, *enrol)


def test_sizes_and_names_have_bounds(tmp_path: Path) -> None:
    assert "less than or equal to 1000000000000000" in answer(tmp_path, "size", "--parameters", "inf")
    assert "nothing: no such folder; give the folder of a checkpoint" in answer(tmp_path, "size", "nothing")
    create = ("token", "create", "a\nb", "--scope", "viewer", "--tokens-file", "tokens.json")
    assert "has characters that are not printed; give a name of one line" in answer(tmp_path, *create)
    with pytest.raises(Invalid, match="not printed"):
        issue(tmp_path / "tokens.json", "\x1b[31m", Scope.viewer)
    assert not (tmp_path / "tokens.json").exists()


def test_a_name_with_brackets_is_printed_as_it_is(tmp_path: Path) -> None:
    create = ("token", "create", "[/red]", "--scope", "viewer", "--tokens-file", "tokens.json")
    told = answer(tmp_path, *create, "--secret-file", "[bold]", status=ExitCode.done)
    assert told == "the token of [/red] is in [bold]"
    assert answer(tmp_path, "token", "revoke", "[/red]", "--tokens-file", "tokens.json", status=0).startswith(
        "the token of [/red] is revoked"
    )


def test_a_checkpoint_is_named_by_a_word_or_a_step(tmp_path: Path) -> None:
    shown = answer(tmp_path, "run", "export", "r", "folder", "--checkpoint", "bst")
    assert "'bst' is no checkpoint; give final, latest, best or the number of a step" in shown


def test_a_proxy_that_is_none_is_answered_without_words_of_the_parser(tmp_path: Path) -> None:
    shown = answer(tmp_path, "run", "list", MOR_PROXY="nonsense")
    assert "proxy: a proxy's address is http://host:port" in shown
