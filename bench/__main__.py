"""``python -m bench``: see `bench.app`."""

from __future__ import annotations

import sys

from bench.app import app
from fe_adapter.errors import InputError

if __name__ == "__main__":
    try:
        app()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
