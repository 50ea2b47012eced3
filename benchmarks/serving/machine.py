#!/usr/bin/env python3
"""One line of results: the processor with the flags that matter, and the load average.

usage: machine.py CASE
"""

import json
import os
import sys

WANTED = ("avx", "amx", "fma", "f16c", "sse4")


def main() -> None:
    info = {}
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            info.setdefault(name.strip(), value.strip())
    flags = [flag for flag in info.get("flags", "").split() if flag.startswith(WANTED)]
    subject = f"{info.get('model name', 'unknown')}, {os.cpu_count()} CPUs, {' '.join(flags)}"
    line = {"bench": "machine", "case": sys.argv[1], "subject": subject}
    line |= {"metric": "load average", "value": os.getloadavg()[0], "unit": "processes"}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
