"""The warning about a prompt in several forward passes, of which only the first is compressed."""

import warnings

#: Tokens of a pass that may be a question after its context.
_SHORT = 64


def warn_of_later_pass(tokens: int, held: int) -> None:
    """Warns if a later pass has as many tokens as a part of a prompt: more than 64, and a quarter of the ``held`` tokens or more."""
    if tokens > _SHORT and 4 * tokens >= held:
        warnings.warn(
            f"{tokens} tokens of a later forward pass are not compressed: only the first pass is the prompt. Read the whole prompt in one "
            "pass, without prefill_chunk_size",
            stacklevel=3,
        )
