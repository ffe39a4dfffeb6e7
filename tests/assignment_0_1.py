"""An assignment as somebody wrote it against version 0.1, never brought up to date.

It uses what version 0.1 promised and nothing else, on synthetic images.
"""

import torch

from helpers import dataset, models, train_test, utils

utils.set_seed(1)
device = utils.get_device()

# Data: two sets, what they say of themselves, and batches of them.
train, test = dataset.synthetic_cifar10(train=96, test=40, seed=1)
assert train.images.shape == (96, 32, 32, 3) and train.images.dtype == "uint8"
assert train.labels.shape == (96,) and train.labels.dtype == "int64"
assert len(train.classes) == len(dataset.CIFAR10_CLASSES) == 10
assert len(dataset.CIFAR10_MEAN) == len(dataset.CIFAR10_STD) == 3
for transform in (dataset.train_transform(), dataset.eval_transform()):
    assert transform(image=train.images[0])["image"].shape == (3, 32, 32)
batches = {"batch_size": 32, "seed": 1}
dataset.make_loaders(train, test, device=device, augment_on="cpu", **batches)
loaders = dataset.make_loaders(
    train, test, device=device, augment_on="device", **batches
)
images, labels = next(iter(loaders.train))
assert images.shape == (32, 3, 32, 32) and labels.dtype == torch.int64

# Networks, and what can be read off them.
assert sum(p.numel() for p in models.ResNet18().parameters()) == 11_173_962
model = models.CustomResNet(num_classes=10, in_channels=3)
table = models.receptive_field_table(model, image_size=(3, 32, 32))
assert sum(row.parameters for row in table) == 6_574_090
last = table[-1]
seen = (last.name, last.kind, last.output_size, last.receptive_field, last.jump)
assert seen == ("linear", "Linear", (10,), 88, 32)

# Training: the learning rate's range test, one epoch by hand, and the whole of it.
small = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
recipe = train_test.Recipe(lr_test_steps=10, lr_test_seeds=1)
search = train_test.lr_range_test(small, loaders.train, recipe, device=device)
assert 0 < search.max_lr < 1
optimizer = torch.optim.SGD(small.to(device).parameters(), lr=1e-3)
trained = train_test.train_one_epoch(small, loaders.train, optimizer, device=device)
loss, accuracy = train_test.evaluate(small, loaders.test, device=device)
assert train_test.Metrics(loss=loss, accuracy=accuracy) != trained
recipe = train_test.Recipe(epochs=2, batch_size=32, peak_epoch=1, max_lr=1e-3)
history = train_test.fit(
    small, loaders, recipe, device=device, checkpoint=None, resume=False
)
assert 0 <= history.last.test_accuracy <= history.best.test_accuracy <= 1

# Results: by class, confusions, mistakes and their figures.
answers = train_test.predict(small, loaders.test, device=device)
guesses = answers.logits.argmax(1)
rows = utils.class_accuracy(answers.labels, guesses, test.classes)
matrix = utils.confusion_matrix(answers.labels, guesses, 10)
assert matrix.sum() == sum(row.count for row in rows) == 40
mistakes = utils.misclassified(answers.labels, answers.probabilities)
figures = [
    utils.plot_samples(train.images, train.labels, train.classes, data=train.source),
    utils.plot_lr_range_test(search, data=train.source),
    utils.plot_history(history, data=train.source),
    utils.plot_class_accuracy(rows, data=test.source),
    utils.plot_confusion_matrix(matrix, test.classes, data=test.source),
    utils.plot_misclassified(test.images, mistakes, test.classes, data=test.source),
]
assert all(train.source in figure.get_suptitle() for figure in figures)
