"""What is known about the toy world. The world's files import no torch and no script."""
