"""Does in a sandbox what a task's Dockerfile says, as far as that goes without an image.

WORKDIR, ENV, ARG, COPY and ADD of local files, SHELL and RUN are done; FROM is not (the machine's
own programs are what the sandbox has), nor are package installs in RUN lines, which are told as
warnings.  Names in the Dockerfile are hostile: what COPY reads must lie in the task's environment
folder, also behind links.
"""

import glob
import os
import pathlib
import posixpath
import time
import warnings
from typing import TYPE_CHECKING

from data_pipeline.sandbox import dockerfile

if TYPE_CHECKING:  # sandbox.py imports this module
    from data_pipeline.sandbox import sandbox

_IGNORED = {
    "CMD", "ENTRYPOINT", "EXPOSE", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD", "STOPSIGNAL",
    "VOLUME",
}  # fmt: skip
_ROOT_USERS = ("root", "0", "root:root", "0:0")
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_MAX_COMPLAINT = 2000


def build(box: "sandbox.Sandbox", environment_dir: pathlib.Path, *, timeout_s: float) -> list[str]:
    """Do the instructions of `environment_dir`/Dockerfile; returns the warnings, also issued.

    Raises:
        ValueError: what cannot be done, with the line of the Dockerfile.
    """
    path = environment_dir / "Dockerfile"
    try:
        instructions = dockerfile.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise ValueError(f"{path}: {fault}") from fault
    work = _Build(box, environment_dir, deadline_s=time.monotonic() + timeout_s)
    for instruction in instructions:
        try:
            work.do(instruction)
        except ValueError as fault:
            raise ValueError(
                f"{path}, line {instruction.line} ({instruction.name}): {fault}"
            ) from fault
    for warning in work.warnings:
        warnings.warn(f"{path}: {warning}", stacklevel=2)
    return work.warnings


