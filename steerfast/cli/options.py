"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Last line of stdout: one JSON object.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Folder, GGUF file or hub id of a decoder, or gemma3-270m; default SmolLM2-135M-Instruct.",
    ),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16; default what this device multiplies fastest."),
]
