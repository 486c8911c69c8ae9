"""A small network on the sine, by grad and jit, with an optimizer of Optax."""

import sys

import jax
import jax.numpy as jnp
import optax

x = jnp.linspace(-3, 3, 128)[:, None]
y = jnp.sin(x)
keys = jax.random.split(jax.random.key(0), 2)
weights = {
    "in": jax.random.normal(keys[0], (1, 32)),
    "shift": jnp.zeros(32),
    "out": 0.2 * jax.random.normal(keys[1], (32, 1)),
}
optimizer = optax.adam(0.02)
state = optimizer.init(weights)


def error(weights):
    return jnp.mean((jnp.tanh(x @ weights["in"] + weights["shift"]) @ weights["out"] - y) ** 2)


@jax.jit
def step(weights, state):
    loss, gradients = jax.value_and_grad(error)(weights)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(weights, updates), state, loss


losses = []
for _ in range(200):
    weights, state, loss = step(weights, state)
    losses.append(float(loss))
assert losses[-1] < losses[0] / 10, losses
sys.stdout.write(f"jax {jax.__version__} on {jax.default_backend()}: loss {losses[0]:.4f} -> {losses[-1]:.4f}\n")