class _Build:
    """A build under way."""

    def __init__(self, box: "sandbox.Sandbox", context: pathlib.Path, *, deadline_s: float):
        self.warnings: list[str] = []
        self._box = box
        self._context = context.resolve()
        self._deadline_s = deadline_s
        self._args: dict[str, str] = {}
        self._shell = ["/bin/bash", "-c"]
        self._num_stages = 0
        if (context / ".dockerignore").exists():
            self.warnings.append(".dockerignore is not read: COPY copies all that it names")

    def do(self, instruction: dockerfile.Instruction) -> None:
        """One instruction."""
        actions = {
            "FROM": self._from,
            "ARG": self._arg,
            "ENV": self._env,
            "WORKDIR": self._workdir,
            "COPY": self._copy,
            "ADD": self._copy,
            "RUN": self._run,
            "SHELL": self._set_shell,
            "USER": self._user,
        }
        if instruction.name in _IGNORED:
            return
        if instruction.name not in actions:
            known = ", ".join([*actions, *sorted(_IGNORED)])
            raise ValueError(f"not an instruction known here ({known})")
        actions[instruction.name](instruction)

    def _expand(self, text: str) -> str:
        return dockerfile.expand(text, self._args | self._box.env)

    def _from(self, instruction: dockerfile.Instruction) -> None:
        self._num_stages += 1
        if self._num_stages > 1:
            raise ValueError("a second FROM; the local sandbox builds one stage only")

    def _arg(self, instruction: dockerfile.Instruction) -> None:
        for word in instruction.words():
            name, _, default = word.partition("=")
            self._args[name] = self._expand(default)

    def _env(self, instruction: dockerfile.Instruction) -> None:
        words = instruction.words()
        if words and "=" not in words[0]:  # the old form: ENV NAME all the rest
            name, _, value = instruction.value.partition(" ")
            self._box.env[name] = self._expand(value.strip())
            return
        for word in words:
            name, _, value = word.partition("=")
            self._box.env[name] = self._expand(value)

    def _workdir(self, instruction: dockerfile.Instruction) -> None:
        path = self._expand(instruction.value.strip("\"'"))
        self._box.workdir = posixpath.normpath(posixpath.join(self._box.workdir, path))
        self._command(["/bin/mkdir", "-p", "--", self._box.workdir], cwd="/")

    def _set_shell(self, instruction: dockerfile.Instruction) -> None:
        words = dockerfile.json_words(instruction.value)
        if not words:
            raise ValueError('SHELL must be a JSON array, such as ["/bin/bash", "-c"]')
        self._shell = words

    def _user(self, instruction: dockerfile.Instruction) -> None:
        if instruction.value.strip() not in _ROOT_USERS:
            self.warnings.append(
                f"USER {instruction.value} is ignored: the sandbox has one user, root"
            )

    def _run(self, instruction: dockerfile.Instruction) -> None:
        words = dockerfile.json_words(instruction.value)
        if words is not None:
            self._command(words)
            return
        if instruction.heredocs:
            text = "".join(instruction.heredocs.values())
            whole = instruction.value.strip().startswith("<<")
            end = next(iter(instruction.heredocs))
            line = text if whole else f"{instruction.value}\n{text}{end}\n"
        else:
            line = instruction.value
        line, skipped = dockerfile.without_installs(line)
        self.warnings += [f"skipped (there is nothing to install from): {it}" for it in skipped]
        if line != "true":
            self._command([*self._shell, line])

    def _command(self, argv: list[str], *, cwd: str | None = None) -> None:
        """Run one command in the sandbox; it must succeed in the time that is left."""
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise ValueError("the time of the build is over")
        done = self._box.run(argv, cwd=cwd, env=self._args, timeout_s=left_s)
        if done.return_code != 0:
            said = (done.stderr or done.stdout).decode(errors="replace")[-_MAX_COMPLAINT:]
            raise ValueError(f"exit code {done.return_code}, {done.status}: {said.strip()}")

    def _copy(self, instruction: dockerfile.Instruction) -> None:
        if "from" in instruction.flags:
            raise ValueError("--from: the local sandbox builds one stage only")
        words = [self._expand(word) for word in instruction.words()]
        if len(words) < 2:
            raise ValueError("needs a source and a destination")
        *sources, to = words
        chmod = instruction.flags.get("chmod")
        if chmod and not chmod.isdigit():
            raise ValueError(f"--chmod={chmod} must be octal, such as 755")
        into_folder = to.endswith("/") or to in (".", "..") or len(sources) > 1
        target = posixpath.normpath(posixpath.join(self._box.workdir, to))
        for source in sources:
            if source.startswith("<<"):
                text = instruction.heredocs[source.lstrip("<-").strip("\"'")]
                self._box.put_file(text.encode(), target, int(chmod or "644", 8))
                continue
            self._check_source(instruction.name, source)
            for path in self._found(source):
                self._put(path, target, into_folder=into_folder, chmod=chmod)

    def _check_source(self, name: str, source: str) -> None:
        if "://" in source or source.startswith("git@"):
            raise ValueError(f"{source} is not a local file; put the file into the task")
        if name == "ADD" and source.endswith(_ARCHIVES):
            raise ValueError(f"ADD does not unpack {source} here; use COPY and RUN tar")

    def _found(self, source: str) -> list[pathlib.Path]:
        """The files and folders of the task that a source names, all inside its folder."""
        name = posixpath.normpath("/" + source).lstrip("/") or "."
        if ".." in pathlib.PurePosixPath(source).parts:
            raise ValueError(f"{source} leaves the task's environment folder")
        names = glob.glob(name, root_dir=self._context, include_hidden=True)
        if not names:
            raise ValueError(f"{source} is not in the task's environment folder")
        paths = [pathlib.Path(os.path.realpath(self._context / name)) for name in sorted(names)]
        for path in paths:
            if not path.is_relative_to(self._context):
                raise ValueError(f"{source} leads out of the task's environment folder")
        return paths

    def _put(
        self, path: pathlib.Path, target: str, *, into_folder: bool, chmod: str | None
    ) -> None:
        """Copy one file or the content of one folder."""
        if path.is_dir():
            self._box.put_dir(path, target)
            if chmod:
                self._command(["/bin/chmod", "-R", chmod, "--", target])
            return
        is_folder = self._box.run(["/usr/bin/test", "-d", target], cwd="/", timeout_s=30)
        if into_folder or is_folder.return_code == 0:
            target = posixpath.join(target, path.name)
        mode = int(chmod, 8) if chmod else path.stat().st_mode & 0o777
        self._box.put_file(path, target, mode)
