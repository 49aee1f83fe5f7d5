//! Small programs that ask as few do.

/// Asks its argument by every call there is, and says "as asked" if each answer and each name of the other
/// end is of that address.
pub(crate) const NAMES: &str = r#"
import socket, struct, sys
asked = sys.argv[1]
family = socket.AF_INET6 if ":" in asked else socket.AF_INET
name = b"".join(bytes([len(part)]) + part for part in (b"test", b"example")) + b"\0"
question = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + name + struct.pack(">2H", 1, 1)
def is_answer(answer):
    assert answer[:2] == question[:2] and answer[-4:] == bytes([203, 0, 113, 10]), answer
def is_asked(name):
    assert name[:2] == (asked, 53), (name, n)
def udp():
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(10)
    return s
s = udp()
for n in range(2):
    s.sendto(question, (asked, 53))
    answer, name = s.recvfrom(512)
    is_answer(answer), is_asked(name)
s = udp()
for n in range(2):
    s.connect((asked, 53))
    is_asked(s.getpeername())
    s.send(question)
    answer, name = s.recvfrom(512)
    is_answer(answer), is_asked(name)
s = socket.socket(family, socket.SOCK_STREAM)
s.settimeout(10)
s.connect((asked, 53))
is_asked(s.getpeername())
s.sendall(struct.pack(">H", len(question)) + question)
answer = b""
while len(answer) < 2 or len(answer) < 2 + struct.unpack(">H", answer[:2])[0]:
    answer += s.recv(512)
is_answer(answer[2:])
print("as asked")
"#;

/// Connects to a resolver of this machine, then lets lockne run a program that asks it by that socket.
pub(crate) const OLDER: &str = r#"
import os, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(("127.0.0.53", 53))
s.set_inheritable(True)
asker = """
import errno, socket, sys
s = socket.socket(fileno=int(sys.argv[1]))
try:
    s.send(b"any question at all")
    print("sent")
except OSError as error:
    print(errno.errorcode[error.errno])
"""
lockne, state = sys.argv[1:]
os.execv(lockne, [lockne, "--state-dir", state, "run", "--via", "a", "--", sys.executable, "-c", asker, str(s.fileno())])
"#;

/// Asks neighbours by mDNS, LLMNR, `NetBIOS` and SSDP, on the home's device; that it may not is no failure.
pub(crate) const MULTICAST: &str = r#"
import socket
index = socket.if_nametoindex("eth0")
def send(family, to, port):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    if family == socket.AF_INET:
        s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("192.0.2.2"))
    else:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    try:
        s.sendto(b"who is printer?", (to, port))
    except OSError as error:
        print(to, port, error)
for to, port in [("224.0.0.251", 5353), ("224.0.0.252", 5355), ("239.255.255.250", 1900),
                 ("192.0.2.255", 137), ("255.255.255.255", 137)]:
    send(socket.AF_INET, to, port)
for to, port in [("ff02::fb", 5353), ("ff02::1:3", 5355), ("ff02::c", 1900)]:
    send(socket.AF_INET6, to, port)
"#;

/// Listens where systemd-resolved, nscd, avahi and somebody else would, then lets programs connect there, free and
/// under each policy. Says for each who was let in, and whether getent came to nscd.
pub(crate) const SOCKETS: &str = r#"
import os, socket, subprocess, sys, threading
lockne, state = sys.argv[1:]
paths = ["/run/systemd/resolve/io.systemd.Resolve", "/var/run/nscd/socket", "/run/nscd/socket",
         "/run/avahi-daemon/socket", "/run/other/socket", "/run/other/io.systemd.Resolved", "/run/x"]
nscd = 0
def serve(path):
    global nscd
    s = socket.socket(socket.AF_UNIX)
    s.bind(path)
    s.listen(64)
    def accept():
        global nscd
        while True:
            connection, _ = s.accept()
            nscd += path.endswith("nscd/socket")
            connection.close()
    threading.Thread(target=accept, daemon=True).start()
for path in paths:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not os.path.exists(path):
        serve(path)
client = """
import socket, sys
for path in sys.argv[1:]:
    s = socket.socket(socket.AF_UNIX)
    try:
        s.connect(path)
        print("in", end=" ")
    except ConnectionRefusedError:
        print("refused", end=" ")
print()
"""
more = ["/run/systemd/resolve/../resolve/io.systemd.Resolve", "/run/nscd//socket"]
def under(*policy):
    return [lockne, "--state-dir", state, "run", *policy, "--"] if policy else []
for policy in [[], ["--via", "a"], ["--block"], ["--direct"]]:
    before = nscd
    command = under(*policy) + [sys.executable, "-c", client, *paths, *more]
    found = subprocess.run(command, capture_output=True, text=True)
    print(*policy, ":", found.stdout.strip() + found.stderr.strip())
    before = nscd
    subprocess.run(under(*policy) + ["getent", "ahosts", "test.example"], capture_output=True)
    print("nscd was asked" if nscd > before else "nscd was not asked")
"#;
