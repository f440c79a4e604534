"""Four times too many requests: everyone has an answer, limits hold, and the books are the clients'."""

from __future__ import annotations

from pathlib import Path

import pytest
from overload import Sizes, overload


@pytest.mark.slow
async def test_overload(tmp_path: Path) -> None:
    found = await overload(
        tmp_path,
        Sizes(tenants=4, queued=10, capacity=8, speed=4.0, seconds=1.0, calibration_s=0.6),
    )
    assert found.unanswered == 0
    assert found.over_limit == []
    assert found.most_queued > 20
    assert found.submitted == found.ended.total()
    # Who leaves may be gone before its request is read, or while its answer is on the way.
    assert 0 <= found.sent - found.submitted <= found.left
    assert found.answers.keys() == {200, 429}
    assert 0 <= found.ended["finished"] - found.answers[200] <= found.left
    assert found.answers[200] > found.ended["failed"] == 0
    assert found.ended["cancelled"] <= found.left
