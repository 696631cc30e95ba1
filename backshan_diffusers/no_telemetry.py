"""The first import of the package: no library tells anybody that it runs, unless its user wants that.

huggingface_hub would ask the Hub once a day for a list of programs that may be using it, and name the versions of
libraries; ONNX Runtime, which diffusers imports where it is installed, would report to Microsoft from 1.29 on. Both
read the variables when they are imported.
"""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
