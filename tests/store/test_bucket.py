"""Objects in a bucket that is asked over HTTP, as S3 is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from byheart.errors import UnavailableError
from byheart.files import digest_of_file
from byheart.store.memories import Memories
from byheart.store.objects import object_key, open_objects
from tests.serving.bucket import Bucket, bucket
from tests.store.states import commit


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with bucket() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


def test_a_memory_is_in_the_bucket_once_and_leaves_it(remote: Bucket, tmp_path: Path) -> None:
    memories = Memories(f"sqlite:///{tmp_path}/sqlite3", remote.url, cache=tmp_path / "cache")
    mine = memories.of("ours")
    memories.check()
    mine.create("cat", model="tiny")
    made = commit(mine, "cat", tmp_path, "a")
    mine.fork("cat", "branch")
    assert [key.partition("/")[0] for key in remote.objects] == ["objects"]
    whole = mine.fetch(made).read_bytes()
    assert whole == next(iter(remote.objects.values()))[0]
    other = Memories(f"sqlite:///{tmp_path}/sqlite3", remote.url, cache=tmp_path / "elsewhere")
    assert other.of("ours").fetch(made).read_bytes() == whole
    for name in ("cat", "branch"):
        mine.delete(name)
    assert remote.objects == {}
    other.close()
    memories.close()


def test_a_large_file_is_sent_in_parts_and_comes_back_whole(remote: Bucket, tmp_path: Path) -> None:
    objects, file = open_objects(remote.url, tmp_path / "cache"), tmp_path / "large"
    with file.open("wb") as written:
        written.write(b"begin")
        written.truncate((64 << 20) + 1)
    digest = digest_of_file(file)
    key = object_key("ours", digest)
    objects.put(key, file)
    assert remote.objects.keys() == {f"objects/{key}"}
    assert remote.uploads == {}
    found = objects.fetch(key)
    assert found is not None
    assert digest_of_file(found) == digest


def test_a_bucket_that_fails_is_unavailable_until_it_does_not(remote: Bucket, tmp_path: Path) -> None:
    memories = Memories(f"sqlite:///{tmp_path}/sqlite3", remote.url, cache=tmp_path / "cache")
    mine = memories.of("ours")
    mine.create("cat", model="tiny")
    remote.fault = 403
    with pytest.raises(UnavailableError, match="The bucket with the memories' files cannot be used now"):
        commit(mine, "cat", tmp_path, "a")
    assert mine.get("cat").version == 0
    remote.fault = 0
    assert commit(mine, "cat", tmp_path, "a").number == 1
    memories.close()
