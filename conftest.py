"""For all tests, and for the notebook when it is tested: the smallest experiment."""

import os
import signal

try:
    from hypothesis import HealthCheck, settings
except ModuleNotFoundError:  # requirements.txt is enough to test the notebook alone
    settings = None

# Before torch is imported, and before any notebook's kernel or worker starts.
# What is asked for is kept.
os.environ.setdefault("S10_PROFILE", "smoke")
# The networks here are too small for two threads, and where another process is busy too,
# threads that wait for each other are several times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
# A shell starts background jobs with Ctrl-C ignored, and their children inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Property tests: the same few examples each time; by hand, with
# --hypothesis-profile=long, many others.
if settings:
    # However busy the machine is.
    patient = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    settings.register_profile(
        "repeatable", derandomize=True, max_examples=30, **patient
    )
    settings.register_profile("long", max_examples=3_000, **patient)
    settings.load_profile("repeatable")
