"""Junior agents: news, technical and fundamental analysts."""
