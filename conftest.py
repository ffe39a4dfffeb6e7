"""For all tests, and for the notebook when it is tested: the smallest experiment."""

import os

# Before any notebook's kernel or worker starts. A profile that is asked for is kept.
os.environ.setdefault("S10_PROFILE", "smoke")
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
