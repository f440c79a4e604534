"""``driftsched serve`` in a process of its own, for the runs that measure it."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil


@asynccontextmanager
async def served_process(
    config: Path, environ: Mapping[str, str]
) -> AsyncIterator[tuple[int, psutil.Process]]:
    """Its port and the process, once it is ready. Raises AssertionError when it ends by itself."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scheduler.cli", "serve"),
        *("--config", str(config), "--listen", "127.0.0.1:0"),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environ},
    )
    try:
        assert process.stderr is not None
        said = ""
        while "\nready" not in said:
            line = await process.stderr.readline()
            assert line, f"the server ended before it was ready: {said}"
            said += line.decode()
        address = re.search(r"127.0.0.1:(\d+)", said)
        assert address is not None
        yield int(address[1]), psutil.Process(process.pid)
        assert process.returncode is None
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
