"""`python -m lorafast` is the same as `lorafast`."""
import sys

from .cli import main

sys.exit(main())
