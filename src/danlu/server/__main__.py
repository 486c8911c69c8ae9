"""``python -m danlu.server``."""

import sys

from danlu.server.main import main

sys.exit(main())
