"""The first example of README.md: weights of a network never seen, from a hypernetwork of the package."""

import ghn_jax

hypernetwork = ghn_jax.load('zoo:digits-bits')  # or the directory of a training
network = hypernetwork.space.sample('test', seed=0, index=0)  # or load_networks('net.json')[0]
w4a4 = hypernetwork.used(ghn_jax.parse_bits('w4a4'))  # 4-bit weights and activations, as it was trained
weights = hypernetwork.predict(network, w4a4)  # {name: array}, in PyTorch's layouts

data = hypernetwork.load_data()
images, labels = data.normalized('test'), data.test.labels
logits = ghn_jax.run(network, weights, images, w4a4, scheme=hypernetwork.scheme)  # [300, 10]
top1 = 100 * (logits.argmax(-1) == labels).mean()
count = sum(w.size for w in weights.values())
print(f'{count:,} weights, predicted for W4/A4: {top1:.1f} % of {len(labels)} images')
