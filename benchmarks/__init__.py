"""Speed and memory, each as a figure beside a floor or a peer measured in the same run."""
