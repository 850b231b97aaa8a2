"""Renders the chat template on standard input once, within limits of time, memory and length.

`pointer_rl.local.chat` runs this file in a process of its own, because nothing else stops a
template that loops or allocates. Any other failure of a template is left to its tokenizer.
"""

from __future__ import annotations

import re
import sys
from contextlib import suppress

_SECONDS = 2
_BYTES = 1 << 30
_CHARACTERS = 1_000_000
TOO_MUCH = 3
"""The exit status of a template that took too much memory or writes too much text."""


def main() -> int:
    """Render a chat of two messages. Returns the exit status."""
    try:
        import resource
    except ImportError:  # Windows, where the caller's timeout is the only limit
        pass
    else:
        for kind, most in ((resource.RLIMIT_CPU, _SECONDS), (resource.RLIMIT_AS, _BYTES)):
            with suppress(ValueError, OSError):
                resource.setrlimit(kind, (most, most))
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    parts = [{"type": "text", "text": "a question"}, {"type": "image"}]
    chat = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "an answer"}]},
    ]
    # transformers adds the tag, to mask what was not generated; here it makes no difference.
    template = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", sys.stdin.read())
    try:
        environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
        text = environment.from_string(template).render(messages=chat, add_generation_prompt=True)
    except MemoryError:
        return TOO_MUCH
    except Exception:  # its tokenizer knows more, and says what is wrong
        return 0
    return TOO_MUCH if len(text) > _CHARACTERS else 0


if __name__ == "__main__":
    sys.exit(main())
