"""Remembered answers: worth nothing once their files differ, kept beside what others learned, and never more than a start can read at once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from rundctl.host import memo as memos
from rundctl.host.memo import Memo

if TYPE_CHECKING:
    from pathlib import Path


def test_memo_forgets_what_changed(tmp_path: Path) -> None:
    store, subject = str(tmp_path / "memo.json"), tmp_path / "subject"
    subject.write_bytes(b"1")
    memo = Memo(store)
    digest = memo.digest(str(subject))
    memo.remember("fact", {"a": 1}, str(subject))
    memo.save()
    again = Memo(store)
    assert again.known_digest(str(subject)) == digest
    assert again.recall("fact", str(subject)) == {"a": 1}
    subject.write_bytes(b"22")
    assert again.known_digest(str(subject)) is None
    assert again.recall("fact", str(subject)) is None
    assert again.digest(str(subject)) != digest


def test_memo_keeps_what_others_learned(tmp_path: Path) -> None:
    store = str(tmp_path / "memo.json")
    first, second = Memo(store), Memo(store)
    first.remember("a", 1)
    second.remember("b", 2)
    first.save()
    second.save()
    assert (Memo(store).recall("a"), Memo(store).recall("b")) == (1, 2)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', "\xff"])
def test_damaged_memo_is_empty(tmp_path: Path, text: str) -> None:
    store = tmp_path / "memo.json"
    store.write_text(text, encoding="latin-1")
    memo = Memo(str(store))
    assert memo.recall("a") is None
    memo.remember("b", 1)
    memo.save()
    assert "b" in json.loads(store.read_text())


def test_a_memo_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    memo = Memo(str(tmp_path / "file/memo.json"))
    memo.remember("a", 1)
    memo.save()
    assert memo.recall("a") == 1


def test_what_is_worth_nothing_goes_with_the_next_answer(tmp_path: Path) -> None:
    store = str(tmp_path / "memo.json")
    subjects = [tmp_path / name for name in ("kept", "changed", "gone")]
    memo = Memo(store)
    for subject in subjects:
        subject.write_bytes(b"1")
        memo.digest(str(subject))
    memo.remember("fact", 1, *map(str, subjects))
    memo.remember("of nothing there", 1, str(tmp_path / "missing"))
    memo.save()
    subjects[1].write_bytes(b"22")
    subjects[2].unlink()
    other = Memo(store)
    other.remember("new", 1)
    other.save()
    assert sorted(json.loads((tmp_path / "memo.json").read_bytes())) == ["new", f"sha256 {subjects[0]}"]


def test_of_many_answers_the_last_learned_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = str(tmp_path / "memo.json")
    for number in range(memos.MOST + 5):
        monkeypatch.setattr("time.time", lambda now=number: float(now))
        memo = Memo(store)
        memo.remember(f"accelerator of host {number}", number)
        memo.save()
    kept = json.loads((tmp_path / "memo.json").read_bytes())
    assert {fact["is"] for fact in kept.values()} == set(range(5, memos.MOST + 5))


def test_refresh_learns_from_others_and_keeps_what_is_not_saved(tmp_path: Path) -> None:
    store = str(tmp_path / "memo.json")
    first, second = Memo(store), Memo(store)
    first.remember("a", 1)
    second.remember("b", 2)
    second.save()
    assert first.recall("b") is None
    first.refresh()
    assert (first.recall("a"), first.recall("b")) == (1, 2)


def test_an_answer_is_found_without_naming_its_files(tmp_path: Path) -> None:
    subject = tmp_path / "subject"
    subject.write_bytes(b"1")
    memo = Memo(str(tmp_path / "memo.json"))
    memo.remember("fact", 1, str(subject))
    assert memo.recall_unchanged("fact") == 1
    subject.write_bytes(b"22")
    assert memo.recall_unchanged("fact") is None
    assert memo.recall_unchanged("no such fact") is None
