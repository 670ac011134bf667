"""Keys and whose they are."""

from __future__ import annotations

import hmac
import json
from pathlib import Path

import pytest

from byheart.errors import UsageError
from byheart.serving.http.accounts import LOCAL, Accounts, make_key


def test_every_key_is_compared_whichever_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, compared = tmp_path / "keys.jsonl", []
    keys = {tenant: make_key(path, tenant) for tenant in ("a", "b", "c")}
    accounts, compare = Accounts(path), hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda one, other: compared.append(one) or compare(one, other))
    for tenant, key in keys.items():
        assert accounts.find(key) == tenant
    assert accounts.find("sk-byheart-none") is None
    assert len(compared) == 12


def test_a_key_is_shown_once_and_kept_as_a_hash_on_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "home" / "keys.jsonl"
    first = make_key(path, "alice", name="laptop")
    path.write_text(path.read_text().rstrip("\n"))
    second = make_key(path, "alice")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["tenant"] for line in lines] == ["alice", "alice"]
    assert first not in path.read_text()
    assert {Accounts(path).find(key) for key in (first, second)} == {"alice"}
    with pytest.raises(UsageError, match="'a/b' cannot name a tenant"):
        make_key(path, "a/b")


def test_without_a_file_everybody_is_the_local_tenant(tmp_path: Path) -> None:
    assert Accounts(None).find(None) == LOCAL
    assert Accounts(tmp_path / "none").find("x") is None
