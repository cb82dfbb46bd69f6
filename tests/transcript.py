"""A second terminal to compare the recorder's with: util-linux `script`, read in its own way."""

import os
import re
import select
import subprocess

from data_pipeline.recorder import terminal

_PROMPT = re.compile(rb"(?:^|\n)(?:root@agent:\S+# |> )\Z")
_PATIENCE_S = 60


def of(world, keystrokes):
    """The screen after these lines were typed one by one, without the last line, a prompt."""
    size = f"stty rows {terminal.ROWS} cols {terminal.COLUMNS}"
    shell = f"{size}; exec bash --noediting --norc --noprofile"
    prompt = f"PS1={terminal.PROMPT}"
    argv = world.argv(["env", prompt, "script", "-qfc", shell, "/dev/null"])
    pipe = subprocess.PIPE
    with subprocess.Popen(
        argv, cwd=world.folder, env=world.environment(), stdin=pipe, stdout=pipe
    ) as process:
        try:
            screen = _until_prompt(process)
            for line in keystrokes.splitlines(keepends=True):
                os.write(process.stdin.fileno(), line.encode())
                screen += _until_prompt(process)
        finally:
            process.kill()
    return screen[: screen.rindex(b"\n") + 1].decode()


def _until_prompt(process):
    """What is shown until a prompt ends the screen; after a typed line, below its echo."""
    shown = b""
    while not _PROMPT.search(shown):
        ready, _, _ = select.select([process.stdout], [], [], _PATIENCE_S)
        assert ready, shown
        chunk = os.read(process.stdout.fileno(), 65536)
        assert chunk, shown
        shown = (shown + chunk).replace(b"\r\n", b"\n")
    return shown
