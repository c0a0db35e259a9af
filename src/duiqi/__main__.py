"""`python -m duiqi` is the command `duiqi`."""

from __future__ import annotations

import sys

from duiqi.cli.main import main

sys.exit(main())
