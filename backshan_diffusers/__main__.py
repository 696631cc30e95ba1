"""`python -m backshan_diffusers` is the `backshan` command."""

import sys

from .cli import main

sys.exit(main())
