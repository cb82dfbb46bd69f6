"""A task's Dockerfile in the local sandbox: what is done, what is refused, what COPY may read."""

import pytest

from data_pipeline.sandbox import dockerfile, root_view, sandbox

pytestmark = pytest.mark.skipif(
    bool(root_view.missing_programs()),
    reason=f"no sandbox without {', '.join(root_view.missing_programs())}",
)
SECRET = "hidden-marmalade-91"


@pytest.fixture
def box():
    with sandbox.Sandbox(cpus=1, memory_mb=256, storage_mb=64, lifetime_s=120) as box:
        yield box


DOCKERFILE = """\
# syntax=docker/dockerfile:1
FROM debian:12
ARG VERSION=3 UNUSED
ENV KIND=round NAME="two words"
ENV OLD old form
WORKDIR /work
WORKDIR sub
RUN apt-get update && apt-get install -y --no-install-recommends \\
    # a comment inside
    curl git \\
  && rm -rf /var/lib/apt/lists/* && echo "$KIND a && b" > made
RUN ["/bin/sh", "-c", "echo $VERSION > version"]
COPY one.txt ./
COPY --chmod=755 one.txt *.sh /programs/
COPY tree /tree
COPY <<EOF /inline.txt
hello
EOF
RUN <<EOF
set -e
echo heredoc > /heredoc
EOF
RUN cd / && for i in 1 2; do echo $i; done > /loop; true
USER agent
EXPOSE 80
CMD ["bash"]
"""


def test_a_dockerfile_is_done_as_far_as_it_goes(box, tmp_path):
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "one.txt").write_text("1")
    (tmp_path / "go.sh").write_text("echo go")
    (tmp_path / "tree/.hidden").mkdir(parents=True)
    (tmp_path / "tree/.hidden/leaf").write_text("green")
    with pytest.warns(UserWarning):
        warned = box.build(tmp_path, timeout_s=120)
    assert [line.split(":")[0] for line in warned] == [
        "skipped (there is nothing to install from)"] * 2 + ["USER agent is ignored"]  # fmt: skip
    assert box.workdir == "/work/sub" and (box.env["NAME"], box.env["OLD"]) == (
        "two words", "old form")  # fmt: skip
    done = box.run("cat made version one.txt; echo; ls -l /programs; echo $NAME", timeout_s=20)
    lines = done.stdout.decode().splitlines()
    assert lines[:3] == ["round a && b", "3", "1"] and lines[-1] == "two words"
    assert [line.split()[0] for line in lines[4:6]] == ["-rwxr-xr-x"] * 2
    done = box.run("cat /tree/.hidden/leaf /inline.txt /heredoc /loop", timeout_s=20)
    assert done.stdout == b"greenhello\nheredoc\n1\n2\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("RUN echo why >&2; exit 7", r"line 2 \(RUN\): exit code 7, ok: why"),
        ("FROM other", "one stage"),
        ("COPY --from=other /a /b", "one stage"),
        ("ADD https://example.com/a /b", "not a local file"),
        ("FRUM x", "not an instruction known here"),
        ("COPY missing /b", "not in the task's environment folder"),
        ("RUN <<EOF\necho", "does not end"),
        ("COPY 'a /b", "No closing quotation"),
    ],
)
def test_what_a_dockerfile_cannot_have_is_told_with_its_line(box, tmp_path, line, message):
    (tmp_path / "Dockerfile").write_text(f"FROM debian:12\n{line}\n")
    with pytest.raises(ValueError, match=message):
        box.build(tmp_path, timeout_s=60)


@pytest.mark.parametrize(
    ("line", "kept", "num_skipped"),
    [
        ("echo 'apt-get install x && y'", "echo 'apt-get install x && y'", 0),
        ("pip install a==1; python3 x.py", "true ; python3 x.py", 1),
        ("DEBIAN_FRONTEND=noninteractive apt-get install -y a", "true", 1),
        ("if true; then apt-get install -y a; fi", "true", 1),
        ("(cd /x && make)", "(cd /x && make)", 0),
        ("set -e; sudo npm ci", "set -e; true", 1),
    ],
)
def test_installs_are_taken_out_of_a_line(line, kept, num_skipped):
    rest, skipped = dockerfile.without_installs(line)
    assert (rest, len(skipped)) == (kept, num_skipped)


@pytest.mark.parametrize(
    "line",
    [
        "COPY ../secret /app/",
        "COPY a/../../secret /app/",
        "COPY link /app/",
        "COPY folder/secret /app/",
        "COPY folder /app/",
        "COPY f*/secret /app/",
        "ADD ../secret /app/",
        "COPY /etc/hostname /app/",
    ],
)
def test_copy_reads_nothing_outside_the_task(box, tmp_path, line):
    (tmp_path / "secret").write_text(SECRET)
    task = tmp_path / "environment"
    task.mkdir()
    (task / "link").symlink_to(tmp_path / "secret")
    (task / "folder").symlink_to(tmp_path)
    (task / "Dockerfile").write_text(f"FROM x\n{line}\n")
    with pytest.raises(ValueError, match=r"environment folder"):
        box.build(task, timeout_s=60)
    assert box.run("ls -A /app", timeout_s=20).stdout == b""


def test_a_whole_task_folder_is_copied_with_links_as_links(box, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    task = tmp_path / "environment"
    task.mkdir()
    (task / "link").symlink_to(tmp_path / "secret")
    (task / "Dockerfile").write_text("FROM x\nCOPY . /app\nRUN cat /app/link > /app/copy; true\n")
    box.build(task, timeout_s=60)
    assert box.get_file("/app/copy") == b""
