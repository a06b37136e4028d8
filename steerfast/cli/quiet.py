"""What third parties say while a command runs, kept from drowning what we say.

Only by ``main()``, so in the process of a command and never for who imports steerfast; errors, and warnings about a model
that is loaded incompletely, are shown as ever.
"""

from __future__ import annotations

import functools
import logging
import warnings

# Notes on pad tokens, sampling flags that greedy decoding ignores, and the like.
NOTES = ("transformers.generation", "transformers.modeling_rope_utils", "accelerate")

_asked = False


def silence_notes() -> None:
    """Loggers and deprecation warnings; imports nothing."""
    global _asked
    _asked = True
    for name in NOTES:
        logging.getLogger(name).setLevel(logging.ERROR)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings(
            "ignore", category=category, module=r"(torch|transformers|huggingface_hub)(\.|$)"
        )


def silence_bars() -> None:
    """transformers' bars for what takes a second, loading weights, and the hub's notes; a download's bar stays.

    Nothing, unless this process has called ``silence_notes``.
    """
    if not _asked:
        return
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging as bars

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its import has set it anew
    shown = not are_progress_bars_disabled()
    bars.disable_progress_bar()
    if shown:
        enable_progress_bars()
    bar = getattr(gguf, "tqdm", None)
    if bar is not None and not isinstance(bar, functools.partial):
        gguf.tqdm = functools.partial(bar, disable=True)
