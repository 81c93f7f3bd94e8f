"""Where examples come from: text, images, sources, shards, batches. No jax."""
