"""The graph hypernetwork (GHN-1, GHN-2, GHN-3) in Flax: node embeddings, graph network, decoders."""
