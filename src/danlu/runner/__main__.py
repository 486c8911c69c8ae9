"""``python -I -S runner/__main__.py [--salvage] FOLDER``: runs without the package being installed."""

import os
import sys

if __name__ == "__main__":
    if not __package__:
        sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from danlu.runner.main import main

    sys.exit(main(sys.argv[1:]))
