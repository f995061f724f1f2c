import sys

from tests.faults import main

if __name__ == "__main__":
    sys.exit(main())
