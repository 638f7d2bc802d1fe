"""`lorafast` in a process of its own that measures the speed of its blocks as briefly as conftest.py has it."""
import sys

from lorafast import cli
from lorafast.planning import speed

if __name__ == "__main__":
    speed.ENOUGH = 0.0
    sys.exit(cli.main())
