"""What programs do with docker-py; the argument picks one."""
import io
import sys
import tarfile
import threading

import docker

client = docker.from_env()
IDLE = ["sleep", "1000000"]


def archive(**files):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def is_(got, want):
    if got != want:
        raise AssertionError(f"got {got!r}, want {want!r}")


def run():
    is_(client.containers.run("box", ["echo", "hello"], remove=True), b"hello\n")
    try:
        client.containers.run("box", ["sh", "-c", "echo wrong >&2; exit 42"], remove=True)
    except docker.errors.ContainerError as e:
        is_((e.exit_status, e.stderr), (42, b"wrong\n"))
    else:
        raise AssertionError("no error")


def exec_():
    c = client.containers.run("box", IDLE, detach=True)
    is_(tuple(c.exec_run(["sh", "-c", "echo out; echo err >&2; exit 3"], demux=True)), (3, (b"out\n", b"err\n")))
    is_(b"".join(c.exec_run(["sh", "-c", "echo one; echo two"], stream=True).output), b"one\ntwo\n")
    _, sock = c.exec_run(["head", "-n", "1"], stdin=True, socket=True, tty=True)
    sock._sock.sendall(b"hello\n")
    got = b""
    while got.count(b"hello") < 2:  # the terminal's echo, then the answer
        got += sock._sock.recv(100)
    c.remove(force=True)


def attach():
    c = client.containers.create("box", ["head", "-c", "300000"], stdin_open=True)
    sock = c.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})._sock
    c.start()
    sender = threading.Thread(target=sock.sendall, args=(b"x" * 300000,))
    sender.start()
    got = 0
    while got < 300000:
        got += sock.recv(100000).count(b"x")
    sender.join()
    is_(c.wait()["StatusCode"], 0)
    c.remove()


def archive_():
    c = client.containers.create("box", IDLE)
    c.put_archive("/", archive(f=b"hello"))
    chunks, stat = c.get_archive("/f")
    is_(stat["size"], 5)
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        is_(tar.extractfile("f").read(), b"hello")
    c.remove()


def build():
    context = io.BytesIO(archive(Dockerfile=b"FROM box\nCOPY f /f\n", f=b"hello"))
    image, _ = client.images.build(fileobj=context, custom_context=True, tag="built")
    is_(client.containers.run(image, ["cat", "/f"], remove=True), b"hello")


def logs():
    c = client.containers.run("box", ["sh", "-c", "echo one; sleep 1; echo two"], detach=True)
    is_(b"".join(c.logs(stream=True, follow=True)), b"one\ntwo\n")
    c.remove()


def events():
    stream = client.events(decode=True, filters={"event": "start"})
    c = client.containers.create("box", ["true"])
    threading.Thread(target=c.start).start()
    is_(next(e["id"] for e in stream), c.id)
    stream.close()
    c.wait()
    c.remove()


def stats():
    c = client.containers.run("box", IDLE, detach=True)
    next(c.stats(decode=True))["memory_stats"]
    c.remove(force=True)


{"run": run, "exec": exec_, "attach": attach, "archive": archive_, "build": build, "logs": logs, "events": events, "stats": stats}[sys.argv[1]]()
