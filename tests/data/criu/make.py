#!/usr/bin/python3
"""make.py CRIU: makes the images of this folder anew (needs root and CRIU 4.3).

Dumps worker.py twice, once with --lazy-pages, and keeps the small images that rewarm reads. The numbers in
the unit tests come from the images: adjust them when this was run.
"""
import json
import os
import pathlib
import pty
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time

here = pathlib.Path(__file__).resolve().parent
options = ("--shell-job --tcp-established --network-lock skip --ext-unix-sk --file-locks "
           "--link-remap --skip-in-flight -v2 --leave-running").split()
keep = ("pstree", "core-", "ids-", "mm-", "fdinfo-", "files", "pagemap-", "remap-fpath", "tty-info")


def dump(criu, pid, images, *more):
    os.mkdir(images)
    command = [criu, "dump", "-t", str(pid), "-D", images, "-o", "dump.log", *options, *more]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


def end_page_server(port):
    """Tells CRIU, which waits as page server, that no page is wanted."""
    for _ in range(200):
        try:
            peer = socket.create_connection(("127.0.0.1", port))
            break
        except OSError:
            time.sleep(0.05)
    with peer:
        peer.sendall(struct.pack("<IxxxxQQQ", 0x1023, 0, 0, 0))
        peer.recv(4)


def main(criu):
    work = "/tmp/rewarm-sample"
    os.mkdir(work)
    pathlib.Path(work, "data").write_text("0123456789")
    shutil.copy(here / "worker.py", work)
    servers = [socket.create_server(("127.0.0.1", 0)),
               socket.create_server(("::1", 0), family=socket.AF_INET6)]
    master, slave = pty.openpty()
    reader, writer = os.pipe()
    worker = subprocess.Popen(
        ["/usr/bin/python3", f"{work}/worker.py", work, *(str(s.getsockname()[1]) for s in servers)],
        stdin=subprocess.DEVNULL, stdout=writer, stderr=slave, start_new_session=True, cwd="/",
        env={"PATH": "/usr/bin"})
    while not os.path.exists(f"{work}/ready"):
        time.sleep(0.05)
    try:
        if dump(criu, worker.pid, f"{work}/plain").wait() != 0:
            sys.exit(open(f"{work}/plain/dump.log").read())
        port = 29543
        lazy = dump(criu, worker.pid, f"{work}/lazy", "--lazy-pages", "--address", "127.0.0.1",
                    "--port", str(port))
        end_page_server(port)
        if lazy.wait() != 0:
            sys.exit(open(f"{work}/lazy/dump.log").read())
        for old in here.glob("*.img"):
            old.unlink()
        for image in pathlib.Path(work, "plain").glob("*.img"):
            if image.name.startswith(keep):
                shutil.copy(image, here)
        shutil.copy(f"{work}/lazy/pagemap-{worker.pid}.img", here / "lazy-pagemap.img")
        print(worker.pid, json.load(open(f"{work}/ready")))
    finally:
        for pid in [*json.load(open(f"{work}/ready"))["children"][:1], worker.pid]:
            os.kill(pid, 9)
        worker.wait()
        shutil.rmtree(work)


if __name__ == "__main__":
    main(sys.argv[1])
