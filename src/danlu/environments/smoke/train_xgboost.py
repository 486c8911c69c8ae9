"""Handwritten digits by boosted trees; the loss on what was not trained on is watched."""

import sys

import xgboost
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

pictures, labels = load_digits(return_X_y=True)
seen, unseen, right, expected = train_test_split(pictures, labels, random_state=0)
history: dict = {}
xgboost.train(
    {"objective": "multi:softprob", "num_class": 10, "max_depth": 3, "eta": 0.3},
    xgboost.DMatrix(seen, right),
    num_boost_round=15,
    evals=[(xgboost.DMatrix(unseen, expected), "unseen")],
    evals_result=history,
    verbose_eval=False,
)
losses = history["unseen"]["mlogloss"]
assert losses[-1] < losses[0] / 3, losses
sys.stdout.write(f"xgboost {xgboost.__version__}: loss {losses[0]:.4f} -> {losses[-1]:.4f}\n")
