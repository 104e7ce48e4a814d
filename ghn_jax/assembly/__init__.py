"""Where hypernetwork and executor meet: networks as data, weight buffers, memory, device meshes."""
