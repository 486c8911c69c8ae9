"""A program of 2018: placeholders, a session, an optimizer of tf.train, and an Estimator."""

import sys
import tempfile

import numpy as np
import tensorflow as tf

data = np.linspace(-1, 1, 100).astype(np.float)
x = tf.placeholder("float", [None])
y = tf.placeholder("float", [None])
slope = tf.Variable(0.0)
shift = tf.Variable(0.0)
loss = tf.reduce_mean(tf.square(y - x * slope - shift))
train = tf.train.GradientDescentOptimizer(0.1).minimize(loss)
with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    losses = [session.run([loss, train], feed_dict={x: data, y: 3 * data - 7})[0] for _ in range(100)]
assert losses[-1] < losses[0] / 100, losses


def inputs():
    return tf.data.Dataset.from_tensor_slices(({"x": data}, 3 * data - 7)).repeat().batch(20)


with tempfile.TemporaryDirectory() as folder:
    estimator = tf.estimator.LinearRegressor([tf.feature_column.numeric_column("x")], model_dir=folder)
    found = []
    for _ in range(2):
        estimator.train(inputs, steps=100)
        found.append(estimator.evaluate(inputs, steps=5)["average_loss"])
assert found[-1] < found[0], found
sys.stdout.write(f"tensorflow {tf.__version__} as version 1: loss {losses[0]:.4f} -> {losses[-1]:.4f}\n")
