"""A TensorFlow Estimator with chief, worker, parameter server and evaluator: ``train_and_evaluate``, as in 2018.

An Estimator finds its role in TF_CONFIG by itself. Its parameter server never ends, and its evaluator sleeps between
evaluations, even when training is over: who runs it has to end both.
"""

import os

import numpy as np
import tensorflow as tf

STEPS = 400


def numbers(seed):
    """Returns an input function: points of a noisy line, in batches, for ever."""

    def input_fn():
        rng = np.random.RandomState(seed)
        x = rng.uniform(-1, 1, size=1024).astype(np.float32)
        y = 2 * x + 1 + rng.normal(scale=0.05, size=1024).astype(np.float32)
        return tf.data.Dataset.from_tensor_slices(({"x": x}, y)).shuffle(1024).repeat().batch(32)

    return input_fn


def model_fn(features, labels, mode):
    """A line, fitted by gradient descent."""
    weight = tf.get_variable("weight", [], initializer=tf.zeros_initializer())
    bias = tf.get_variable("bias", [], initializer=tf.zeros_initializer())
    predicted = weight * features["x"] + bias
    loss = tf.losses.mean_squared_error(labels, predicted)
    train = tf.train.GradientDescentOptimizer(0.1).minimize(loss, global_step=tf.train.get_global_step())
    return tf.estimator.EstimatorSpec(mode, predictions={"y": predicted}, loss=loss, train_op=train)


def main():
    """Trains, evaluates or serves, as TF_CONFIG says."""
    tf.logging.set_verbosity(tf.logging.INFO)
    config = tf.estimator.RunConfig(
        model_dir=os.path.join(os.environ.get("DANLU_CHECKPOINT_DIR", "checkpoints"), "line"), save_checkpoints_steps=100,
        log_step_count_steps=100,
    )  # fmt: skip
    estimator = tf.estimator.Estimator(model_fn, config=config)
    train = tf.estimator.TrainSpec(numbers(1), max_steps=STEPS)
    evaluate = tf.estimator.EvalSpec(numbers(2), steps=10, start_delay_secs=1, throttle_secs=1)
    tf.estimator.train_and_evaluate(estimator, train, evaluate)
    print("%s %d has finished" % (config.task_type, config.task_id))
    if config.task_type == "chief":
        print("weight %.2f" % estimator.get_variable_value("weight"))


if __name__ == "__main__":
    main()
