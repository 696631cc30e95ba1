"""The first import of a command: no library tells anybody that it runs, unless its user wants that.

huggingface_hub would ask the Hub once a day for a list of programs that may be using it, and name the versions of
libraries. It reads the variable when it is imported.
"""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
