"""What S10.ipynb is made of: models, dataset, train_test, utils, weights."""

__version__ = "0.2.0"
