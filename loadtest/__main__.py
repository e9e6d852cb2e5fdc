"""`python -m loadtest`: see `loadtest.command`."""

import sys

from loadtest.extra import needed

if __name__ == "__main__":
    with needed("loadtest", "locust"):
        from loadtest.command import main

    sys.exit(main())
