"""What makes a plain model fast, applied from outside."""
