"""The process tree that CRIU dumps for tests/data/criu and tests/e2e/test_images.py.

worker.py FOLDER OUTSIDE4 OUTSIDE6: listeners on IPv4, IPv6 and both, TCP connections with itself and with
its child, one connection to each of the two ports outside, two logs, one pipe with data, one socket pair, a
deleted file, a thread, a child and a zombie. It then answers one command a connection on its listeners.
"""
import errno
import json
import os
import select
import socket
import sys
import threading

folder, outside4, outside6 = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def listen(family, host, only6=True):
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int("NO_REUSEADDR" not in os.environ))
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only6))
    listener.bind((host, 0))
    listener.listen(8)
    return listener


def connect(listener, family, host):
    client = socket.socket(family, socket.SOCK_STREAM)
    client.connect((host, listener.getsockname()[1]))
    return client, listener.accept()[0]


listeners = {
    "v4": listen(socket.AF_INET, "127.0.0.1"),
    "v6": listen(socket.AF_INET6, "::1"),
    "dual": listen(socket.AF_INET6, "::", only6=False),
}
pairs = {
    "v4": connect(listeners["v4"], socket.AF_INET, "127.0.0.1"),
    "v6": connect(listeners["v6"], socket.AF_INET6, "::1"),
    "mapped": connect(listeners["dual"], socket.AF_INET, "127.0.0.1"),
    "mapped6": connect(listeners["dual"], socket.AF_INET6, "::ffff:127.0.0.1"),
}
for name, (client, server) in pairs.items():  # in flight while the tree is dumped
    client.sendall(b"to server " + name.encode())
    server.sendall(b"to client " + name.encode())
with_child = connect(listeners["v4"], socket.AF_INET, "127.0.0.1")
outside = {
    "v4": socket.create_connection(("127.0.0.1", outside4)),
    "v6": socket.create_connection(("::1", outside6)),
}
log = open(f"{folder}/log", "w", buffering=1)
log.write("first\n")
append_log = open(f"{folder}/append-log", "a", buffering=1)
append_log.write("first\n")
log_reader = open(f"{folder}/log", "rb", buffering=0)
data = open(f"{folder}/data", "rb")
deleted = open(f"{folder}/deleted", "w+")
os.unlink(f"{folder}/deleted")
pipe = os.pipe()
os.write(pipe[1], b"in the pipe")
unix = socket.socketpair()

zombie = os.fork()
if zombie == 0:
    os._exit(7)
os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
child = os.fork()
if child == 0:
    while True:
        text = with_child[1].recv(100)
        with_child[1].sendall(text.upper()) if text else threading.Event().wait()
with_child[1].close()
threading.Thread(target=threading.Event().wait, daemon=True).start()


def outcome(call):
    try:
        return call()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def exchange(client, server):
    got = []
    for source, target in ((client, server), (server, client)):
        target.settimeout(5)
        source.sendall(b"ping")
        text = b""
        while not text.endswith(b"ping"):
            text += target.recv(100) or b"?ping"
        got.append(text.decode())
    return got


def state(connection):
    connection.settimeout(5)
    return [outcome(lambda: connection.recv(100).decode()), outcome(lambda: connection.send(b"x"))]


def ask_child():
    with_child[0].sendall(b"cross")
    return with_child[0].recv(100).decode()


def run(command, argument):
    if command == "pairs":
        return {name: outcome(lambda p=pair: exchange(*p)) for name, pair in pairs.items()}
    if command == "child":
        return outcome(ask_child)
    if command == "outside":
        return {name: state(connection) for name, connection in outside.items()}
    if command == "log":
        log.write(argument + "\n")
        append_log.write(argument + "\n")
        return None
    if command == "read-log":
        return log_reader.read().decode()
    if command == "pipe":
        return os.read(pipe[0], 100).decode()
    if command == "say":
        print(argument, flush=True)
        return None
    raise ValueError(command)


ready = {name: listener.getsockname()[1] for name, listener in listeners.items()}
ready["children"] = [child, zombie]
ready["pipe"] = pipe
with open(f"{folder}/ready.tmp", "w") as file:
    json.dump(ready, file)
os.rename(f"{folder}/ready.tmp", f"{folder}/ready")
while True:
    for listener in select.select(list(listeners.values()), [], [])[0]:
        connection = listener.accept()[0]
        with connection, connection.makefile("rw") as stream:
            command, _, argument = stream.readline().rstrip("\n").partition(" ")
            stream.write(json.dumps(run(command, argument)) + "\n")
