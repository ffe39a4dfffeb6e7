"""For all tests, and for the notebook when it is tested: the smallest experiment."""

import os

# Before torch is imported, and before any notebook's kernel or worker starts.
# What is asked for is kept.
os.environ.setdefault("S10_PROFILE", "smoke")
# The networks here are too small for two threads, and where another process is busy too,
# threads that wait for each other are several times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
