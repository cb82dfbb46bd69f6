"""Harbor's trials in the local sandbox: an environment class that Harbor loads by its import path.

    PYTHONPATH=CHECKOUT harbor run -p TASK -a oracle -n 1 --yes \\
        -e data_pipeline.harbor_environment:LocalSandbox --ek verifier_packages=FOLDER

Loaded by Harbor's own interpreter; no other part of data_pipeline imports Harbor.  FOLDER holds a
pytest for the verifier (`data_pipeline.sandbox.verifier.collect`); without it the system's pytest
is used where there is one.  A sandbox that ends before its trial (out of memory, too many
processes, its lifetime) makes the trial end with the exception `SandboxEnded`, which says why; one
that the machine ended, with `SandboxLost`, after which Harbor tries again.
"""

import asyncio
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import threading
from typing import Any

from harbor.environments import (  # pyright: ignore[reportMissingImports]
    base,
    definition,
    options,
)
from harbor.environments import (  # pyright: ignore[reportMissingImports]
    capabilities as capability_flags,
)

from data_pipeline.sandbox import limits as limits_lib
from data_pipeline.sandbox import root_view, sandbox, verifier

TYPE = "local-sandbox"
_ROOT_USERS = (None, "root", "0", 0)
_VERIFIER_COMMAND = re.compile(r"\(?'?/tests/")  # how Harbor's verifier starts a task's test.sh
_LIFETIME_S = 6 * 3600.0
_NUM_THREADS = 8  # commands of one trial at the same time
_MAX_OUTPUT_BYTES = 16 << 20


class LocalSandboxOptions(options.EnvironmentOptions):
    """What `--ek NAME=VALUE` may set.

    Attributes:
        verifier_packages: folder with the verifier's pytest; the environment variable
            DATA_PIPELINE_VERIFIER_PACKAGES where not given.
        max_processes: processes and threads at the same time.
        lifetime_s: seconds after which the sandbox ends, whatever is running.
    """

    verifier_packages: str | None = None
    max_processes: int = 256
    lifetime_s: float = _LIFETIME_S


