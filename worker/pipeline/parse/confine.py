"""What the child gives up before it looks at a document: memory, time, processes, network, files.

Runs in the child only, before any untrusted byte is read, and needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import sys

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2

# What a parser still may ask of the kernel once its modules are imported and its file is open: memory,
# the descriptors it has, clocks, its own end. Opening a file, making a socket, a process or a thread,
# and looking at other processes (the worker's environment holds its keys) are not among it.
# A list of what is allowed, not of what is forbidden: new system calls are refused by themselves.
_ALLOWED = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10,
        "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17,
        "readv": 19, "writev": 20, "sched_yield": 24, "mremap": 25, "msync": 26, "mincore": 27, "madvise": 28,
        "nanosleep": 35, "getpid": 39, "exit": 60, "gettimeofday": 96, "getrusage": 98, "sysinfo": 99, "times": 100,
        "sigaltstack": 131, "gettid": 186, "futex": 202, "sched_getaffinity": 204, "restart_syscall": 219,
        "clock_gettime": 228, "clock_nanosleep": 230, "exit_group": 231, "newfstatat": 262, "set_robust_list": 273,
        "getrandom": 318, "membarrier": 324, "rseq": 334,
    },
    "aarch64": {
        "lseek": 62, "read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67, "ppoll": 73, "newfstatat": 79,
        "close": 57, "fstat": 80, "exit": 93, "exit_group": 94, "futex": 98, "set_robust_list": 99, "nanosleep": 101,
        "clock_gettime": 113, "clock_nanosleep": 115, "sched_getaffinity": 123, "sched_yield": 124,
        "restart_syscall": 128, "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139,
        "times": 153, "getrusage": 165, "gettimeofday": 169, "getpid": 172, "gettid": 178, "sysinfo": 179, "brk": 214,
        "munmap": 215, "mremap": 216, "mmap": 222, "mprotect": 226, "msync": 227, "mincore": 232, "madvise": 233,
        "getrandom": 278, "membarrier": 283, "rseq": 293,
    },
}  # fmt: skip
_SIGNALS_TO_ITSELF = {"x86_64": (200, 234), "aarch64": (130, 131)}  # tkill, tgkill: how abort() ends a process
_AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def set_limits(*, memory_bytes: int, cpu_seconds: int) -> None:
    """Bound memory (address space, bytes), CPU time (seconds), open files, processes; write no core.

    A second after the CPU limit's signal the kernel kills.
    """
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_AS", memory_bytes)
    _limit("RLIMIT_CPU", cpu_seconds, cpu_seconds + 1)
    _limit("RLIMIT_NOFILE", 64)
    _limit("RLIMIT_NPROC", 0)
    # When the machine itself runs out of memory, this process goes and not the worker.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("1000")


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, also by SIGKILL; Linux only."""
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def leave_network() -> bool:
    """Move into a network namespace of its own, which holds nothing; False where the kernel refuses.

    Must come before any thread. Root without user namespaces can still have a network namespace.
    """
    if sys.platform != "linux":
        return False
    libc = _libc()
    return bool(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0 or libc.unshare(_CLONE_NEWNET) == 0)


def close_doors() -> bool:
    """Refuse (EPERM) every system call that is not needed to compute; False where there is no seccomp.

    Afterwards nothing can be imported, opened or started, and nothing reaches the network. Files of
    any length can no longer be written; the result goes through the pipe that is open.
    """
    _limit("RLIMIT_FSIZE", 0)
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in _ALLOWED:
        return False
    program = _filter(machine)
    array = (_Instruction * len(program))(*program)
    libc = _libc()
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(_Program(len(array), array)), 0, 0) == 0)


def _filter(machine: str) -> list[_Instruction]:
    def returns(value: int) -> _Instruction:
        return _Instruction(_RETURN, 0, 0, value)

    refused = returns(_ERRNO | errno.EPERM)
    program = [
        _Instruction(_LOAD, 0, 0, _ARCHITECTURE_AT),
        _Instruction(_JUMP_EQUAL, 1, 0, _AUDIT_ARCHITECTURE[machine]),
        returns(_KILL),  # calls of another architecture have other numbers
        _Instruction(_LOAD, 0, 0, _NUMBER_AT),
    ]
    for number in sorted(_ALLOWED[machine].values()):
        program += [_Instruction(_JUMP_EQUAL, 0, 1, number), returns(_ALLOW)]
    for number in _SIGNALS_TO_ITSELF[machine]:
        program += [
            _Instruction(_JUMP_EQUAL, 0, 4, number),
            _Instruction(_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
            _Instruction(_JUMP_EQUAL, 0, 1, os.getpid()),
            returns(_ALLOW),
            refused,
        ]
    return [*program, refused]


def _limit(name: str, soft: int, hard: int | None = None) -> None:
    # macOS knows no RLIMIT_AS that works, and a limit already set lower must not be raised.
    kind = getattr(resource, name, None)
    if kind is None:
        return
    with contextlib.suppress(ValueError, OSError):
        ceiling = resource.getrlimit(kind)[1]
        wanted = soft if hard is None else hard
        if ceiling != resource.RLIM_INFINITY:
            wanted = min(wanted, ceiling)
        resource.setrlimit(kind, (min(soft, wanted), wanted))


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
    return libc
