"""``mor token``: a token is printed once, its hash is stored, and nobody else can read the file."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from click.testing import Result
from mor_client.cli import app
from mor_core.auth import Principal, Scope, TokenFile, hash_token
from typer.testing import CliRunner


def mor(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_a_token_is_printed_once_and_its_hash_is_stored_privately(tmp_path: Path) -> None:
    tokens = tmp_path / "etc" / "tokens.json"
    made = mor("token", "create", "ops", "--scope", "admin", "--tokens-file", str(tokens))
    assert made.exit_code == 0, made.output
    secret = made.stdout.strip()
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o600
    assert secret not in tokens.read_text()
    assert TokenFile(tokens).holder(hash_token(secret)) == Principal(name="ops", scope=Scope.admin)
    again = mor("token", "create", "ops", "--scope", "viewer", "--tokens-file", str(tokens))
    assert again.exit_code == 2
    assert "holds a token named 'ops'" in again.output and "revoke" in again.output


def test_a_token_goes_to_a_private_file_and_is_listed_and_revoked(tmp_path: Path) -> None:
    tokens, secret = tmp_path / "tokens.json", tmp_path / "board.token"
    common = ("--tokens-file", str(tokens), "--json")
    made = mor("token", "create", "board", "--scope", "viewer", "--secret-file", str(secret), *common)
    assert json.loads(made.stdout) == {"name": "board", "scope": "viewer", "secret_file": str(secret)}
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert mor("token", "create", "ops", "--scope", "admin", *common).exit_code == 0
    known = TokenFile(tokens)
    assert known.holder(hash_token(secret.read_text())) is not None
    listed = json.loads(mor("token", "list", *common).stdout)
    assert listed == [{"name": "board", "scope": "viewer"}, {"name": "ops", "scope": "admin"}]
    assert json.loads(mor("token", "revoke", "board", *common).stdout) == {"name": "board", "revoked": 1}
    assert known.holder(hash_token(secret.read_text())) is None
    absent = mor("token", "revoke", "board", *common)
    assert absent.exit_code == 2 and "its names are: ops" in absent.output


def test_a_token_that_cannot_be_handed_over_is_not_valid(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    unwritable = tmp_path / "absent" / "board.token"
    options = ("--tokens-file", str(tokens), "--secret-file", str(unwritable))
    refused = mor("token", "create", "board", "--scope", "viewer", *options)
    assert refused.exit_code == 2 and str(unwritable) in refused.output
    assert json.loads(tokens.read_text()) == []


def test_a_file_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text('{"name": "ops"}')
    for command in (("create", "ops", "--scope", "admin"), ("list",), ("revoke", "ops")):
        refused = mor("token", *command, "--tokens-file", str(tokens))
        assert refused.exit_code == 2 and "is not a list" in refused.output
    assert tokens.read_text() == '{"name": "ops"}'
