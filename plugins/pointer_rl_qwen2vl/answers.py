"""From generated tokens to an answer: the engine's way, for a `Checkpoint`."""

from pointer_rl.generation import Generation, first_stop, read, text_of

__all__ = ["Generation", "first_stop", "read", "text_of"]
