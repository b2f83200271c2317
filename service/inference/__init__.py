"""Models: their files, their predictors and the queue in front of them. Blind to HTTP and to caching."""

import os
import sys

# OpenMP's threads (torch's and scikit-learn's) would spin while they wait for each other, and on a busy machine take
# the CPU from the very ones they wait for: medians 5 to 10 times as long. Read when those libraries load, so set first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Importing OpenVINO reports to its makers, and leaves files in the home directory, unless this module is missing.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
