"""What is wrong with a run folder that cannot be read back."""

from __future__ import annotations

import csv
from pathlib import Path


class FolderError(ValueError):
    """A folder is no run folder, or a file in it cannot be read; says which."""


# What a file that is not what it should be makes its reader raise: int() of an infinity overflows; lines
# nested a thousand deep do, too, in their way.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, csv.Error)


def why(error: Exception) -> str:
    """What one of them, or an OSError, says of the file."""
    match error:
        case OSError(filename=file, strerror=what) if file:
            return f"{Path(file).name}: {what}"
        case KeyError(args=(key, *_)):
            return f"{key!r:.40} is missing"
        case TypeError() | AttributeError():
            return "a value of another kind is needed"
        case UnicodeDecodeError():
            return "it is no text in UTF-8"
        case RecursionError():
            return "it is nested too deep"
        case _:
            return f"{error!s:.200}"
