"""Shared by all tests: the smallest experiment, and an environment of their own."""

import os

# Before any notebook kernel or worker starts: no update check, no dataset from outside.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["S10_PROFILE"] = "smoke"
os.environ.pop("CIFAR10_ROOT", None)
