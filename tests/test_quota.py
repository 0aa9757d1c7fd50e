"""Quotas: what the stores of one client take together is counted and bounded, and nobody else notices."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicad.config import ClientConfig
from replicad.model.errors import DiskFullError
from replicad.store.segments import segment_path
from replicad.work.quota import Allowance, Quotas


def store(directory: Path, *sizes: int) -> Path:
    """A directory with segment files of these sizes."""
    (directory / "segments").mkdir(parents=True)
    for number, size in enumerate(sizes, 1):
        segment_path(directory, number).write_bytes(bytes(size))
    return directory


def test_all_stores_of_a_client_share_its_quota(tmp_path: Path) -> None:
    """To the byte; another client's stores do not count, and one without a quota takes what it likes."""
    clients = [ClientConfig("ams1", "key", quota_bytes=1000), ClientConfig("ams2", "key", quota_bytes=100)]
    quotas = Quotas(lambda: clients)
    one = Allowance(quotas, "ams1", store(tmp_path / "one", 300, 50))
    two = Allowance(quotas, "ams1", store(tmp_path / "two", 150))
    assert (one.measure(), two.measure()) == (350, 150)
    one.take(400)
    two.take(100)
    for each in (one, two):
        with pytest.raises(DiskFullError, match=r"client ams1 takes 1,000 bytes here and may take 1KB"):
            each.take(1)
        each.take(0)
    Allowance(quotas, "ams2", tmp_path / "three").take(100)
    Allowance(quotas, "ams3", tmp_path / "four").take(1 << 60)


def test_what_was_given_back_or_never_kept_may_be_taken_again(tmp_path: Path) -> None:
    """A store is measured as it stands, and a new quota counts at once."""
    clients = [ClientConfig("ams1", "key", quota_bytes=1000)]
    quotas = Quotas(lambda: clients)
    directory = store(tmp_path / "one", 600, 300)
    allowance = Allowance(quotas, "ams1", directory)
    allowance.measure()
    allowance.take(100)
    with pytest.raises(DiskFullError):
        allowance.take(1)
    clients[0] = ClientConfig("ams1", "key", quota_bytes=1100)
    allowance.take(100)
    segment_path(directory, 1).unlink()
    assert allowance.measure() == 300
    allowance.take(800)
    with pytest.raises(DiskFullError):
        allowance.take(1)
