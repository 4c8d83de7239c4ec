"""`python -m ppp.doctor`, also under `accelerate launch`."""

import sys

from ppp.doctor.command import main

if __name__ == "__main__":
    sys.exit(main())
