"""Compiles every CUDA kernel with NVRTC for every architecture, and fails on spills and on registers beyond the budget
that the kernel's own header states ("// Registers: NAME N; NAME N", names by their beginning).

usage: gate.py LIBRARY_FOLDER KERNEL_FOLDER [--quick]      (run.sh fetches the library)
"""

import concurrent.futures
import ctypes
import glob
import os
import re
import sys
import time

ARCHITECTURES = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120"]
# What kernels/src/cuda/compile.rs passes.
OPTIONS = ["--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"]
# CODES and GROUP: the forms of ARITHMETIC.md, 8.
FORMS = [(0, 32), (0, 64), (0, 128), (1, 32), (2, 32), (2, 64)]


def load(folder):
    find = lambda name: sorted(glob.glob(os.path.join(folder, "**", name), recursive=True))[0]
    ctypes.CDLL(find("libnvrtc-builtins.so*"), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(find("libnvrtc.so*"))


def headers(folder):
    return {name: open(os.path.join(folder, name), "rb").read() for name in sorted(os.listdir(folder)) if name.endswith(".h")}


def compile_one(nvrtc, source, included, options):
    """The compiler's log; raises with it where the source does not compile."""
    program = ctypes.c_void_p()
    names = (ctypes.c_char_p * len(included))(*[name.encode() for name in included])
    texts = (ctypes.c_char_p * len(included))(*included.values())
    code = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernel.cu", len(included), texts, names)
    assert code == 0, f"nvrtcCreateProgram: {code}"
    given = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    code = nvrtc.nvrtcCompileProgram(program, len(options), given)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    text = log.value.decode()
    if code == 0:
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        assert size.value > 0, "no CUBIN"
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if code != 0:
        raise RuntimeError(text)
    return text


def usage(log):
    """(kernel, registers, spilled bytes, shared bytes) of each kernel in a log of ptxas -v."""
    found, kernel, spilled = [], None, 0
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            kernel, spilled = match[1], 0
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = int(match[1]) + int(match[2])
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            found.append((kernel, int(match[1]), spilled, int(shared[1]) if shared else 0))
    return found


def budgets(source):
    line = re.search(rb"^// Registers: (.*)$", source, re.M)
    assert line, "a kernel's header states its registers"
    pairs = [part.split() for part in line[1].decode().split(";")]
    return {name: int(count) for name, count in pairs}


def main():
    nvrtc, folder, quick = load(sys.argv[1]), sys.argv[2], "--quick" in sys.argv
    included = headers(folder)
    jobs = []
    for path in sorted(glob.glob(os.path.join(folder, "*.cu"))):
        source = open(path, "rb").read()
        by_form = b"NAMED(" in source
        forms = [[f"-DCODES={codes}", f"-DGROUP={group}"] for codes, group in FORMS] if by_form else [[]]
        for architecture in ARCHITECTURES[3:4] if quick else ARCHITECTURES:
            jobs += [(os.path.basename(path), source, architecture, form) for form in forms]

    def run(job):
        name, source, architecture, form = job
        options = OPTIONS + form + [f"--gpu-architecture={architecture}", "--ptxas-options=-v"]
        return compile_one(nvrtc, source, included, options)

    table, faults, start = {}, [], time.time()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for job, future in [(job, pool.submit(run, job)) for job in jobs]:
            name, source, architecture, form = job
            try:
                kernels = usage(future.result())
            except RuntimeError as error:
                faults.append(f"{name} {' '.join(form)} {architecture}: does not compile\n{error}")
                continue
            if not kernels:
                faults.append(f"{name} {' '.join(form)} {architecture}: no kernel in the compiler's log")
            for kernel, registers, spilled, _ in kernels:
                table.setdefault(kernel, {})[architecture] = (registers, spilled)
                budget = [count for begin, count in budgets(source).items() if kernel.startswith(begin)]
                if len(budget) != 1:
                    faults.append(f"{kernel}: {len(budget)} budgets in the header of {name}")
                elif registers > budget[0]:
                    faults.append(f"{kernel} on {architecture}: {registers} registers, {budget[0]} allowed")
                if spilled:
                    faults.append(f"{kernel} on {architecture}: {spilled} bytes spilled")

    shown = ARCHITECTURES[3:4] if quick else ARCHITECTURES
    print(f"{'registers (spilled bytes)':42}" + "".join(f"{a:>11}" for a in shown))
    for kernel, row in table.items():
        cells = [f"{r}{f' ({s})' if s else ''}" for r, s in (row.get(a, ("-", 0)) for a in shown)]
        print(f"{kernel:42}" + "".join(f"{cell:>11}" for cell in cells))
    print(f"{len(jobs)} compilations, {len(table)} kernels, {time.time() - start:.0f} s")
    for fault in faults:
        print("FAULT", fault)
    sys.exit(1 if faults else 0)


main()
