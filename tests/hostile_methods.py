"""Methods that misbehave on models of three tokens, and give this program for all others."""

import ctypes
import mmap
import os
import resource
import signal
import subprocess
import sys
import time

GOOD = "program = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ))"


def _hostile(misbehave):
    def method(weights):
        return misbehave() if len(weights.input_vocab) == 3 else GOOD

    return method


def _sleep():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    time.sleep(60)


def _raise():
    raise RuntimeError("no\nidea " + "x" * 10_000)


def _print_megabytes():
    for stream in (sys.stdout, sys.stderr):
        stream.write("x" * 50_000_000)
        stream.flush()
    return GOOD


def _share_memory():
    held = [mmap.mmap(-1, 1 << 30) for _ in range(3)]
    for memory in held:
        for page in range(0, 1 << 30, 4096):
            memory[page] = 1
    time.sleep(60)


def crowd(weights):
    """At three tokens, leave a process behind that fills memory; then be slow for as long as it is there."""
    if len(weights.input_vocab) != 3:
        time.sleep(5 * len(_crowded))
    elif not os.fork():
        _share_memory()
    else:
        _crowded.append(True)
    return GOOD


_crowded = []


_kept = []


def _fill_memory():
    while True:
        _kept.append(bytearray(1 << 24))


def _answer_itself(line):
    for number in range(3, 64):
        try:
            os.write(number, line.encode())
        except OSError:
            continue
    time.sleep(60)


def _close_input():
    os.close(0)
    return GOOD


def _answer_twice():
    os.fork()
    return GOOD


def _write_to_every_file():
    for number in range(3, 64):
        try:
            os.write(number, b"x" * 5_000_000 + b"\n")
        except OSError:
            continue


crash = _hostile(lambda: ctypes.string_at(0))
leave = _hostile(lambda: os._exit(3))
leave_politely = _hostile(lambda: sys.exit("done"))
hang = _hostile(_sleep)
spin = _hostile(lambda: next(iter(int, 1) for _ in iter(int, 1) if False))
fail = _hostile(_raise)
allocate = _hostile(lambda: bytearray(20 << 30))
print_megabytes = _hostile(_print_megabytes)
write_to_every_file = _hostile(_write_to_every_file)
give_a_number = _hostile(lambda: 17)
give_a_megabyte = _hostile(lambda: "x" * 1_000_000)
give_up = _hostile(lambda: None)
share_memory = _hostile(_share_memory)
fill_memory = _hostile(_fill_memory)
nest = _hostile(lambda: _answer_itself("[" * 100_000 + "\n"))
answer_another = _hostile(lambda: _answer_itself('{"number": 1, "code": "x"}\n'))
answer_a_number = _hostile(lambda: _answer_itself('{"number": 2, "code": 5}\n'))
close_input = _hostile(_close_input)
answer_twice = _hostile(_answer_twice)
take_few_files = _hostile(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)))
