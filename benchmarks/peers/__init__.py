"""Scripts that run inside the peers' own environments; they import nothing of this project but their shared frame."""
