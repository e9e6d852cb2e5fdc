"""What reads policies of other libraries: their files, their weights, and their architectures rebuilt."""