class LocalSandbox(base.BaseEnvironment):
    """One trial's environment: a sandbox, made from the task's Dockerfile as far as that goes."""

    options_model = LocalSandboxOptions

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._workers = concurrent.futures.ThreadPoolExecutor(
            _NUM_THREADS, thread_name_prefix="sandbox-exec"
        )
        packages = self.options.verifier_packages or os.environ.get(verifier.FOLDER_VARIABLE)
        self._packages = str(pathlib.Path(packages).resolve()) if packages else None
        self._box: sandbox.Sandbox | None = None

    @staticmethod
    def type() -> str:
        """How Harbor names the environment in its results."""
        return TYPE

    @property
    def capabilities(self) -> capability_flags.EnvironmentCapabilities:
        """No network or the machine's; no allowlist, no GPU, no mounts."""
        return capability_flags.EnvironmentCapabilities(disable_internet=True)

    @classmethod
    def resource_capabilities(cls) -> capability_flags.EnvironmentResourceCapabilities:
        """Limits are ceilings; nothing is reserved."""
        return capability_flags.EnvironmentResourceCapabilities(cpu_limit=True, memory_limit=True)

    @classmethod
    def preflight(cls, kwargs: dict[str, Any] | None = None) -> None:
        """Leave with a message where this machine cannot run a sandbox."""
        super().preflight(kwargs)
        try:
            sandbox.check()
        except sandbox.SandboxError as fault:
            raise SystemExit(f"the local sandbox does not work here: {fault}") from fault

    def _validate_definition(self) -> None:
        """Raise where the task needs more than one Dockerfile or image.

        Raises:
            FileNotFoundError: the task has no environment.
            ValueError: it is made of several containers.
        """
        definition.require_agent_environment_definition(
            self.environment_dir, docker_image=self.task_env_config.docker_image
        )
        if (self.environment_dir / definition.COMPOSE_FILE_NAME).exists():
            raise ValueError(
                f"{self.environment_dir / definition.COMPOSE_FILE_NAME}: the local sandbox runs "
                "one container's worth; use the docker or podman environment"
            )

    async def start(self, force_build: bool) -> None:
        """Start the sandbox and do what the Dockerfile says."""
        self._box = box = self._make_box()  # before any thread: stop() must find it
        await self._in_thread(lambda: self._start(box))
        await self.ensure_dirs(self._mount_targets(writable_only=True))
        await self._upload_environment_dir_after_start()

    def _make_box(self) -> sandbox.Sandbox:
        defaults = limits_lib.Limits(lifetime_s=self.options.lifetime_s)
        return sandbox.Sandbox(
            cpus=int(self._effective_cpus or defaults.cpus),
            memory_mb=self._effective_memory_mb or defaults.memory_mb,
            storage_mb=self._effective_storage_mb or defaults.storage_mb,
            max_processes=self.options.max_processes,
            network=self._network_is_public,
            lifetime_s=self.options.lifetime_s,
            read_only={self._packages: verifier.INSIDE} if self._packages else {},
            env=self._startup_env(),
        )

    def _start(self, box: sandbox.Sandbox) -> None:
        box.start()
        if (self.environment_dir / definition.DOCKERFILE_NAME).exists():
            build_timeout_s = self.task_env_config.build_timeout_sec
            try:
                for warning in box.build(self.environment_dir, timeout_s=build_timeout_s):
                    self.logger.warning(warning)
            except ValueError as fault:
                raise base.SandboxBuildFailedError(str(fault)) from fault
        if self.task_env_config.workdir:
            box.workdir = self.task_env_config.workdir
        box.run(["/bin/mkdir", "-p", "--", box.workdir], cwd="/", timeout_s=30)

    async def stop(self, delete: bool) -> None:
        """End the sandbox; there is never anything left to delete."""
        if self._box is not None:
            await self._in_thread(self._box.stop)
        self._workers.shutdown(wait=False)

    async def exec(
        self,
        command: str,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        timeout_sec: int | None = None,
        user: str | int | None = None,
    ) -> base.ExecResult:
        """Run a shell line.

        Raises:
            ValueError: a user other than root, the only one there is.
            RuntimeError: the time is over (as Harbor's own environments do it).
            SandboxEnded: the sandbox is over, with the reason.
        """
        box = self._running()
        if (user := self._resolve_user(user)) not in _ROOT_USERS:
            raise ValueError(f"user={user!r}: the local sandbox has one user, root")
        variables = dict(self._merge_env(env) or {})
        is_verifier = _VERIFIER_COMMAND.match(command) is not None
        if is_verifier:
            self._offer_pytest(variables)
        timeout_s = timeout_sec or self.options.lifetime_s
        done = await self._run(box, command, cwd=cwd, env=variables, timeout_s=timeout_s)
        if done.status == "killed":
            raise box.ended()
        if done.status == "timeout":
            raise RuntimeError(f"Command timed out after {timeout_s:g} seconds")
        if is_verifier and await self._in_thread(lambda: box.is_disk_full):
            raise sandbox.SandboxError(
                f"the sandbox's disk of {box.limits.disk_bytes >> 20} MiB is full (out_of_disk), "
                "so the verifier could not write its reward; raise storage_mb and memory_mb"
            )
        return base.ExecResult(
            stdout=done.stdout.decode(errors="replace"),
            stderr=done.stderr.decode(errors="replace"),
            return_code=done.return_code,
        )

    async def _run(
        self, box: sandbox.Sandbox, command: str, *, cwd: str | None, env: dict[str, str],
        timeout_s: float,
    ) -> sandbox.Result:  # fmt: skip
        """Run in a thread; the command is killed when the caller is cancelled."""
        cancelled = threading.Event()
        try:
            return await self._in_thread(
                lambda: box.run(
                    command,
                    cwd=cwd,
                    env=env,
                    timeout_s=timeout_s,
                    max_output_bytes=_MAX_OUTPUT_BYTES,
                    cancelled=cancelled,
                )
            )
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def _offer_pytest(self, variables: dict[str, str]) -> None:
        """Let the verifier's python3 find a pytest.

        Raises:
            ValueError: there is none, with the way out.
        """
        if self._packages:
            more = variables.get("PYTHONPATH")
            variables["PYTHONPATH"] = f"{verifier.INSIDE}:{more}" if more else verifier.INSIDE
        elif self._uses_pytest() and not _system_has_pytest():
            raise ValueError(
                "the task's tests use pytest, which the system's python3 lacks: pass "
                f"--ek verifier_packages=FOLDER or set {verifier.FOLDER_VARIABLE} to a folder made "
                "by data_pipeline.sandbox.verifier.collect, or install python3-pytest"
            )

    def _uses_pytest(self) -> bool:
        """Whether the task's test.sh mentions pytest."""
        script = self.environment_dir.parent / "tests" / "test.sh"
        return script.is_file() and "pytest" in script.read_text(errors="replace")

    async def upload_file(self, source_path: pathlib.Path | str, target_path: str) -> None:
        """Copy a regular file into the sandbox."""
        source, box = pathlib.Path(source_path), self._running()
        mode = source.stat().st_mode & 0o777
        await self._in_thread(lambda: box.put_file(source, self._inside(target_path), mode))

    async def upload_dir(self, source_dir: pathlib.Path | str, target_dir: str) -> None:
        """Copy a folder's content into the sandbox; links stay links."""
        source, box = pathlib.Path(source_dir), self._running()
        await self._in_thread(lambda: box.put_dir(source, self._inside(target_dir)))

    async def download_file(self, source_path: str, target_path: pathlib.Path | str) -> None:
        """Copy a regular file out of the sandbox."""
        target, box = pathlib.Path(target_path), self._running()
        data = await self._in_thread(lambda: box.get_file(self._inside(source_path)))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    async def download_dir(self, source_dir: str, target_dir: pathlib.Path | str) -> None:
        """Copy a folder's files out of the sandbox; links and special files are left out."""
        target, box = pathlib.Path(target_dir), self._running()
        links = await self._in_thread(lambda: box.get_dir(self._inside(source_dir), target))
        if links:
            self.logger.warning(f"{source_dir}: {len(links)} links were not downloaded")

    def _inside(self, path: str) -> str:
        """The path made absolute by the working folder."""
        return str(pathlib.PurePosixPath(self._running().workdir, path))

    def _running(self) -> sandbox.Sandbox:
        if self._box is None:
            raise sandbox.SandboxEnded("the sandbox was not started")
        return self._box

    async def _in_thread(self, call: Any) -> Any:
        """Run a blocking call on this trial's own threads, so that trials do not wait in line."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, call)


def _system_has_pytest() -> bool:
    """Whether the interpreter inside has a pytest of its own."""
    python = root_view.python()
    if not python or shutil.which(python) is None:
        return False
    command = [python, "-I", "-c", "import pytest"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
