"""Handwritten digits, which scikit-learn brings, by a small network whose loss is watched."""

import sys

import sklearn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

pictures, labels = load_digits(return_X_y=True)
seen, unseen, right, expected = train_test_split(pictures / 16, labels, random_state=0)
model = MLPClassifier((32,), random_state=0)
scores = []
for _ in range(30):
    model.partial_fit(seen, right, classes=range(10))
    scores.append(model.loss_)
assert scores[-1] < scores[0] / 4, scores
assert model.score(unseen, expected) > 0.9
sys.stdout.write(f"sklearn {sklearn.__version__}: loss {scores[0]:.4f} -> {scores[-1]:.4f}\n")
