"""A TensorFlow 1 program: fits y = 2x + 10 by stochastic gradient descent, and prints w and b after each epoch."""

import numpy as np
import tensorflow as tf

EPOCHS = 20
LEARNING_RATE = 0.005

rng = np.random.RandomState(7)
xs = rng.uniform(-2.0, 2.0, size=200)
ys = 2.0 * xs + 10.0 + rng.normal(scale=0.3, size=xs.shape)

x = tf.placeholder(tf.float32, shape=[], name="x")
y = tf.placeholder(tf.float32, shape=[], name="y")
w = tf.get_variable("w", initializer=0.0)
b = tf.get_variable("b", initializer=0.0)
loss = tf.square(w * x + b - y)
train = tf.train.GradientDescentOptimizer(LEARNING_RATE).minimize(loss)

with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    for epoch in range(1, EPOCHS + 1):
        for i in rng.permutation(len(xs)):
            session.run(train, feed_dict={x: xs[i], y: ys[i]})
        now_w, now_b = session.run([w, b])
        print(f"epoch {epoch:2d}   w = {now_w:.4f}   b = {now_b:.4f}")
