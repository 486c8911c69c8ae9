"""Learns to read ten drawn digits with parameter servers, in the way of 2018: TensorFlow 1, between-graph replication.

Every task runs this file. TF_CONFIG tells each who it is: a parameter server keeps variables, workers train side by side and
asynchronously, worker 0 is the chief, which initialises, saves checkpoints and restores the newest one.
"""

import argparse
import json
import os
import time

import numpy as np
import tensorflow as tf

DRAWN = """
.####... ...#.... .####... .####... #...#... #####... ..###... #####... .####... .####...
#....#.. ..##.... #....#.. #....#.. #...#... #....... .#...... ....#... #....#.. #....#..
#....#.. .#.#.... .....#.. .....#.. #...#... #....... #....... ...#.... #....#.. #....#..
#....#.. ...#.... ....#... ..###... #####... ####.... #.###... ...#.... .####... .#####..
#....#.. ...#.... ...#.... .....#.. ....#... ....#... ##...#.. ..#..... #....#.. .....#..
#....#.. ...#.... ..#..... #....#.. ....#... #...#... #....#.. ..#..... #....#.. ....#...
.####... .#####.. ######.. .####... ....#... .###.... .####... .#...... .####... .###....
"""
ROWS = [[[pixel == "#" for pixel in part] for part in line.split()] for line in DRAWN.split("\n") if line]
DIGITS = np.array(ROWS, dtype=np.float32).transpose(1, 0, 2)  # ten of 7 rows, 8 columns
BATCH = 64


def drawn(rng, count):
    """Returns images, each moved by up to two pixels and noisy, as rows of 90 numbers, and the digits that they show."""
    labels = rng.randint(10, size=count)
    images = np.zeros((count, 9, 10), dtype=np.float32)
    for image, label in zip(images, labels):
        down, right = rng.randint(3), rng.randint(3)
        image[down : down + 7, right : right + 8] = DIGITS[label]
    return images.reshape(count, 90) + rng.normal(scale=0.35, size=(count, 90)).astype(np.float32), labels


def layer(inputs, name, size, units):
    """Returns a layer's output: its variables lie on a parameter server."""
    with tf.variable_scope(name):
        weights = tf.get_variable("weights", [size, units])
        return tf.matmul(inputs, weights) + tf.get_variable("bias", [units], initializer=tf.zeros_initializer())


def model(images, labels):
    """Returns the loss and the share of images that are read right."""
    hidden = tf.nn.relu(layer(images, "hidden", 90, 128))
    logits = layer(hidden, "logits", 128, 10)
    loss = tf.losses.sparse_softmax_cross_entropy(labels, logits)
    return loss, tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), labels), tf.float32))


def train(server, cluster, index, last_step):
    """Trains as one worker until all workers together have made ``last_step`` steps."""
    with tf.device(tf.train.replica_device_setter(worker_device="/job:worker/task:%d" % index, cluster=cluster)):
        images = tf.placeholder(tf.float32, [None, 90])
        labels = tf.placeholder(tf.int64, [None])
        loss, accuracy = model(images, labels)
        step = tf.train.get_or_create_global_step()
        minimize = tf.train.AdamOptimizer(1e-3).minimize(loss, global_step=step)

    print("worker %d is process %d" % (index, os.getpid()))
    test_images, test_labels = drawn(np.random.RandomState(0), 1000)
    rng = np.random.RandomState(1000 * index + int(time.time()))
    session = tf.train.MonitoredTrainingSession(
        master=server.target, is_chief=index == 0, hooks=[tf.train.StopAtStepHook(last_step=last_step)],
        checkpoint_dir=os.environ.get("DANLU_CHECKPOINT_DIR", "checkpoints"), save_checkpoint_steps=500,
        save_summaries_steps=None, log_step_count_steps=None,
    )  # fmt: skip
    own, shown = 0, 0
    with session:
        now = session.run_step_fn(lambda step_context: step_context.session.run(step))
        print("worker %d trains from step %d" % (index, now))
        while not session.should_stop():
            batch, right = drawn(rng, BATCH)
            _, now, value = session.run([minimize, step, loss], {images: batch, labels: right})
            own += 1
            if now >= shown + 500:
                shown = now - now % 500
                print("step %4d   loss %.4f   own steps %d" % (now, value, own))
                if index == 0 and not session.should_stop():
                    report(int(now), session.run([loss, accuracy], {images: test_images, labels: test_labels}))
    print("worker %d has made %d of the steps" % (index, own))


def report(step, measured):
    """Records loss and accuracy on images that no worker has seen; outside a job it prints them."""
    try:
        import danlu
    except ImportError:
        print("step %d: loss %.4f accuracy %.3f" % (step, measured[0], measured[1]))
        return
    danlu.log(step=step, loss=measured[0], accuracy=measured[1])


def main():
    """Serves variables or trains, as TF_CONFIG says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    wanted = parser.parse_args()
    config = json.loads(os.environ["TF_CONFIG"])
    cluster, task = tf.train.ClusterSpec(config["cluster"]), config["task"]
    session_config = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=2)
    server = tf.train.Server(cluster, job_name=task["type"], task_index=task["index"], config=session_config)
    if task["type"] == "ps":
        print("serves variables at %s" % config["cluster"]["ps"][task["index"]])
        server.join()  # for ever: TensorFlow has no end for a parameter server
    train(server, cluster, task["index"], wanted.steps)


if __name__ == "__main__":
    main()
