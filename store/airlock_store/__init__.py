"""The contract between the two stages: store paths, image manifests, and the vocabulary both share."""
