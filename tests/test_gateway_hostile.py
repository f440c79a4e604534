"""Bodies that nobody should send, from clients that may leave: no 5xx, and no 200 for what is senseless."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile import hostile


@pytest.mark.slow
async def test_hostile(tmp_path: Path) -> None:
    found = await hostile(tmp_path, rounds=1, bodies=300)
    assert found.answers.total() == 300
    assert found.answers.keys() >= {0, 200, 202, 400, 413}
    assert max(found.answers) < 500
    assert not found.senseless
    assert not found.leaks
    assert found.rss_mb[1] - found.rss_mb[0] < 100
